"""Atomic file writes, checksums, and reading of compressed text."""

import errno
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO


@contextmanager
def whole_file(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file that replaces `path` only once all of it is on disk. If writing fails, the old file stays.

    Only one process may write a path at a time, because the temporary file has a fixed name. A temporary file that a
    killed process left behind is overwritten.

    Raises:
        OSError: the file can't be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.part")
    # a lone surrogate can't be encoded as UTF-8: write it as \udxxx, as JSON does
    text: dict[str, Any] = {} if binary else {"encoding": "utf-8", "errors": "backslashreplace"}
    try:
        with temporary.open("wb" if binary else "w", **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Create a folder that replaces `folder` only once all of it, with checksums, is on disk.

    Write the files into the path that the context yields. If writing fails, the old folder stays.

    Raises:
        OSError: the folder can't be written, for example because the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    if old.exists() and not folder.exists():  # a process was killed between the two renames below
        os.replace(old, folder)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        write_sums(temporary)
        sync_folder(temporary)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, if the file system supports that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text atomically. Each line brings its own newline."""
    with whole_file(path) as file:
        file.writelines(lines)


def open_text(path: Path, **options: Any) -> TextIO:
    """Open a UTF-8 text file to read; one whose name ends in .gz is decompressed. `options` are those of `open`."""
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opened(path, "rt", **({"encoding": "utf-8"} | options))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Rows as the lines of a .jsonl file."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


SUMS = "SHA256SUMS"
"""Name of the file with a folder's checksums, in the format of `sha256sum -c`."""


def write_sums(folder: Path) -> None:
    """Write the checksum of each file in a folder to `SHA256SUMS`, and flush all of them to disk."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    for name in names:
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    write_lines(folder / SUMS, [f"{checksum(folder / name)}  {name}\n" for name in names])


def differing_file(folder: Path, names: Iterable[str]) -> str | None:
    """The first of these files that differs from the folder's checksums; None if none does or there are no sums."""
    if not (folder / SUMS).is_file():
        return None
    text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    lines = text.replace(" *", "  ").splitlines()  # as sha256sum -b writes them
    return next((name for name in names if f"{checksum(folder / name)}  {name}" not in lines), None)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
