"""The best checkpoint by a monitored metric: kept, linked, and never lost."""

import lightning as L
import pytest
import torch

from lmix.model.adapters import read_adapter
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.state import check_checkpoint, find_checkpoint
from tests.training.test_checkpoints import StopAfter
from tests.training.test_grpo import data, module, trainer


class Scripted(L.Callback):
    """Give the evaluation after each step a value of its own."""

    def __init__(self, values):
        self.values = values

    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.global_step:
            pl_module.log("val/scripted", self.values[trainer.global_step - 1])


def fit(folder, values, steps=None, ckpt_path=None, stop=None, **settings):
    keep = PolicyCheckpoint(**{"every_n_steps": 1, "keep": 1, "monitor": "val/scripted", **settings})
    callbacks = [Scripted(values), keep, *([StopAfter(stop)] if stop else [])]
    t = trainer(folder, steps or len(values), callbacks=callbacks, val_check_interval=1)
    t.fit(module(), data(prompts=2), ckpt_path=ckpt_path)
    return keep


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.1, 0.5, 0.3, 0.4], "max", 2),
        ([0.1, 0.5, 0.3, 0.4], "min", 1),
        ([0.5, 0.5, 0.5], "max", 1),  # among equals the earliest
        ([float("nan"), 0.2, float("nan")], "max", 2),
        ([0.1, 0.2, 0.3], "max", 3),
    ],
)
def test_the_best_and_the_newest_stay(tmp_path, values, mode, best):
    keep = fit(tmp_path, values, mode=mode)
    kept = {best, len(values)}
    assert names(tmp_path) == sorted(
        ["best", "best.ckpt", *(f"step={s:04d}.ckpt" for s in kept), *(f"step={s:04d}" for s in kept)]
    )
    assert keep.best_model_path.endswith(f"step={best:04d}.ckpt")
    assert keep.best_model_score == pytest.approx(values[best - 1])
    linked = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert linked["global_step"] == best
    check_checkpoint(str(tmp_path / "checkpoints" / "best.ckpt"))
    assert (tmp_path / "checkpoints" / "best").resolve().name == f"step={best:04d}"
    read_adapter(str(tmp_path / "checkpoints" / "best"))
    # resuming picks the newest
    assert find_checkpoint(str(tmp_path)).endswith(f"step={len(values):04d}.ckpt")


def test_a_best_step_without_a_checkpoint_due_is_saved(tmp_path):
    fit(tmp_path, [0.1, 0.2, 0.9, 0.3, 0.2], every_n_steps=100)
    assert names(tmp_path) == ["best", "best.ckpt", "step=0003", "step=0003.ckpt", "step=0005", "step=0005.ckpt"]


def test_without_a_monitor_nothing_is_linked(tmp_path):
    keep = fit(tmp_path, [0.1, 0.2], monitor=None)
    assert names(tmp_path) == ["step=0002", "step=0002.ckpt"]
    assert keep.best_model_path == ""


def test_a_resumed_run_knows_the_best_before(tmp_path):
    values = [0.9, 0.1, 0.2, 0.3]
    fit(tmp_path, values, steps=4, stop=2)
    newest = find_checkpoint(str(tmp_path))
    assert newest.endswith("step=0002.ckpt")
    keep = fit(tmp_path, values, ckpt_path=newest)
    assert keep.best_model_score == pytest.approx(0.9)
    assert names(tmp_path) == ["best", "best.ckpt", "step=0001", "step=0001.ckpt", "step=0004", "step=0004.ckpt"]
    # back to the best: what came after it is set aside, and a better step replaces it
    best = str(tmp_path / "checkpoints" / "best.ckpt")
    keep = fit(tmp_path, [0.9, 0.95, 0.2], ckpt_path=best)
    assert keep.best_model_score == pytest.approx(0.95)
    assert (tmp_path / "checkpoints" / "best").resolve().name == "step=0002"
    assert (tmp_path / "checkpoints" / "step=0004.ckpt.abandoned").is_file()
    assert find_checkpoint(str(tmp_path)).endswith("step=0003.ckpt")


def test_a_best_step_after_the_one_that_is_resumed_from_is_forgotten(tmp_path):
    fit(tmp_path, [0.1, 0.9], keep=-1)
    first = str(tmp_path / "checkpoints" / "step=0001.ckpt")
    keep = fit(tmp_path, [0.1, 0.3, 0.2], ckpt_path=first, keep=-1)
    assert keep.best_model_score == pytest.approx(0.3)
    assert (tmp_path / "checkpoints" / "best.ckpt").resolve().name == "step=0002.ckpt"


def test_lightning_finds_the_best(tmp_path):
    keep = PolicyCheckpoint(every_n_steps=1, monitor="val/scripted")
    t = trainer(tmp_path, 3, callbacks=[Scripted([0.2, 0.6, 0.1]), keep], val_check_interval=1)
    m = module()
    t.fit(m, data(prompts=2))
    t.test(m, data(prompts=2), ckpt_path="best")
    assert t.ckpt_path == str(tmp_path / "checkpoints" / "step=0002.ckpt")


def test_a_file_system_without_links_keeps_the_best_all_the_same(tmp_path, monkeypatch, caplog):
    def symlink_to(self, target):
        raise OSError("Operation not supported")

    monkeypatch.setattr("pathlib.Path.symlink_to", symlink_to)
    fit(tmp_path, [0.9, 0.1, 0.2])
    assert names(tmp_path) == ["step=0001", "step=0001.ckpt", "step=0003", "step=0003.ckpt"]
    assert "to the best checkpoint" in caplog.text


def test_a_metric_that_is_not_logged_and_wrong_settings_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^PolicyCheckpoint.monitor 'val/solved' is not logged: use one of [^\n]*$"):
        fit(tmp_path, [0.1], monitor="val/solved")
    with pytest.raises(ValueError, match="mode must be max or min, not 'best'"):
        PolicyCheckpoint(mode="best")  # pyright: ignore[reportArgumentType]
