"""A preset: the experiment that `scripts/reproduce.py` runs, as a YAML file. Those in configs/presets go by name."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

CONFIGS = Path(__file__).parent.parent.parent / "configs"

FROM_SFT = ("grpo", "dr_grpo", "dapo", "rloo", "cispo", "gspo")
"""Methods of the policy alone, which start from the SFT adapter."""

FROM_BASE = ("chord", "luffy")
"""Methods that learn from demonstrations in the place of SFT: no adapter is given."""

METHODS = (
    *("fixed", "authors", "adaptive", "accuracy_weighted", "logit_fusion", "fixed_probs", "fixed_base_anchor"),
    *("ensemble", "kl_grpo", *FROM_SFT, *FROM_BASE),
)
"""Files in configs/methods whose adapters `cell.method_adapters` can name."""

SHARED = ("data.seed", "data.eval_size", "data.validation_size", "data.max_prompt_tokens")
"""Settings that training and evaluation must share."""

OWN = (*SHARED, "data.task.", "data.prompts_per_step", "seed_everything", "trainer.max_steps", "trainer.logger.")
"""Prefixes of settings that a preset has fields for, or that decide where a stage writes."""

Setting = str | int | float | bool | list | None
Settings = dict[str, Setting]
"""Values of `lmix fit` by their dotted names, as on its command line: `model.optimizer.lr: 1e-4`."""

Policy = Literal["base", "trained"]
"""The policy beside the SFT reference: the base model, or the one of `fixed` and the first seed, if that is run."""


@dataclass(frozen=True)
class SFTStage:
    """Supervised fine-tuning, which trains the reference adapter of a task and model."""

    adapter: str | None = None
    """An existing adapter to use as the reference. None trains one."""
    steps: int = 200
    prompts_per_step: int = 32
    """Demonstrations of a step."""
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingStage:
    """The runs of all methods."""

    steps: int
    prompts_per_step: int
    eval_size: int
    """Held-out problems of each evaluation during training."""
    validation_size: int = 100
    """Problems set aside for rules that move alpha. Every method leaves them out, so that all train on the same ones;
    SFT does too, unless they are taken from the stream."""
    validation_source: Literal["held_out", "stream"] = "held_out"
    """The same problems at every step, or the next ones of the training problems."""
    settings: Settings = field(default_factory=dict)
    """Evaluations load the backbone by `model.backbone.*` of these."""
    learning_rates: list[str] = field(default_factory=list)
    """Run each method once with each of these in place of its own, to choose from: text such as 1e-3."""


@dataclass(frozen=True)
class EvaluationStage:
    """Greedy decoding of held-out problems, after training."""

    problems: int = 500
    sweep: list[Policy] = field(default_factory=lambda: ["base", "trained"])
    """Policies whose mixtures with SFT are evaluated at alpha 0, 0.1, ..., 1 (Table 4)."""
    compare: list[Policy] = field(default_factory=lambda: ["trained"])
    """Policies that are compared with SFT problem by problem (Tables 1 to 3)."""


@dataclass(frozen=True)
class Estimate:
    """What the estimate of time is computed from. No command depends on it."""

    mean_completion_length: int
    """Tokens."""
    mean_prompt_length: int | None = None
    """Tokens, for the planner's hours; None: as many as the longest."""
    tokens_per_second: float | None = None
    """Measured over rollouts and updates together. None where it was not measured."""


@dataclass(frozen=True)
class Preset:
    """Every task on every model: SFT, each method with each seed, evaluation."""

    tasks: list[str]
    """Names of files in configs/tasks."""
    models: list[str]
    """Names of files in configs/models."""
    seeds: list[int]
    training: TrainingStage
    estimate: Estimate
    max_new_tokens: int
    methods: dict[str, Settings]
    """By name of a file in configs/methods: the settings of its runs that differ from `training.settings`."""
    task_settings: Settings = field(default_factory=dict)
    """Arguments of the task, for training and evaluation."""
    prompt: str | None = None
    """Name of a file in configs/prompts. None leaves the task's own prompt, or that of `task_settings`."""
    max_prompt_tokens: int = 1024
    """Problems with a longer prompt are left out."""
    min_new_tokens: int | None = None
    """Tokens before which no completion ends; None for no such number."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion."""
    shuffle: bool = True
    """Take problems by seed; false takes them in file order, for training and for evaluation."""
    slots: int = 64
    """Completions that are decoded at a time."""
    sft: SFTStage = field(default_factory=SFTStage)
    evaluation: EvaluationStage = field(default_factory=EvaluationStage)


def preset_names() -> list[str]:
    """The presets in configs/presets."""
    return sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The file of a preset that is given by name or path.

    Raises:
        ValueError: there is no such preset.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / "presets" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"--preset {name!r}: no such file; use a YAML file or one of {', '.join(preset_names())}")
    return path


def read_preset(path: Path) -> Preset:
    """Read and check a preset.

    Raises:
        ValueError: the file is no preset: one line with the file, the field and its value.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--preset", type=Preset)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{content!r} is no mapping of fields to values")
        preset = parser.instantiate(parser.parse_object({"preset": content})).preset
        check(preset)
    except (ValueError, ArgumentError, yaml.YAMLError) as error:
        from lmix.cli.messages import one_line  # imports Lightning's command line, which takes seconds

        message = one_line(str(error)).replace("preset.", "").replace("Parser key ", "")
        message = message.replace("Group 'preset' does not accept option", "there is no field")
        raise ValueError(f"{path}: {message}") from None
    return preset


def check(preset: Preset) -> None:
    """Check what the types of the fields do not say.

    Raises:
        ValueError: a value is wrong; the message starts with its field.
    """
    check_names("tasks", preset.tasks, [path.stem for path in (CONFIGS / "tasks").glob("*.yaml")])
    check_names("models", preset.models, [path.stem for path in (CONFIGS / "models").glob("*.yaml")])
    check_names("methods", preset.methods, METHODS)
    if preset.prompt is not None:
        check_names("prompt", [preset.prompt], [path.stem for path in (CONFIGS / "prompts").glob("*.txt")])
    check_names("seeds", preset.seeds)
    parts = {"": preset, "sft.": preset.sft, "training.": preset.training}
    for prefix, part in {**parts, "evaluation.": preset.evaluation, "estimate.": preset.estimate}.items():
        for name, value in vars(part).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{prefix}{name}: {value} is not positive")
    if preset.training.learning_rates and "trained" in [*preset.evaluation.sweep, *preset.evaluation.compare]:
        raise ValueError(
            "evaluation: the trained policy is not one where training.learning_rates has several: use base"
        )
    check_settings("sft.settings", preset.sft.settings)
    check_settings("training.settings", preset.training.settings)
    for method, settings in preset.methods.items():
        check_settings(f"methods.{method}", settings)


def check_names(name: str, values: Collection[str | int], known: Collection[str | int] = ()) -> None:
    """At least one value, none of them twice, all of them among `known` if there are such."""
    if not values:
        raise ValueError(f"{name}: is empty; name at least one")
    for value in values:
        if known and value not in known:
            raise ValueError(f"{name}: {value!r} is unknown; use some of {', '.join(sorted(map(str, known)))}")
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: {list(values)} has a value twice")


def check_settings(name: str, settings: Settings) -> None:
    """What other stages depend on can't be set for one of them."""
    for setting in settings:
        if setting.startswith(OWN):
            raise ValueError(f"{name}: {setting!r} can't be set here; use the preset's fields, such as task_settings")
