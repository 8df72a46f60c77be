"""NaN and Inf in logits, loss and gradient: found, named, reported, and left out where that is wanted."""

import json

import lightning as L
import pytest
import torch

from lmix.training import update
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.objectives import GRPO
from tests.training.helpers import data, module, trainer


class Poison(L.Callback):
    """Make one thing of the first step not finite."""

    def __init__(self, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.what = what
        self.before: dict[str, torch.Tensor] = {}
        self.score, self.monkeypatch = update.score, monkeypatch

    def on_train_start(self, trainer, pl_module):
        self.before = {name: value.clone() for name, value in pl_module.policy.adapter_state().items()}

    def on_train_batch_start(self, trainer, pl_module, *_):
        policy = pl_module.policy
        if trainer.global_step:
            self.monkeypatch.undo()
            return
        logits, calls = policy.mixed_logits, []

        def mixed_logits(*arguments):
            calls.append(1)
            found = logits(*arguments)
            if len(calls) == 3:
                found[5] = {"nan": float("nan"), "inf": float("inf")}[self.what]
            return found

        def bad_score(*arguments):
            found = self.score(*arguments)
            if self.what == "loss":
                return found * torch.ones_like(found).index_fill(0, torch.tensor([0]), float("nan"))
            found.register_hook(lambda gradient: gradient * float("inf"))
            return found

        if self.what in ("nan", "inf"):
            self.monkeypatch.setattr(policy, "mixed_logits", mixed_logits)
        else:
            self.monkeypatch.setattr(update, "score", bad_score)


CAUSES = {
    "nan": ("logits of completion token 2 as it was drawn", 1),
    "inf": ("logits of completion token 2 as it was drawn", 1),
    "loss": ("loss", 1),
    "gradient": (r"gradient of one of \d+ rollouts", None),
}


def poisoned(what, monkeypatch, **optimizer):
    objective = GRPO(micro_batch_tokens=10**6)
    return module(objective=objective, optimizer=OptimizerConfig(lr=1e-3, **optimizer)), Poison(what, monkeypatch)


@pytest.mark.parametrize("what", CAUSES)
def test_what_is_not_finite_stops_the_run_before_the_step_and_is_reported(tmp_path, what, monkeypatch):
    m, poison = poisoned(what, monkeypatch)
    cause, count = CAUSES[what]
    message = rf"^logits or gradient of step 1 are not finite \(the {cause}; .*nonfinite-step=0001-rank0.jsonl has the"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, 2, callbacks=[poison]).fit(m, data(prompts=16))
    assert all(torch.equal(value, poison.before[name]) for name, value in m.policy.adapter_state().items())
    rows = [json.loads(line) for line in (tmp_path / "nonfinite-step=0001-rank0.jsonl").open()]
    assert count in (None, len(rows))
    if what in ("nan", "inf"):
        assert rows[0]["log_probs"][2] is None
        assert all(p is not None for p in rows[0]["log_probs"][:2])
    for row in rows:
        assert m.tokenizer.decode(row["completion_ids"]) == row["completion"]
        assert row["prompt"] == m.tokenizer.decode(row["prompt_ids"])


@pytest.mark.parametrize("what", CAUSES)
def test_a_step_that_is_skipped_changes_nothing_and_the_next_one_trains(tmp_path, what, caplog, monkeypatch):
    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            same = {n: torch.equal(v, poison.before[n]) for n, v in pl_module.policy.adapter_state().items()}
            looks.append((trainer.global_step, all(same.values()), len(trainer.optimizers[0].state)))

    m, poison = poisoned(what, monkeypatch, nonfinite="skip")
    looks: list = []
    trainer(tmp_path, 2, callbacks=[poison, Look()]).fit(m, data(prompts=16))
    (first, second) = looks
    assert first == (1, True, 0)
    assert second[:2] == (2, False)
    assert "skipping the update" in caplog.text
    assert all(torch.isfinite(value).all() for value in m.policy.adapter_state().values())


def test_evaluation_of_logits_that_are_not_finite_stops(tmp_path, monkeypatch):
    m = module()
    m.configure_model()
    logits = m.policy.mixed_logits
    monkeypatch.setattr(m.policy, "mixed_logits", lambda *a: logits(*a) * float("nan"))
    with pytest.raises(
        ValueError,
        match=r"^the logits of completion token 0 as it was drawn are not finite, in an evaluation after step 0",
    ):
        trainer(tmp_path, 1).validate(m, data(), verbose=False)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(samples_per_prompt=1, max_new_tokens=8, seed=0),  # every group is dead
        SamplingConfig(samples_per_prompt=4, max_new_tokens=1, seed=0),  # one token, all truncated, all dead
    ],
)
def test_degenerate_batches_are_defined(tmp_path, alpha, sampling):
    m = module(alpha=alpha, sampling=sampling)
    t = trainer(tmp_path, 2)
    t.fit(m, data())
    metrics = {name: float(value) for name, value in t.callback_metrics.items()}
    assert t.global_step == 2
    assert metrics["train/dead_groups"] == 1.0
    assert metrics["train/loss"] == metrics["train/grad_norm"] == 0.0
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert all(torch.isfinite(value).all() for value in m.policy.adapter_state().values())
