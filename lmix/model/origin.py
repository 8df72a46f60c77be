"""Which of three ways to deploy a mixture a folder is: the mixture itself, merged weights, or a distilled adapter."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmix.files import write_lines

ORIGIN = "lmix.json"
Way = Literal["mixture", "merged", "distilled"]


@dataclass(frozen=True)
class Origin:
    """What a folder that lmix wrote holds; beside an adapter or a model as the file lmix.json."""

    way: Way
    """mixture: all streams and their weights, or the policy that was trained in one. merged: one set of weights,
    averaged. distilled: one adapter, trained towards a mixture."""
    base: str
    """Path of the model that it belongs to, or was made from."""
    streams: dict[str, str | None]
    """Stream of the mixture -> where it came from: `.` is this folder, None the base itself."""
    weights: dict[str, float]
    """Stream of the mixture -> its weight."""
    details: dict[str, Any] = field(default_factory=dict)
    """Numbers of that way, such as the error that a merged adapter's rank leaves."""

    def __str__(self) -> str:
        """In a few words: `merged, policy 0.5, reference 0.5`."""
        return ", ".join([self.way, *(f"{name} {weight:g}" for name, weight in self.weights.items())])

    def write(self, folder: Path) -> None:
        """Write lmix.json into a folder."""
        write_lines(folder / ORIGIN, [json.dumps(asdict(self), indent=2), "\n"])


def read_origin(folder: Path) -> Origin | None:
    """What a folder says of itself; None where it says nothing.

    Raises:
        ValueError: its lmix.json is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: write the folder again, or delete the file") from error
