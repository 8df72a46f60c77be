# ruff: noqa: RUF001 - the alpha is meant

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from lmix.report import methods
from lmix.report.bands import by_method, family
from lmix.report.methods import method_name
from lmix.report.runs import EVENTS, join_resumed, read_run, read_scalars, task_name
from lmix.tasks import DatasetTask, MathTask
from lmix.training.config import SamplingConfig
from tests.report.conftest import config, solving, write_events
from tests.training.helpers import data, module, trainer

BASE = {"reference": None}
STORED = Path("docs/results/qwen2.5-0.5b/configs")
ADAPTIVE = {"class_path": "lmix.training.alpha.AdaptiveAlpha"}
DAPO = {"clip_radius_above": 0.28, "inner_updates": 1}
LONG = "one character after another, and no line break"
STOPPING = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/solve_rate"}}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        (config(), "fixed, α=0.5"),
        (config(alpha=0.25), "fixed, α=0.25"),
        (config(callbacks=[{"class_path": "lmix.training.alpha.AdaptiveAlpha"}]), "adaptive"),
        (config(callbacks=[{"class_path": "lmix.training.alpha.AlphaSchedule"}]), "schedule"),
        (config(callbacks=[{"class_path": "lmix.training.alpha.AccuracyWeightedAlpha"}]), "accuracy_weighted"),
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
        (config(objective={"class_path": "lmix.training.objectives.GRPO", "init_args": {}}), "fixed, α=0.5"),
        (
            config(objective={"class_path": "lmix.training.objectives.dapo.DAPO", "init_args": DAPO}),
            "fixed, α=0.5, DAPO",
        ),
        (
            config(objective={"class_path": "mine.TOPR", "init_args": {"mini_batches": 2, "beta": 1.0}}),
            "fixed, α=0.5, TOPR, mini_batches=2",
        ),
        (
            config(objective={"mini_batches": 8, "advantage_std": "sample"}),
            "fixed, α=0.5, advantage_std=sample, mini_batches=8",
        ),
        (config(sampling={"temperature": 0.8}), "fixed, α=0.5, temperature=0.8"),
        (config(model="lmix.SFTModule", adapters=BASE), "sft"),
        (config(model="mine.RLOO"), "fixed, α=0.5, RLOO"),
        (config(callbacks=[{"class_path": "mine.AlphaByReward"}]), "fixed, α=0.5, AlphaByReward"),
    ],
)
def test_method_names(settings, method):
    assert method_name(settings) == method


def test_a_mixture_with_a_kl_is_not_kl_grpo():
    kl = {"beta": 0.01}
    assert method_name(config(objective=kl)) == "fixed, α=0.5, beta=0.01"
    assert method_name(config(mixture="probs", objective=kl)) == "fixed_probs, α=0.5, beta=0.01"
    assert method_name(config(callbacks=[ADAPTIVE], objective=kl)) == "adaptive, beta=0.01"
    assert method_name(config(weights=[0.5, 0.5], objective=kl)) == "ensemble, 0.5 0.5, beta=0.01"


@pytest.mark.parametrize("path", sorted(STORED.glob("mmlu-*.yaml")), ids=lambda path: path.stem)
def test_configurations_that_fit_wrote_have_their_method_s_name(path):
    assert family(method_name(yaml.safe_load(path.read_text()))) == path.stem.removeprefix("mmlu-")


