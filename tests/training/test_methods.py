"""The baselines and the objective's options."""

from collections import Counter

import lightning as L
import pytest
import torch

from lmix.functional import group_token_weights, k3_kl
from lmix.model.adapters import AdapterConfig
from lmix.model.mixture import Mixture
from lmix.rollout.packing import pack
from lmix.rollout.types import flatten
from lmix.training import update
from lmix.training.config import SamplingConfig
from lmix.training.objectives import GRPO
from tests.training.helpers import (
    SFT,
    data,
    gradients,
    module,
    texts,
    trainer,
    update_of,
    watch_updates,
    written_out_log_probs,
)


def test_the_kl_term_against_autograd_of_the_written_out_loss(step):
    m, groups, advantages = step
    found, stats, _ = gradients(m, groups, advantages, mixture=Mixture.at(0.0), beta=0.5)
    packed = pack(flatten(groups))
    policy = written_out_log_probs(m, packed, Mixture.at(0.0))
    with torch.no_grad():
        reference = written_out_log_probs(m, packed, Mixture.at(1.0))
    rows = packed.mask.nonzero()[:, 0]
    weights = group_token_weights(packed.mask.sum(dim=1), torch.arange(4).repeat_interleave(4))[rows]
    kl = k3_kl(policy, reference)
    loss = -(((policy - policy.detach()).exp() * advantages.flatten()[rows] - 0.5 * kl) * weights).sum()
    expected = torch.autograd.grad(loss, m.policy.policy_parameters())
    assert stats.sums["kl"] / stats.tokens == pytest.approx(kl.mean().item(), rel=1e-4)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def trained(tmp_path, steps=2, **parts) -> list[torch.Tensor]:
    """The policy adapter after some steps."""
    L.seed_everything(0)  # of LoRA's A
    m = module(**parts)
    trainer(tmp_path, steps).fit(m, data(prompts=16))
    return [p.detach() for p in m.policy.policy_parameters()]


