"""Reading the output of `sweep` and `compare`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmix.report.methods import last_part

SWEEP, COMPARE = "sweep.json", "compare.json"


SPLITS = {"test": "held-out problems", "validation": "validation problems", "train": "training problems"}


@dataclass(frozen=True)
class SweepRow:
    """The counts of one mixture: a cell of Table 4."""

    mixture: str
    alpha: float
    format: int
    """Number of format-correct completions."""
    solved: int
    n: int
    """Number of problems."""
    anywhere: int | None = None
    """Number of correct answers in any recognised form; None if the file does not record it."""


@dataclass(frozen=True)
class Sweep:
    """A sweep of alpha."""

    task: str
    """The task's name, with the backbone and the policy's folder if the file records them."""
    rows: list[SweepRow]
    trained_alpha: float | None = None
    """The alpha that the policy was trained at; None if the file does not record it."""
    problems: str = SPLITS["test"]
    """The kind of problems."""


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same problems: Tables 1 to 3."""

    task: str
    n: int
    policies: dict[str, tuple[int, int]]
    """Name -> counts of format-correct and of solved completions."""
    names: tuple[str, str]
    both: int
    only_a: int
    only_b: int
    neither: int
    disagreement: int
    mcnemar_p: float
    anywhere: dict[str, int | None]
    """Name -> number of correct answers in any recognised form; None if the file does not record it."""
    problems: str = SPLITS["test"]
    """The kind of problems."""


def read_sweep(folder: Path) -> Sweep:
    """Read sweep.json. Raises ValueError if a field is missing or it has no rows."""
    content = _read(folder / SWEEP)
    try:
        rows = [
            SweepRow(r["mixture"], r["alpha"], r["format"], r["solved"], r["n"], r.get("anywhere"))
            for r in content["rows"]
        ]
        sweep = Sweep(_setting(content), rows, content.get("trained_alpha"), _problems(content))
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / SWEEP, error) from error
    if not rows or any(row.n < 1 for row in rows):
        raise ValueError(f"{folder / SWEEP} has a row without problems, or no rows: run the command again")
    return sweep


def read_comparison(folder: Path) -> Comparison:
    """Read compare.json. Raises ValueError if a field is missing."""
    content = _read(folder / COMPARE)
    try:
        table = content["contingency"]
        return Comparison(
            task=_setting(content),
            n=content["n"],
            policies={name: (rates["format"], rates["solved"]) for name, rates in content["policies"].items()},
            names=(table["names"][0], table["names"][1]),
            both=table["both"],
            only_a=table["only_a"],
            only_b=table["only_b"],
            neither=table["neither"],
            disagreement=content["disagreement"],
            mcnemar_p=content["mcnemar_p"],
            anywhere={name: rates.get("anywhere") for name, rates in content["policies"].items()},
            problems=_problems(content),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(folder / COMPARE, error) from error


def _setting(content: dict[str, Any]) -> str:
    """Task, backbone and the policy's folder, as far as the file records them."""
    settings = content.get("settings", {})
    parts = [content["task"]]
    if backbone := settings.get("backbone", {}).get("path"):
        parts.append(last_part(backbone))
    if "adapters" in settings:
        policy = settings["adapters"].get("policy")
        steps = [part for part in Path(policy or "").parts[-4:] if part != "checkpoints"]
        parts.append(f"policy {'/'.join(steps)}" if policy else "the policy is the base")
    return ", ".join(parts)


def _problems(content: dict[str, Any]) -> str:
    """The kind of problems, by the split of the settings. Files of older versions do not record it: held-out ones."""
    return SPLITS[content.get("settings", {}).get("split", "test")]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} can't be read ({type(error).__name__}: {error}): run the command again")
