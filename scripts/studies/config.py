"""A study: methods with seeds on tasks, learning rates chosen on other seeds and validation problems."""

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
"""What a study may run: files of configs/methods; `format_reward` and `random_reward` are `fixed` with these."""

Settings = dict[str, Any]
"""Arguments of `lmix fit` by their dotted names."""


@dataclass(frozen=True)
class Study:
    """What scripts/study.py runs."""

    tasks: dict[str, Settings]
    """Name -> settings of `data.task`, without the prefix; `class` is the task's class."""
    model: Settings
    """Settings of `model.backbone` and `model.adapters`."""
    seeds: dict[str, list[int]]
    """Method -> seeds. Every seed trains an SFT reference of its own."""
    sft_steps: int
    sft_prompts_per_step: int
    steps: int
    """Of `fixed`; all other methods but SFT stop at the compute that it spends, averaged over seeds."""
    prompts_per_step: int
    samples_per_prompt: int
    eval_size: int
    """Held-out problems at the end."""
    eval_samples: int
    """Completions of each, beside the greedy one."""
    validation_size: int
    """Streamed problems that adaptive alpha decodes at each step."""
    max_new_tokens: int
    tuning_seed: int
    """Of the runs that learning rates are chosen from; none of `seeds`."""
    tuning_steps: int
    """Of a run of `tuned` methods."""
    tuning_problems: int
    """Validation problems that learning rates and alpha are chosen on."""
    tuned: dict[str, list[float]]
    """Method -> the learning rates that are tried, `sft` among them."""
    same_rate: dict[str, str] = field(default_factory=dict)
    """Method -> the tuned one whose rate it takes."""
    alphas: list[float] = field(default_factory=lambda: [0.5])
    """Of `fixed` and `adaptive`'s start: one value, or several of which the untrained mixture chooses on validation
    problems, before anything is trained by them."""
    settings: Settings = field(default_factory=dict)
    """Further arguments of every run."""


def read_study(path: Path, changes: dict[str, Any] | None = None) -> Study:
    """Read a study.

    Args:
        path: of the YAML file.
        changes: values of fields; of those that are mappings, they are added to what the file says.

    Raises:
        ValueError: it is none; one line with file, field and value.
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
        raise ValueError(f"{path} is no study: {' '.join(str(error).split())}") from error
    for method in study.seeds:
        if method not in METHODS:
            raise ValueError(f"{path}: seeds names {method!r}: use some of {', '.join(METHODS)}")
        if method not in study.tuned and study.same_rate.get(method) not in study.tuned:
            raise ValueError(f"{path}: no learning rate for {method!r}: give tuned.{method} or same_rate.{method}")
        if study.tuning_seed in study.seeds[method]:
            raise ValueError(
                f"{path}: tuning_seed {study.tuning_seed} is one of seeds.{method}: choose on another seed"
            )
    for method in ("sft", "fixed"):
        needed = {seed for seeds in study.seeds.values() for seed in seeds}
        if missing := needed - set(study.seeds.get(method, [])):
            raise ValueError(
                f"{path}: seeds.{method} lacks {sorted(missing)}, which other methods start from or stop at"
            )
    return study
