"""The front door, in this process."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmix import cli
from lmix.cli.messages import settings_errors
from lmix.model import mixed_policy

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DEMO = ["--config", str(CONFIGS / "demo.yaml")]
SMALL = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=1",
    "--trainer.accelerator=cpu",
    "--data.prompts_per_step=4",
    "--data.eval_size=6",
    "--model.sampling.samples_per_prompt=4",
]


def run(*args: str) -> int:
    return cli.main(list(args))


@pytest.fixture
def no_model(monkeypatch):
    """Fail when a backbone is read."""

    def load(*_):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(mixed_policy, "load_backbone", load)


def rows(path: Path, count: int = 3, **changes) -> str:
    row = {"problem": "What is 1+1?", "solution": "\\boxed{2}", "answer": "2", "level": "Level 1", **changes}
    row = {k: v for k, v in row.items() if v is not ...}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(count)))
    return str(path)


MATH = ["--config", str(CONFIGS / "tasks/math.yaml"), "--config", str(CONFIGS / "models/tiny.yaml")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: [*DEMO, "--model.alpha=1.5"], "alpha must lie in [0, 1], not 1.5"),
        (lambda tmp: [*DEMO, "--model.alpha=much"], "\"alpha\": Expected a <class 'float'>. Got value: much"),
        (lambda tmp: [*DEMO, "--model.alfa=0.5"], "no option --model.alfa: did you mean --model.alpha?"),
        (lambda tmp: [*DEMO, "--data.sise=5"], "no option --data.sise (--print_config lists all options)"),
        (lambda tmp: [*DEMO, f"--config={unknown_field(tmp)}"], "no option 'sampels' in lmix.GRPOModule"),
        (lambda tmp: [*DEMO, "--trainer.max_step=3"], "--trainer.max_step: did you mean --trainer.max_steps?"),
        (lambda tmp: [*DEMO, "--model.optimizer.max_grad=1"], "did you mean --model.optimizer.max_grad_norm?"),
        (
            lambda tmp: [*DEMO, "--model.optimizer.lr=1", "--model.objective.lr=1"],
            "there is no option --model.objective.lr (--print_config lists all options)",
        ),
        (lambda tmp: [*DEMO, f"--config={tmp}/none.yaml"], "does not exist"),
        (lambda tmp: [*DEMO, "--data.task.train_size=0"], "train_size must be at least 1, not 0"),
        (lambda tmp: [*DEMO, "--data.max_prompt_tokens=10"], "data.max_prompt_tokens is 10"),
        (lambda tmp: [*DEMO, f"--model.backbone.path={tmp}"], "is not a model folder"),
        (lambda tmp: [*DEMO, "--model.backbone.path=/nowhere/at/all"], "is not a folder"),
        (lambda tmp: [*DEMO, f"--model.adapters.reference={tmp}"], "has no adapter_config.json"),
        (lambda tmp: [*DEMO, f"--model.adapters.reference={foreign(tmp)}"], "does not fit backbone"),
        (lambda tmp: [*DEMO, "--model.adapters.dropout=0.1"], "dropout must be 0"),
        (lambda tmp: [*DEMO, "--trainer.max_steps=-1", "--model.optimizer.schedule=cosine"], "trainer.max_steps"),
        (lambda tmp: [*MATH, f"--data.task.source={rows(tmp / 'a.jsonl', problem=...)}"], "set task.problem_column"),
        (lambda tmp: [*MATH, f"--data.task.source={rows(tmp / 'a.jsonl', 0)}"], "the file is empty"),
        (lambda tmp: [*MATH, f"--data.task.source={tmp}/none.jsonl"], "the file does not exist"),
        (lambda tmp: [*DEMO, f"--ckpt_path={tmp}/none.ckpt"], "none.ckpt' does not exist"),
        (lambda tmp: [*DEMO, "--ckpt_path=last"], "ckpt_path 'last' does not exist"),
        (lambda tmp: [*DEMO, f"--ckpt_path={garbage(tmp)}"], "is damaged or not a checkpoint"),
        (lambda tmp: [*DEMO, f"--ckpt_path={foreign_checkpoint(tmp)}"], "was not written by lmix"),
        (lambda tmp: [*DEMO, "--data.task=lmix.tasks.Task"], "Task has no problems of its own"),
        (lambda tmp: [*DEMO, "--trainer.precision=bf16-mixed"], "set model.backbone.dtype=bfloat16"),
        (lambda tmp: [*DEMO, "--model.adapters.experts=[a]"], "experts needs weights"),
        (lambda tmp: [*DEMO, f"--ckpt_path={old_checkpoint(tmp)}"], "was written by another version of lmix"),
    ],
)
def test_a_mistake_is_one_line_and_found_before_a_model_is_loaded(make, message, tmp_path, capsys, no_model):
    status = run("fit", *make(tmp_path), f"--trainer.logger.save_dir={tmp_path}/runs")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmix: error:")]
    assert status == 1
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: ["-c", written(tmp, b"model: [1\nx: {")], "c.yaml' is not valid YAML in line 2: expected ',' or"),
        (lambda tmp: [f"--config={written(tmp, bytes([0xCF, 0xC7]))}"], "c.yaml' is not a text file"),
        (lambda tmp: ["--config", written(tmp, b"just a text")], "c.yaml' contains a str, not a mapping: give"),
        (lambda tmp: ["--config", written(tmp, b"- a\n- b")], "c.yaml' contains a list, not a mapping: give"),
        (lambda tmp: ["--config", str(tmp)], "Path is not a file"),
        (lambda tmp: [*DEMO, "--trainer.callbacks+=NoSuch"], "trainer.callbacks: class 'NoSuch' does not exist"),
        (lambda tmp: [*DEMO, "--trainer.callbacks+=EarlyStopping"], "arguments are required: monitor"),
        (lambda tmp: [*DEMO, "--trainer.devices=abc", "--trainer.accelerator=cpu"], "trainer: `devices` selected with"),
        (lambda tmp: [*DEMO, "--trainer.devices=-3", "--trainer.accelerator=cpu"], "trainer: `devices` selected with"),
        (
            lambda tmp: [*DEMO, f"--trainer.logger.save_dir={written(tmp, b'')}"],
            "c.yaml: Not a directory): set trainer",
        ),
        (lambda tmp: [*DEMO, "--trainer.logger.save_dir=/proc/nowhere"], "is not writable (/proc"),
        (lambda tmp: [*DEMO, "--trainer.gradient_clip_val=1"], "set model.optimizer.max_grad_norm=1"),
        (lambda tmp: [*DEMO, "--trainer.accumulate_grad_batches=2"], "data.prompts_per_step is the batch"),
        (lambda tmp: [*DEMO, "--trainer.max_time=soon"], "is not a valid duration"),
        (lambda tmp: [*DEMO, f"--model.adapters.reference={written(tmp, b'')}"], "c.yaml' is a file: give the folder"),
        (lambda tmp: [], "required: fit.data.task"),
    ],
)
def test_wrong_uses_are_one_line(make, message, tmp_path, capsys, no_model):
    assert run("fit", *make(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("lmix: error:")]
    assert message in line


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_run_that_ends_on_bad_data_leaves_no_folder(command, tmp_path, no_model, capsys):
    bad = f"--data.task.source={rows(tmp_path / 'a.jsonl', answer=...)}"
    columns = ["--data.task.answer_column=answer", "--data.task.solution_column=null"]
    assert run(command, *MATH, bad, *columns, f"--trainer.logger.save_dir={tmp_path}/runs") == 1
    assert "set task.answer_column" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def written(tmp: Path, content: bytes) -> str:
    (tmp / "c.yaml").write_bytes(content)
    return str(tmp / "c.yaml")


def fails_with(monkeypatch, error: BaseException) -> None:
    def run_trainer(args):
        raise error

    monkeypatch.setattr("lmix.cli.commands.run_trainer", run_trainer)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("The server socket has failed to listen. port: 29500, code: -98, name: EADDRINUSE"),
            "the port for communication between ranks is in use",
        ),
        (
            RuntimeError(
                "Early stopping conditioned on metric `val_loss` which is not available. Pass in or modify your "
                "`EarlyStopping` callback to use any of the following: `train/loss`, `val/solve_rate`"
            ),
            "EarlyStopping.monitor 'val_loss' is not logged: use one of train/loss, val/solve_rate",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device: /x"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/out/a"), "No such file or directory: /out/a"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/out"), "Not a directory: /out"),
    ],
)
def test_third_parties_exceptions_that_are_the_user_s_to_mend(error, message, monkeypatch, capsys):
    fails_with(monkeypatch, error)
    assert run("fit", "--out=/out/a/b") == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"lmix: error: {message}")
    assert "\n" not in line


def test_a_missing_file_that_nobody_named_is_a_bug(monkeypatch):
    fails_with(monkeypatch, FileNotFoundError(errno.ENOENT, "No such file or directory", "/own/table.json"))
    with pytest.raises(FileNotFoundError):
        run("fit", "--out=/out/a")


def test_ctrl_c_is_one_line(monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mixed_policy, "load_backbone", interrupted)
    assert run("fit", *DEMO, *SMALL, f"--trainer.logger.save_dir={tmp_path}") == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("lmix: interrupted")


def test_an_error_in_a_user_s_own_class_keeps_its_traceback():
    with pytest.raises(TypeError, match="mine"), settings_errors("trainer"):
        raise TypeError("mine")


def unknown_field(tmp: Path) -> Path:
    path = tmp / "typo.yaml"
    path.write_text("model:\n  init_args:\n    sampels: 3\n")
    return path


def garbage(tmp: Path) -> Path:
    (tmp / "garbage.ckpt").write_bytes(b"no checkpoint")
    return tmp / "garbage.ckpt"


def foreign_checkpoint(tmp: Path) -> Path:
    torch.save({"state_dict": {}}, tmp / "foreign.ckpt")
    return tmp / "foreign.ckpt"


def old_checkpoint(tmp: Path) -> Path:
    torch.save({"state_dict": {}, "lmix": {"alpha": 0.5}}, tmp / "old.ckpt")
    return tmp / "old.ckpt"


def foreign(tmp: Path) -> Path:
    """An adapter for layers that the tiny model has not."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=20))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(str(tmp / "foreign"))
    return tmp / "foreign"


