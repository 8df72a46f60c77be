# ruff: noqa: RUF001 - the alpha is meant
"""Differences of methods from stored completions, and what `lmix power` says of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmix.evaluation.statistics import components, crossed_mean, detectable_difference, paired_difference
from lmix.report import write_report
from lmix.report.claims import check_claims, verdict
from lmix.report.evidence import all_differences, difference, measured
from lmix.report.figures import accuracy_against_compute
from lmix.report.power import power
from lmix.report.rates_figure import rates_at_end
from lmix.report.runs import read_run
from lmix.report.tables import rates_rows
from tests.report.conftest import config, solving

N, K = 12, 2


def store(
    folder: Path,
    solved: np.ndarray,
    step: int = 10,
    who: str = "mixed",
    sampled: bool = True,
    anywhere: bool | None = True,
) -> None:
    """Write an evaluation's completions `[N, K]`; all wrong ones are right outside of the template."""
    (folder / "completions").mkdir(exist_ok=True)
    with (folder / "completions" / "val.jsonl").open("a") as file:
        for problem, flags in enumerate(solved):
            for sample, flag in enumerate(flags):
                row = {
                    "step": step,
                    "problem_id": problem,
                    "sample": sample,
                    "problem": "",
                    "completion": "",
                    "gold": "4",
                    "answer": "4" if flag else None,
                    "format_correct": bool(flag),
                    "answer_correct": bool(flag),
                    "ended": True,
                    "reward": 0.0,
                    "tokens": 3,
                    "seed": 0 if sampled else None,
                    "draw_step": step,
                    "right_anywhere": anywhere,
                    "who": who,
                }
                file.write(json.dumps(row) + "\n")


@pytest.fixture
def study(make_run):
    """Three seeds of `fixed` and of `kl_grpo`, and one SFT: folders and the scores that were stored."""
    chance = np.random.default_rng(0)
    folders, scores = [], {"fixed": [], "kl_grpo": [], "sft": []}
    rates = chance.uniform(0.1, 0.5, N)
    for method, shift, settings in (
        ("fixed", 0.4, {}),
        ("kl_grpo", 0.0, {"alpha": 0.0, "objective": {"beta": 0.01}}),
        ("sft", 0.0, {"model": "lmix.SFTModule"}),
    ):
        for seed in range(1 if method == "sft" else 3):
            folder = make_run(f"{method}{seed}", solving(0.25, 0.5), config(seed, **settings))
            drawn = (chance.random((N, K)) < rates[:, None] + shift).astype(float)
            store(folder, np.zeros((N, K)), step=0)  # an earlier evaluation
            store(folder, 1 - drawn[:, :1], sampled=False)  # greedy rows, which samples take the place of
            store(folder, drawn)
            folders.append(folder)
            scores[method].append(drawn)
    store(folders[0], np.ones((N, K)), step=20)  # an evaluation that not all seeds have
    return folders, {method: np.array(of_method) for method, of_method in scores.items()}


def test_rates_and_differences_are_those_of_the_scores(study):
    folders, scores = study
    policies = measured([read_run(folder) for folder in folders])
    assert [(p.method, p.steps[0], p.samples, sorted(p.rows)) for p in policies] == [
        ("kl_grpo", 10, K, [0, 1, 2]),
        ("sft", 10, K, [0]),
        ("fixed, α=0.5", 10, K, [0, 1, 2]),
    ]
    found = {(d.a.method, d.b.method): d for d in all_differences(policies)}
    assert len(found) == 3
    pair = found["kl_grpo", "fixed, α=0.5"]
    assert pair.estimate == paired_difference(scores["kl_grpo"].mean(2), scores["fixed"].mean(2))
    parts = components(scores["kl_grpo"], scores["fixed"])
    assert pair.detectable == detectable_difference(parts, N, K, 3)
    with_sft = found["sft", "fixed, α=0.5"].estimate  # one reference against every seed
    assert with_sft == paired_difference(scores["sft"].mean(2), scores["fixed"].mean(2))
    assert with_sft.seeds == 3
    by_name = {policy.method: policy for policy in policies}
    there, back = (difference(by_name[a], by_name[b]) for a, b in (("sft", "fixed, α=0.5"), ("fixed, α=0.5", "sft")))
    assert there is not None
    assert back is not None
    assert there.detectable == pytest.approx(back.detectable)


