"""Loading the rows of a data set from a file, a folder or the hub."""

import csv
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from datasets import ClassLabel, Dataset, Value, load_dataset

from lmix.files import open_text
from lmix.tasks.cells import JsonNumber

FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
"""Supported file name extensions, in upper or lower case; all but parquet also with `.gz`."""
Rows = list[dict[str, Any]]


def file_kind(source: str | Path) -> str | None:
    """The kind of a file by its name, one of `FILES`; None if the name has no supported extension."""
    name = str(source).lower()
    kind = Path(name.removesuffix(".gz")).suffix
    return kind if kind in FILES and not (kind == ".parquet" and name.endswith(".gz")) else None


def is_file(source: str) -> bool:
    """Whether a source is a single file, and so a single split."""
    return file_kind(source) is not None


def load_rows(source: str, split: str, config_name: str | None = None) -> tuple[list[str], Rows]:
    """Load one split of a data set.

    Args:
        source: a file (which is a single split), a folder with the hub's layout, or a hub id.
        split: the split of a folder or hub id.
        config_name: configuration of a data set that has several.

    Returns:
        The columns, and the rows. Every row has every column.

    Raises:
        ValueError: the source does not exist, can't be read, or is empty; the message is one line.
    """
    path = Path(source).expanduser()
    try:
        if is_file(source):
            columns, rows = read_file(path)
        elif path.is_dir() or (source.count("/") == 1 and not path.is_absolute() and not source.startswith(".")):
            columns, rows = unpacked(load_dataset(str(path) if path.is_dir() else source, config_name, split=split))
        else:
            raise ValueError(f"it is not a folder, a hub id or a file of a known kind ({', '.join(FILES)})")
    except Exception as error:  # `datasets` raises its own classes, pyarrow's and the hub's
        wrapped = "generating the dataset" in str(error)  # for an unreadable file, only the cause is informative
        told = error.__cause__ if wrapped and error.__cause__ else error
        reason = (str(told).strip() or type(told).__name__).splitlines()[0]
        raise ValueError(f"data set {source!r} can't be read: {reason}") from error
    if not rows:
        raise ValueError(f"data set {source!r} is empty: split {split!r} has no rows")
    return columns, rows


def unpacked(rows: Any) -> tuple[list[str], Rows]:
    """Columns and rows of a `datasets` table, with class labels as names."""
    assert isinstance(rows, Dataset)
    for name, feature in rows.features.items():
        if isinstance(feature, Value) and feature.dtype in ("float16", "float32"):
            rows = rows.cast_column(name, Value("string"))  # as a Python float, 0.1 would be 0.10000000149011612
    table: Rows = list(rows)  # pyright: ignore[reportAssignmentType]
    for name, feature in rows.features.items():
        if isinstance(feature, ClassLabel):  # stored as numbers; -1 means that the label is hidden
            for row in table:
                row[name] = None if row[name] in (None, -1) else feature.int2str(row[name])
    return rows.column_names, table


def read_file(path: Path) -> tuple[list[str], Rows]:
    """Columns and rows of a file of a supported kind.

    JSON and CSV are read here and not by `datasets`: pandas turns integers in a column with blanks into floats, `007`
    into 7 and `NA` into a missing value, and pyarrow's JSON reader can crash the process on a malformed file (pyarrow
    26).

    Raises:
        ValueError: the file does not exist, is empty, or can't be read; the message gives the line number.
    """
    if not path.is_file():
        raise ValueError("the file does not exist")
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    kind = file_kind(path)
    if kind == ".parquet":
        return unpacked(load_dataset("parquet", data_files=str(path), split="train"))
    try:
        with open_text(path, encoding="utf-8-sig", newline="") as file:
            return read_json(file) if kind in (".json", ".jsonl") else read_csv(file, "\t" if kind == ".tsv" else ",")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error}") from error


def read_json(file: TextIO) -> tuple[list[str], Rows]:
    """Columns and rows of a JSON list of objects, or of a file with one object per line.

    Raises:
        ValueError: the text is neither; the message gives the line number.
    """
    text = file.read()
    try:
        if text.lstrip().startswith("["):
            rows = parse_json(text)
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    rows.append(object_of_line(line, number))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it must be a list of JSON objects, or one object per line")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [{name: row.get(name) for name in columns} for row in rows]


def object_of_line(line: str, number: int) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def parse_json(text: str) -> Any:
    """Parse JSON, keeping the spelling of numbers. Raises ValueError if an object has the same name twice."""
    return json.loads(text, parse_float=JsonNumber, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the name {twice!r} twice")
    return record


def read_csv(file: TextIO, delimiter: str) -> tuple[list[str], Rows]:
    """Columns and rows of a table with a header line. Every cell is kept as text.

    Raises:
        ValueError: a row is longer or shorter than the header, a column occurs twice, or quotes are not closed.
    """
    lines = csv.reader(file, delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: Rows = []
    try:
        for cells in lines:
            if not cells:
                continue
            if not columns:
                columns = cells
                if twice := [name for name, count in Counter(columns).items() if count > 1 and name]:
                    raise ValueError(f"column {twice[0]!r} is in the header twice")
            elif len(cells) != len(columns):
                raise ValueError(f"line {lines.line_num} has {len(cells)} cells, but the header has {len(columns)}")
            else:
                rows.append(dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error
    return columns, rows
