"""The baselines and the objective's options."""

import lightning as L
import pytest
import torch
from lmix.rollout.rollout import pack

from lmix.functional import group_token_weights, k3_kl
from lmix.model.adapters import AdapterConfig
from lmix.training.config import ObjectiveConfig, SamplingConfig
from tests.training.helpers import SFT, data, gradients, module, trainer


def test_the_kl_term_against_autograd_of_the_written_out_loss(step):
    m, rollouts, advantages = step
    alpha, m.policy.alpha = m.policy.alpha, 0.0
    try:
        found, stats, _ = gradients(m, rollouts, advantages, beta=0.5)
        packed = pack(rollouts)
        chosen = packed.targets[:, None]
        policy = m.policy(packed.input_ids).flatten(0, 1)[packed.predicts].log_softmax(-1).gather(1, chosen)[:, 0]
        m.policy.alpha = 1.0
        with torch.no_grad():
            logits = m.policy(packed.input_ids).flatten(0, 1)[packed.predicts]
        reference = logits.log_softmax(-1).gather(1, chosen)[:, 0]
        rows = packed.mask.nonzero()[:, 0]
        weights = group_token_weights(packed.mask, torch.tensor([r.prompt for r in rollouts]))[rows]
        kl = k3_kl(policy, reference)
        loss = -(((policy - policy.detach()).exp() * advantages[rows] - 0.5 * kl) * weights).sum()
        expected = torch.autograd.grad(loss, m.policy.policy_parameters())
    finally:
        m.policy.alpha = alpha
    assert stats["kl"] / stats["tokens"] == pytest.approx(kl.mean().item(), rel=1e-4)
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
    zero = trained(tmp_path, **anchored, objective=ObjectiveConfig(beta=0.0))
    other = trained(tmp_path, **anchored, objective=ObjectiveConfig(beta=0.5))
    assert all(torch.equal(a, b) for a, b in zip(grpo, zero, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(grpo, other, strict=True))


def test_an_ensemble_of_two_is_fixed(tmp_path):
    fixed = trained(tmp_path, alpha=0.25)
    ensemble = trained(tmp_path, weights=[0.75, 0.25])
    assert all(torch.equal(a, b) for a, b in zip(fixed, ensemble, strict=True))


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
    assert m.policy.streams == ("policy", "reference", "expert_1")
    assert 0 <= float(t.callback_metrics["train/sampler_logprob_gap"]) < 1e-4
    assert float(t.callback_metrics["train/grad_norm"]) > 0


def test_the_kl_s_reference_is_scored_once(tmp_path, monkeypatch):
    objective = ObjectiveConfig(beta=0.1, inner_updates=3, micro_batch_tokens=300)
    m = module(alpha=0.0, adapters=AdapterConfig(policy=SFT, reference=SFT), objective=objective)
    calls = {"score": 0, "reference": 0}
    score, reference = m.score, m.reference_log_probs
    monkeypatch.setattr(m, "score", lambda packed: (calls.update(score=calls["score"] + 1), score(packed))[1])
    monkeypatch.setattr(
        m, "reference_log_probs", lambda packed: (calls.update(reference=calls["reference"] + 1), reference(packed))[1]
    )
    trainer(tmp_path, 1).fit(m, data())
    assert calls["score"] == 3 * calls["reference"] > 3


def test_dead_groups_are_replaced_by_other_prompts(tmp_path, monkeypatch):
    sampling = SamplingConfig(samples_per_prompt=4, max_new_tokens=48, seed=0, resample_dead=2)
    m = module(sampling=sampling)
    updates = []
    accumulate = m.accumulate_gradient

    def watched(rollouts, advantages, weights, before):
        updates.append((rollouts, advantages))
        return accumulate(rollouts, advantages, weights, before)

    monkeypatch.setattr(m, "accumulate_gradient", watched)
    t = trainer(tmp_path, 1)
    t.fit(m, data())
    groups = [m.rows[i : i + 4] for i in range(0, len(m.rows), 4)]
    assert all(len({row.problem_id for row in group}) == 1 for group in groups)
    ids = [group[0].problem_id for group in groups]
    assert len(ids) == len(set(ids)) > 4  # 16 problems, 4 a step: none is drawn twice, and what was dead is among them
    assert float(t.callback_metrics["train/replaced_groups"]) == len(ids) - 4
    assert float(t.callback_metrics["train/reward"]) == pytest.approx(sum(r.reward for r in m.rows) / len(m.rows))
    dead = [len({row.reward for row in group}) == 1 for group in groups]
    ((rollouts, advantages),) = updates
    used = [advantages[i : i + 4].any().item() for i in range(0, 16, 4)]
    assert sum(used) == dead.count(False)  # all that is live is in the update
    assert float(t.callback_metrics["train/dead_groups"]) == pytest.approx(1 - sum(used) / 4)
    assert [r.prompt for r in rollouts] == [p for p in range(4) for _ in range(4)]
    texts = {row.completion for group, d in zip(groups, dead, strict=True) for row in group if not d}
    assert texts == {r.text for i, r in enumerate(rollouts) if used[i // 4]}
    again = module(sampling=sampling)
    trainer(tmp_path, 1).fit(again, data())
    assert [r.completion for r in again.rows] == [r.completion for r in m.rows]


def test_dead_groups_have_a_gradient_where_there_is_a_kl(step):
    m, rollouts, advantages = step
    alpha, m.policy.alpha = m.policy.alpha, 0.0
    try:
        found, _, _ = gradients(m, rollouts, torch.zeros_like(advantages), beta=0.1)
    finally:
        m.policy.alpha = alpha
    assert sum(float(g.abs().sum()) for g in found) > 0


def test_the_batch_s_normaliser_weighs_every_token_alike(step):
    m, rollouts, _ = step
    m.objective = ObjectiveConfig(normaliser="batch")
    tokens = sum(len(r.completion_ids) for r in rollouts)
    assert torch.allclose(m.token_weights(rollouts), torch.full((16,), 1 / tokens))


@pytest.mark.parametrize(("limit", "kept"), [(48, 16), (10, 16), (64, 4)])
def test_the_constant_normaliser_weighs_tokens_by_the_limit_and_the_step_s_rollouts(step, limit, kept, monkeypatch):
    m, rollouts, _ = step
    monkeypatch.setattr(m, "objective", ObjectiveConfig(normaliser="constant"))
    monkeypatch.setattr(m, "sampling", SamplingConfig(samples_per_prompt=4, max_new_tokens=limit))
    found = m.token_weights(rollouts[:kept])
    assert torch.allclose(found, torch.full((kept,), 1 / (limit * kept)))


def test_the_clip_s_half_widths():
    assert ObjectiveConfig().clip == (0.2, 0.2)
    assert ObjectiveConfig(clip_radius_above=0.28).clip == (0.2, 0.28)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        ObjectiveConfig(beta=-1.0)
    with pytest.raises(ValueError, match="clip_radius_above must be positive"):
        ObjectiveConfig(clip_radius_above=0.0)


def test_the_step_s_advantages_follow_scale_by_std(tmp_path, monkeypatch):
    """With and without the division by the standard deviation, against the rewards of the step's own rows."""
    for scale_by_std in (True, False):
        m = module(objective=ObjectiveConfig(scale_by_std=scale_by_std))
        seen = []
        accumulate = m.accumulate_gradient

        def watched(rollouts, advantages, weights, before, seen=seen, accumulate=accumulate):
            seen.append(advantages)
            return accumulate(rollouts, advantages, weights, before)

        monkeypatch.setattr(m, "accumulate_gradient", watched)
        trainer(tmp_path, 1).fit(m, data())
        rewards = torch.tensor([row.reward for row in m.rows]).view(-1, 4)
        assert len(set(rewards.sum(1).tolist()) - {0.0, 4.0}) > 0  # a live group
        expected = rewards - rewards.mean(1, keepdim=True)
        if scale_by_std:
            expected = expected / (rewards.std(1, keepdim=True, correction=0) + 1e-6)
        assert torch.allclose(seen[0].view(-1, 4), expected, atol=1e-5)


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
