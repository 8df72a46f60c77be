"""One-line error messages for exceptions that a user of the command line can fix."""

import errno
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

UNFIXABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
"""Error numbers of disk and permission problems, which are not bugs in lmix."""

UNKNOWN = re.compile(r"unknown option '(?P<name>[^']+)'(?:, nearest '(?P<near>[^']+)')?")
"""What `lmix.cli.parser` says of an unknown option."""

EARLY_STOPPING = re.compile(r"Early stopping conditioned on metric `(.*?)` which is not available.*following: (.*)")


def explain(error: Exception, args: Sequence[str] = ()) -> str | None:
    """The message for an exception that a user can fix, in one line; None for all others, which are bugs.

    Args:
        error: the exception.
        args: the command line's arguments. A file that can't be opened counts as the user's mistake if one of them
            names it.
    """
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    if isinstance(error, ArgumentError) and (match := UNKNOWN.search(str(error))):
        return unknown_option(match, str(error), args)
    if isinstance(error, ValueError | ArgumentError | MisconfigurationException):
        return one_line(str(error))
    if isinstance(error, OSError) and (error.errno in UNFIXABLE or named(error.filename, args)):
        return one_line(str(error.strerror)) + (f": {error.filename}" if error.filename else "")
    if isinstance(error, RuntimeError) and is_lost_rank(error):
        return (
            f"another rank has ended ({one_line(str(error))}): see its own message for the cause; resume from the last "
            "checkpoint with --ckpt_path"
        )
    if isinstance(error, RuntimeError) and (lightnings := lightnings_complaint(error)):
        return lightnings
    return None


def unknown_option(match: re.Match[str], message: str, args: Sequence[str]) -> str:
    """The message for an unknown option: the flag as it was given, or its class in a config file, and the nearest."""
    name, near = match["name"], match["near"]
    given = [arg.partition("=")[0].rstrip("+").removeprefix("--") for arg in args if arg.startswith("--")]
    keys = ".".join([*re.findall(r'Parser key "([^"]+)"', message[: match.start()]), name])
    flag = next((flag for end in (keys, name) for flag in given if f".{flag}".endswith(f".{end}")), None)
    if flag is not None:
        before = f"--{flag.removesuffix(name)}"
        line = f"there is no option {before}{name}"
    else:
        before, classes = "", re.findall(r"Problem with given class_path '(\S+?)'", message[: match.start()])
        line = f"there is no option {name!r}" + (f" in {classes[-1]}" if classes else "")
    if near is not None and name.endswith(f".{near}"):
        return f"{line}: here it is {before}{near}"
    if near is not None:
        return f"{line}: did you mean {before}{near}?"
    return f"{line} (--print_config lists all options)"


def named(filename: object, args: Sequence[str]) -> bool:
    """Whether an argument is this path, a folder above it or a path inside it."""
    if not isinstance(filename, str | PathLike):
        return False
    path = Path(filename).absolute()
    values = [Path(value).absolute() for value in (arg.rpartition("=")[2] for arg in args) if value]
    return any(path == value or path in value.parents or value in path.parents for value in values)


def lightnings_complaint(error: RuntimeError) -> str | None:
    """The message, in one line, for a RuntimeError of Lightning or torch.distributed that a user's mistake causes."""
    message = one_line(str(error))
    if match := EARLY_STOPPING.match(message):
        return f"EarlyStopping.monitor {match[1]!r} is not logged: use one of {match[2].replace('`', '')}"
    if "EADDRINUSE" in message or "address already in use" in message.lower():
        return f"the port for communication between ranks is in use ({message}): choose another with MASTER_PORT"
    return None


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because a rank has ended, judged by the messages of gloo and NCCL."""
    lost = r"gloo.*(closed|reset|timed out)|Connection (closed|reset) by peer|remote process exited"
    return re.search(lost, str(error), re.IGNORECASE | re.DOTALL) is not None


@contextmanager
def settings_errors(name: str) -> Iterator[None]:
    """Turn any exception that Lightning raises while it reads settings into a ValueError.

    Exceptions from elsewhere, such as a user's own callback, are not changed.

    Args:
        name: the name of the settings in the error message.

    Raises:
        ValueError: Lightning's own code raised an exception inside this context.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if "lightning" not in raised_in.parts:
            raise
        raise ValueError(f"{name}: {one_line(str(error))}") from error


def one_line(message: str) -> str:
    """Shorten a parser's message, which lists everything it tried, to the one line that tells a user what to fix."""
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        field = ".".join(re.findall(r'key "([^"]+)"', message))
        return (
            f"{field + ': ' if field else ''}class {unknown[1]!r} does not exist: give its import path, such as "
            "package.Class"
        )
    if "Errors:" in message:
        before, _, after = message.partition("Errors:")
        tried, _, given = after.partition("Given value type:")
        reasons = [reason.strip() for reason in re.split(r"\n\s*- ", tried)]
        first, *others = [reason for reason in reasons if reason and "NoneType" not in reason] or [message]
        message = f"{first} {others[-1]}" if first.endswith(":") and others else first  # a field, then its error
        if message.startswith("Expected a <class") and "value" not in message:  # add the missing field and value
            value = given.partition("Given value:")[2].strip()
            field = ".".join(re.findall(r'key "([^"]+)"', before))
            message = f"{field + ': ' if field else ''}{message}, not {value}"
    line = " ".join(message.split())
    if re.search(r"Expected a <class 'str'>(\. Got value:|, not) \{", line):
        line += " (put a text with a colon in quotes of its own, as in YAML)"
    if re.search(r"unrecognized arguments|not expected", line):
        line += " (--print_config lists all fields)"
    return line
