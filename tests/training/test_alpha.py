import math

import lightning as L
import pytest
import torch

from lmix.functional import accuracy_weighted_alpha, alpha_of_counts, forgetting_and_gain
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import Mixture
from lmix.rollout.types import Draw
from lmix.training import update
from lmix.training.alpha import AccuracyWeightedAlpha, AdaptiveAlpha, AlphaSchedule
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.objectives import GRPO
from lmix.training.sft import SFTModule
from tests.training.helpers import data, module, trainer


class Watch(L.Callback):
    """Alpha at the start and at the end of each step."""

    def __init__(self):
        self.alphas = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.alphas.append(pl_module.mixture.alpha)


def test_alpha_follows_the_validation_problems_between_steps(tmp_path):
    m, watch = module(alpha=0.6), Watch()
    t = trainer(tmp_path, 3, callbacks=[AdaptiveAlpha(offset=16.0, scale=33.0), watch])
    source = data(validation_size=6)
    t.fit(m, source)
    metrics = {name: float(value) for name, value in t.callback_metrics.items()}
    # the newest update again, by two decodings one after the other: the slow twin
    correct = []
    for alpha in (0.0, watch.alphas[-1]):
        groups = m.decoder.complete(source.sets["validation"], Draw(greedy=True), Mixture.at(alpha))
        m.decoder.judge(groups)
        correct.append(torch.tensor([group.rollouts[0].solved for group in groups]))
    expected = alpha_of_counts(*forgetting_and_gain(*correct), 6, offset=16.0, scale=33.0)
    assert metrics["alpha/next"] == pytest.approx(expected.alpha)
    score = (100 / 6 * expected.net_gain - 16.0) / 33.0  # 6 problems
    assert metrics["alpha/next"] == pytest.approx(1 / (1 + math.exp(-score)))
    assert metrics["alpha/gain"] == expected.gain
    assert metrics["alpha/forgetting"] == expected.forgetting
    assert metrics["alpha/net_gain"] == expected.net_gain
    assert 0 < metrics["perf/alpha_share"] < 1
    assert metrics["alpha"] == pytest.approx(watch.alphas[-1])  # the step's own alpha, not the next one
    assert watch.alphas[0] == 0.6
    assert len(set(watch.alphas)) > 1


def test_alpha_follows_the_accuracies_of_the_next_problems_of_the_stream(tmp_path):
    """Three decodings one after the other: the slow twin."""
    m, watch = module(alpha=0.6), Watch()
    source = data(validation_size=12, validation_source="stream")
    t = trainer(tmp_path, 2, callbacks=[AccuracyWeightedAlpha(), watch])
    t.fit(m, source)
    metrics = {name: float(value) for name, value in t.callback_metrics.items()}
    trained = {group.problem.id for group in m.groups}
    solved = []
    for alpha in (0.0, watch.alphas[-1], 1.0):
        groups = m.decoder.complete(source.validation_share(), Draw(greedy=True), Mixture.at(alpha))
        m.decoder.judge(groups)
        solved.append(sum(group.rollouts[0].solved for group in groups))
        assert not {group.problem.id for group in groups} & trained
    assert len(groups) == 12
    assert m.mixture.alpha == accuracy_weighted_alpha(tuple(solved), 12, watch.alphas[-1])
    assert metrics["alpha/next"] == pytest.approx(m.mixture.alpha)
    rates = [metrics[f"alpha/{name}_accuracy"] for name in ("policy", "mixed", "reference")]
    assert rates == pytest.approx([count / 12 for count in solved])
    assert len(set(solved)) > 1
    assert 0 < metrics["perf/alpha_share"] < 1
    with pytest.raises(ValueError, match="AccuracyWeightedAlpha: temperature must be positive"):
        AccuracyWeightedAlpha(temperature=0.0)