def test_an_sft_run_is_not_the_reference_of_seeds_that_have_their_own(make_run):
    chance = np.random.default_rng(0)
    folders = [make_run("sft0", solving(0.25, 0.5), config(0, model="lmix.SFTModule"))]
    folders += [
        make_run(f"fixed{seed}", solving(0.25, 0.5), config(seed, adapters={"reference": f"runs/sft{seed}/step=0010"}))
        for seed in range(3)
    ]
    for folder in folders:
        store(folder, (chance.random((N, K)) < 0.5).astype(float))
    [pair] = all_differences(measured([read_run(folder) for folder in folders]))
    assert pair.estimate.seeds == 1


def test_a_method_with_one_seed_is_compared_in_this_seed_alone(study):
    folders, scores = study
    kept = [folder for folder in folders if folder.name not in ("kl_grpo0", "kl_grpo2")]
    policies = measured([read_run(folder) for folder in kept])
    pairs = {(d.a.method, d.b.method): d for d in all_differences(policies)}
    estimate = pairs["kl_grpo", "fixed, α=0.5"].estimate
    assert estimate == paired_difference(scores["kl_grpo"][1:2].mean(2), scores["fixed"][1:2].mean(2))
    assert estimate.seeds == 1
    says = {claim.text: verdict(pair.estimate) for claim, pair in check_claims(policies)}
    assert says["Logit averaging solves more than KL-GRPO"] == "yes (one seed)"
    assert verdict(replace(estimate, low=-1.0, high=1.0)) == "can't be told (one seed)"
    assert says["Logit averaging solves more than SFT"] == "yes"  # three seeds of `fixed`


def test_claims_are_read_from_the_interval(study):
    policies = measured([read_run(folder) for folder in study[0]])
    says = {claim.text: pair.estimate.says for claim, pair in check_claims(policies)}
    assert says["Logit averaging solves more than KL-GRPO"] == 1
    assert says["Logit averaging is right more often than SFT whatever the form"] == 0  # all are always right there
    assert "Adaptive alpha solves more than KL-GRPO" not in says  # was not run


def test_the_report_has_rates_differences_and_claims(study, tmp_path):
    folders, scores = study
    path = write_report(folders, tmp_path / "out")
    text = path.read_text()
    rate = crossed_mean(scores["fixed"].mean(2))
    cell = f"{100 * rate.mean:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
    assert f"| fixed, α=0.5 | under training | 10 | 3 | 12 | 2 samples | {cell} |" in text
    assert "### Differences of methods" in text
    assert "| Logit averaging solves more than KL-GRPO | fixed, α=0.5 minus kl_grpo, solved | 3 |" in text
    assert (path.parent / "claims-arithmetic-tiny-arithmetic.csv").is_file()


def test_rows_that_do_not_say_what_is_right_anywhere_have_no_rate(make_run, tmp_path):
    folder = make_run("old", solving(0.25, 0.5), config(0))
    store(folder, np.array([[1], [0], [1]]), sampled=False, anywhere=None)
    [policy] = measured([read_run(folder)])
    assert policy.scores == ["solved", "format"]
    text = write_report([folder], tmp_path / "out").read_text()
    assert "| not stored |" in text


def test_a_single_held_out_problem_gives_a_report_without_intervals(make_run, tmp_path):
    folder = make_run("five", solving(0.25, 0.5), config(0))
    store(folder, np.array([[1]]), sampled=False)
    assert measured([read_run(folder)]) == []
    assert write_report([folder], tmp_path / "out").is_file()


def test_solve_rates_against_compute(make_run, tmp_path):
    spent = {step: 2e15 * step for step in range(1, 11)}
    runs = [make_run(f"run{seed}", solving(0.25, 0.5) | {"compute/flops": spent}, config(seed)) for seed in (0, 1)]
    (axis,) = accuracy_against_compute([read_run(run) for run in runs]).axes
    assert axis.lines[0].get_xydata() == pytest.approx(np.array([[0.0, 0.25], [20.0, 0.5]]))
    text = write_report([*runs, make_run("older", solving(0.25, 0.5), config(2))], tmp_path / "out").read_text()
    assert "compute-arithmetic-tiny-arithmetic.png" in text


def budgeted(make_run, flops, ends):
    """GRPO runs that their compute budget of 10 ended, or did not, and that were evaluated at their ends only."""
    folders = []
    for seed, (end, rate) in enumerate(ends.items()):
        callbacks = [{"class_path": "lmix.training.compute.ComputeBudget", "init_args": {"flops": 10.0}}]
        settings = config(seed, callbacks=callbacks, alpha=0.0)
        spent = {"compute/flops": {step: flops * step / end for step in range(1, end + 1)}}
        values = {"val/solve_rate": {end: rate}, "val/format_rate": {end: 1.0}} | spent
        folders.append(make_run(f"grpo{seed}", values, settings))
        store(folders[-1], np.arange(N)[:, None] < [rate * N] * K, step=end)
    return folders


