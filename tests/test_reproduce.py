"""The presets' plans: every line parses, and what is done is not planned again."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce
import yaml

from lmix import cli

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "reproduce.py"


def plan(*arguments: str) -> list[list[str]]:
    """The planned lines, without `python`."""
    out = subprocess.run([sys.executable, SCRIPT, "--plan", *arguments], capture_output=True, text=True, check=True)
    return [shlex.split(line)[1:] for line in out.stdout.splitlines() if line.startswith("python -m lmix")]


def flag_is(line: list[str], ending: str) -> bool:
    return any(flag.endswith(ending) for flag in line)


COUNTS = {
    "arithmetic": 3 + 3 * 7 + 1,
    "paper": 9 * (1 + 3 + 3 * 7) + 1,
    "math-0.5b": 1 + 3 + 7 + 1,
    "mmlu-0.5b": 1 + 2 + 2 * 7 + 1,
}


@pytest.mark.parametrize(("preset", "count"), COUNTS.items())
def test_the_lines_of_a_preset_parse(preset, count, tmp_path, capsys):
    lines = plan("--preset", preset, "--out", str(tmp_path))
    assert len(lines) == count
    fits = [line for line in lines if line[2] == "fit"]
    assert len({flag for line in fits for flag in line if "/methods/" in flag}) == (7 if preset == "arithmetic" else 8)
    # of a preset's lines, those that differ in more than one flag: every method on one cell, and every cell
    wanted = [line for line in fits if flag_is(line, "/methods/fixed.yaml") or line[3:5] == fits[0][3:5]]
    seed = next(flag for flag in fits[-1] if flag.startswith("--seed_everything"))
    wanted = [line for line in wanted if seed in line or flag_is(line, "/methods/sft.yaml")]
    assert len(wanted) == {"arithmetic": 7, "paper": 8 + 8}.get(preset, 8)
    for line in wanted:
        with pytest.raises(SystemExit) as stop:
            cli.main([*line[2:], "--print_config"])
        assert stop.value.code in (0, None), line
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["trainer"]["max_steps"] in (20, 24, 40, 200)


def test_what_is_done_is_not_planned_again_and_a_stopped_run_goes_on(tmp_path):
    """Seed 3 ended well, seed 4 was stopped at step 30, seed 5 after its last checkpoint."""
    folder = tmp_path / "arithmetic-tiny" / "fixed"
    for seed, steps in ((3, (30, 40)), (4, (20, 30)), (5, (30, 40))):
        checkpoints = folder / f"seed{seed}" / "checkpoints"
        checkpoints.mkdir(parents=True)
        for step in steps:
            (checkpoints / f"step={step:04d}.ckpt").touch()
    (folder / "seed3" / ".done").touch()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / ".done").touch()
    lines = plan("--preset", "arithmetic", "--out", str(tmp_path), "--methods", "fixed")
    assert [line[2] for line in lines] == [
        "sweep",
        "fit",
        "fit",
        "sweep",
        "compare",
        "report",
    ]  # the report is always new
    seeds = [flag for line in lines for flag in line if flag.startswith("--seed_everything")]
    assert seeds == ["--seed_everything=4", "--seed_everything=5"]
    resumed = [flag for line in lines for flag in line if flag.startswith("--ckpt_path")]
    assert [Path(flag).name for flag in resumed] == ["step=0030.ckpt"] * 2


def test_seeds_can_be_shared_out(tmp_path):
    """The first seed's share has what is made of its policy; the stages that all seeds need are in every share."""
    arguments = ["--preset", "arithmetic", "--out", str(tmp_path), "--methods", "fixed"]
    first, rest = plan(*arguments, "--seeds=3"), plan(*arguments, "--seeds=4,5")
    assert [line[2] for line in first] == ["sweep", "fit", "sweep", "compare", "report"]
    assert [line[2] for line in rest] == ["sweep", "fit", "fit", "report"]
    assert sorted(" ".join(line) for line in plan(*arguments) if line[2] == "fit") == sorted(
        " ".join(line) for line in [*first, *rest] if line[2] == "fit"
    )


def test_a_stage_that_writes_no_checkpoint_is_not_done(tmp_path):
    """A user's flags must not end a run early and have it count."""
    arguments = ["--preset", "arithmetic", "--out", str(tmp_path), "--methods", "fixed", "--set=--trainer.max_steps=1"]
    (tmp_path / "arithmetic-tiny" / "sweep").mkdir(parents=True)  # where the first stage's results would be
    fake = tmp_path / "fake.py"  # stands for python: every command ends well and writes nothing
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    code = f"import sys, runpy; sys.argv[1:] = {arguments!r}; sys.executable = {str(fake)!r}; "
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ended without" in done.stdout
    assert not (tmp_path / "arithmetic-tiny" / "fixed").exists()


def test_what_a_stage_used_is_written_down_each_time(tmp_path):
    for size, status in ((400, 0), (100, 3)):
        line = [sys.executable, "-c", f"x = bytes([1]) * {size} * 10**6; raise SystemExit({status})"]
        assert reproduce.run(line, tmp_path) == status
    first, second = map(json.loads, (tmp_path / "used.jsonl").read_text().splitlines())
    assert (first["status"], second["status"]) == (0, 3)
    assert first["peak_gb"] > 0.4
    assert first["seconds"] > 0


def test_mistakes_are_one_line():
    for arguments, message in (
        (["--set='"], "--set: No closing quotation"),
        (["--methods=ppo"], "--methods names 'ppo'"),
        (["--seeds=3,x"], "--seeds names 'x': use some of 3, 4, 5"),
        (["--set=--data.eval_size=10"], "--data.eval_size=10 would not reach the evaluations"),
    ):
        done = subprocess.run(
            [sys.executable, SCRIPT, "--preset=arithmetic", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_local_data_reach_training_and_evaluation(tmp_path):
    data = "--data.task.source=a.jsonl --model.backbone.path=b"
    lines = plan("--preset", "math-0.5b", "--out", str(tmp_path), "--set", data)
    for line in (*lines[:-1], *plan("--preset", "mmlu-0.5b", "--out", str(tmp_path), "--set", data)[:-1]):
        own = "--data.task.source=a.jsonl" if line[2] == "fit" else "--task.source=a.jsonl"
        assert own in line
        assert ("--model.backbone.path=b" if line[2] == "fit" else "--backbone.path=b") in line
