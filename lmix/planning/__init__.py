"""What a run will need: memory of each device, and time. `python -m lmix plan`."""

from lmix.planning.plan import plan

__all__ = ["plan"]
