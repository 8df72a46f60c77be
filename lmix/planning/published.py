"""Configurations to plan with: a run's own, a `config.json` alone, or those of the paper's models without a network."""

import json
from importlib.resources import files
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from lmix.model.sources import load_config
from lmix.errors import first_line


def planned_config(path: str) -> PretrainedConfig:
    """The configuration of a backbone that need not be here.

    Args:
        path: what `backbone.path` takes; or a file in the layout of `config.json`. The Qwen2.5 models of the paper go
            by their hub ids and are read from `published.json`, the shapes that their authors published.

    Raises:
        ValueError: there is none, or it can't be read.
    """
    published = json.loads((files("lmix.planning") / "published.json").read_text(encoding="utf-8"))
    shape = published.get(path.removesuffix("-Instruct"))
    if shape is not None and not Path(path).exists():
        return AutoConfig.for_model(**shape)
    if path.endswith(".json") and Path(path).is_file():
        try:
            return AutoConfig.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"backbone {path!r} is no model's config.json: {first_line(error)}") from error
    return load_config(path)
