"""The benchmark runs, and its ratios are those of its figures."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.__main__ import parser
from benchmarks.growth import Growth, planned_gb
from benchmarks.limit import limit
from benchmarks.ours import Ours
from benchmarks.products import Products
from benchmarks.protocol import Worker
from benchmarks.report import ratios, report, summary, table_ratios
from benchmarks.work import Work
from lmix.model.sources import load_config
from lmix.rollout.types import flatten

ROOT = Path(__file__).parent.parent
SMALL = {"prompts": 2, "samples": 2, "tokens": 4, "prompt_tokens": 8}


def test_ratios_are_of_medians_and_what_was_not_measured_is_none():
    laps = [{"rollout": r, "update": 2.0, "update_gb": gb} for r, gb in ((1.0, 3.0), (9.0, 4.0), (2.0, 5.0))]
    ours = summary(laps)
    assert ours == {"rollout": 2.0, "update": 2.0, "update_gb": 5.0, "step": 4.0, "peak_gb": 5.0}
    trl = {"rollout": 4.0, "update": 20.0, "step": 24.0, "peak_gb": 20.0}
    found = ratios({"ours": ours, "trl": trl, "limit": {"rollout": 1.0}}, Work(prompts=2, samples=3, tokens=10))
    assert found["step_vs_trl"] == 6.0
    assert found["memory_of_trl"] == 0.25
    assert found["rollout_of_limit"] == 0.5
    assert found["rollout_tokens_per_second"] == 30.0
    assert found["rollout_vs_naive"] is None
    assert "rollout_vs_naive: not measured" in report(found | {"figures": {"ours": ours, "trl": trl}})


def test_the_limit_counts_the_products_that_the_work_needs():
    """Twice the tokens are about twice the products, at the same rate."""
    one, two = (limit(Work(tokens=tokens, dtype="float32")) for tokens in (100, 200))
    assert two["rollout"] * two["gflops"] == pytest.approx(2 * one["rollout"] * one["gflops"], rel=0.3)


def test_every_completion_has_the_length_that_was_asked_for_and_a_step_moves_the_policy():
    ours = Ours(Work(**SMALL, threads=1))
    groups = ours.rollouts()
    assert [len(r.completion_ids) for r in flatten(groups)] == [4] * 4
    before = [p.clone() for p in ours.policy.policy_parameters()]
    ours.update(groups)
    assert all((p != b).any() for p, b in zip(ours.policy.policy_parameters(), before, strict=True))


def test_rotated_prompts_have_the_same_tokens():
    ours = Ours(Work(**SMALL, threads=1))
    two, more = ours.prompts(2), ours.prompts(5)
    assert more[:2] == two
    assert [prompt.problem.id for prompt in more] == [0, 1, 2, 3, 4]
    assert more[2].ids == two[0].ids[1:] + two[0].ids[:1]
    assert more[4].ids == two[0].ids[2:] + two[0].ids[:2]


def test_a_cut_vocabulary_is_drawn_from_and_planned_for():
    work = Work(**SMALL, threads=1)
    assert max(max(r.completion_ids) for r in flatten(Ours(work, vocabulary=20).rollouts())) < 20
    assert planned_gb(work, 200_000) > 2 * planned_gb(work, 20_000)


@pytest.mark.slow
def test_further_tables_are_measured():
    ours = Ours(Work(**SMALL, threads=1, alpha_rollouts=64))
    tables = {"alpha": ours.alpha(), "natural": ours.natural()}
    assert (tables["alpha"]["rollouts"], tables["alpha"]["decodes"]) == (64, 6)
    found = table_ratios(tables)
    assert found["alpha_of_rollouts"] == tables["alpha"]["alpha_seconds"] / tables["alpha"]["rollout_seconds"] > 0
    assert found["natural_of_forced"] > 0
    assert "\nnatural:\n" in report(tables | {"figures": {"ours": {}}})


def test_products_are_timed_at_the_work_s_shapes():
    table = Products(Work(**SMALL, threads=1)).products()["rows"]
    config = load_config("lmix:tiny-arithmetic")
    sizes = config.hidden_size, config.intermediate_size, config.vocab_size
    assert [row["product"] for row in table][1::2] == [f"8 x {sizes[0]} x {sizes[1]}", f"4 x {sizes[0]} x {sizes[2]}"]
    assert all(row[kind] > 0 for row in table for kind in ("plain", "other_side", "packed", "large"))


@pytest.mark.slow
def test_growth_changes_one_size_at_a_time():
    growth = Growth(Work(threads=1))
    (small, whole), *others = growth.sizes()
    changed = [{n for n, v in asdict(work).items() if v != asdict(small)[n]} for work, size in others if size == whole]
    assert changed == [{"samples"}] * 2 + [{"tokens"}] * 2 + [{"prompt_tokens"}] * 2
    row = growth.row(replace(small, tokens=4), whole // 4)
    assert (row["tokens"], row["vocabulary"]) == (4, whole // 4)
    assert row["update_tokens_per_second"] > 0


@pytest.mark.slow
def test_a_quick_run_writes_its_figures_and_no_other_file(tmp_path):
    line = [sys.executable, "-m", "benchmarks", "--quick", "--contenders=ours,naive", "--warmup=0", "--threads=1"]
    line += [f"--{name}={value}" for name, value in SMALL.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*line, "--json=figures.json"], check=True, capture_output=True, cwd=tmp_path, env=environment)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["rollout_vs_naive"] == found["figures"]["naive"]["rollout"] / found["figures"]["ours"]["rollout"]
    assert found["step_vs_naive"] > 0
    assert found["step_vs_trl"] is found["memory_of_trl"] is None
    assert found["figures"]["ours"]["score_gb"] > 0
    assert found["settings"]["tokens"] == 4


def test_a_wrong_name_is_refused_before_anything_is_started(capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--contenders=ours,other"])
    assert "--contenders: other unknown: use some of ours, naive, trl, trl_kl" in capsys.readouterr().err


def test_a_contender_that_fails_ends_the_run_with_the_line_that_shows_why():
    with pytest.raises(SystemExit, match=r"a contender ended; run it alone to see why: .*benchmarks.serve ours"):
        Worker("ours", Work(model="nowhere"))