def test_kl_grpo_at_beta_0_is_grpo(tmp_path):
    """The configurations of the two methods: with an anchor and without."""
    anchored = {"alpha": 0.0, "adapters": AdapterConfig(policy=SFT, reference=SFT)}
    grpo = trained(tmp_path, alpha=0.0, adapters=AdapterConfig(policy=SFT))
    zero = trained(tmp_path, **anchored, objective=GRPO(beta=0.0))
    other = trained(tmp_path, **anchored, objective=GRPO(beta=0.5))
    assert all(torch.equal(a, b) for a, b in zip(grpo, zero, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(grpo, other, strict=True))


def test_an_ensemble_of_two_is_fixed(tmp_path):
    fixed = trained(tmp_path, alpha=0.25)
    ensemble = trained(tmp_path, weights=[0.75, 0.25])
    assert all(torch.equal(a, b) for a, b in zip(fixed, ensemble, strict=True))


@pytest.mark.slow
def test_an_expert_of_weight_0_changes_nothing_and_two_halves_are_a_whole(tmp_path):
    fixed = trained(tmp_path, alpha=0.25)
    experts = AdapterConfig(reference=SFT, experts=[SFT], rank=4)
    idle = trained(tmp_path, weights=[0.75, 0.25, 0.0], adapters=experts)
    halves = trained(tmp_path, weights=[0.75, 0.125, 0.125], adapters=experts)
    assert all(torch.equal(a, b) for a, b in zip(fixed, idle, strict=True))
    for a, b in zip(fixed, halves, strict=True):
        assert (a - b).norm() <= 5e-3 * b.norm() + 1e-6  # Adam scales rounding up


def test_the_base_as_an_expert(tmp_path):
    """As reproduce.py has it: the policy, SFT and the base."""
    experts = AdapterConfig(reference=SFT, experts=["base"], rank=4)
    m = module(weights=[0.5, 0.25, 0.25], adapters=experts)
    t = trainer(tmp_path, 1)
    t.fit(m, data(prompts=16))
    assert m.mixture.streams == ("policy", "reference", "expert_1")
    assert 0 <= float(t.callback_metrics["train/sampler_logprob_gap"]) < 1e-4
    assert float(t.callback_metrics["train/grad_norm"]) > 0


def test_the_kl_s_reference_is_scored_once(tmp_path, monkeypatch):
    objective = GRPO(beta=0.1, inner_updates=3, micro_batch_tokens=300)
    m = module(alpha=0.0, adapters=AdapterConfig(policy=SFT, reference=SFT), objective=objective)
    calls: Counter[str] = Counter()

    def counted(name, function):
        return lambda *arguments: (calls.update([name]), function(*arguments))[1]

    for name in ("score", "score_stream"):
        monkeypatch.setattr(update, name, counted(name, getattr(update, name)))
    trainer(tmp_path, 1).fit(m, data())
    assert calls["score"] == 3 * calls["score_stream"] > 3


def test_dead_groups_are_replaced_by_other_prompts(tmp_path, monkeypatch):
    sampling = SamplingConfig(samples_per_prompt=4, max_new_tokens=48, seed=0, resample_dead=2)
    m = module(sampling=sampling)
    updates = watch_updates(monkeypatch)
    t = trainer(tmp_path, 1)
    t.fit(m, data())
    assert all(len(group.rollouts) == 4 for group in m.groups)
    ids = [group.problem.id for group in m.groups]
    assert len(ids) == len(set(ids)) > 4  # 16 problems, 4 a step: none is drawn twice, and what was dead is among them
    assert float(t.callback_metrics["train/replaced_groups"]) == len(ids) - 4
    rewards = [r.reward for r in flatten(m.groups)]
    assert float(t.callback_metrics["train/reward"]) == pytest.approx(sum(rewards) / len(rewards))
    live = [group for group in m.groups if len(set(group.rewards)) > 1]
    ((groups, advantages),) = updates
    used = advantages.any(dim=1).tolist()
    assert sum(used) == len(live)  # all that is live is in the update
    assert float(t.callback_metrics["train/dead_groups"]) == pytest.approx(1 - sum(used) / 4)
    assert len(groups) == 4
    assert all(r.prompt is group.prompt for group in groups for r in group.rollouts)
    assert set(texts(live)) == set(texts([group for group, u in zip(groups, used, strict=True) if u]))
    again = module(sampling=sampling)
    trainer(tmp_path, 1).fit(again, data())
    assert texts(again.groups) == texts(m.groups)


def test_dead_groups_have_a_gradient_where_there_is_a_kl(step):
    m, groups, advantages = step
    found, _, _ = gradients(m, groups, torch.zeros_like(advantages), mixture=Mixture.at(0.0), beta=0.1)
    assert sum(float(g.abs().sum()) for g in found) > 0


def test_the_batch_s_normaliser_weighs_every_token_alike(step):
    m, groups, advantages = step
    tokens = sum(len(r.completion_ids) for r in flatten(groups))
    weights = update_of(m, groups, advantages, normaliser="batch").weights_B
    assert torch.allclose(weights, torch.full((16,), 1 / tokens))


@pytest.mark.parametrize(("limit", "kept"), [(48, 4), (10, 4), (64, 1)])
def test_the_constant_normaliser_weighs_tokens_by_the_limit_and_the_step_s_rollouts(step, limit, kept, monkeypatch):
    m, groups, advantages = step
    monkeypatch.setattr(m, "sampling", SamplingConfig(samples_per_prompt=4, max_new_tokens=limit))
    weights = update_of(m, groups[:kept], advantages[:kept], normaliser="constant").weights_B
    assert torch.allclose(weights, torch.full((4 * kept,), 1 / (limit * 4 * kept)))


def test_the_clip_s_half_widths():
    assert GRPO().clip == (0.2, 0.2)
    assert GRPO(clip_radius_above=0.28).clip == (0.2, 0.28)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        GRPO(beta=-1.0)
    with pytest.raises(ValueError, match="clip_radius_above must be positive"):
        GRPO(clip_radius_above=0.0)


def test_the_step_s_advantages_follow_advantage_std(tmp_path, monkeypatch):
    """With each standard deviation and without, against the rewards of the step's own rows."""
    for advantage_std in ("population", "sample", "none"):
        m = module(objective=GRPO(advantage_std=advantage_std))
        seen = watch_updates(monkeypatch)
        trainer(tmp_path, 1).fit(m, data())
        rewards = torch.tensor([group.rewards for group in m.groups])
        assert len(set(rewards.sum(1).tolist()) - {0.0, 4.0}) > 0  # a live group
        expected = rewards - rewards.mean(1, keepdim=True)
        if advantage_std != "none":
            degrees = 3 if advantage_std == "sample" else 4
            expected = expected / ((expected.square().sum(1, keepdim=True) / degrees).sqrt() + 1e-6)
        assert torch.allclose(seen[0][1], expected, atol=1e-5)


def test_sft_lowers_the_loss_of_its_demonstrations(tmp_path):
    from lmix.model.backbone import BackboneConfig
    from lmix.training.config import OptimizerConfig
    from lmix.training.sft import SFTModule

    backbone = BackboneConfig(quantization="none", dtype="float32")
    settings = {"sampling": SamplingConfig(max_new_tokens=40), "optimizer": OptimizerConfig(lr=5e-3)}
    m = SFTModule(backbone, AdapterConfig(rank=4), micro_batch_tokens=200, **settings)
    t = trainer(tmp_path, 1)
    t.fit(m, data(prompts=16))
    first = float(t.callback_metrics["train/loss"])
    t = trainer(tmp_path, 12)
    t.fit(m, data(prompts=16))
    assert float(t.callback_metrics["train/loss"]) < 0.5 * first
    (metrics,) = t.validate(m, data(), verbose=False)
    assert metrics["val/format_rate"] > 0.4  # the base never formats
    with pytest.raises(ValueError, match="reference must be null for SFT"):
        SFTModule(backbone, AdapterConfig(reference="lmix:tiny-arithmetic-sft"))
