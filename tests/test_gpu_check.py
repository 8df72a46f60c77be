"""scripts/gpu_check.py runs where there is no GPU, says what it left out, and notices what is wrong."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import gpu_check
import pytest
import torch
from gpu_checks import correctness, others
from gpu_checks.setting import Failed, Setting, Skipped, run
from gpu_checks.speed import Shape

import lmix
from lmix.model.backbone import BackboneConfig, load_backbone
from lmix.rollout.engine import Engine

ROOT = Path(__file__).parent.parent


def test_a_quick_run_on_a_cpu_measures_checks_and_names_what_it_skipped(tmp_path):
    line = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--device=cpu", "--quick", "--json=report.json"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    checks = report["checks"]
    ran = {name for name, found in checks.items() if found["outcome"] == "ok"}
    assert ran == {"rates", "nf4_gradients", "demo", "step small", "transformers_generate"}
    assert checks["rates"]["tflops"] > 0
    assert 0 < checks["step small"]["eager_rollout_of_limit"] < 1
    assert checks["vllm"]["reason"] == "needs a CUDA device"
    assert "| fsdp2 | skipped |" in done.stdout
    assert report["machine"]["torch"] == version("torch")
    assert report["machine"]["lmix"] == lmix.__version__
    assert len(report["machine"]["commit"] or 40 * "0") == 40  # none outside of a checkout
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_only_some_checks_run(monkeypatch, capsys):
    line = ["gpu_check.py", "--device=cpu", "--quick", "--only=marked_tests,rates"]
    monkeypatch.setattr(sys, "argv", line)
    assert gpu_check.main() == 0
    assert "1 skipped, 1 ok" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*line[:-1], "--only=speed"])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "--only: speed unknown: use some of rates," in capsys.readouterr().err


def test_other_processes_find_the_packages_of_this_one(monkeypatch, tmp_path):
    (tmp_path / "carried.py").write_text("print('found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run(["-m", "carried"], tmp_path.parent, 60).stdout.strip() == "found"


def test_marked_tests_are_found_without_importing_the_others():
    assert [Path(path).name for path in correctness.marked_files()] == ["test_inspection.py", "test_gpu.py"]


def test_a_saved_shape_is_a_model_that_trl_and_lmix_can_load(tmp_path):
    others.save(Shape("tiny", Setting(torch.device("cpu"), quick=True, minutes=1)), tmp_path)
    assert load_backbone(BackboneConfig(str(tmp_path), "none", dtype="float32")).config.vocab_size == 512


def environment() -> dict[str, str]:
    import os

    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "1"}


def test_outcomes_say_why():
    def fails():
        raise Failed("gradients differ by 0.5", {"difference": 0.5})

    def skips():
        raise Skipped("no device")

    def breaks():
        raise ZeroDivisionError("by zero")

    assert gpu_check.outcome(fails)["reason"] == "gradients differ by 0.5"
    assert gpu_check.outcome(skips) == {"outcome": "skipped", "reason": "no device"}
    assert gpu_check.one_line(gpu_check.outcome(fails)).startswith("failed: gradients differ by 0.5; difference 0.5, ")
    assert gpu_check.outcome(breaks)["reason"] == "ZeroDivisionError: by zero"
    assert gpu_check.outcome(lambda: {"speed": 1.0})["speed"] == 1.0


def test_a_gradient_that_is_wrong_fails(monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def doubled(policy, wanted):
        for parameter in policy.policy_parameters():
            parameter.data.mul_(2.0)
        yield

    monkeypatch.setattr(correctness, "dequantized", doubled)
    setting = Setting(torch.device("cpu"), quick=True, minutes=1)
    assert gpu_check.outcome(lambda: correctness.nf4_gradients(setting))["outcome"] == "failed"


def test_the_gap_to_float32_is_that_of_the_log_probs():
    setting = Setting(torch.device("cpu"), quick=True, minutes=1)
    exact = correctness.sandbox(setting, "none", "float32")
    rollouts = correctness.drawn(Engine(exact, 16), 1)
    assert correctness.gap_to(exact, rollouts) < 1e-5
    for rollout in rollouts:
        rollout.log_probs += 0.5
    assert correctness.gap_to(exact, rollouts) == pytest.approx(0.5, abs=1e-5)
