import lightning as L
import pytest
import torch

from lmix.functional import group_advantages
from lmix.model.end_tokens import end_tokens
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw
from tests.training.helpers import module, without_trainer


@pytest.fixture(scope="module")
def step():
    """A module with groups of which some are live and some dead, and their advantages `[P, G]`."""
    L.seed_everything(0)
    m = module()
    source = without_trainer(m)
    prompts, limits = source.sets["train"][:4], Limits(48, tuple(end_tokens(m.policy, m.tokenizer)))
    groups = m.sampler.generate(prompts, limits, Draw(seed=3), m.mixture, samples=4, keep_frozen=True)
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    return m, groups, group_advantages(rewards)
