"""A preset: an experiment for `scripts/reproduce.py` as a YAML file. Those in configs/presets are given by name."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

CONFIGS = Path(__file__).parent.parent.parent / "configs"

FROM_SFT = ("grpo", "dr_grpo", "dapo", "rloo", "cispo", "gspo")
"""Methods of the policy alone, which start from the SFT adapter."""

FROM_BASE = ("chord", "luffy")
"""Methods that learn from demonstrations instead of SFT, and start at the base without an adapter."""

METHODS = (
    *("fixed", "authors", "adaptive", "accuracy_weighted", "logit_fusion", "fixed_probs", "fixed_base_anchor"),
    *("ensemble", "kl_grpo", *FROM_SFT, *FROM_BASE),
)
"""Files in configs/methods for which `cell.method_adapters` knows the adapters."""

SHARED = ("data.seed", "data.eval_size", "data.validation_size", "data.max_prompt_tokens")
"""Settings that training and evaluation must share."""

OWN = (*SHARED, "data.task.", "data.prompts_per_step", "seed_everything", "trainer.max_steps", "trainer.logger.")
"""Prefixes of settings that have their own fields in a preset, or that determine where a stage writes."""

Setting = str | int | float | bool | list | None
Settings = dict[str, Setting]
"""Settings of `lmix fit` by dotted name, as on its command line: `model.optimizer.lr: 1e-4`."""

Policy = Literal["base", "trained"]
"""The policy to evaluate with the SFT reference: the base, or that of `fixed` with the first seed, if it is run."""


@dataclass(frozen=True)
class SFTStage:
    """Supervised fine-tuning, which trains the reference adapter of a task and model."""

    adapter: str | None = None
    """An existing adapter to use as the reference. None trains one."""
    steps: int = 200
    prompts_per_step: int = 32
    """Demonstrations per step."""
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingStage:
    """The runs of all methods."""

    steps: int
    prompts_per_step: int
    eval_size: int
    """Held-out problems of each evaluation during training."""
    validation_size: int = 100
    """Problems set aside for rules that change alpha. No method trains on them, so that all train on the same problems.
    SFT does not either, unless they are taken from the stream."""
    validation_source: Literal["held_out", "stream"] = "held_out"
    """The same problems at every step, or the next ones of the training problems."""
    settings: Settings = field(default_factory=dict)
    """Settings of all runs. Evaluations load the backbone with the `model.backbone.*` settings among them."""
    learning_rates: list[str] = field(default_factory=list)
    """Run each method once with each of these learning rates instead of its own. Text, such as 1e-3."""


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
    """The assumptions of the time estimate. No command depends on them."""

    mean_completion_length: int
    """In tokens."""
    mean_prompt_length: int | None = None
    """In tokens, for the planner's estimate of hours. None uses the longest prompt."""
    tokens_per_second: float | None = None
    """Measured over rollouts and updates together. None if it was not measured."""


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
    """Name of a file in configs/methods -> settings of its runs that differ from `training.settings`."""
    task_settings: Settings = field(default_factory=dict)
    """Arguments of the task, for training and evaluation."""
    prompt: str | None = None
    """Name of a file in configs/prompts. None uses the task's own prompt, or that of `task_settings`."""
    max_prompt_tokens: int = 1024
    """Problems with longer prompts are dropped."""
    min_new_tokens: int | None = None
    """Minimum number of tokens of a completion; None for no minimum."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion."""
    shuffle: bool = True
    """Choose and order problems by seed; false uses file order, for training and for evaluation."""
    slots: int = 64
    """Number of completions decoded at once."""
    sft: SFTStage = field(default_factory=SFTStage)
    evaluation: EvaluationStage = field(default_factory=EvaluationStage)


def preset_names() -> list[str]:
    """The presets in configs/presets."""
    return sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The file of a preset, given by name or path.

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
        ValueError: the file is not a preset; one line with the file, the field and its value.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--preset", type=Preset)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{content!r} is not a mapping of fields to values")
        preset = parser.instantiate(parser.parse_object({"preset": content})).preset
        check(preset)
    except (ValueError, ArgumentError, yaml.YAMLError) as error:
        from lmix.cli.messages import one_line  # imports Lightning's command line, which takes seconds

        message = one_line(str(error)).replace("preset.", "").replace("Parser key ", "")
        message = message.replace("Group 'preset' does not accept option", "there is no field")
        raise ValueError(f"{path}: {message}") from None
    return preset


def check(preset: Preset) -> None:
    """Check everything that the types of the fields do not cover.

    Raises:
        ValueError: a value is wrong; the message starts with the name of the field.
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
                raise ValueError(f"{prefix}{name}: must be positive, not {value}")
    if preset.training.learning_rates and "trained" in [*preset.evaluation.sweep, *preset.evaluation.compare]:
        raise ValueError("evaluation: 'trained' can't be used together with training.learning_rates: use base")
    check_settings("sft.settings", preset.sft.settings)
    check_settings("training.settings", preset.training.settings)
    for method, settings in preset.methods.items():
        check_settings(f"methods.{method}", settings)


def check_names(name: str, values: Collection[str | int], known: Collection[str | int] = ()) -> None:
    """Raise ValueError unless there is at least one value, none occurs twice, and all are in `known`, if given."""
    if not values:
        raise ValueError(f"{name}: must not be empty; give at least one")
    for value in values:
        if known and value not in known:
            raise ValueError(f"{name}: {value!r} is unknown; use some of {', '.join(sorted(map(str, known)))}")
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: {list(values)} contains a value twice")


def check_settings(name: str, settings: Settings) -> None:
    """Raise ValueError if settings contain one that other stages depend on."""
    for setting in settings:
        if setting.startswith(OWN):
            raise ValueError(f"{name}: {setting!r} can't be set here; use the preset's fields, such as task_settings")
