"""The method of a run from its configuration: its name, and which runs have the same method."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
VARIANTS: dict[str, dict[str, Any]] = {
    "objective": {
        "beta": 0.0,
        "clip_radius_above": None,
        "normaliser": "group",
        "advantage_std": "population",
        "inner_updates": 1,
        "mini_batches": 1,
        "entropy_bonus": 0.0,
    },
    "sampling": {"resample_dead": 0, "temperature": 1.0},
}
"""Options that are part of a method's name whenever they differ from these defaults."""
IGNORED = {"seed_everything", "model.sampling.seed", "ckpt_path"}
"""Fields in which runs of one method may differ. Seeds of data and tasks are not among them: they choose problems."""
IGNORED_ANYWHERE = {"default_root_dir", "logger"}
"""Fields, at any depth, that only set where a run writes."""
ADAPTERS = {"reference", "policy"}
"""Fields in which null means the base."""
OBJECTIVES = {
    "CHORD": "chord",
    "CISPO": "cispo",
    "DAPO": "dapo",
    "DrGRPO": "dr_grpo",
    "GSPO": "gspo",
    "LUFFY": "luffy",
    "LogitFusion": "logit_fusion",
    "RLOO": "rloo",
}
"""Objective class -> method name, as in configs/methods. At alpha above 0 this applies to LogitFusion only."""
MODULES = {"DistillModule": "distill", "SDPOModule": "sdpo"}
"""Module class -> method name, for modules that learn from a teacher."""
BASE = (None, "base", "null", "None")
"""Values that mean the base in an adapter field; see `AdapterConfig`."""
PATHS = ADAPTERS | {"experts", "path", "source", "test_source"}
"""Fields with paths. Only the last path component is compared between runs."""
ABSENT = "none"
"""The value of a setting that is missing from a configuration or null."""
LONGEST_VALUE = 30
"""Maximum characters of a setting's value in a label, unless more are needed to distinguish two."""


def method_name(config: dict[str, Any]) -> str:
    """The name of a configuration's method: a family, which has a colour in figures, and a variant (`fixed, α=0.5`).

    Two configurations with the same name may still be different methods: see `settings` and `differences`.

    Raises:
        KeyError: the configuration has no model.
    """
    return ", ".join([base_method(config), *own_classes(config), *variants(config)])


def base_method(config: dict[str, Any]) -> str:
    """The name of the method without `own_classes` and `variants`."""
    arguments = model_arguments(config)
    alpha = arguments.get("alpha", 0.5)
    names = [callback["class_path"] for callback in callbacks(config)]
    if config["model"]["class_path"].endswith("SFTModule"):
        return "sft" if arguments["adapters"].get("policy") in BASE else "sft_continued"
    if own := MODULES.get(last_part(config["model"]["class_path"], ".")):
        return own
    objective = objective_name(config)
    if objective == "LogitFusion" or (alpha == 0 and objective in OBJECTIVES):
        return OBJECTIVES[objective]
    if weights := arguments.get("weights"):
        return f"ensemble, {' '.join(f'{weight:g}' for weight in weights)}"
    rules = {"AdaptiveAlpha": "adaptive", "AccuracyWeightedAlpha": "accuracy_weighted", "AlphaSchedule": "schedule"}
    for ending, method in rules.items():
        if any(name.endswith(ending) for name in names):
            return method
    if alpha == 0:
        return "kl_grpo" if options(config, "objective").get("beta", 0) > 0 else "grpo"
    if arguments.get("mixture") == "probs":
        return f"fixed_probs, {ALPHA}={alpha:g}"
    anchored = arguments["adapters"].get("reference") not in BASE
    return f"{'fixed' if anchored else 'fixed_base_anchor'}, {ALPHA}={alpha:g}"


def own_classes(config: dict[str, Any]) -> list[str]:
    """Names of an objective other than GRPO, and of the user's own model and callbacks, which make another method."""
    paths = [part["class_path"] for part in [config["model"], *callbacks(config)]]
    own = [last_part(path, ".") for path in paths if "." in short_class(path)]
    objective = objective_name(config)
    named = objective in ("GRPO", "Distillation") or base_method(config) == OBJECTIVES.get(objective)
    return own if named else [objective, *own]


def objective_name(config: dict[str, Any]) -> str:
    """The name of the objective's class. Runs from before 0.2.0 have no class, and used GRPO."""
    return last_part((model_arguments(config).get("objective") or {}).get("class_path", "GRPO"), ".")


