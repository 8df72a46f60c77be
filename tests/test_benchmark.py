"""The benchmark runs, and its ratios are those of its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark import limit, ratios, report, summary
from contenders import Work

SCRIPTS = Path(__file__).parent.parent / "scripts"


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


def test_a_quick_run_writes_its_figures(tmp_path):
    out = tmp_path / "figures.json"
    small = ["--prompts=2", "--samples=2", "--tokens=4", "--prompt_tokens=8", "--warmup=0"]
    line = [sys.executable, SCRIPTS / "benchmark.py", "--quick", "--contenders=ours,naive", *small]
    subprocess.run([*line, "--json", out], check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["rollout_vs_naive"] == found["figures"]["naive"]["rollout"] / found["figures"]["ours"]["rollout"]
    assert found["step_vs_naive"] > 0
    assert found["step_vs_trl"] is found["memory_of_trl"] is None
    assert found["figures"]["ours"]["score_gb"] > 0
    assert found["settings"]["tokens"] == 4
