"""Several optimiser steps on one step's rollouts, against a loop that is written out over plain autograd."""

import lightning as L
import pytest
import torch

from lmix.functional import group_advantages
from lmix.rollout.packing import mini_batch_places, pack
from lmix.rollout.types import flatten
from lmix.training.config import OptimizerConfig
from lmix.training.objectives import GRPO
from tests.training.helpers import data, module, trainer, watch_updates, written_out_log_probs

LR, EPS = 3e-3, 1e-5


def test_places_are_split_in_order_over_ranks():
    assert mini_batch_places(range(8), 8, 4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert mini_batch_places(range(7), 7, 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert mini_batch_places(range(2), 2, 8) == [[0], [1]]  # an epoch's last step may be short
    assert mini_batch_places([1, 3], 5, 5) == [[], [0], [], [1], []]  # the second of two ranks
    both = [mini_batch_places(places, 7, 3) for places in ([0, 2, 4, 6], [1, 3, 5])]
    joined = [[2 * i for i in a] + [2 * i + 1 for i in b] for a, b in zip(*both, strict=True)]
    assert [sorted(part) for part in joined] == mini_batch_places(range(7), 7, 3)


class Before(L.Callback):
    """The policy adapter before the first step; and an eps of Adam that gradients of rounding's size do not exceed."""

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].param_groups[0]["eps"] = EPS
        self.values = [p.detach().clone() for p in pl_module.policy.policy_parameters()]


def trained(tmp_path, steps=1, **objective):
    L.seed_everything(0)  # of LoRA's A
    before = Before()
    m = module(objective=GRPO(**objective), optimizer=OptimizerConfig(lr=LR, max_grad_norm=0.05))
    t = trainer(tmp_path, steps, callbacks=[before])
    t.fit(m, data(prompts=8))
    return m, t, before.values


@pytest.mark.parametrize(("normaliser", "mu"), [("group", 1), ("response", 1), ("group", 2)])
def test_8_mini_batches_are_the_written_out_loop(tmp_path, normaliser, mu):
    """Old log-probabilities of all eight before the first step; clipping and AdamW by torch; to 1e-6."""
    m, t, start = trained(tmp_path, normaliser=normaliser, mini_batches=8, inner_updates=mu)
    assert t.global_step == 1
    ours = [p.detach().clone() for p in m.policy.policy_parameters()]
    parameters = m.policy.policy_parameters()
    with torch.no_grad():
        for p, value in zip(parameters, start, strict=True):
            p.copy_(value)
    rewards = torch.tensor([group.rewards for group in m.groups])
    advantages = group_advantages(rewards)
    assert 0 < sum(bool(a.any()) for a in advantages) < 8  # some groups are dead
    optimizer = torch.optim.AdamW(parameters, LR, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    packed = [pack(group.rollouts) for group in m.groups]
    with torch.no_grad():
        old = [written_out_log_probs(m, one) for one in packed]
    for _ in range(mu):
        for i, one in enumerate(packed):
            rows = one.mask.nonzero()[:, 0]
            ratio = (written_out_log_probs(m, one) - old[i]).exp()
            a = advantages[i][rows]
            terms = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            lengths = one.mask.sum(dim=1)
            weights = 1 / one.mask.sum() if normaliser == "group" else 1 / (4 * lengths[rows])
            optimizer.zero_grad(set_to_none=False)
            for p in parameters:
                p.grad = torch.zeros_like(p)
            (-(terms * weights).sum()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.05)
            optimizer.step()
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(ours, start, strict=True))
    for a, b in zip(ours, parameters, strict=True):
        assert (a - b).abs().max() <= 1e-6


def test_the_old_log_probabilities_of_all_come_before_the_first_step(tmp_path, monkeypatch):
    updates = []
    from lmix.training import grpo

    class Watched(grpo.Update):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            updates.append(self)

    monkeypatch.setattr(grpo, "Update", Watched)
    m, t, _ = trained(tmp_path, mini_batches=4)
    assert [len(update.rollouts_B) for update in updates] == [8, 8, 8, 8]
    order = [rollout for update in updates for rollout in update.rollouts_B]
    assert all(a is b for a, b in zip(order, flatten(m.groups), strict=True))
    # the sampler saw the policy of before the first step too
    assert float(t.callback_metrics["train/sampler_gap_max"]) < 1e-3
    assert t.global_step == 1


def test_one_mini_batch_is_the_step_without_them(tmp_path, monkeypatch):
    seen = watch_updates(monkeypatch)
    one, _, _ = trained(tmp_path / "one", steps=2, mini_batches=1)
    assert len(seen) == 2
    plain, _, _ = trained(tmp_path / "plain", steps=2)
    for a, b in zip(one.policy.policy_parameters(), plain.policy.policy_parameters(), strict=True):
        assert torch.equal(a, b)


def test_more_mini_batches_than_prompts_is_one_line(tmp_path):
    m = module(objective=GRPO(mini_batches=9))
    with pytest.raises(ValueError, match=r"objective.mini_batches 9 must be at most data.prompts_per_step 8"):
        trainer(tmp_path, 1).fit(m, data(prompts=8))