def test_runs_that_their_compute_budget_ended_are_compared_at_their_ends(make_run, tmp_path):
    """With different numbers of steps in every seed, and against a method with yet another number."""
    folders = budgeted(make_run, 10.5, {7: 0.25, 9: 0.75})
    fixed = [make_run(f"fixed{seed}", solving(0.25, 0.5), config(seed)) for seed in (0, 1)]
    for folder in fixed:
        store(folder, np.arange(N)[:, None] < [0.5 * N] * K)
    runs = [read_run(folder) for folder in (*folders, *fixed)]
    grpo, other = measured(runs)
    assert (grpo.method, grpo.steps, other.steps) == ("grpo", (7, 9), (10, 10))
    assert crossed_mean(np.array(grpo.flags("solved", [0, 1], grpo.problems)).mean(2)).mean == pytest.approx(0.5)
    assert all_differences([grpo, other])[0].estimate.seeds == 2
    (row,) = rates_rows(runs[:2])
    assert (row["last_step"], row["final_solve_min"], row["final_solve_max"]) == ("7 to 9", 0.25, 0.75)
    (axis,) = accuracy_against_compute(runs[:2]).axes
    assert axis.lines[0].get_xydata() == pytest.approx(np.array([[1.05e-14, 0.5]]))
    text = write_report(folders, tmp_path / "out").read_text()
    assert "- grpo: 2 seeds (0, 1), 1 evaluation, at step 7 to 9; a compute budget ended the runs" in text
    assert "ends-arithmetic-tiny-arithmetic.png" in text
    result = power(0.2, a=list(map(str, folders)), b=list(map(str, fixed)))
    assert result["detectable"] == all_differences([grpo, other])[0].detectable


def test_runs_that_stopped_before_their_budget_are_not_compared_at_their_ends(make_run, capsys):
    folders = budgeted(make_run, 9.0, {7: 0.25, 9: 0.75})
    assert measured([read_run(folder) for folder in folders]) == []
    with pytest.raises(ValueError, match="the runs of a share no evaluation: give runs of equal length or compute"):
        power(0.2, a=list(map(str, folders)), b=list(map(str, folders)))


def test_the_figure_of_rates_shows_each_seed_and_the_mean(study):
    folders, scores = study
    policies = measured([read_run(folder) for folder in folders])
    axis, *others = rates_at_end(policies).axes
    assert len(others) == 2
    assert [label.get_text() for label in axis.get_yticklabels()] == ["kl_grpo", "sft", "fixed, α=0.5"]
    _, seeds, mean = axis.lines[-3:]
    assert sorted(seeds.get_xdata()) == pytest.approx(sorted(scores["fixed"].mean((1, 2))))
    assert mean.get_xdata() == pytest.approx(scores["fixed"].mean())


def test_runs_of_other_seeds_are_not_paired(make_run):
    folders = []
    for seed in range(4):
        settings = {} if seed < 2 else {"alpha": 0.0, "objective": {"beta": 0.01}}
        folders.append(make_run(f"run{seed}", solving(0.25, 0.5), config(seed, **settings)))
        store(folders[-1], np.ones((N, K)))
    assert all_differences(measured([read_run(folder) for folder in folders])) == []


def test_power_after_the_fact(study, capsys):
    folders, scores = study
    found = power(0.2, a=list(map(str, folders[1:3])), b=list(map(str, folders[3:5])))
    parts = components(scores["fixed"][1:], scores["kl_grpo"][:2])
    assert found["detectable"] == detectable_difference(parts, N, K, 2)
    assert "a (step 10) minus b (step 10): " in capsys.readouterr().out


def test_power_before_the_fact(capsys):
    found = power()
    assert found["power"] < 0.8 < power(seeds=30)["power"]
    assert found["seeds_needed"] > 3
    assert f"{100 * found['detectable']:.1f} points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problems": 1}, "problems must be at least 2, not 1"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"difference": 5}, "difference must lie between 0 and 1, not 5"),
        ({"rate": 0.97}, "rate must lie between 0 and 1, also with the difference added"),
        ({"agreement": 2}, "agreement must lie between 0 and 1"),
        ({"seed_sd": -1}, "seed_sd must be at least 0"),
        ({"a": ["x"]}, "a and b need one run folder for each seed"),
        ({"a": ["x"], "b": ["y"]}, "x is not a run folder"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        power(**settings)
