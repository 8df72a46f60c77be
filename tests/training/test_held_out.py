"""`data.eval_samples`: k samples of the mixture and of the policy alone at every evaluation, the reference once."""

import json

import pytest

from lmix.training.completion_log import CompletionLog
from lmix.training.held_out import sampled_sums
from tests.training.helpers import data, module, trainer


def rows_of(folder):
    return [json.loads(line) for line in (folder / "completions" / "val.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two steps with an evaluation before the first and after each; a run without samples beside it."""
    found = {}
    for samples in (0, 3):
        folder = tmp_path_factory.mktemp(f"run{samples}")
        t = trainer(folder, 2, callbacks=[CompletionLog()], val_check_interval=1, num_sanity_val_steps=-1)
        m = module()
        t.fit(m, data(eval_samples=samples))
        metrics = {k: float(v) for k, v in t.callback_metrics.items()}
        found[samples] = rows_of(folder), metrics, m
    return found


def test_greedy_completions_of_the_mixture_are_those_of_a_run_without_samples(evaluated):
    def greedy(rows):
        return [
            (r["step"], r["problem_id"], r["completion"]) for r in rows if r["seed"] is None and r["who"] == "mixed"
        ]

    assert greedy(evaluated[3][0]) == greedy(evaluated[0][0])
    assert len(greedy(evaluated[3][0])) == 3 * 8


def test_who_is_evaluated_when(evaluated):
    rows = evaluated[3][0]
    for seed, each in ((None, 1), (0, 3)):  # the greedy ones, and samples of the run's seed
        count = {
            (r["step"], r["who"]): sum(
                o["step"] == r["step"] and o["who"] == r["who"] and o["seed"] == seed for o in rows
            )
            for r in rows
        }
        mixed_and_policy = {(step, who): 8 * each for step in range(3) for who in ("mixed", "policy")}
        assert count == mixed_and_policy | {(0, "reference"): 8 * each}
    assert {r["who"] for r in evaluated[0][0]} == {"mixed"}
    assert evaluated[3][2].held_out.reference_done


def test_rates_are_those_of_the_rows(evaluated):
    rows, metrics, _ = evaluated[3]
    last = [r for r in rows if r["step"] == 2]
    for who, prefix in (("mixed", "val/"), ("policy", "val/policy/")):
        mine = [r for r in last if r["who"] == who]
        solved = [r["answer_correct"] and r["ended"] for r in mine if r["seed"] is not None]
        assert metrics[f"{prefix}avg_at_k"] == pytest.approx(sum(solved) / 24)
        groups = [solved[i : i + 3] for i in range(0, 24, 3)]
        assert metrics[f"{prefix}pass_at_k"] == pytest.approx(sum(map(any, groups)) / 8)
        greedy = [r for r in mine if r["seed"] is None]
        assert metrics[f"{prefix}right_anywhere_rate"] == pytest.approx(sum(r["right_anywhere"] for r in greedy) / 8)
        assert metrics[f"{prefix}solve_rate"] == pytest.approx(
            sum(r["answer_correct"] and r["ended"] for r in greedy) / 8
        )
        assert 0 <= metrics[f"{prefix}maj_at_k"] <= metrics[f"{prefix}pass_at_k"]
    assert "val/avg_at_k" not in evaluated[0][1]


def test_a_policy_alone_has_no_streams_beside(tmp_path):
    t = trainer(tmp_path, 1, callbacks=[CompletionLog()], val_check_interval=1)
    t.fit(module(alpha=0.0), data(eval_samples=2))
    assert {(r["who"], r["seed"]) for r in rows_of(tmp_path)} == {("mixed", None), ("mixed", 0)}


def test_no_problem_gives_no_sum():
    assert sampled_sums([], 2) == {"avg_at_k": 0, "pass_at_k": 0, "maj_at_k": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_samples": -1}, "data.eval_samples must be at least 0, not -1"),
        ({"eval_split": "validation"}, "data.eval_split validation needs held-out validation problems"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        data(**settings)


def test_validation_problems_can_be_held_out(tmp_path):
    source = data(eval_split="validation", validation_size=4)
    t = trainer(tmp_path, 1, callbacks=[CompletionLog()], val_check_interval=1)
    t.fit(module(), source)
    assert {r["problem_id"] for r in rows_of(tmp_path)} == {p.problem.id for p in source.sets["validation"]}
    assert len(rows_of(tmp_path)) == 4
