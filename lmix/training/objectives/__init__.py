"""Objectives: how a step's groups become a gradient. Each is a small class with only its own settings."""

from lmix.training.objectives.grpo import GRPO
from lmix.training.objectives.objective import Objective, Scored, StepTotals

__all__ = ["GRPO", "Objective", "Scored", "StepTotals"]
