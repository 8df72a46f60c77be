"""Small run folders as TensorBoardLogger and LightningCLI leave them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

Values = Mapping[str, Mapping[int, float]]


def config(seed: int = 0, model: str = "lmix.GRPOModule", callbacks: Any = None, **arguments: Any) -> dict[str, Any]:
    """A configuration with the fields that the report reads."""
    defaults = {
        "backbone": {"path": "lmix:tiny-arithmetic"},
        "adapters": {"reference": "lmix:tiny-arithmetic-sft"},
        "alpha": 0.5,
        "mixture": "logits",
        "objective": {},
    }
    return {
        "seed_everything": seed,
        "trainer": {"callbacks": callbacks},
        "model": {"class_path": model, "init_args": defaults | arguments},
        "data": {"task": {"class_path": "lmix.tasks.ArithmeticTask", "init_args": {}}},
        "ckpt_path": None,
    }


def write_events(folder: Path, values: Values, suffix: str = "") -> None:
    """Add an event file to a run's folder."""
    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        for tag, points in values.items():
            for step, value in points.items():
                writer.add_scalar(tag, value, step)


def solving(*rates: float) -> dict[str, dict[int, float]]:
    """Scalars of a run that evaluated at steps 0, 10, 20, ..."""
    solve = {10 * i: rate for i, rate in enumerate(rates)}
    training = {"train/reward", "train/format_rate", "train/entropy", "train/completion_length", "train/dead_groups"}
    every = dict.fromkeys(range(10 * len(rates)), 0.5)
    return {"val/solve_rate": solve, "val/format_rate": dict.fromkeys(solve, 1.0), "alpha": every} | dict.fromkeys(
        training, every
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run's folder: `make_run(name, values, settings)`."""

    def make(name: str, values: Values, settings: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / name
        write_events(folder, values)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings or config()))
        return folder

    return make


@pytest.fixture
def sweep_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    folder.mkdir()
    counts = {("logits", 0.0): (100, 60), ("logits", 0.5): (190, 120), ("probs", 0.0): (100, 60)}
    rows = [
        {"mixture": mixture, "alpha": alpha, "format": form, "solved": solved, "n": 200}
        for (mixture, alpha), (form, solved) in counts.items()
    ]
    (folder / "sweep.json").write_text(json.dumps({"task": "math", "problems": 200, "rows": rows}))
    return folder


@pytest.fixture
def compare_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "compare"
    folder.mkdir()
    found = {
        "task": "math",
        "n": 100,
        "policies": {"base": {"format": 60, "solved": 40}, "sft": {"format": 95, "solved": 35}},
        "contingency": {"names": ["base", "sft"], "both": 25, "only_a": 15, "only_b": 10, "neither": 50},
        "disagreement": 25,
        "mcnemar_p": 0.4244,
    }
    (folder / "compare.json").write_text(json.dumps(found))
    return folder
