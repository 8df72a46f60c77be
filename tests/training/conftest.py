import lightning as L
import pytest
import torch

from lmix.functional import group_advantages
from lmix.rollout.engine import Draw
from tests.training.helpers import data, module


@pytest.fixture(scope="module")
def step():
    """A module with rollouts that hold live and dead groups, and their advantages."""
    L.seed_everything(0)
    m = module()
    m.configure_model()
    with torch.no_grad():
        for name, p in m.policy.named_parameters():
            if ".policy." in name:
                p.normal_(std=0.05)
    source = data()
    source.tokenizer = m.tokenizer
    source.setup("fit")
    m.manual_backward = lambda loss: loss.backward()  # no trainer here
    m.__dict__["_fabric"] = None
    batch = source.sets["train"][:4]
    rollouts = m.engine.generate([e.prompt_ids for e in batch], 48, Draw(seed=3), samples=4, keep_frozen=True)
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    return m, rollouts, group_advantages(rewards).flatten()
