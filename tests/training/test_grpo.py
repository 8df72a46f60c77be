"""The LightningModule's step against eq. 6 written out, and a run's outer behaviour."""

import dataclasses
import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from lmix.evaluation.rows import completion_rows
from lmix.functional import clipped_surrogate_loss
from lmix.model.adapters import AdapterConfig
from lmix.rollout.packing import pack
from lmix.rollout.types import flatten
from lmix.training.alpha import AdaptiveAlpha, AlphaSchedule
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.completion_log import CompletionLog, drop_later_rows
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.objectives import GRPO
from lmix.training.strategies import ShardedStrategy, check_strategy
from tests.conftest import close
from tests.training.helpers import (
    SFT,
    changed,
    data,
    gradient,
    gradients,
    module,
    texts,
    trainer,
    update_of,
    written_out_log_probs,
)


def test_the_gradient_is_that_of_equation_6_by_autograd(step):
    m, groups, advantages = step
    found, stats, _ = gradients(m, groups, advantages)
    # the slow twin: whole logits of both streams by autograd, all rows at once, dead groups and all
    packed = pack(flatten(groups))
    log_probs = packed.unflatten(written_out_log_probs(m, packed))
    group = torch.arange(4).repeat_interleave(4)
    loss, _ = clipped_surrogate_loss(log_probs, log_probs.detach(), advantages.flatten(), packed.mask, group)
    expected = torch.autograd.grad(loss, m.policy.policy_parameters())
    assert stats.loss == pytest.approx(loss.item(), abs=1e-6)
    for a, b in zip(found, expected, strict=True):
        assert close(a, b, 1e-5)
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_1_x_8_and_8_x_1_micro_batches_agree(step):
    m, groups, advantages = step
    whole, _, _ = gradients(m, groups, advantages, micro_batch_tokens=10**6)
    single, _, old = gradients(m, groups, advantages, micro_batch_tokens=1)
    assert len(old) == 8  # rows of the two live groups, one by one
    for a, b in zip(whole, single, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()


@pytest.mark.parametrize("normaliser", ["batch", "response", "constant"])
def test_micro_batches_agree_under_every_normaliser(step, normaliser):
    m, groups, advantages = step
    whole, stats, _ = gradients(m, groups, advantages, normaliser=normaliser, micro_batch_tokens=10**6)
    single, other, _ = gradients(m, groups, advantages, normaliser=normaliser, micro_batch_tokens=1)
    assert stats.loss == pytest.approx(other.loss, abs=1e-7)
    for a, b in zip(whole, single, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()


def test_the_figures_of_the_sampler_s_gap_by_hand(step):
    """The sampler claims other probabilities than the trainer computes: by -0.5, 0.25 and 1 in a rollout's tokens."""
    m, groups, advantages = step
    alone, advantage = [dataclasses.replace(groups[0], rollouts=groups[0].rollouts[:1])], advantages[:1, :1]
    assert advantage != 0
    _, _, (old,) = gradients(m, alone, advantage)
    shift = torch.zeros(old.shape[1])
    shift[:3] = torch.tensor([-0.5, 0.25, 1.0])
    _, stats, _ = gradients(m, changed(alone, log_probs=old[0] - shift), advantage)
    assert stats.sums["sampler_logprob_gap"] == pytest.approx(1.75, abs=1e-4)
    assert stats.largest_gap == pytest.approx(1.0, abs=1e-4)
    k3 = sum(math.exp(d) - d - 1 for d in (-0.5, 0.25, 1.0))  # d = log p_trainer - log p_sampler
    assert stats.sums["sampler_gap_k3"] == pytest.approx(k3, abs=1e-4)


@pytest.mark.parametrize(("normaliser", "mu"), [("group", 1), ("constant", 1), ("group", 2)])
def test_the_gradient_under_truncated_importance_weights_is_that_of_the_written_out_loss(step, normaliser, mu):
    """Autograd of whole logits. With mu 2 the ratio is not 1: the policy has moved since the old log-probabilities."""
    m, groups, advantages = step
    cap, generator = 1.5, torch.Generator().manual_seed(0)
    noisy = changed(groups, log_probs=lambda r: r.log_probs + 0.7 * torch.randn(len(r.log_probs), generator=generator))
    sampler = torch.cat([r.log_probs for r in flatten(noisy)])
    packed = pack(flatten(noisy))
    rows = packed.mask.nonzero()[:, 0]
    advantages_N = advantages.flatten()[rows]
    old = written_out_log_probs(m, packed).detach()
    update = update_of(m, noisy, advantages, sampler_weight_cap=cap, normaliser=normaliser, inner_updates=mu)
    kept = [p.detach().clone() for p in m.policy.policy_parameters()]
    try:
        for _ in range(mu):
            found, _ = gradient(m, update)
            now = written_out_log_probs(m, packed)
            tokens = torch.tensor([float(sum(len(r.completion_ids) for r in group.rollouts)) for group in noisy])
            divisor = 4 * tokens[rows // 4] if normaliser == "group" else 16 * 48
            ratio, scale = (now - old).exp(), (old - sampler).exp().clamp(max=cap)
            terms = torch.min(ratio * advantages_N, ratio.clamp(0.8, 1.2) * advantages_N)
            expected = torch.autograd.grad(-(scale * terms / divisor).sum(), m.policy.policy_parameters())
            assert (scale == cap).any()
            assert (scale < 1).any()
            for a, b in zip(found, expected, strict=True):
                assert (a - b).norm() <= 1e-4 * b.norm()
            with torch.no_grad():
                for p, g in zip(m.policy.policy_parameters(), found, strict=True):
                    p -= 0.02 * g / g.norm()
    finally:
        with torch.no_grad():
            for p, value in zip(m.policy.policy_parameters(), kept, strict=True):
                p.copy_(value)


def test_weights_of_an_exact_sampler_change_nothing_that_matters(step):
    m, groups, advantages = step
    plain, _, _ = gradients(m, groups, advantages)
    weighed, _, _ = gradients(m, groups, advantages, sampler_weight_cap=2.0)
    for a, b in zip(plain, weighed, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm()


def test_a_reference_pass_gives_the_same_gradient_as_cached_hidden_states(step):
    m, groups, advantages = step
    assert all(r.frozen_hidden is not None for r in flatten(groups))
    cached, _, _ = gradients(m, groups, advantages)
    passed, _, _ = gradients(m, changed(groups, frozen_hidden=None), advantages)
    for a, b in zip(cached, passed, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()


def test_dead_groups_give_exactly_zero(step):
    m, groups, advantages = step
    m.policy.zero_grad()
    stats = update_of(m, groups, torch.zeros_like(advantages)).accumulate_gradient()
    assert stats.loss == 0.0
    assert all(p.grad is None for p in m.policy.policy_parameters())


def test_the_gap_between_sampler_and_scoring_is_rounding(step):
    m, groups, advantages = step
    _, stats, _ = gradients(m, groups, advantages)
    gap = stats.sums["sampler_logprob_gap"]
    assert 0 <= gap < 1e-4 * stats.tokens
    assert gap / stats.tokens <= stats.largest_gap < 1e-3
    assert 0 <= stats.sums["sampler_gap_k3"] < 1e-6 * stats.tokens
    assert stats.sums["clip_fraction"] == 0.0  # the ratio is exactly 1 before the first update


def test_gradients_reach_the_policy_only(step):
    m, groups, advantages = step
    gradients(m, groups, advantages)
    assert all((p.grad is not None) == (".policy." in name) for name, p in m.policy.named_parameters())


def test_max_steps_counts_outer_steps_whatever_mu(tmp_path):
    for mu in (1, 3):
        m = module(objective=GRPO(inner_updates=mu))
        t = trainer(tmp_path, 2)
        t.fit(m, data())
        assert t.global_step == 2
        assert t.fit_loop.epoch_loop._batches_that_stepped == 2


def test_inner_updates_use_the_log_probs_from_before_the_first(tmp_path):
    """With mu = 2 and a large step the second update meets ratios away from 1, and clips."""
    m = module(objective=GRPO(inner_updates=2), optimizer=OptimizerConfig(lr=0.05))
    t = trainer(tmp_path, 1)
    t.fit(m, data())
    assert float(t.callback_metrics["train/clip_fraction"]) > 0


def test_alpha_1_trains_nothing(tmp_path):
    m = module(alpha=1.0)
    before = {}

    class Keep(L.Callback):
        def on_train_start(self, trainer, pl_module):
            before.update({k: v.clone() for k, v in pl_module.policy.adapter_state().items()})

    trainer(tmp_path, 1, callbacks=[Keep()]).fit(m, data())
    assert before
    assert all(torch.equal(before[k], v) for k, v in m.policy.adapter_state().items())


def test_alpha_0_is_the_policy_alone(tmp_path):
    """Rollouts and update are those of a run whose reference is another, and both differ from those of a mixture."""
    drawn, trained = {}, {}
    for name, alpha, reference in (("sft", 0.0, SFT), ("base", 0.0, None), ("mixed", 0.5, None)):
        L.seed_everything(0)  # of LoRA's A
        m = module(alpha=alpha, adapters=AdapterConfig(policy=SFT, reference=reference))
        trainer(tmp_path / name, 1).fit(m, data(prompts=8))
        drawn[name] = texts(m.groups)
        trained[name] = torch.cat([p.detach().flatten() for p in m.policy.policy_parameters()])
    assert drawn["sft"] == drawn["base"] != drawn["mixed"]
    assert torch.equal(trained["sft"], trained["base"])
    assert not torch.equal(trained["sft"], trained["mixed"])


def test_the_held_out_rates_are_those_of_the_mixed_policy_decoded_greedily(tmp_path):
    m = module()
    t = trainer(tmp_path, 1)
    (metrics,) = t.validate(m, data(), verbose=False)
    rows = completion_rows(m.groups)
    assert len(rows) == 8
    assert metrics["val/solve_rate"] == pytest.approx(sum(row.answer_correct and row.ended for row in rows) / 8)
    assert metrics["val/answer_rate"] == pytest.approx(sum(row.answer_correct for row in rows) / 8)
    assert metrics["val/format_rate"] == pytest.approx(sum(row.format_correct for row in rows) / 8)


def test_predict_gives_rows(tmp_path):
    (rows,) = trainer(tmp_path, 1).predict(module(), data())
    assert [row["problem_id"] for row in rows] == list(range(8))


def test_settings_win_over_the_checkpoint_s(tmp_path):
    """Another learning rate and alpha than those of the run that is gone on with."""
    m, keep = module(), PolicyCheckpoint()
    trainer(tmp_path, 1, callbacks=[keep]).fit(m, data())
    again = module(alpha=0.25, optimizer=OptimizerConfig(lr=3e-4, betas=(0.5, 0.6)))
    t = trainer(tmp_path, 2, callbacks=[PolicyCheckpoint()])
    t.fit(again, data(), ckpt_path=str(keep.saved[-1]))
    assert float(t.callback_metrics["alpha"]) == 0.25
    assert float(t.callback_metrics["train/lr"]) == pytest.approx(3e-4)
    group = t.optimizers[0].param_groups[0]
    assert (group["lr"], group["betas"]) == (pytest.approx(3e-4), (0.5, 0.6))


def test_alpha_that_a_callback_moved_goes_on_with_one_and_is_left_without(tmp_path):
    m, keep = module(), PolicyCheckpoint()
    callbacks = [AdaptiveAlpha(offset=8.0, scale=33.0), keep]
    trainer(tmp_path, 1, callbacks=callbacks).fit(m, data(validation_size=6))
    moved = m.mixture.alpha
    assert moved != 0.5
    seen = {}
    for name, more in (("adaptive", [AdaptiveAlpha(offset=8.0, scale=33.0)]), ("fixed", [])):
        t = trainer(tmp_path, 2, callbacks=[PolicyCheckpoint(), *more])
        t.fit(module(), data(validation_size=6), ckpt_path=str(keep.saved[-1]))
        seen[name] = float(t.callback_metrics["alpha"])
    assert seen == {"adaptive": pytest.approx(moved), "fixed": 0.5}
    again = module()
    trainer(tmp_path, 2).validate(again, data(), ckpt_path=str(keep.saved[-1]), verbose=False)
    assert again.mixture.alpha == moved


def test_rows_after_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"step": step, "x": i}) + "\n" for step in (1, 2, 3) for i in range(2)) + '{"st')
    drop_later_rows(path, 2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["x"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    drop_later_rows(tmp_path / "none.jsonl", 2)
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize(
    "strategy",
    [
        DDPStrategy(start_method="spawn"),
        DDPStrategy(start_method="fork"),
        ModelParallelStrategy(),
        type("DeepSpeedStrategy", (DDPStrategy,), {})(),  # Lightning's own is a kind of DDPStrategy as well
    ],
)
def test_strategies_that_were_not_tried_are_refused(strategy):
    with pytest.raises(ValueError, match=r"must be auto, ddp or lmix.* \(FSDP2\), not " + type(strategy).__name__):
        check_strategy(strategy)
    check_strategy(DDPStrategy())
    check_strategy(SingleDeviceStrategy())
    check_strategy(ShardedStrategy())


@pytest.mark.parametrize(
    ("parts", "arguments", "message"),
    [
        ({}, {"precision": "bf16-true"}, "trainer.precision must be 32-true, not bf16-true"),
        (
            {"sampling": SamplingConfig(max_new_tokens=5000)},
            {},
            "max_new_tokens 5000 and a prompt of .* positions of backbone",
        ),
        ({"weights": [0.5, 0.5]}, {"callbacks": [AlphaSchedule()]}, "model.weights is given and fixed"),
        (
            {"alpha": 0.0, "objective": GRPO(beta=0.01)},
            {"callbacks": [AlphaSchedule()]},
            "AlphaSchedule changes alpha, but objective.beta needs alpha 0",
        ),
    ],
)
def test_settings_that_do_not_go_together(parts, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, 1, **arguments).fit(module(**parts), data())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: module(alpha=1.2), r"alpha must lie in \[0, 1\]"),
        (lambda: SamplingConfig(samples_per_prompt=0), "samples_per_prompt must be at least 1"),
        (lambda: GRPO(clip_radius=1.5), "clip_radius"),
        (lambda: GRPO(sampler_weight_cap=0.0), "sampler_weight_cap must be positive and finite, not 0.0"),
        (lambda: GRPO(sampler_weight_cap=float("nan")), "sampler_weight_cap must be positive"),
        (
            lambda: module(objective=GRPO(beta=0.01)),
            r"objective.beta penalises .*, but model.alpha 0.5 .* to 0 \(",
        ),
        (lambda: module(alpha=1.0, objective=GRPO(beta=0.5)), "but model.alpha 1 trains a mixture"),
        (
            lambda: module(alpha=0.0, weights=[0.5, 0.5], objective=GRPO(beta=0.1)),
            r"objective.beta penalises .*, but model.weights \[0.5, 0.5\]",
        ),
        (lambda: OptimizerConfig(lr=0.0), "lr must be positive"),
        (lambda: PolicyCheckpoint(keep=0), "keep"),
        (lambda: CompletionLog(every_n_steps=0), "CompletionLog.every_n_steps must be at least 1"),
        (lambda: SamplingConfig(resample_dead=-1), "resample_dead must be at least 0"),
        (lambda: module(weights=[1.0]), "weights must be 2 numbers"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_epochs_are_two_passes(tmp_path):
    t = trainer(tmp_path, -1, max_epochs=2)
    t.fit(module(), data(prompts=8))
    assert t.global_step == 4