@pytest.mark.parametrize("path", sorted(Path("configs/methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_methods_have_their_file_s_name(path):
    given = yaml.safe_load(path.read_text())
    settings = config(**given["model"]["init_args"], model=given["model"]["class_path"])
    if "adapters" not in given["model"]["init_args"]:
        settings["model"]["init_args"]["adapters"] = {"reference": "sft"}
    if path.stem == "sft_continued":
        settings["model"]["init_args"]["adapters"] = {"policy": "sft"}
    settings["trainer"] |= given.get("trainer", {})
    names = {"contrastive": "ensemble", "dexperts": "ensemble", "proxy_tuning": "ensemble", "authors": "fixed"}
    assert family(method_name(settings)) == names.get(path.stem, path.stem)


def stored(name: str, **changes) -> dict:
    """A configuration that fit wrote, with values changed by dotted name (`__` for a dot)."""
    settings = yaml.safe_load((STORED / f"{name}.yaml").read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = settings
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place[parent]
        place[last] = value
    return settings


ARGS = "model__init_args__"
SECOND_SEED = {
    "seed_everything": 1,
    ARGS + "sampling__seed": 4,
    "trainer__logger__init_args__version": "seed1",
    "trainer__default_root_dir": "/elsewhere",
    "ckpt_path": "/elsewhere/checkpoints/step=0010.ckpt",
    ARGS + "adapters__reference": "/elsewhere/sft/seed1/checkpoints/step=0024",
    ARGS + "backbone__path": "/elsewhere/$LMIX_MODEL",
    "data__task__init_args__source": "/elsewhere/val.jsonl",
}


@pytest.mark.parametrize("name", ["mmlu-kl_grpo", "mmlu-adaptive", "mmlu-fixed", "mmlu-sft"])
def test_seeds_paths_and_the_logger_make_no_other_method(name):
    other = {n: v for n, v in SECOND_SEED.items() if "sft" not in name or "reference" not in n}
    first, second = stored(name), stored(name, **other)
    assert methods.settings(first) == methods.settings(second)
    assert methods.differences([first, second]) == [[], []]


@pytest.mark.parametrize(
    ("name", "change", "labels"),
    [
        ("mmlu-kl_grpo", {ARGS + "objective__beta": 0.1}, ("beta=0.01", "beta=0.1")),
        ("mmlu-fixed", {ARGS + "optimizer__lr": 1e-5}, ("lr=0.0002", "lr=1e-05")),
        ("mmlu-fixed", {ARGS + "adapters__rank": 8}, ("rank=16", "rank=8")),
        ("mmlu-fixed", {ARGS + "objective__clip_radius": 0.1}, ("clip_radius=0.2", "clip_radius=0.1")),
        ("mmlu-fixed", {"data__prompts_per_step": 16}, ("prompts_per_step=8", "prompts_per_step=16")),
        ("mmlu-adaptive", {"trainer__callbacks__0__init_args__offset": 25.0}, ("offset=5.0", "offset=25.0")),
        ("mmlu-fixed", {"data__seed": 1}, ("seed=0", "seed=1")),  # other problems are held out
        # not in the reading
        ("mmlu-adaptive", {ARGS + "alpha": 0.3}, ("alpha=0.5", "alpha=0.3")),
        ("mmlu-fixed", {ARGS + "alpha": 0.5 + 1e-9}, ("alpha=0.5", "alpha=0.500000001")),
        ("mmlu-fixed", {ARGS + "optimizer__betas": [0.9, 0.999]}, ("betas=[0.9, 0.95]", "betas=[0.9, 0.999]")),
        ("mmlu-fixed", {ARGS + "backbone__quantization": "nf4"}, ("quantization=none", "quantization=nf4")),
        ("mmlu-adaptive", {ARGS + "adapters__reference": None}, ("reference=step=0024", "reference=base")),
        ("mmlu-fixed", {ARGS + "adapters__reference": "sft/step=0064"}, ("reference=step=0024", "reference=step=0064")),
        ("mmlu-fixed", {"data__task__init_args__source": "x/hard.jsonl"}, ("source=val.jsonl", "source=hard.jsonl")),
        ("mmlu-fixed", {"data__task__init_args__subjects": ["law"]}, ("subjects=none", 'subjects=["law"]')),
        ("mmlu-fixed", {"trainer__callbacks": [STOPPING]}, ("no EarlyStopping", "EarlyStopping")),
        ("mmlu-adaptive", {"trainer__callbacks": [ADAPTIVE]}, ("offset=5.0, scale=7.0", "offset=none, scale=none")),
        (
            "mmlu-fixed",
            {"data__task__init_args__system": "q" * 60},
            ("system=Answer the question.", f"system={'q' * 27}..."),
        ),
    ],
)
def test_what_differs_makes_another_method_and_is_in_its_label(make_run, name, change, labels):
    configs = [stored(name), stored(name, **change), stored(name, **SECOND_SEED)]
    runs = [make_run(f"run{i}", {"val/solve_rate": {0: 0.5}}, settings) for i, settings in enumerate(configs)]
    groups = by_method([read_run(run) for run in runs])
    start = method_name(configs[0])
    assert {method: len(group) for method, group in groups.items()} == {
        f"{start}, {labels[0]}": 2,
        f"{start}, {labels[1]}": 1,
    }
    assert list(by_method([run for group in groups.values() for run in group])) == list(groups)  # labels stay


@pytest.mark.parametrize("spelling", ["base", "null", "None"])
def test_every_spelling_of_the_base_is_one_anchor(spelling):
    configs = [stored("mmlu-fixed", **{ARGS + "adapters__reference": value}) for value in (None, spelling)]
    assert methods.differences(configs) == [[], []]
    assert [method_name(c) for c in configs] == ["fixed_base_anchor, α=0.5"] * 2


def test_no_two_methods_share_a_label():
    """Classes that are absent, alone or with other arguments, and texts that only differ behind their beginning."""
    patient = {**STOPPING, "init_args": {"monitor": "val/solve_rate", "patience": 5}}
    callbacks = [None, [STOPPING], [patient], [STOPPING, patient]]
    texts = ["x" * 40, "x" * 41]
    configs = [
        stored("mmlu-fixed", trainer__callbacks=c, data__task__init_args__system=t) for c in callbacks for t in texts
    ]
    labels = [", ".join(parts) for parts in methods.differences(configs)]
    assert len(set(labels)) == len(configs)
    assert all("\n" not in label for label in labels)


def test_task_names():
    settings = config()
    assert task_name(settings) == "arithmetic"
    settings["data"]["task"] = {"class_path": "lmix.tasks.DatasetTask", "init_args": {"source": "AI-MO/NuminaMath-1.5"}}
    assert task_name(settings) == "NuminaMath-1.5"
    assert [DatasetTask("AI-MO/NuminaMath-1.5").name, MathTask("train.jsonl").name] == ["NuminaMath-1.5", "math"]


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


def test_scalars_of_a_run_carry_the_number_of_updates(tmp_path):
    """Of training and of evaluations, the one before the first step too, as Lightning's logger writes them."""
    logger = TensorBoardLogger(tmp_path, "logs", version="x")
    t = trainer(tmp_path, 3, logger=logger, val_check_interval=2, num_sanity_val_steps=-1, log_every_n_steps=1)
    t.fit(module(sampling=SamplingConfig(samples_per_prompt=2, max_new_tokens=4, seed=0)), data(prompts=2))
    scalars = read_scalars(sorted((tmp_path / "logs" / "x").glob(EVENTS)))
    steps = {tag: [step for step, _ in points] for tag, points in scalars.items()}
    assert steps["val/solve_rate"] == steps["val/format_rate"] == [0, 2]
    assert steps["train/reward"] == steps["alpha"] == [1, 2, 3]


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
    ("text", "says"),
    [(None, "config.yaml is missing"), ("model: [", "not written by lmix"), ("model: {}", "not written by lmix")],
)
def test_no_run(make_run, tmp_path: Path, text, says):
    folder = make_run("run", solving(0.5))
    (folder / "config.yaml").unlink()
    if text is not None:
        (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not a run folder"):
        read_run(tmp_path / "absent")
