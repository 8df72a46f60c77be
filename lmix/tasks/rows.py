"""Rows of a data set, wherever it lies."""

from pathlib import Path

from datasets import Dataset, load_dataset

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def is_file(source: str) -> bool:
    """Whether a source is one file, and so one split."""
    return Path(source).suffix in _BUILDERS


def load_rows(source: str, split: str, config_name: str | None = None) -> Dataset:
    """Load one split of a data set.

    Args:
        source: a file (which is one split by itself), a folder in the hub's layout, or a hub id.
        split: for folders and hub ids.
        config_name: for those with several configurations.

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
            rows = load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train")
        elif path.is_dir() or (source.count("/") == 1 and not path.is_absolute() and not source.startswith(".")):
            rows = load_dataset(str(path) if path.is_dir() else source, config_name, split=split)
        else:
            raise ValueError(f"it is no folder, no hub id, and no {', '.join(_BUILDERS)} file")
    except Exception as error:  # datasets raises its own classes, pyarrow's and the hub's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"data set {source!r} can't be read: {reason}") from error
    assert isinstance(rows, Dataset)
    if len(rows) == 0:
        raise ValueError(f"data set {source!r} is empty: split {split!r} has no row")
    return rows
