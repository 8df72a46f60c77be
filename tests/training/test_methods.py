"""The baselines and the objective's options."""

import pytest
import torch

from lmix.functional import group_token_weights, k3_kl
from lmix.rollout.rollout import pack
from lmix.training.config import ObjectiveConfig
from tests.training.test_grpo import data, gradients, module, step, trainer  # noqa: F401


def test_the_kl_term_against_autograd_of_the_written_out_loss(step):  # noqa: F811
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
    assert stats["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_kl_grpo_at_beta_0_is_grpo(step):  # noqa: F811
    m, rollouts, advantages = step
    plain, _, _ = gradients(m, rollouts, advantages)
    zero, stats, _ = gradients(m, rollouts, advantages, beta=0.0)
    assert stats["kl"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))


def test_dead_groups_have_a_gradient_where_there_is_a_kl(step):  # noqa: F811
    m, rollouts, advantages = step
    found, _, _ = gradients(m, rollouts, torch.zeros_like(advantages), beta=0.1)
    assert sum(float(g.abs().sum()) for g in found) > 0


def test_the_batch_s_normaliser_weighs_every_token_alike(step):  # noqa: F811
    m, rollouts, _ = step
    m.objective = ObjectiveConfig(normaliser="batch")
    tokens = sum(len(r.completion_ids) for r in rollouts)
    assert torch.allclose(m.token_weights(rollouts), torch.full((16,), 1 / tokens))


def test_the_clip_s_half_widths():
    assert ObjectiveConfig().clip == (0.2, 0.2)
    assert ObjectiveConfig(clip_radius_above=0.28).clip == (0.2, 0.28)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        ObjectiveConfig(beta=-1.0)
    with pytest.raises(ValueError, match="clip_radius_above must be positive"):
        ObjectiveConfig(clip_radius_above=0.0)


def test_advantages_without_the_standard_deviation(tmp_path):
    m = module(objective=ObjectiveConfig(scale_by_std=False, beta=0.01))
    t = trainer(tmp_path, 1)
    t.fit(m, data())
    assert float(t.callback_metrics["train/kl"]) >= 0


def test_sft_lowers_the_loss_of_its_demonstrations(tmp_path):
    from lmix.model.adapters import AdapterConfig
    from lmix.model.backbone import BackboneConfig
    from lmix.training.config import OptimizerConfig, SamplingConfig
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
