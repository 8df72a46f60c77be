"""Cells of a data set as text.

Text and numbers keep their spelling, lists with one element are unwrapped, and chat messages are read. Anything else is
an error, so that Python's rendering of a list or a record never becomes a prompt or a gold answer.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

EXACT_INTEGERS = 2**53
"""From this size on, a float can't represent every integer."""
Message = tuple[str, str]
"""(role, content)."""

_MESSAGES = re.compile(r"\s*\[\s*\{\s*[\"'](?:role|content|from|value)[\"']")


class JsonNumber(float):
    """A JSON number with a fraction or an exponent that keeps its spelling: `1e-5` stays `1e-5`."""

    spelling: str

    def __new__(cls, spelling: str) -> "JsonNumber":
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number

    def __repr__(self) -> str:
        return self.spelling


def cell_at(row: Mapping[str, Any], column: str) -> Any:
    """The cell of a column, or of a field inside it: `answer.ground_truth`. A column with that exact name has priority.

    Raises:
        ValueError: the row has no such field.
    """
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        value = _only(_parsed(value) if isinstance(value, str) and value.lstrip().startswith("{") else value)
        if value is None:
            return None
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(f"there is no field {name!r} in {_shown(value)}")
        value = value[name]
    return value


def cell_text(value: Any) -> str:
    """A cell as text; empty for an empty cell.

    Raises:
        ValueError: the cell is neither text nor a number, or is a float too large to represent its integer exactly.
    """
    if isinstance(value, str) and value.lstrip().startswith('["') and _is_list_of_one_text(listed := _parsed(value)):
        value = listed  # a list with one answer, stored as JSON text
    value = _only(value)
    match value:
        case None:
            return ""
        case str():
            return _encodable(value)
        case JsonNumber():
            return value.spelling
        case float():
            return _float_text(value)
        case bool():
            raise ValueError(f"{value} is a boolean, not text: store it as text")
        case int():
            return str(value)
        case Decimal() if value.is_finite():
            return format(value, "f")
        case Mapping() if value.get("role") and value.get("content") is not None:
            return _message(value)[1]
        case Mapping():
            names = ", ".join(map(repr, value))
            raise ValueError(
                f"{_shown(value)} is an object: select a field with a dot, such as column.field; its fields are {names}"
            )
        case list() | tuple():
            raise ValueError(f"{_shown(value)} is a list of {len(value)} elements, not one text")
    raise ValueError(f"{_shown(value)} is neither text nor a number")


def cell_messages(value: Any) -> list[Message] | None:
    """A cell's chat messages, of which the last is the user's; None if the cell has no chat messages.

    They may also be stored as text, in JSON or as Python prints them (such as a list in a CSV file).

    Raises:
        ValueError: a message has no role or content, the text can't be parsed, or the last message is not a user's.
    """
    if isinstance(value, str):
        if not _MESSAGES.match(value):
            return None
        text, value = value, _parsed(value)
        if value is text:
            raise ValueError(f"{_shown(text)} looks like chat messages but is neither JSON nor a Python list of them")
    while isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        (value,) = value
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(part, Mapping) for part in value):
        return None
    messages = [_message(part) for part in value]
    if messages[-1][0] != "user":
        raise ValueError(f"the last chat message has the role {messages[-1][0]!r}: a prompt must end with the user's")
    return messages


def read_cell(
    number: int, row: Mapping[str, Any], column: str, read: Callable[[Any], Any] = cell_text, source: str = ""
) -> Any:
    """Read a cell of a row. Raises ValueError that names the row, the column and, if given, the source."""
    try:
        return read(cell_at(row, column))
    except ValueError as error:
        place = f"row {number} of {source!r}" if source else f"row {number}"
        raise ValueError(f"{place}, column {column!r}: {error}") from error


def same_value(cell: Any, wanted: Any) -> bool:
    """Whether a cell equals a filter's value, ignoring types: 5 equals "5", true equals "True"."""
    cell = _only(cell)
    if isinstance(cell, bool) or isinstance(wanted, bool):
        return str(cell).casefold() == str(wanted).casefold()
    return cell == wanted or str(cell) == str(wanted)


def _only(value: Any) -> Any:
    """The element of a list with one element; None for an empty list; other values unchanged."""
    while isinstance(value, list | tuple) and len(value) <= 1:
        value = value[0] if value else None
    return value


def _is_list_of_one_text(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


def _parsed(text: str) -> Any:
    """The list or record that a text represents in JSON or in Python; the text itself if it represents neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    return text


def _message(record: Mapping[str, Any]) -> Message:
    given = {name: value for name, value in record.items() if value is not None}  # parquet adds missing fields as null
    if set(given) != {"role", "content"}:
        raise ValueError(f"a chat message must have only role and content, not {', '.join(map(repr, given)) or 'none'}")
    content = _only(given["content"])
    if isinstance(content, Mapping) and content.get("type") == "text":
        content = content.get("text")  # content as a list of parts, of which one is text
    if not isinstance(content, str) or not isinstance(given["role"], str):
        raise ValueError(f"a chat message's role and content must be text, not {_shown(dict(given))}")
    return given["role"], _encodable(content)


def _float_text(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a number: fill it or remove the row")
    if not value.is_integer():
        return format(Decimal(repr(value)), "f")
    if abs(value) >= EXACT_INTEGERS:
        raise ValueError(f"{value} is a float, which can't represent all digits of this integer: store it as text")
    return str(int(value))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{_shown(text)} contains half of a surrogate pair, which no tokenizer can read") from error
    return text


def _shown(value: Any, width: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
