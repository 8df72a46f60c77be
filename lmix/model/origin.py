"""How a folder deploys a mixture: as the mixture itself, as merged weights, or as a distilled adapter."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmix.files import write_lines

ORIGIN = "lmix.json"
Way = Literal["mixture", "merged", "distilled"]


@dataclass(frozen=True)
class Origin:
    """What a folder written by lmix holds. Stored as lmix.json beside the adapter or model."""

    way: Way
    """mixture: all streams and their weights, or the policy that was trained in a mixture. merged: the average as one
    set of weights. distilled: one adapter, trained to match a mixture."""
    base: str
    """Path of the model that the folder belongs to, or was made from."""
    streams: dict[str, str | None]
    """Stream of the mixture -> its source: `.` is this folder, None is the base itself."""
    weights: dict[str, float]
    """Stream of the mixture -> its weight."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further values, such as the error of a merged adapter's reduced rank."""

    def __str__(self) -> str:
        """A short summary, such as `merged, policy 0.5, reference 0.5`."""
        return ", ".join([self.way, *(f"{name} {weight:g}" for name, weight in self.weights.items())])

    def write(self, folder: Path) -> None:
        """Write lmix.json into a folder."""
        write_lines(folder / ORIGIN, [json.dumps(asdict(self), indent=2), "\n"])


def policy_card(origin: Origin) -> str:
    """README.md of a policy's peft folder: that the adapter alone is not the mixture that was trained."""
    others = [
        f"{name} {origin.weights[name]:g} ({source or 'the base itself'})"
        for name, source in origin.streams.items()
        if source != "."
    ]
    own = next(name for name, source in origin.streams.items() if source == ".")
    return (
        f"This adapter for {origin.base} is one part of a mixture that lmix trained: {own} "
        f"{origin.weights[own]:g} (this folder), {', '.join(others)}.\n"
        "Alone it is not the model that was trained and evaluated. lmix.json records the mixture.\n"
        "To deploy: `lmix export` writes the whole mixture as one folder, distillation trains one adapter to match "
        "it, and `lmix merge` averages the weights, which is an approximation.\n"
    )


def read_origin(folder: Path) -> Origin | None:
    """The origin of a folder; None if it has no lmix.json.

    Raises:
        ValueError: lmix.json is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: write the folder again, or delete the file") from error
