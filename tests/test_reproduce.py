"""Presets: their commands are what they were, every command parses, and finished stages are not run again."""

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce
import yaml
from reproduction.arguments import flags, parse
from reproduction.cell import method_adapters
from reproduction.costs import costs, run_needs
from reproduction.execution import run
from reproduction.preset import METHODS, preset_names, preset_path, read_preset
from reproduction.stages import stages

from lmix import cli
from lmix.planning import Device
from lmix.planning.estimates import peak

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "reproduce.py"
GOLDEN = Path(__file__).parent / "golden"


def plan(*arguments: str) -> list[list[str]]:
    """The planned lines, without `python`."""
    out = subprocess.run([sys.executable, SCRIPT, "--plan", *arguments], capture_output=True, text=True, check=True)
    return [shlex.split(line)[1:] for line in out.stdout.splitlines() if line.startswith("python -m lmix")]


def flag_is(line: list[str], ending: str) -> bool:
    return any(flag.endswith(ending) for flag in line)


def read_plan(text: str) -> list[tuple[str, list[str], dict]]:
    """Of each stage its title, what precedes the flags together with the config files, and the flags' last values."""
    stages = []
    for block in text.strip().split("\n\n")[1:]:
        title, line = block.split("\n")
        words = shlex.split(line)
        configs = ["configs/" + word.rpartition("/configs/")[2] for word in words if word.startswith("--config=")]
        plain = [word for word in words if not word.startswith("--")]
        rest = parse(word for word in words if word.startswith("--") and not word.startswith("--config="))
        stages.append((title, plain + configs, rest))
    return stages


@pytest.mark.parametrize("name", ["arithmetic", "math-0.5b", "mmlu-0.5b", "paper"])
def test_commands_are_those_of_the_presets_in_python(name, monkeypatch, capsys):
    """The files are `reproduce.py --preset NAME --plan --out OUT` of commit 0028862, whose presets were Python.

    The order of flags does not count, and of a flag that is given twice the last value does. Where a preset is changed
    on purpose, write its file again: that output with the checkout's path left out, through `gzip -9n`.
    """
    golden = gzip.decompress((GOLDEN / f"{name}.txt.gz").read_bytes()).decode()
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--preset", name, "--plan", "--out", "OUT"])
    monkeypatch.setattr("reproduction.costs.table", lambda *_: "")  # minutes, for all of the paper's runs
    assert reproduce.main() == 0
    text = capsys.readouterr().out
    assert text.split("\n")[0] == golden.split("\n")[0]  # how many stages, how many tokens, how many hours
    expected = read_plan(golden.replace("--config=configs", "--config=/configs"))
    assert len(expected) > 10
    assert read_plan(text) == expected


COUNTS = {
    "arithmetic": 3 + 3 * 17 + 1,
    "arithmetic-rates": 17 * 3 + 1,
    "authors-math-3b": 1 + 2 + 4 + 1,
    "authors-math-0.5b": 1 + 1 + 1 + 1,
    "paper": 9 * (1 + 3 + 3 * 7) + 1,
    "math-0.5b": 1 + 3 + 7 + 1,
    "mmlu-0.5b": 1 + 2 + 2 * 7 + 1,
    "sums-0.5b": 1 + 1 + 1 + 1,
    "sums-0.5b-rates": 1 + 3 + 1,
    "sums-1.5b": 1 + 1 + 1 + 1,
}


LONG = {"paper", "mmlu-0.5b", "authors-math-0.5b", "arithmetic", "arithmetic-rates"}
"""Presets of many lines; each line takes a second to parse."""
METHOD_COUNTS = {
    "arithmetic": 17,
    "arithmetic-rates": 17,
    "authors-math-3b": 5,
    "authors-math-0.5b": 2,
    "sums-0.5b": 2,
    "sums-0.5b-rates": 2,
    "sums-1.5b": 2,
}
"""Different methods, SFT among them, that a preset runs."""


