"""Masked tokens, another sampler, and the objective by configuration."""

import io

import pytest
import torch
from rich.console import Console

from lmix import cli
from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.session import Session
from lmix.inspection.completer import Completer
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.end_tokens import end_tokens
from lmix.model.mixture import Mixture, RowMixtures
from lmix.rollout.packing import pack
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw, flatten
from lmix.training.alpha import AdaptiveAlpha
from lmix.training.objectives import GRPO
from tests.evaluation.conftest import common
from tests.test_cli import DEMO
from tests.training.helpers import (
    Canned,
    changed,
    data,
    gradients,
    module,
    trainer,
    update_of,
    written_out_log_probs,
)


def every_other(rollout):
    return torch.arange(len(rollout.completion_ids)) % 2 == rollout.sample % 2


@pytest.mark.parametrize("normaliser", ["group", "batch", "response", "constant"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 10**6])
def test_a_masked_token_has_no_gradient_and_does_not_count(step, normaliser, micro_batch_tokens):
    m, groups, advantages = step
    masked = changed(groups, mask=every_other)
    settings = {"normaliser": normaliser, "micro_batch_tokens": micro_batch_tokens}
    found, stats, _ = gradients(m, masked, advantages, **settings)
    packed = pack(flatten(masked))
    counts = torch.cat([every_other(r) for r in flatten(masked)])
    rows = packed.mask.nonzero()[:, 0]
    log_probs = written_out_log_probs(m, packed)
    of_group = torch.tensor([float(counts[rows // 4 == p].sum()) for p in range(4)])
    of_row = torch.tensor([float(counts[rows == b].sum()) for b in range(16)])
    divisor = {
        "group": 4 * of_group[rows // 4],
        "batch": counts.sum(),
        "response": 16 * of_row[rows],
        "constant": 16 * 48,
    }[normaliser]
    terms = (log_probs - log_probs.detach()).exp() * advantages.flatten()[rows]
    loss = -(terms * counts / divisor).sum()
    expected = torch.autograd.grad(loss, m.policy.policy_parameters())
    assert stats.loss == pytest.approx(loss.item(), abs=1e-6)
    assert stats.tokens == counts[advantages.flatten()[rows] != 0].sum()
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    whole, _, _ = gradients(m, groups, advantages, **settings)
    assert any((a - b).norm() > 1e-2 * b.norm() for a, b in zip(found, whole, strict=True))


def test_a_mask_of_all_tokens_is_no_mask_and_one_of_none_no_gradient(step):
    m, groups, advantages = step
    plain, _, _ = gradients(m, groups, advantages)
    every, _, _ = gradients(m, changed(groups, mask=lambda r: torch.ones_like(r.log_probs).bool()), advantages)
    assert all(torch.equal(a, b) for a, b in zip(plain, every, strict=True))
    nothing = changed(groups, mask=lambda r: torch.zeros_like(r.log_probs).bool())
    none, stats, _ = gradients(m, nothing, advantages)
    assert stats.loss == stats.tokens == 0.0
    assert all(not g.any() for g in none)


class Fading(Mixture):
    """Alpha 0.6 at the first token, 0 from the tenth on, whatever the weights say."""

    def of_tokens(self, positions_N):
        alpha_N = (0.6 - 0.06 * positions_N).clamp(min=0.0)
        return RowMixtures(self.kind, self.streams, torch.stack([1.0 - alpha_N, alpha_N], dim=1), True)


@pytest.mark.parametrize(("kind", "weights"), [("logits", (0.4, 0.6)), ("logits", (0.0, 1.0)), ("probs", (1.0, 0.0))])
def test_a_mixture_that_depends_on_the_position_is_drawn_and_scored_alike(step, kind, weights):
    """The sampler's log-probabilities are the scored ones, and differ from those of the fixed mixture."""
    m, groups, advantages = step
    fading = Fading(weights, kind)  # runs both streams, also where one has no nominal weight
    assert fading.streams == ("policy", "reference")
    prompts = [group.prompt for group in groups]
    drawn = m.sampler.generate(
        prompts, Limits(48, tuple(end_tokens(m.policy, m.tokenizer))), Draw(seed=3), fading, samples=4, keep_frozen=True
    )
    update = update_of(m, drawn, advantages, mixture=fading, micro_batch_tokens=10**6)
    stats = update.accumulate_gradient()
    assert stats.sums["sampler_logprob_gap"] / stats.tokens < 1e-4
    _, other, _ = gradients(m, drawn, advantages, mixture=Mixture.at(0.6, kind), micro_batch_tokens=10**6)
    assert other.sums["sampler_logprob_gap"] / other.tokens > 1e-3


def test_training_and_the_alpha_rule_run_on_another_sampler(tmp_path):
    m, canned = module(), Canned()
    m.sampler = canned
    t = trainer(tmp_path, 2, callbacks=[AdaptiveAlpha(offset=8.0, scale=33.0)], val_check_interval=1)
    t.fit(m, data(validation_size=6))
    metrics = {name: float(value) for name, value in t.callback_metrics.items()}
    assert metrics["train/reward"] == metrics["train/solve_rate"] == 0.5
    assert metrics["train/dead_groups"] == 0.0
    assert metrics["train/grad_norm"] > 0
    assert metrics["val/solve_rate"] == 1.0  # greedy: the first sample
    # the policy alone is the first sample, so right; the mixture is the second
    assert (metrics["alpha/forgetting"], metrics["alpha/gain"]) == (6.0, 0.0)
    assert metrics["alpha/next"] == pytest.approx(m.mixture.alpha)
    assert m.mixture.alpha < 0.1
    assert canned.synced == 3  # before the first step, and after each
    assert any(p.abs().sum() > 0 for name, p in m.policy.adapter_state().items() if "lora_B.policy" in name)


def test_evaluation_runs_on_another_sampler():
    config = EvaluationConfig(**common())
    prompts = config.prompts()
    session = Session(config, prompts, Console(file=io.StringIO()), Mixture.at(0.5), sampler=Canned())
    greedy = session.measure("mixed", Mixture.at(0.5))
    assert [row.solved for row in greedy.rows] == [True] * len(prompts)
    several = session.measure("mixed", Mixture.at(0.5), samples=4)
    assert [row.solved for row in several.rows] == [True, False] * (2 * len(prompts))
    mixtures = [Mixture.at(0.0), Mixture.at(0.25)]
    together = session.measure_together(mixtures, prompts)
    assert [sum(row.solved for row in together[mixture]) for mixture in mixtures] == [len(prompts), 0]


def test_completions_of_free_prompts_run_on_another_sampler(step):
    m, _, _ = step
    model = MixedPolicyForCausalLM.from_policy(m.policy, m.mixture, m.backbone)
    canned = Canned()
    completer = Completer(model, chat_template=False, max_new_tokens=20, sampler=canned)
    prompt = completer.prompt([{"role": "user", "content": "Tom has 3 apples. How many apples does Tom have now?"}])
    (rollout,) = completer.complete([prompt], Mixture.at(0.25))
    assert rollout.text == "1 + 1 = 2. \\boxed{}"
    assert canned.mixtures == [Mixture.at(0.25)]


def fit(*flags: str, capsys) -> str:
    assert cli.main(["fit", *DEMO, *flags]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmix: error:")]
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.objective.clip_radius=1.5"], "objective.clip_radius must lie between 0 and 1, not 1.5"),
        (["--model.objective.clip_radus=0.1"], "clip_radus"),
        (["--model.objective=no.such.Objective"], "no.such.Objective"),
        (["--model.objective=lmix.RLDataModule"], "RLDataModule"),
        (["--model.rewards={verifier: 1, no.such: 0.1}"], "model.rewards: no.such can't be imported"),
        (["--model.rewards={}"], "model.rewards is empty"),
    ],
)
def test_a_wrong_objective_or_reward_is_one_line(flags, message, capsys):
    assert message in fit(*flags, capsys=capsys)


def test_the_objective_s_settings_by_the_command_line():
    flags = ["--model.objective=GRPO", "--model.objective.clip_radius=0.1", "--model.objective.normaliser=batch"]
    made = cli.run_trainer(["fit", *DEMO, "--trainer.accelerator=cpu", *flags], start=False).model.objective
    assert type(made) is GRPO
    assert (made.clip, made.normaliser, made.inner_updates) == ((0.1, 0.1), "batch", 1)
    alone = cli.run_trainer(["fit", *DEMO, "--trainer.accelerator=cpu", flags[1]], start=False).model.objective
    assert alone.clip == (0.1, 0.1)
