"""Estimates of a run's memory on each device, and of its time: `python -m lmix plan`."""

from lmix.planning.plan import Device, Needs, describe, needs

__all__ = ["Device", "Needs", "describe", "needs"]