@pytest.mark.parametrize(
    ("preset", "count"),
    [pytest.param(*item, marks=pytest.mark.slow if item[0] in LONG else []) for item in COUNTS.items()],
)
def test_the_lines_of_a_preset_parse(preset, count, tmp_path, capsys):
    lines = plan("--preset", preset, "--out", str(tmp_path))
    assert len(lines) == count
    fits = [line for line in lines if line[2] == "fit"]
    assert len({flag for line in fits for flag in line if "/methods/" in flag}) == METHOD_COUNTS.get(preset, 8)
    # of a preset's lines, those that differ in more than one flag: every method on one cell, and every cell
    wanted = [line for line in fits if flag_is(line, "/methods/fixed.yaml") or line[3:5] == fits[0][3:5]]
    seed = next(flag for flag in fits[-1] if flag.startswith("--seed_everything"))
    wanted = [line for line in wanted if seed in line or flag_is(line, "/methods/sft.yaml")]
    assert len(wanted) == {
        **METHOD_COUNTS,
        "paper": 8 + 8,
        "arithmetic-rates": 17 * 3,
        "sums-0.5b-rates": 1 + 3,
    }.get(preset, 8)
    for line in wanted:
        with pytest.raises(SystemExit) as stop:
            cli.main([*line[2:], "--print_config"])
        assert stop.value.code in (0, None), line
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["trainer"]["max_steps"] in (10, 12, 16, 20, 24, 40, 48, 200)


def test_hours_and_memory_are_the_planner_s(tmp_path, monkeypatch, capsys):
    """Of SFT, a sweep and two runs, where no rate was measured."""
    sft = {"steps": 3, "prompts_per_step": 8}
    evaluation = {"problems": 6, "sweep": ["base"], "compare": []}
    estimate = {"mean_completion_length": 10, "mean_prompt_length": 5}
    path = write_preset(
        tmp_path / "mine.yaml", methods={"fixed": {}}, sft=sft, evaluation=evaluation, estimate=estimate
    )
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--preset", str(path), "--plan", "--out", str(tmp_path / "out")])
    assert reproduce.main() == 0
    text = capsys.readouterr().out
    assert "80 GB, 300 TFLOP/s" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| arithmetic-tiny")]
    assert [(row[0], row[1]) for row in rows] == [
        ("| arithmetic-tiny: sft", "1"),
        ("| arithmetic-tiny: fixed", "2"),
        ("| arithmetic-tiny: sweep of SFT and the base", "1"),
    ]
    preset = read_preset(path)
    planned = stages(preset, tmp_path / "out", ["fixed"], [7, 8], [])
    fit = next(stage for stage in planned if ": fixed, seed 7" in stage.name)
    longest, usual = run_needs(fit, preset, Device())
    assert (longest.run.tokens, longest.run.prompt_tokens) == (32, preset.max_prompt_tokens)
    assert (usual.run.tokens, usual.run.prompt_tokens, usual.run.rows, usual.run.streams) == (10, 5, 4 * 8, 2)
    found = costs(planned, preset, Device())
    seconds = 5 * (usual.rollout_seconds + usual.update_seconds) + 20 * usual.completion_seconds
    assert found["arithmetic-tiny: fixed"].hours == pytest.approx(seconds / 3600)
    assert found["arithmetic-tiny: fixed"].peak_gb == pytest.approx(peak(longest.parts) / 1e9)
    sweep = found["arithmetic-tiny: sweep of SFT and the base"]
    assert sweep.hours == pytest.approx(20 * 6 * usual.completion_seconds / 3600)
    path = write_preset(path, task_settings={"system": "a: b"}, sft=sft, evaluation=evaluation, estimate=estimate)
    assert reproduce.main() == 0  # a text that the command line reads as a mapping
    assert "can't read these runs: data.task.system: Expected" in capsys.readouterr().out
    total = found["arithmetic-tiny: sft"].hours + 2 * found["arithmetic-tiny: fixed"].hours + sweep.hours
    assert f"| **sum** | | **{total:.2f}** | |" in text


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


