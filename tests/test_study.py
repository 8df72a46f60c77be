"""A study's commands parse, its choices are those of validation problems, and it goes on where it was stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import study as script
import yaml
from reproduction import execution
from reproduction.arguments import parse
from reproduction.stage import Stage
from studies.config import read_study
from studies.runs import TaskStudy
from torch.utils.tensorboard import SummaryWriter

from lmix import tasks
from lmix.cli import run_trainer
from lmix.report import write_report
from tests.report.conftest import config
from tests.report.test_evidence import store

ROOT = Path(__file__).parent.parent
STUDY = {
    "tasks": {"sums": {"class": "lmix.tasks.ArithmeticTask", "test_size": 8}},
    "model": {"model.backbone.path": "lmix:tiny-arithmetic", "model.backbone.quantization": "none"},
    "seeds": {name: [0, 1] for name in ("sft", "fixed", "sft_continued", "grpo", "kl_grpo", "adaptive")}
    | {name: [0] for name in ("fixed_probs", "fixed_base_anchor", "format_reward", "random_reward")},
    "sft_steps": 4,
    "sft_prompts_per_step": 2,
    "steps": 3,
    "prompts_per_step": 2,
    "samples_per_prompt": 4,
    "eval_size": 4,
    "eval_samples": 2,
    "validation_size": 4,
    "max_new_tokens": 16,
    "tuning_seed": 9,
    "tuning_steps": 2,
    "tuning_problems": 4,
    "tuned": {"sft": [1e-4, 1e-3, 1e-2], "fixed": [1e-4, 1e-3], "grpo": [1e-4]},
    "same_rate": {"sft_continued": "sft", "kl_grpo": "grpo"}
    | dict.fromkeys(("adaptive", "fixed_probs", "fixed_base_anchor", "format_reward", "random_reward"), "fixed"),
    "alphas": [0.3, 0.5, 0.7],
}
SOLVED = {0.0001: 0.2, 0.001: 0.6, 0.01: 0.6}
"""What a tuning run solves by its learning rate: two are equal, and the smaller one is taken."""


class Machine:
    """Stands in for the commands: notes them, and leaves what they would leave."""

    def __init__(self):
        self.lines, self.fails_at = [], None

    def __call__(self, line, folder, output=None):
        if len(self.lines) == self.fails_at:
            return 1
        self.lines.append(line[1:])
        settings = parse(line[3:])
        folder.mkdir(parents=True, exist_ok=True)
        if "sweep" in line:
            rows = [{"mixture": "logits", "alpha": a, "solved": {0.3: 5, 0.5: 2, 0.7: 5}[a]} for a in (0.3, 0.5, 0.7)]
            (folder / "sweep.json").write_text(json.dumps({"rows": rows}))
        elif "fit" in line:
            with SummaryWriter(str(folder)) as writer:
                writer.add_scalar("val/solve_rate", SOLVED[float(settings["model.optimizer.lr"])], 2)
                writer.add_scalar("compute/flops", 100.0 + float(settings["seed_everything"]), 3)
            (folder / "checkpoints" / "step=0003").mkdir(parents=True, exist_ok=True)
        return 0


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(execution, "run", made)
    return made


def run(tmp_path, monkeypatch, *flags, **changes):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    monkeypatch.setattr("sys.argv", ["study.py", str(tmp_path / "study.yaml"), f"--out={tmp_path / 'out'}", *flags])
    return script.main()


def waves(tmp_path, **changes):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return list(TaskStudy(read_study(tmp_path / "study.yaml"), "sums", tmp_path).waves())


def name_of(line):
    settings = parse(line)
    return settings.get("trainer.logger.name"), settings.get("seed_everything")


def test_a_study_from_its_first_stage_to_its_last(machine, tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch) == 0
    fits = [line for line in machine.lines if "fit" in line]
    of = {(parse(line)["trainer.logger.save_dir"].split("/")[-1], *name_of(line)): parse(line) for line in fits}
    tuning = [name for folder, name, seed in of if folder == "tuning"]
    assert tuning == ["sft-lr0.0001", "sft-lr0.001", "sft-lr0.01", "fixed-lr0.0001", "fixed-lr0.001", "grpo-lr0.0001"]
    for (folder, name, seed), settings in of.items():
        if folder == "tuning":
            assert (seed, settings["data.eval_split"]) == ("9", "validation")
            if not name.startswith("sft"):  # start from the tuning seed's SFT at the chosen rate
                assert any("sft-lr0.001/seed9" in str(value) for key, value in settings.items() if "adapters" in key)
            continue
        assert settings["model.optimizer.lr"] == {"grpo": "0.0001", "kl_grpo": "0.0001"}.get(name, "0.001")
        assert "data.eval_split" not in settings
        if name in ("sft", "fixed"):
            assert settings["trainer.max_steps"] == {"sft": "4", "fixed": "3"}[name]
        else:  # up to the compute of `fixed`, 100 and 101 for its two seeds
            assert float(settings["trainer.callbacks.flops"]) == 100.5
        if name in ("fixed", "adaptive", "format_reward"):
            assert settings["model.alpha"] == "0.3"  # of equals, 0.3 and 0.7 are as near to 0.5: the first
        if name not in ("sft", "fixed_base_anchor"):
            assert any(f"sft/seed{seed}/checkpoints" in str(v) for key, v in settings.items() if "adapters" in key)
    assert len(of) == len(fits) == 6 + 6 * 2 + 4
    choices = json.loads((tmp_path / "out" / "sums" / "choices.json").read_text())
    assert choices["tried"]["sft"] == pytest.approx({"0.0001": 0.2, "0.001": 0.6, "0.01": 0.6})
    assert choices["rates"]["adaptive"] == 0.001
    report = machine.lines[-1]
    assert "report" in report
    assert sum("seed" in word for word in report) == 6 * 2 + 4


def test_a_study_with_a_given_budget_runs_every_method_to_it(machine, tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, flops=50) == 0
    fits = [parse(line) for line in machine.lines if "fit" in line]
    budgets = {s["trainer.logger.name"]: s.get("trainer.callbacks.flops") for s in fits if s["seed_everything"] != "9"}
    assert budgets.pop("sft") is None
    assert set(budgets.values()) == {"50"}
    assert json.loads((tmp_path / "out" / "sums" / "choices.json").read_text())["flops"] == 50
    *_, last_wave = waves(tmp_path, flops=50)
    assert {stage.folder.parent.name for stage in last_wave} == set(budgets)


def test_one_learning_rate_of_sft_needs_no_choice(tmp_path):
    first, *_ = waves(tmp_path, tuned=STUDY["tuned"] | {"sft": [1e-4]})
    assert [stage.folder.relative_to(tmp_path).as_posix() for stage in first] == [
        "sums/tuning/sft-lr0.0001/seed9",
        "sums/sft/seed0",
        "sums/sft/seed1",
    ]
    assert "--model.optimizer.lr=0.0001" in first[1].line()


def test_a_study_goes_on_where_it_was_stopped(machine, tmp_path, monkeypatch):
    machine.fails_at = 12
    assert run(tmp_path, monkeypatch) == 1
    machine.fails_at = None
    before = len(machine.lines)
    assert run(tmp_path, monkeypatch) == 0
    fits = [name_of(line) for line in machine.lines if "fit" in line]
    assert len(fits) == len(set(fits))
    assert len(machine.lines) > before == 12


def test_several_jobs_run_the_same_commands_but_never_before_what_they_depend_on(machine, tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch) == 0
    alone = [list(line) for line in machine.lines]
    machine.lines.clear()
    for folder in (tmp_path / "out").iterdir():
        shutil.rmtree(folder)
    assert run(tmp_path, monkeypatch, "--jobs=4") == 0
    assert sorted(machine.lines) == sorted(alone)
    names = [name_of(line)[0] if "fit" in line else "other" for line in machine.lines]
    assert [name for name in names if name in ("sft", "fixed")] == ["sft", "sft", "fixed", "fixed"]
    assert names.index("fixed") > max(i for i, name in enumerate(names) if "-lr" in (name or ""))
    assert names.index("adaptive") > names.index("fixed") + 1


def test_output_goes_to_a_file_and_a_failure_stops_the_waves_after_it(tmp_path, capsys):
    def stage(name: str, code: str, wave: int) -> Stage:
        return Stage(name, ["python", "-c", code], tmp_path / name, wave=wave)

    for name in "abc":
        (tmp_path / name).mkdir()
    stages = [stage("a", "print('seen')", 0), stage("b", "raise SystemExit(3)", 0), stage("c", "print()", 1)]
    assert execution.execute(stages, plan_only=False, jobs=2) == 1
    assert (tmp_path / "a.log").read_text() == "seen\n"
    assert [stage.done for stage in stages] == [True, False, False]
    assert not (tmp_path / "c.log").exists()
    assert f"b failed (see {tmp_path / 'b.log'})" in capsys.readouterr().out


def test_a_stage_resumes_but_not_from_its_last_step(machine, tmp_path, monkeypatch):
    seeds = {"sft": [0], "fixed": [0], "grpo": [0]}
    run(tmp_path, monkeypatch, seeds=seeds)
    for method in ("fixed", "grpo"):
        folder = tmp_path / "out" / "sums" / method / "seed0"
        for step in (2, 3):
            (folder / "checkpoints" / f"step={step:04d}.ckpt").touch()
        (folder / ".done").unlink()
    machine.lines.clear()
    run(tmp_path, monkeypatch, seeds=seeds)
    given = {name_of(line): parse(line).get("ckpt_path", "") for line in machine.lines if "fit" in line}
    assert Path(given["fixed", "0"]).stem == "step=0002"  # of three steps
    assert Path(given["grpo", "0"]).stem == "step=0003"  # which a budget ends


def test_what_is_kept_of_a_study_makes_the_same_report(machine, tmp_path, monkeypatch, capsys):
    seeds = {"sft": [0, 1], "fixed": [0, 1]}
    run(tmp_path, monkeypatch, seeds=seeds)
    folders = [tmp_path / "out" / "sums" / method / f"seed{seed}" for method in seeds for seed in (0, 1)]
    for number, folder in enumerate(folders):
        seed, model = number % 2, "lmix.SFTModule" if number < 2 else "lmix.GRPOModule"
        (folder / "config.yaml").write_text(yaml.safe_dump(config(seed, model)))
        with SummaryWriter(str(folder)) as writer:
            writer.add_scalar("val/format_rate", 1.0, 2)
            writer.add_text("completions", "long", 2)
        store(folder, np.arange(12)[:, None] < [3 + number] * 2, step=2)
        (folder / "completions" / "train.jsonl").write_text("long")
    run(tmp_path, monkeypatch, f"--keep={tmp_path / 'kept'}", seeds=seeds)
    assert f"4 runs copied to {tmp_path / 'kept'}" in capsys.readouterr().out
    kept = [tmp_path / "kept" / folder.relative_to(tmp_path / "out") for folder in folders]
    texts = [write_report(some, tmp_path / name).read_text() for name, some in (("a", folders), ("b", kept))]
    assert texts[0] == texts[1]
    assert "### Claims" in texts[0]
    files = {path.name for path in kept[0].rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert files == {"config.yaml", "val.jsonl.gz"}
    assert {path.name for path in (tmp_path / "kept" / "sums").iterdir()} == {"choices.json", "sweep", "sft", "fixed"}
    run(tmp_path, monkeypatch, f"--keep={tmp_path / 'kept'}", seeds=seeds)
    assert "0 runs copied" in capsys.readouterr().out


def test_every_method_s_command_parses(machine, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch)
    seen = set()
    for line in machine.lines:
        if "fit" in line and (name := name_of(line)[0]) not in seen:
            seen.add(name)
            run_trainer(line[2:], start=False)
    assert {"sft", "sft_continued", "kl_grpo", "adaptive", "format_reward"} <= seen


def test_a_field_can_be_changed_on_the_command_line(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    study = read_study(tmp_path / "study.yaml", {"model": {"model.backbone.path": "/elsewhere"}, "steps": 7})
    assert study.model == STUDY["model"] | {"model.backbone.path": "/elsewhere"}
    assert study.steps == 7


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "studies").glob("qwen*.yaml")), ids=lambda path: path.stem)
def test_the_settings_of_a_shipped_study_parse(path, machine, tmp_path, monkeypatch):
    """With the tasks of the tests, because reasoning-gym is not installed here."""
    study = read_study(path)
    assert all(hasattr(tasks, task["class"].removeprefix("lmix.tasks.")) for task in study.tasks.values())
    keys = [key.value for key, _ in yaml.compose(path.read_text()).value]
    assert len(keys) == len(set(keys))
    changes = {
        "tasks": {name: STUDY["tasks"]["sums"] | {"test_size": 500} for name in study.tasks},
        "model": {"model.backbone.path": "lmix:tiny-arithmetic"},
        "tuned": {method: [1e-4] for method in study.tuned},  # a rate that Machine has a result for
    }
    flags = [f"--set={field}={json.dumps(value)}" for field, value in changes.items()]
    monkeypatch.setattr("sys.argv", ["study.py", str(path), f"--out={tmp_path}", *flags])
    assert script.main() == 0
    fits = {name_of(line)[0]: line for line in machine.lines if "fit" in line}  # one command of each method
    assert set(fits) >= set(study.seeds)
    for line in fits.values():
        run_trainer(line[2:], start=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nothing": 1}, "is not a study"),
        ({"seeds": {"nothing": [0]}}, "seeds names 'nothing'"),
        ({"seeds": {"sft": [9], "fixed": [9]}}, "tuning_seed 9 is one of seeds.sft"),
        ({"seeds": {"sft": [0], "fixed": [0, 1]}}, r"seeds.sft lacks seeds \[1\]"),
        ({"same_rate": {}}, "no learning rate for 'sft_continued'"),
    ],
)
def test_mistakes(changes, message, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    with pytest.raises(ValueError, match=message) as caught:
        read_study(tmp_path / "study.yaml")
    assert "\n" not in str(caught.value)
