"""Objectives: the loss over a step's groups. Each is a small class with only its own settings."""

from lmix.training.objectives.chord import CHORD
from lmix.training.objectives.cispo import CISPO
from lmix.training.objectives.dapo import DAPO
from lmix.training.objectives.distillation import Distillation
from lmix.training.objectives.dr_grpo import DrGRPO
from lmix.training.objectives.grpo import GRPO
from lmix.training.objectives.gspo import GSPO
from lmix.training.objectives.logit_fusion import LogitFusion
from lmix.training.objectives.luffy import LUFFY
from lmix.training.objectives.objective import Objective, Scored, StepTotals
from lmix.training.objectives.rloo import RLOO

__all__ = [
    "CHORD",
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "LUFFY",
    "RLOO",
    "Distillation",
    "DrGRPO",
    "LogitFusion",
    "Objective",
    "Scored",
    "StepTotals",
]