def test_a_stage_that_writes_no_checkpoint_is_not_done(tmp_path, monkeypatch, capsys):
    """A user's flags must not end a run early and have it count."""
    arguments = ["--preset", "arithmetic", "--out", str(tmp_path), "--methods", "fixed", "--set=--trainer.max_steps=1"]
    (tmp_path / "arithmetic-tiny" / "sweep").mkdir(parents=True)  # the output folder of the first stage
    fake = tmp_path / "fake.py"  # in place of python: every command succeeds and writes nothing
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    assert reproduce.main() == 1
    assert "ended without" in capsys.readouterr().out
    assert (tmp_path / "arithmetic-tiny" / "sweep" / ".done").exists()
    assert not (tmp_path / "arithmetic-tiny" / "fixed").exists()


def test_what_a_stage_used_is_written_down_each_time(tmp_path):
    for size, status in ((400, 0), (100, 3)):
        line = [sys.executable, "-c", f"x = bytes([1]) * {size} * 10**6; raise SystemExit({status})"]
        assert run(line, tmp_path) == status
    first, second = map(json.loads, (tmp_path / "used.jsonl").read_text().splitlines())
    assert (first["status"], second["status"]) == (0, 3)
    assert first["peak_gb"] > 0.4
    assert first["seconds"] > 0


