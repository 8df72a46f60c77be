# ruff: noqa: RUF001 - the alpha is meant

import json
from pathlib import Path

import pytest

from lmix.report.runs import join_resumed, method_name, read_run, task_name
from tests.report.conftest import config, solving, write_events

BASE = {"reference": None}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        (config(), "fixed, α=0.5"),
        (config(alpha=0.25), "fixed, α=0.25"),
        (config(callbacks=[{"class_path": "lmix.training.callbacks.AdaptiveAlpha"}]), "adaptive"),
        (config(callbacks=[{"class_path": "lmix.training.callbacks.AlphaSchedule"}]), "schedule"),
        (config(callbacks=[{"class_path": "lightning.pytorch.callbacks.Timer"}]), "fixed, α=0.5"),
        (config(mixture="probs"), "fixed_probs, α=0.5"),
        (config(adapters=BASE), "fixed_base_anchor, α=0.5"),
        (config(adapters={"reference": "base"}), "fixed_base_anchor, α=0.5"),
        (config(alpha=0.0, objective={"beta": 0.01}), "kl_grpo"),
        (config(alpha=0.0, objective={"beta": 0.0}), "grpo"),
        (config(alpha=0.0, adapters=BASE), "grpo"),
        (config(weights=[0.5, 0.25, 0.25]), "ensemble, 0.5 0.25 0.25"),
        (config(sampling={"resample_dead": 2, "slots": 8}), "fixed, α=0.5, resample_dead=2"),
        (config(alpha=0.0, objective={"beta": 0.0, "normaliser": "batch"}), "grpo, normaliser=batch"),
        (config(weights=None), "fixed, α=0.5"),
        (config(model="lmix.SFTModule", adapters=BASE), "sft"),
        (config(model="mine.RLOO"), "fixed, α=0.5, RLOO"),
        (config(callbacks=[{"class_path": "mine.AlphaByReward"}]), "fixed, α=0.5, AlphaByReward"),
    ],
)
def test_method_names(settings, method):
    assert method_name(settings) == method


def test_task_names():
    settings = config()
    assert task_name(settings) == "arithmetic"
    settings["data"]["task"] = {"class_path": "lmix.tasks.DatasetTask", "init_args": {"source": "AI-MO/NuminaMath-1.5"}}
    assert task_name(settings) == "NuminaMath-1.5"


def test_read_run(make_run):
    run = read_run(make_run("run", solving(0.25, 0.75), config(seed=3)))
    assert (run.method, run.task, run.seed) == ("fixed, α=0.5", "arithmetic", 3)
    assert run.setting == "arithmetic, tiny-arithmetic"
    assert run.scalars["val/solve_rate"] == [(0, 0.25), (10, 0.75)]
    assert len(run.scalars["train/reward"]) == 20


def test_later_values_of_a_resumed_run_win(make_run):
    folder = make_run("run", {"train/reward": {0: 0.0, 1: 0.25, 2: 0.5}})
    write_events(folder, {"train/reward": {2: 0.75, 3: 1.0}}, suffix=".later")
    assert read_run(folder).scalars["train/reward"] == [(0, 0.0), (1, 0.25), (2, 0.75), (3, 1.0)]


def test_evaluations_carry_the_number_of_updates(make_run):
    folder = make_run("run", {"val/solve_rate": {0: 0.25, 9: 0.5, 19: 0.75}, "train/reward": {9: 0.5}})
    (folder / "completions").mkdir()
    rows = [{"step": step, "problem_id": 0} for step in (0, 10, 20)]
    (folder / "completions" / "val.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"st')
    run = read_run(folder)
    assert run.scalars["val/solve_rate"] == [(0, 0.25), (10, 0.5), (20, 0.75)]
    assert run.scalars["train/reward"] == [(9, 0.5)]


def test_a_continuation_in_its_own_folder_is_joined(make_run):
    first = make_run("version_0", {"train/reward": {0: 0.0, 1: 0.25, 2: 0.5}})
    settings = config() | {"ckpt_path": str(first / "checkpoints" / "step=0002.ckpt")}
    second = make_run("version_1", {"train/reward": {2: 0.75, 3: 1.0}}, settings)
    tested = make_run("version_2", {"test/solve_rate": {2: 0.5}}, settings)
    [joined, other] = join_resumed([read_run(second), read_run(first), read_run(tested)])
    assert joined.scalars["train/reward"] == [(0, 0.0), (1, 0.25), (2, 0.75), (3, 1.0)]
    assert other.folder == tested
    assert "train/reward" not in other.scalars


@pytest.mark.parametrize(
    ("text", "says"), [(None, "no config.yaml"), ("model: [", "not one that lmix"), ("model: {}", "not one that lmix")]
)
def test_no_run(make_run, tmp_path: Path, text, says):
    folder = make_run("run", solving(0.5))
    (folder / "config.yaml").unlink()
    if text is not None:
        (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is no run"):
        read_run(tmp_path / "absent")
