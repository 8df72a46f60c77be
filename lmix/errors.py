"""Errors of the libraries that read models, as the one line that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(what: str, hint: str = "") -> Iterator[None]:
    """Turn any exception of a third party into a ValueError of one line: `what`, the exception's own words, `hint`.

    The libraries raise whatever their own code trips over (KeyError, AttributeError, ImportError, RuntimeError), so the
    block must hold nothing but calls of them.

    Raises:
        ValueError: for every exception, which stays its cause.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {reason(error)}{hint}") from error


def reason(error: Exception) -> str:
    """Why a model's files can't be read, with the way out where there is a known one."""
    if "trust_remote_code" in str(error):
        return "it brings Python code of its own; set LMIX_TRUST_REMOTE_CODE=1 to run that, if you trust it"
    text = first_line(error)
    # of these the message is a name alone
    return f"{type(error).__name__} {text}" if isinstance(error, LookupError) else text


def first_line(error: Exception) -> str:
    """An exception's message cut to its first line, for errors that must be one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