def test_mistakes_are_one_line():
    for arguments, message in (
        (["--set='"], "--set: No closing quotation"),
        (["--methods=ppo"], "--methods names 'ppo'"),
        (
            ["--preset=arithmetics"],
            "--preset 'arithmetics': no such file; use a YAML file or one of arithmetic, ",
        ),
        (["--preset=no/such.yaml"], "--preset 'no/such.yaml': no such file"),
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
    """In both forms that a command line knows."""
    for preset in ("math-0.5b", "mmlu-0.5b"):
        for data in (
            "--data.task.source=a.jsonl --model.backbone.path=b",
            "--data.task.source a.jsonl --model.backbone.path b",
        ):
            for line in plan("--preset", preset, "--out", str(tmp_path), "--set", data)[:-1]:
                settings, fit = parse(line), line[2] == "fit"
                assert settings["data.task.source" if fit else "task.source"] == "a.jsonl"
                assert settings["model.backbone.path" if fit else "backbone.path"] == "b"


def test_a_task_s_own_config_reaches_the_evaluations_and_the_preset_wins(tmp_path):
    lines = plan("--preset", "sums-0.5b", "--out", str(tmp_path))
    (settings,) = (parse(line) for line in lines if line[2] == "compare")
    assert settings["task.dataset"] == "chain_sum"
    assert yaml.safe_load(settings["task.config"])["max_terms"] == 3
    lines = plan("--preset", "authors-math-0.5b", "--out", str(tmp_path))
    (settings,) = (parse(line) for line in lines if line[2] == "compare")
    assert settings["task.template"] == "think_answer"  # configs/tasks/math.yaml has another


def write_preset(path: Path, **changes) -> Path:
    """A small preset with some fields changed; None leaves a field out."""
    preset = {
        "tasks": ["arithmetic"],
        "models": ["tiny"],
        "seeds": [7, 8],
        "max_new_tokens": 32,
        "training": {"steps": 5, "prompts_per_step": 4, "eval_size": 20},
        "methods": {"fixed": {}, "grpo": {"model.optimizer.lr": 0.5}},
        "estimate": {"mean_completion_length": 10, "tokens_per_second": 100},
    }
    preset = {name: value for name, value in {**preset, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(preset))
    return path


def test_a_preset_of_one_s_own_is_given_by_path(tmp_path):
    """Its methods and seeds are those that are run; SFT is trained where there is no adapter."""
    path = write_preset(
        tmp_path / "mine.yaml",
        task_settings={"system": "a b"},
        sft={"steps": 3, "settings": {"model.optimizer.lr": 0.25}},
        training={"steps": 5, "prompts_per_step": 4, "eval_size": 20, "settings": {"model.backbone.dtype": "bfloat16"}},
        evaluation={"problems": 6, "sweep": [], "compare": ["base", "trained"]},
    )
    lines = plan("--preset", str(path))
    assert [line[2] for line in lines] == ["fit", "compare", "fit", "fit", "fit", "fit", "compare", "report"]
    sft, base, fixed, grpo, _, _, trained, report = map(parse, lines)
    folder = "runs/mine/arithmetic-tiny"  # of the file's name, where no --out is given
    assert report["title"] == "mine"
    assert sft["trainer.max_steps"] == "3"
    assert sft["model.optimizer.lr"] == "0.25"
    assert "model.backbone.dtype" not in sft
    assert fixed["model.adapters.reference"] == f"{folder}/sft/seed0/checkpoints/step=0003"
    assert fixed["seed_everything"] == "7"
    assert "model.optimizer.lr" not in fixed
    assert grpo["model.optimizer.lr"] == "0.5"
    assert {line["data.task.system"] for line in (sft, fixed, grpo)} == {"a b"}
    for line in (base, trained):
        assert line["task.system"] == "a b"
        assert line["backbone.dtype"] == "bfloat16"
        assert line["problems"] == "6"
    assert "adapters.policy" not in base
    assert trained["adapters.policy"] == f"{folder}/fixed/seed7/checkpoints/step=0005"
    assert [line[2] for line in plan("--preset", str(path), "--methods=grpo", "--seeds=7,7")] == [
        *("fit", "compare", "fit", "report")
    ]


def test_each_method_is_run_with_each_learning_rate(tmp_path):
    training = {**TRAINING, "learning_rates": ["5e-4", "1e-3"]}
    path = write_preset(
        tmp_path / "mine.yaml", seeds=[7], training=training, evaluation={"problems": 6, "sweep": [], "compare": []}
    )
    runs = [
        parse(line) for line in plan("--preset", str(path)) if flag_is(line, "fixed.yaml") or flag_is(line, "grpo.yaml")
    ]
    found = [(run["trainer.logger.name"], run["model.optimizer.lr"]) for run in runs]
    assert found == [
        *(("fixed-lr5e-4", "5e-4"), ("fixed-lr1e-3", "1e-3")),
        *(("grpo-lr5e-4", "5e-4"), ("grpo-lr1e-3", "1e-3")),  # in place of its own rate
    ]


def test_methods_start_where_they_are_meant_to():
    """Those of the policy alone at the SFT adapter, those with demonstrations at the base; a mixture has SFT in it."""
    starts = {name: method_adapters(name, "SFT") for name in METHODS}
    for name in ("grpo", "dr_grpo", "dapo", "rloo", "cispo", "gspo"):
        assert starts[name] == {"model.adapters.policy": "SFT"}
    assert starts["chord"] == starts["luffy"] == {}
    for name in ("fixed", "authors", "adaptive", "accuracy_weighted", "logit_fusion", "fixed_probs"):
        assert starts[name] == {"model.adapters.reference": "SFT"}
    assert starts["kl_grpo"] == {"model.adapters.policy": "SFT", "model.adapters.reference": "SFT"}


def test_limits_prompts_and_file_order_reach_training_and_evaluation(tmp_path):
    training = {**TRAINING, "validation_size": 6, "validation_source": "stream"}
    limits = {"stop": ["</answer>", "x y"], "min_new_tokens": 4}
    path = write_preset(tmp_path / "mine.yaml", prompt="r1_zero", shuffle=False, training=training, **limits)
    for line in plan("--preset", str(path))[:-1]:
        settings, fit = parse(line), line[2] == "fit"
        assert Path(settings["data.task.prompt" if fit else "task.prompt"]).read_text().endswith("<think>\n")
        assert settings["data.shuffle" if fit else "shuffle"] == "false"
        prefix = "model.sampling." if fit else ""
        assert json.loads(settings[f"{prefix}stop"]) == ["</answer>", "x y"]
        assert settings[f"{prefix}min_new_tokens"] == "4"
        if fit:  # SFT's steps leave no problems out
            is_sft = flag_is(line, "/methods/sft.yaml")
            assert settings["data.validation_size"] == ("0" if is_sft else "6")
            assert settings.get("data.validation_source") == (None if is_sft else "stream")
    plain = [parse(line) for line in plan("--preset", str(write_preset(tmp_path / "plain.yaml")))]
    assert not any("stop" in name or "shuffle" in name or "min_new" in name for line in plain for name in line)


TRAINING = {"steps": 5, "prompts_per_step": 4, "eval_size": 20}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["maths"]}, "tasks: 'maths' is unknown; use some of arithmetic, cn_k12, math, mmlu"),
        ({"models": []}, "models: must not be empty; give at least one"),
        ({"seeds": [3, 3]}, "seeds: [3, 3] contains a value twice"),
        ({"seeds": ["three"]}, "seeds\": Expected a <class 'int'>. Got value: three"),
        (
            {"methods": {"ppo": {}}},
            "methods: 'ppo' is unknown; use some of accuracy_weighted, adaptive, authors, chord",
        ),
        ({"prompt": "r1"}, "prompt: 'r1' is unknown; use some of r1_zero"),
        ({"max_new_tokens": 0}, "max_new_tokens: must be positive, not 0"),
        ({"training": {**TRAINING, "steps": -1}}, "training.steps: must be positive, not -1"),
        ({"training": {**TRAINING, "steps": "many"}}, "training.steps"),
        ({"training": {**TRAINING, "stepz": 1}}, "there is no field 'training.stepz'"),
        ({"training": None}, "training"),
        (
            {"training": {**TRAINING, "settings": {"data.eval_size": 3}}},
            "training.settings: 'data.eval_size' can't be set here",
        ),
        ({"sft": {"settings": {"data.task.seed": 3}}}, "sft.settings: 'data.task.seed' can't be set here"),
        ({"methods": {"fixed": {"data.seed": 1}}}, "methods.fixed: 'data.seed' can't be set here"),
        ({"training": {**TRAINING, "settings": {"trainer.max_steps": 3}}}, "'trainer.max_steps' can't be set here"),
        ({"methods": {"fixed": {"model": {"alpha": 0.3}}}}, "methods: Expected a <class 'str'>, not {'alpha': 0.3}"),
        ({"evaluation": {"sweep": ["best"]}}, "evaluation.sweep"),
        ({"training": {**TRAINING, "learning_rates": ["1e-3"]}}, "evaluation: 'trained' can't be used together"),
        ({"evaluation": {"sweep": ["best"]}}, "best"),
        ({"estimate": {"mean_completion_length": 1, "tokens_per_second": "fast"}}, "fast"),
    ],
)
def test_a_mistake_in_a_preset_is_one_line_with_file_field_and_value(changes, message, tmp_path, monkeypatch, capsys):
    path = write_preset(tmp_path / "mine.yaml", **changes)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--plan", "--preset", str(path)])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    *_, last = error.splitlines()
    assert last.startswith(f"reproduce.py: error: {path}: ")
    assert message in last
    assert "Traceback" not in error
    assert not out


@pytest.mark.parametrize(("text", "message"), [("- a", "['a'] is no"), ("a: [", "line 1, column"), ("", "None")])
def test_a_file_that_is_no_preset_is_one_line(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        read_preset(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_preset_of_configs_is_read_and_planned():
    assert set(COUNTS) == set(preset_names())
    for name in preset_names():
        preset = read_preset(preset_path(name))
        assert set(preset.methods) <= set(METHODS)


def test_settings_are_written_as_arguments_and_read_again():
    """Text stays as it is, also where YAML would read another type."""
    settings = {"a.lr": "1e-4", "text": "x: {problem}", "levels": [1, 2], "none": None, "on": True, "rate": 0.5}
    written = flags(settings, "data.")
    assert written == [
        "--data.a.lr=1e-4",
        "--data.text=x: {problem}",
        "--data.levels=[1,2]",
        "--data.none=null",
        "--data.on=true",
        "--data.rate=0.5",
    ]
    assert parse(written)["data.text"] == "x: {problem}"
    assert parse(["--a", "1", "--b=2", "--a=3", "--c", "-4"]) == {"a": "3", "b": "2", "c": "-4"}
