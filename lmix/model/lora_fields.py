"""Which adapters lmix supports, by the fields of peft's LoraConfig and the names of weights."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig

FREE = {
    # structure of the adapter: peft applies these when it creates the layers
    "alpha_pattern",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
    # metadata
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
    # lmix sets it to 0: any dropout makes the ratio of eq. 5 wrong
    "lora_dropout",
    # initialisation, which does not matter for saved weights; INITIAL lists the allowed methods
    "eva_config",
    "init_lora_weights",
}
"""Fields that may have any value. All others must have peft's default, including fields that later versions add."""
INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that keep the base's weights. Others subtract from these weights, which all streams share."""
FACTOR = re.compile(r".+\.lora_[AB]\.weight")


def unknown_field(fields: Mapping[str, Any]) -> str | None:
    """The first field of an adapter_config.json with an unsupported value, as `name=value`; None if there is none."""
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
    """The first weight that is not a LoRA factor, such as one of the base; None if there is none."""
    return next((name for name in sorted(names) if not FACTOR.fullmatch(name)), None)
