"""Rows of a data set, wherever it lies."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
Rows = list[dict[str, Any]]


def is_file(source: str) -> bool:
    """Whether a source is one file, and so one split."""
    return Path(source).suffix in _BUILDERS


def load_rows(source: str, split: str, config_name: str | None = None) -> tuple[list[str], Rows]:
    """Load one split of a data set.

    Args:
        source: a file (which is one split by itself), a folder in the hub's layout, or a hub id.
        split: for folders and hub ids.
        config_name: for those with several configurations.

    Returns:
        The columns, and the rows, each with every column.

    Raises:
        ValueError: nothing there, or it can't be read, or it is empty; in one line.
    """
    path = Path(source).expanduser()
    try:
        if is_file(source):
            if not path.is_file():
                raise ValueError("there is no such file")
            if path.stat().st_size == 0:
                raise ValueError("the file is empty")
            if _BUILDERS[path.suffix] == "json":
                columns, rows = read_json(path)
            else:
                columns, rows = unpacked(load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train"))
        elif path.is_dir() or (source.count("/") == 1 and not path.is_absolute() and not source.startswith(".")):
            columns, rows = unpacked(load_dataset(str(path) if path.is_dir() else source, config_name, split=split))
        else:
            raise ValueError(f"it is no folder, no hub id, and no {', '.join(_BUILDERS)} file")
    except Exception as error:  # datasets raises its own classes, pyarrow's and the hub's
        wrapped = "generating the dataset" in str(error)  # all that datasets says itself of a file that it can't read
        told = error.__cause__ if wrapped and error.__cause__ else error
        reason = (str(told).strip() or type(told).__name__).splitlines()[0]
        raise ValueError(f"data set {source!r} can't be read: {reason}") from error
    if not rows:
        raise ValueError(f"data set {source!r} is empty: split {split!r} has no row")
    return columns, rows


def unpacked(rows: Any) -> tuple[list[str], Rows]:
    assert isinstance(rows, Dataset)
    return rows.column_names, list(rows)  # pyright: ignore[reportReturnType]


def read_json(path: Path) -> tuple[list[str], Rows]:
    """Columns and rows of a JSON list of objects, or of one object a line. pyarrow's reader, which `datasets` uses, can
    crash the process on a malformed file (pyarrow 26).

    Raises:
        ValueError: it is neither, with the line's number.
    """
    text = path.read_text(encoding="utf-8-sig")
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    rows.append(object_of_line(line, number))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it must be a list of JSON objects, or one object a line")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [{name: row.get(name) for name in columns} for row in rows]


def object_of_line(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row
