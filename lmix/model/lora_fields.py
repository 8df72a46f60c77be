"""The adapters that lmix computes rightly: fields of peft's LoraConfig, and names of weights."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig

FREE = {
    # of what the adapter is: read by peft when it makes the layers
    "alpha_pattern",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
    # of where it came from, and what it is for
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
    # set to 0: any dropout makes the ratio of eq. 5 wrong
    "lora_dropout",
    # of how its first values were made, which are not read again; INITIAL says which of these ways are allowed
    "eva_config",
    "init_lora_weights",
}
"""Fields that may have any value. All others must have peft's default, also those that peft adds in later versions."""
INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights as they are; others subtract from them, and two streams share them."""
FACTOR = re.compile(r".+\.lora_[AB]\.weight")


def unknown_field(fields: Mapping[str, Any]) -> str | None:
    """The first field of an adapter_config.json whose value lmix would ignore or compute wrongly, as `name=value`."""
    defaults = {f.name: f.default for f in dataclasses.fields(LoraConfig)}
    for name, value in sorted(fields.items()):
        if name == "init_lora_weights" and value not in INITIAL:
            return f"{name}={value!r}"
        default = defaults.get(name)
        off = not value and (not default or default is dataclasses.MISSING)  # null, false, 0, "" or empty
        if name not in FREE and value != default and not off:
            return f"{name}={value!r}"
    return None


def other_weight(names: Iterable[str]) -> str | None:
    """The first weight that is no factor of a LoRA, such as one of the base."""
    return next((name for name in sorted(names) if not FACTOR.fullmatch(name)), None)
