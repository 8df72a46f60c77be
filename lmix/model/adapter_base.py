"""Which base an adapter was trained on, by name: another model of the same shapes would load without an error."""

import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmix.model.sources import EMBEDDED, resolve

log = logging.getLogger(__name__)

FORMAT = re.compile(r"[-_.](unsloth|bnb|hf|[48]bit|nf4|gptq|awq|gguf|fp8|int[48]|bf16|f16|f32|i?q\d(_[a-z0-9]+)*)$")
"""The end of a name that says only how the weights are stored."""


def warn_of_other_base(adapter: str, backbone: str) -> None:
    """Log a warning if an adapter's configuration names another base than the backbone.

    Only names are compared, not the folders or owners before them, because folders move and models are copied.

    Args:
        adapter: an adapter folder that can be read, as in `read_adapter`.
        backbone: the backbone's path, as in `BackboneConfig`.
    """
    fields = json.loads((Path(resolve(adapter)).expanduser() / "adapter_config.json").read_text(encoding="utf-8"))
    base = fields.get("base_model_name_or_path")
    if base and not model_names(base) & model_names(backbone):
        log.warning(
            "adapter %r was trained on %r, but the backbone is %r: if these are different models, the adapter does not "
            "do there what it was trained for",
            adapter,
            base,
            backbone,
        )


def model_names(path: str) -> set[str]:
    """The names that a model goes by, in lower case and without storage formats.

    These are the last part of a hub id or folder, for a .gguf file also that of its folder, and what a local
    `config.json` records as the model's origin.
    """
    local = Path(path.removeprefix(EMBEDDED)).expanduser()
    names = [name_of(local)]
    if local.suffix.lower() == ".gguf":
        names = [local.stem, name_of(local.parent)]
    config: Any = None
    with suppress(OSError, ValueError):
        config = json.loads((local / "config.json").read_text(encoding="utf-8"))
    if isinstance(config, dict) and isinstance(origin := config.get("_name_or_path"), str) and origin:
        names.append(name_of(Path(origin)))
    return {plain(name) for name in names}


def name_of(path: Path) -> str:
    """A path's last part; of a snapshot in the hub's cache (`models--owner--name/snapshots/REVISION`), the name."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    return path.name


def plain(name: str) -> str:
    """A name in lower case, without the storage formats at its end."""
    name = name.lower()
    while (shorter := FORMAT.sub("", name)) != name:
        name = shorter
    return name