def test_the_demo_runs_and_writes_everything_down(tmp_path, capsys):
    save_dir = f"--trainer.logger.save_dir={tmp_path}"
    assert run("fit", *DEMO, *SMALL, save_dir, "--model.alpha=0.3") == 0
    out = capsys.readouterr().out
    folder = tmp_path / "demo" / "version_0"
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    wanted = {
        *("alpha", "train/reward", "train/solve_rate", "train/format_rate", "train/loss", "train/grad_norm"),
        *("train/clip_fraction", "train/entropy", "train/completion_length", "train/dead_groups"),
        *("train/sampler_logprob_gap", "train/sampler_gap_max", "train/sampler_gap_k3", "train/answer_rate"),
        *("val/solve_rate", "val/format_rate", "val/answer_rate"),
        *("perf/rollout_tokens_per_second", "perf/train_tokens_per_second"),
    }
    scalars = events.Tags()["scalars"]
    assert wanted <= set(scalars)
    assert [e.step for e in events.Scalars("val/solve_rate")] == [0, 1, 2]
    assert [e.value for e in events.Scalars("alpha")] == pytest.approx([0.3, 0.3])
    assert any("completions" in tag for tag in events.Tags()["tensors"])
    for name, count in (("train", 2 * 4 * 4), ("val", 3 * 6)):
        written = [json.loads(line) for line in (folder / "completions" / f"{name}.jsonl").open()]
        assert len(written) == count
        assert {"problem", "completion", "gold", "answer", "reward"} <= set(written[0])
    assert (folder / "checkpoints" / "step=0002.ckpt").is_file()
    assert (folder / "checkpoints" / "step=0002" / "adapter_model.safetensors").is_file()
    assert "step   2/2" in out
    assert "held-out problems" in out
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["alpha"] == 0.3


