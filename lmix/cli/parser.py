"""A parser that takes only whole option names, and names the nearest option for one that does not exist."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

UNKNOWN = re.compile(
    r"^(?:unrecognized arguments: --(?P<flag>[^\s=]+)|Option '(?P<option>.+?)' is not accepted"
    r"|(?:Subcommand|Group) '.+?' does not accept option '(?P<key>.+?)')"
)
"""jsonargparse's messages for an option that does not exist: a flag, or a key of a config file or of a class."""
SECTIONS = ("data", "model", "trainer")
"""The first parts of flags of `fit` that the other commands leave out."""


class ExactParser(ArgumentParser):
    """Takes no abbreviations, which would set another option than the one that was misspelt.

    The message for an unknown option becomes `unknown option 'NAME'` and, if another is near, `, nearest 'NAME'`, with
    names relative to this parser. `lmix.cli.messages` makes the user's line of it: jsonargparse creates a parser of
    this type for each class, and wraps the messages of the inner ones.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if match := UNKNOWN.match(message):
            name = match["flag"] or match["option"] or match["key"]
            near = nearest(name, set(options(self)))
            message = f"unknown option {name!r}" + (f", nearest {near!r}" if near else "")
        super().error(message, ex)


def options(parser: Any) -> Iterator[str]:
    """The names of a parser's options and of its subcommands' options, without dashes."""
    for action in parser._actions:
        yield from (text.lstrip("-") for text in action.option_strings)
        for inner in (getattr(action, "_name_parser_map", None) or {}).values():
            yield from options(inner)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The option that was probably meant by a dotted name; None if none is near."""
    known = sorted(known)
    root, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    if root in SECTIONS and inner in known:  # `--data.task.source` of `fit` is `--task.source` elsewhere
        return rest
    for option in known:
        if option.endswith(f".{root}"):
            return f"{option}.{rest}" if rest else option
    parent, dot, last = name.rpartition(".")
    siblings = [option.rpartition(".")[2] for option in known if option.rpartition(".")[0] == parent]
    if found := get_close_matches(last, siblings, 1):
        return f"{parent}{dot}{found[0]}"
    return next(iter(get_close_matches(name, known, 1, 0.8)), None)
