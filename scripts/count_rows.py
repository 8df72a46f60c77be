"""Recompute the rates on a page of docs/results from its files of judged completions: format, solve and answer rate.

A completion is solved if it ended with the correct answer. It is answered if its answer is correct, whether or not it
ended.

    python scripts/count_rows.py docs/results/qwen2.5-0.5b/*.jsonl.gz

Reads the rows that sweep, evaluate and compare write, and those of a run's evaluations, plain or compressed.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmix.evaluation.statistics import mean_interval
from lmix.files import open_text

KEYS = ("mixture", "who", "alpha", "temperature", "step", "seed")
"""Fields that define the groups of a file, as far as its rows have them."""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one file."""
    with open_text(path) as file:
        return [json.loads(line) for line in file]


def groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows grouped by `KEYS`, in order."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple((key, row[key]) for key in KEYS if key in row), []).append(row)
    return dict(sorted(found.items(), key=lambda group: [(value is not None, value) for _, value in group[0]]))


def rate(rows: Sequence[dict[str, Any]], *names: str) -> str:
    """The percentage of rows in which all of these fields are true, with its 95 % interval."""
    flags: dict[int, list[bool]] = {}
    for row in rows:
        flags.setdefault(row["problem_id"], []).append(all(row[name] for name in names))
    shares = [sum(of_problem) / len(of_problem) for of_problem in flags.values()]
    low, high = mean_interval(shares, max(map(len, flags.values())))
    return f"{100 * sum(shares) / len(shares):5.1f} ({100 * low:.1f} to {100 * high:.1f})"


def lines(path: Path) -> Iterator[str]:
    """One line for each group."""
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    for key, rows in groups(read(path)).items():
        what = " ".join(f"{field} {value}" for field, value in key)
        form, solved = rate(rows, "format_correct"), rate(rows, "answer_correct", "ended")
        answered = rate(rows, "answer_correct")
        ended = 100 * sum(row["ended"] for row in rows) / len(rows)
        line = f"{name}  {what}  n {len(rows)}  format {form}  solved {solved}  answered {answered}  ended {ended:.1f}"
        told = all(row.get("right_anywhere") is not None for row in rows)  # older rows do not record it
        yield line + (f"  anywhere {rate(rows, 'right_anywhere')}" if told else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="jsonl or jsonl.gz")
    for path in parser.parse_args().files:
        print(*lines(path), sep="\n")


if __name__ == "__main__":
    main()
