"""One-line errors for exceptions of the libraries that read models."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(what: str, hint: str = "") -> Iterator[None]:
    """Turn any exception inside the block into a one-line ValueError: `what`, the exception's message, `hint`.

    Third-party libraries raise many types (KeyError, AttributeError, ImportError, RuntimeError), so all are caught.
    Put nothing but library calls into the block.

    Raises:
        ValueError: for any exception, with the original as its cause.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {reason(error)}{hint}") from error


def reason(error: Exception) -> str:
    """Why a model's files can't be read, with the fix if one is known."""
    if "trust_remote_code" in str(error):
        return "it needs its own Python code; if you trust it, set LMIX_TRUST_REMOTE_CODE=1 to run it"
    text = first_line(error)
    # the message of a LookupError is only the missing key
    return f"{type(error).__name__} {text}" if isinstance(error, LookupError) else text


def first_line(error: Exception) -> str:
    """An exception's message cut to its first line, for errors that must be one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