def variants(config: dict[str, Any]) -> list[str]:
    """The options of `VARIANTS` that differ from their defaults, except beta for `kl_grpo`, whose name implies it."""
    implied = {"beta"} if base_method(config) == "kl_grpo" else set()
    rewards = model_arguments(config).get("rewards") or {"verifier": 1.0}
    parts = [] if list(rewards) == ["verifier"] else [f"rewards={'+'.join(last_part(r, '.') for r in rewards)}"]
    for group, defaults in VARIANTS.items():
        given = options(config, group)
        if group == "objective" and objective_name(config) != "GRPO":  # other objectives have other defaults
            defaults = {name: defaults[name] for name in ("inner_updates", "mini_batches", "entropy_bonus")}
        changed = [name for name, default in defaults.items() if given.get(name, default) != default]
        parts += [f"{name}={given[name]}" for name in changed if name not in implied]
    return parts


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that define a method: the whole configuration except `IGNORED`, by dotted name.

    The `init_args` of a class are listed under the name of its field; for a list of classes, under the name of each
    class. Paths are reduced to their last component, and a missing adapter counts as `base`.
    """
    return dict(_flat(config, ""))


def differences(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """For each configuration, the settings in which the configurations differ, as parts of a label.

    Two configurations have equal lists if and only if their `settings` are equal.
    """
    all_settings = [settings(config) for config in configs]
    names = list(dict.fromkeys(name for one in all_settings for name in one))
    columns = {
        name: [json.dumps(one[name], default=str) if name in one else ABSENT for one in all_settings] for name in names
    }
    columns = {name: column for name, column in columns.items() if len(set(column)) > 1}
    # if a class differs, leave out its arguments, unless they are needed to distinguish two configurations
    brief = {name: c for name, c in columns.items() if not any(name.startswith(f"{other}.") for other in columns)}
    apart = len(set(zip(*brief.values(), strict=True))) == len(set(zip(*columns.values(), strict=True)))
    chosen = brief if apart else columns
    parts = [_parts(name, column, list(columns)) for name, column in chosen.items()]
    return [list(row) for row in zip(*parts, strict=True)] if parts else [[] for _ in all_settings]


def model_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The model's `init_args`."""
    return config["model"]["init_args"]


def callbacks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The trainer's callbacks, each with `class_path` and `init_args`."""
    return config["trainer"].get("callbacks") or []


def options(config: dict[str, Any], group: str) -> dict[str, Any]:
    """The model's options in a group. An objective is a class with `init_args`; in older runs it was a plain group."""
    given = model_arguments(config).get(group) or {}
    return given.get("init_args") or {} if "class_path" in given else given


def last_part(path: str, separators: str = "/:") -> str:
    """The last component of a path, hub id or asset name."""
    return re.split(f"[{separators}]", path.rstrip("/"))[-1]


def short_class(path: str) -> str:
    """The bare name of a class of lmix or Lightning, which may have several import paths; other classes in full."""
    return last_part(path, ".") if path.split(".")[0] in ("lmix", "lightning", "pytorch_lightning") else path


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a configuration by dotted name."""
    if isinstance(value, dict) and "class_path" in value:
        yield name, short_class(value["class_path"])
        value = value.get("init_args") or {}
    if isinstance(value, dict):
        for key, inner in value.items():
            inner_name = f"{name}.{key}" if name else key
            if inner_name not in IGNORED and key not in IGNORED_ANYWHERE:
                yield from _flat(inner, inner_name)
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "class_path" in item for item in value):
        classes = [short_class(item["class_path"]) for item in value]
        for place, (item, kind) in enumerate(zip(value, classes, strict=True)):
            number = classes[:place].count(kind) + 1
            yield from _flat(item, f"{name}.{kind.replace('.', '/')}" + (f"#{number}" if number > 1 else ""))
    elif name.rpartition(".")[2] in ADAPTERS and value in BASE:
        yield name, "base"
    elif value not in (None, []):
        yield name, _without_folders(value) if name.rpartition(".")[2] in PATHS else value


def _without_folders(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return last_part(value) if isinstance(value, str) else value


def _parts(name: str, column: Sequence[str], names: Sequence[str]) -> list[str]:
    """The part of each label for one setting: its shortest unique name, and the value."""
    words = name.split(".")
    endings = [".".join(words[-length:]) for length in range(1, len(words) + 1)]
    short = next(e for e in endings if sum(f".{other}".endswith(f".{e}") for other in names) == 1 or e == name)
    if name.startswith("trainer.callbacks.") and len(words) == 3:  # a callback, not its arguments
        kind = dict.fromkeys(column, short) | {ABSENT: f"no {short}"}
        if len(set(kind.values())) == len(set(column)):
            return [kind[text] for text in column]
    shown = {text: text.strip('"') for text in column}
    cut = {text: v if len(v) <= LONGEST_VALUE else f"{v[: LONGEST_VALUE - 3]}..." for text, v in shown.items()}
    if len(set(cut.values())) < len(cut):
        cut = {text: text for text in column}
    return [f"{short}={cut[text]}" for text in column]
