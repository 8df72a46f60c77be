"""A study: methods with seeds on tasks. Learning rates are chosen on another seed and on validation problems."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

METHODS = (
    "sft",
    "sft_continued",
    "grpo",
    "kl_grpo",
    "fixed",
    "adaptive",
    "fixed_probs",
    "fixed_base_anchor",
    "format_reward",
    "random_reward",
)
"""Methods of a study: files in configs/methods. `format_reward` and `random_reward` are `fixed` with these rewards."""

Settings = dict[str, Any]
"""Arguments of `lmix fit`, by dotted name."""


@dataclass(frozen=True)
class Study:
    """The settings of a study that scripts/study.py runs."""

    tasks: dict[str, Settings]
    """Name -> settings of `data.task`, without the prefix; `class` is the task's class."""
    model: Settings
    """Settings of `model.backbone` and `model.adapters`."""
    seeds: dict[str, list[int]]
    """Method -> seeds. Every seed trains its own SFT reference."""
    sft_steps: int
    sft_prompts_per_step: int
    steps: int
    """Steps of `fixed`, unless `flops` is given. All other methods except SFT stop at the compute that it spends on
    average over seeds."""
    prompts_per_step: int
    samples_per_prompt: int
    eval_size: int
    """Number of held-out problems of the evaluation at the end."""
    eval_samples: int
    """Completions sampled per held-out problem, in addition to the greedy one."""
    validation_size: int
    """Streamed problems that adaptive alpha decodes at each step."""
    max_new_tokens: int
    tuning_seed: int
    """Seed of the runs for choosing learning rates; must not be one of `seeds`."""
    tuning_steps: int
    """Steps of the runs for choosing learning rates, except those of SFT."""
    tuning_problems: int
    """Validation problems for choosing learning rates and alpha."""
    tuned: dict[str, list[float]]
    """Method -> learning rates to try. Must include `sft`."""
    same_rate: dict[str, str] = field(default_factory=dict)
    """Method -> the tuned method whose learning rate it uses."""
    alphas: list[float] = field(default_factory=lambda: [0.5])
    """Alpha of `fixed`, and initial alpha of `adaptive`. If there are several, the one with which the untrained mixture
    solves most validation problems is used."""
    flops: float | None = None
    """Floating-point operations at which every method except SFT stops; `steps` is then not used. No run has to wait
    for what `fixed` spends, so all of them can run at the same time."""
    settings: Settings = field(default_factory=dict)
    """Additional arguments of every run."""


def read_study(path: Path, changes: dict[str, Any] | None = None) -> Study:
    """Read a study.

    Args:
        path: the YAML file.
        changes: new values of fields; mappings are merged into the file's.

    Raises:
        ValueError: the file is not a study; one line with file, field and value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in (changes or {}).items():
            before = content.get(name)
            content[name] = {**before, **value} if isinstance(before, dict) else value
        study = Study(**content)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a study: {' '.join(str(error).split())}") from error
    for method in study.seeds:
        if method not in METHODS:
            raise ValueError(f"{path}: seeds names {method!r}: use some of {', '.join(METHODS)}")
        if method not in study.tuned and study.same_rate.get(method) not in study.tuned:
            raise ValueError(f"{path}: no learning rate for {method!r}: give tuned.{method} or same_rate.{method}")
        if study.tuning_seed in study.seeds[method]:
            raise ValueError(f"{path}: tuning_seed {study.tuning_seed} is one of seeds.{method}: choose another seed")
    for method in ("sft", "fixed"):
        needed = {seed for seeds in study.seeds.values() for seed in seeds}
        if missing := needed - set(study.seeds.get(method, [])):
            raise ValueError(
                f"{path}: seeds.{method} lacks seeds {sorted(missing)}, which other methods need: add them"
            )
    return study
