"""The embedded model on 16 problems."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmix.evaluation.rows import read_rows
from lmix.evaluation.sweep import sweep
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.tasks import ArithmeticTask

N = 16


def common(**changes) -> dict[str, Any]:
    """The arguments that all commands share."""
    defaults = {
        "backbone": BackboneConfig(quantization="none", dtype="float32"),
        "adapters": AdapterConfig(reference="lmix:tiny-arithmetic-sft", rank=4),
        "problems": N,
        "max_new_tokens": 48,
    }
    return {"task": ArithmeticTask(train_size=40, test_size=20), **defaults, **changes}


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def correct(folder: Path, **fields) -> list[tuple[int, str, bool, bool]]:
    """Of the rows of rows.jsonl that have these fields: problem, completion, format-correct, solved."""
    return [
        (row.problem_id, row.completion, row.format_correct, row.answer_correct and row.ended)
        for row in read_rows(folder)
        if all(getattr(row, name) == value for name, value in fields.items())
    ]


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> Path:
    """The folder of a whole sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep(alphas=(0, 0.4, 1), out=str(folder), **common())
    return folder