def test_what_the_user_types_wins_over_the_checkpoint_s_run(tmp_path, capsys):
    """Resume with another max_steps, learning rate and alpha."""
    save_dir = f"--trainer.logger.save_dir={tmp_path}"
    assert run("fit", *DEMO, *SMALL, save_dir, "--model.alpha=0.25") == 0
    checkpoint = tmp_path / "demo/version_0/checkpoints/step=0002.ckpt"
    more = ["--trainer.max_steps=3", "--model.alpha=0.75", "--model.optimizer.lr=0.0001", f"--ckpt_path={checkpoint}"]
    assert run("fit", *DEMO, *SMALL, save_dir, *more) == 0
    events = EventAccumulator(str(tmp_path / "demo/version_1"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("alpha")] == [(3, pytest.approx(0.75))]
    assert [e.value for e in events.Scalars("train/lr")] == [pytest.approx(1e-4)]
    assert "resuming after step 2" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_other_commands(command, tmp_path):
    assert run(command, *DEMO, *SMALL, f"--trainer.logger.save_dir={tmp_path}") == 0
    name = {"validate": "val"}.get(command, command)
    lines = (tmp_path / "demo/version_0/completions" / f"{name}.jsonl").read_text().splitlines()
    assert len(lines) == 6


TINY = ["--backbone.quantization=none", "--backbone.dtype=float32", "--adapters.reference=lmix:tiny-arithmetic-sft"]
ASK = ["--task=lmix.tasks.ArithmeticTask", "--task.test_size=4", "--problems=4", "--max_new_tokens=48", *TINY]


def test_evaluation_commands_and_a_report_of_them(tmp_path, capsys):
    assert run("evaluate", *ASK, "--who=[mixed,policy]", f"--out={tmp_path}/evaluation") == 0
    assert run("sweep", *ASK, "--alphas=[0,0.5]", f"--out={tmp_path}/sweep") == 0
    assert run("compare", *ASK, f"--out={tmp_path}/compare") == 0
    assert run("report", f"{tmp_path}/sweep", f"{tmp_path}/compare", f"--out={tmp_path}/report") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Sweep of alpha: arithmetic, tiny-arithmetic, the policy is the base" in text
    assert "policy and reference" in text
    for name in ("evaluation/rows.jsonl", "sweep/sweep.json", "compare/compare.json", "report/sweep-1.png"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", *ASK, "--alpha=2"], "alpha must lie in [0, 1], not 2"),
        (["evaluate", *ASK, "--who=[nobody]"], "nobody"),
        (["sweep", *ASK, "--sise=1"], "no option --sise (--print_config lists all options)"),
        (["sweep", *ASK, "--alpha_s=[1]"], "no option --alpha_s: did you mean --alphas?"),
        (["evaluate", *ASK, "--data.task.source=x"], "no option --data.task.source: here it is --task.source"),
        (["plan", *DEMO, "--tflop=1"], "no option --tflop"),
        (["compare", *ASK, "--backbone.path=/nowhere"], "is not a folder"),
        (
            ["evaluate", *ASK, "--task.instruction=say: A"],
            "task.instruction: Expected a <class 'str'>, not {'say': 'A'} (put a text with a colon in quotes",
        ),
        (
            ["evaluate", *ASK, "--task.prompt=Q: {problem}"],
            "Got value: {'Q': {'problem': None}} (put a text with a colon in quotes",
        ),
        (["report", "/nowhere"], "/nowhere contains no"),
    ],
)
def test_mistakes_in_the_other_commands_are_one_line(args, message, capsys, no_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 1
    errors = capsys.readouterr().err.splitlines()
    (error,) = [line for line in errors if line.startswith("lmix: error:")]
    assert message in error
    assert not any("Traceback" in line for line in errors)


def test_a_lost_rank_is_one_line_and_other_failures_are_not_hidden(capsys, monkeypatch):
    def fails(message):
        def run_trainer(args):
            raise RuntimeError(message)

        monkeypatch.setattr("lmix.cli.commands.run_trainer", run_trainer)

    fails("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
    assert run("fit") == 1
    error = capsys.readouterr().err
    assert "another rank has ended" in error
    assert "--ckpt_path" in error
    assert len(error.strip().splitlines()) == 1
    fails("The server socket has failed to listen on any local network address. port: 29500")
    with pytest.raises(RuntimeError, match="server socket"):
        run("fit")
    fails("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        run("fit")


def test_null_and_a_prompt_with_line_ends_are_read_as_typed(capsys):
    """jsonargparse alone reads the null of a nested field as text, and `{problem}` with a line end as a mapping."""
    nulls = ["optimizer.max_grad_norm", "objective.sampler_weight_cap", "backbone.dense_rollouts", "adapters.reference"]
    flags = [f"--model.{name}=null" for name in nulls]
    prompts = {"prompt": "{problem}\n\n", "instruction": "{think}\n", "system": "None"}
    flags += [f"--data.task.{name}={text}" for name, text in prompts.items()]
    with pytest.raises(SystemExit):
        run("fit", *DEMO, "--model.optimizer.max_grad_norm=2", *flags, "--print_config")
    parsed = yaml.safe_load(capsys.readouterr().out)
    for name in nulls:
        group, field = name.split(".")
        fields = parsed["model"]["init_args"][group]
        assert fields.get("init_args", fields)[field] is None
    task = parsed["data"]["task"]["init_args"]
    assert {name: task[name] for name in prompts} == {**prompts, "system": None}
    with pytest.raises(SystemExit):
        run("evaluate", *ASK, "--task.prompt={problem}\n", "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["task"]["init_args"]["prompt"] == "{problem}\n"


def test_every_config_parses_alone_and_composed(capsys):
    tasks, models, methods = (sorted((CONFIGS / kind).glob("*.yaml")) for kind in ("tasks", "models", "methods"))
    longest = max(len(tasks), len(models), len(methods))
    combinations = [tuple(kind[i % len(kind)] for kind in (tasks, models, methods)) for i in range(longest)]
    combinations += [(CONFIGS / "demo.yaml", path) for path in sorted((CONFIGS / "strategies").glob("*.yaml"))]
    for combination in [*combinations, (CONFIGS / "demo.yaml",)]:
        flags = [f"--config={path}" for path in combination]
        with pytest.raises(SystemExit) as stop:
            run("fit", *flags, "--trainer.max_steps=7", "--print_config")
        assert stop.value.code in (0, None), combination
        parsed = yaml.safe_load(capsys.readouterr().out)
        assert parsed["trainer"]["max_steps"] == 7


@pytest.mark.parametrize("name", ["math", "cn_k12", "mmlu"])
def test_each_task_s_config_builds_with_local_files(name, tmp_path, no_model):
    """As far as the model: what comes before it is the task, its data and its prompts."""
    row = {"choices": ["1", "2", "3", "4"], "answer": 1, "subject": "x", "question": "What is 1+1?"}
    path = rows(tmp_path / "a.jsonl", 8, **(row if name == "mmlu" else {}))
    local = [f"--data.task.source={path}", f"--data.task.test_source={path}", "--data.eval_size=2"]
    config = ["--config", str(CONFIGS / f"tasks/{name}.yaml"), "--config", str(CONFIGS / "models/tiny.yaml")]
    save_dir = f"--trainer.logger.save_dir={tmp_path}"
    with pytest.raises(AssertionError, match="a model was loaded"):
        run("validate", *config, *local, save_dir, "--model.sampling.max_new_tokens=50")


def test_field_docstrings_are_the_help(capsys):
    with pytest.raises(SystemExit):
        run("fit", "--model.help=lmix.GRPOModule")
    text = " ".join(capsys.readouterr().out.split())
    for phrase in ("weight of the reference, in [0, 1]", "G, the completions of one prompt", "4 bits"):
        assert phrase in text


def test_a_run_works_away_from_the_checkout(tmp_path, monkeypatch):
    shutil.copy(CONFIGS / "demo.yaml", tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert run("validate", "--config=mine.yaml", *SMALL) == 0
    assert (tmp_path / "runs/demo/version_0").is_dir()


def test_lmix_s_own_configs_go_by_name(capsys):
    for flags in (["--config=lmix:demo"], ["--config", "lmix:demo.yaml"], ["-c", "lmix:demo"], ["-c=lmix:demo"]):
        with pytest.raises(SystemExit):
            run("fit", *flags, "--config=lmix:methods/fixed", "--print_config")
        assert yaml.safe_load(capsys.readouterr().out)["data"]["eval_size"] == 300
    assert run("fit", "--config=lmix:demos") == 1
    error = capsys.readouterr().err
    assert (
        "config 'lmix:demos' is unknown: use one of demo, evaluation/contrastive, methods/accuracy_weighted," in error
    )
    assert "Traceback" not in error


def test_threads_soon_sleep_unless_the_user_says_otherwise():
    """OpenMP reads the variable when torch is imported, so it must be set before."""
    code = "import sys, lmix.cli; assert 'torch' not in sys.modules; import os; print(os.environ['GOMP_SPINCOUNT'])"
    for wanted, given in (("10000", {}), ("7", {"GOMP_SPINCOUNT": "7"})):
        environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == wanted, done.stderr
