"""Model configurations for planning: the run's own, a `config.json` file, or, without a network, the paper's models."""

import json
from importlib.resources import files
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from lmix.errors import first_line
from lmix.model.sources import load_config


def planned_config(path: str) -> PretrainedConfig:
    """The configuration of a backbone, which need not be downloaded.

    Args:
        path: what `backbone.path` takes, or a file in the format of `config.json`. The paper's Qwen2.5 models are known
            by their hub ids: `published.json` has the shapes that their authors published.

    Raises:
        ValueError: there is no configuration, or it can't be read.
    """
    published = json.loads((files("lmix.planning") / "published.json").read_text(encoding="utf-8"))
    shape = published.get(path.removesuffix("-Instruct"))
    if shape is not None and not Path(path).exists():
        return AutoConfig.for_model(**shape)
    if path.endswith(".json") and Path(path).is_file():
        try:
            return AutoConfig.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"backbone {path!r} is not a model's config.json: {first_line(error)}") from error
    return load_config(path)
