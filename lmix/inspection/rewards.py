"""The command `rewards`: why stored completions of a run or an evaluation got no reward."""

import json
from dataclasses import fields
from pathlib import Path

from lmix.evaluation.output import new_console
from lmix.evaluation.rows import CompletionRow, EvaluationRow
from lmix.evaluation.zero_rewards import Row, count_causes, report


def rewards(file: str, step: int | None = None) -> None:
    """Show why stored completions got no verifier reward: a count and an example for each cause.

    Args:
        file: `completions/train.jsonl` (or `val.jsonl`) in a run's folder, or `rows.jsonl` of evaluate, sweep, compare.
        step: use only completions of this step of a run; null uses all.

    Raises:
        ValueError: the file can't be read or contains no such rows; the message is one line.
    """
    rows = [row for row in read_completions(Path(file)) if step is None or getattr(row, "step", None) == step]
    if not rows:
        raise ValueError(f"file {file!r} contains no completions" + ("" if step is None else f" of step {step}"))
    for line in report(rows, count_causes(rows), len(rows)):
        new_console().print(line, markup=False)


def read_completions(path: Path) -> list[Row]:
    """Read rows of either kind. Raises ValueError if a line is neither."""
    if not path.is_file():
        raise ValueError(f"file {str(path)!r} does not exist: give completions/train.jsonl of a run, or a rows.jsonl")
    rows: list[Row] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            content = json.loads(line)
            kind = CompletionRow if "step" in content else EvaluationRow
            rows.append(kind(**{field.name: content[field.name] for field in fields(kind) if field.name in content}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"file {str(path)!r}: line {number} is not a completion row written by lmix") from error
    return rows