def test_a_run_with_a_stream_of_validation_problems_goes_on_exactly(tmp_path):
    """In the middle of a pass over 16 problems: 4 and 5 of them each step."""

    def fit(folder, steps, ckpt_path=None):
        L.seed_everything(0)
        m, keep, seen = module(), PolicyCheckpoint(every_n_steps=1, keep=-1), Watch()
        source = data(validation_size=5, validation_source="stream")
        callbacks = [keep, seen, AccuracyWeightedAlpha(rate=1.0)]
        trainer(folder, steps, callbacks=callbacks).fit(m, source, ckpt_path=ckpt_path)
        return m, keep, seen.alphas, [p.problem.id for p in source.validation_share()]

    whole, _, alphas, last = fit(tmp_path / "whole", 4)
    _, keep, first_alphas, middle = fit(tmp_path / "part", 3)
    again, _, more_alphas, found = fit(tmp_path / "part", 4, str(keep.saved[-1]))
    assert first_alphas + more_alphas == alphas
    assert len(set(alphas)) >= 3
    assert found == last != middle
    assert again.mixture == whole.mixture
    for a, b in zip(again.policy.policy_parameters(), whole.policy.policy_parameters(), strict=True):
        assert torch.equal(a, b)


def test_alpha_is_constant_inside_a_step(tmp_path, monkeypatch):
    m = module(objective=GRPO(inner_updates=2, micro_batch_tokens=100))
    seen = []
    score = update.score

    def watched(policy, mixture, packed):
        seen.append((m.global_step, mixture.alpha))
        assert m.mixture == mixture
        return score(policy, mixture, packed)

    monkeypatch.setattr(update, "score", watched)
    trainer(tmp_path, 3, callbacks=[AdaptiveAlpha(offset=16.0, scale=33.0)]).fit(m, data(validation_size=6))
    assert len(seen) > 6
    for step in {s for s, _ in seen}:
        assert len({alpha for s, alpha in seen if s == step}) == 1


def test_the_new_alpha_is_in_the_checkpoint_and_resumed(tmp_path):
    m = module()
    keep = PolicyCheckpoint(every_n_steps=1, keep=-1)
    trainer(tmp_path, 2, callbacks=[keep, AdaptiveAlpha(offset=8.0, scale=33.0)]).fit(m, data(validation_size=6))
    saved = torch.load(keep.saved[-1], weights_only=True)["lmix"]["alpha"]
    assert saved == m.mixture.alpha
    assert saved != 0.5
    again, watch = module(), Watch()
    callbacks = [watch, AdaptiveAlpha(offset=8.0, scale=33.0)]
    trainer(tmp_path, 3, callbacks=callbacks).fit(again, data(validation_size=6), ckpt_path=str(keep.saved[-1]))
    assert watch.alphas == [saved]


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.7), ("cosine", 0.7)])
def test_schedules(shape, middle):
    schedule = AlphaSchedule(1.0, 0.4, shape)
    alphas = [schedule.at(step, 5) for step in range(5)]
    assert alphas[0] == 1.0
    assert alphas[-1] == pytest.approx(0.4)
    assert alphas[2] == pytest.approx(middle)
    assert alphas == sorted(alphas, reverse=True)
    assert schedule.at(0, 1) == 1.0


def test_a_schedule_moves_alpha(tmp_path):
    watch = Watch()
    trainer(tmp_path, 3, callbacks=[AlphaSchedule(0.8, 0.2), watch]).fit(module(), data())
    assert watch.alphas == pytest.approx([0.8, 0.5, 0.2])


def test_the_evaluation_before_the_first_step_is_at_the_schedule_s_first_alpha(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            seen.append(pl_module.mixture.alpha)

    callbacks = [AlphaSchedule(0.8, 0.2), Look()]
    trainer(tmp_path, 1, callbacks=callbacks, num_sanity_val_steps=-1).fit(module(alpha=0.5), data())
    assert seen[0] == 0.8


def test_alpha_callbacks_refuse_a_module_without_alpha(tmp_path):
    sft = SFTModule(BackboneConfig(quantization="none", dtype="float32"))
    for callback in (AdaptiveAlpha(), AlphaSchedule()):
        with pytest.raises(ValueError, match=r"changes the alpha of lmix.GRPOModule, but SFTModule has no alpha"):
            trainer(tmp_path, 1, callbacks=[callback]).fit(sft, data(validation_size=2))


def test_adaptive_alpha_needs_validation_problems(tmp_path):
    with pytest.raises(ValueError, match="validation_size is 0"):
        trainer(tmp_path, 1, callbacks=[AdaptiveAlpha()]).fit(module(), data())
    with pytest.raises(ValueError, match="scale must be positive"):
        AdaptiveAlpha(scale=0.0)
