"""What a run will need: memory of each device, and time. `python -m lmix plan`."""

from lmix.planning.plan import Device, Needs, describe, needs

__all__ = ["Device", "Needs", "describe", "needs"]
