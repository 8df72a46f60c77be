"""Lightning's own flags and callbacks beside lmix's."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lmix import cli
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.completion_log import CompletionLog
from lmix.training.console import StepConsole
from lmix.training.default_callbacks import default_callbacks
from lmix.training.run_config import flat_settings, log_settings
from lmix.training.state import find_checkpoint
from lmix.training.trainer_flags import check_monitors, check_trainer_flags
from tests.training.test_checkpoints import StopAfter
from tests.training.test_grpo import data, module, trainer


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"precision": "bf16-mixed"}, "precision must be 32-true, not bf16-mixed: set model.backbone.dtype=bfloat16"),
        ({"precision": "16-mixed"}, "precision must be 32-true, not 16-mixed: set model.backbone.dtype=bfloat16"),
        ({"precision": "bf16"}, "precision must be 32-true, not bf16: set model.backbone.dtype=bfloat16"),
        ({"precision": 16}, "precision must be 32-true, not 16: set model.backbone.dtype=bfloat16"),
        ({"precision": "64-true"}, "precision must be 32-true, not 64-true: set model.backbone.dtype=float32"),
        ({"gradient_clip_val": 0.5}, "gradient_clip_val must be null, not 0.5: set model.optimizer.max_grad_norm=0.5"),
        ({"gradient_clip_val": 0}, "gradient_clip_val must be null, not 0: set model.optimizer.max_grad_norm=null"),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_algorithm must be null or norm, not value"),
        ({"accumulate_grad_batches": 4}, "must be 1, not 4: data.prompts_per_step is the batch of an optimiser step"),
        ({"barebones": True}, "barebones must be false: set trainer.logger"),
    ],
)
def test_a_flag_that_lmix_has_a_setting_for_names_it(flags, message):
    with pytest.raises(ValueError, match=r"^trainer") as error:
        check_trainer_flags(**flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", [None, 32, "32", "32-true"])
def test_flags_that_change_nothing_are_taken(precision):
    check_trainer_flags(precision=precision, gradient_clip_algorithm="norm", max_steps=3)


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        ({"gradient_clip_val": 1.0}, "model.optimizer.max_grad_norm=1.0"),
        ({"accumulate_grad_batches": 2}, "data.prompts_per_step"),
        ({"precision": "bf16-true"}, "model.backbone.dtype=bfloat16"),
    ],
)
def test_a_trainer_of_python_code_names_the_setting_too(tmp_path, flags, setting):
    with pytest.raises(ValueError, match="^trainer.*" + setting):
        trainer(tmp_path, 1, **flags).fit(module(), data())


def kinds(callbacks):
    return [type(callback).__name__ for callback in callbacks]


def test_what_the_user_configures_replaces_the_default_of_its_kind():
    class Mine(PolicyCheckpoint):
        pass

    every = ["StepConsole", "CompletionLog", "Preemption", "PolicyCheckpoint"]
    assert kinds(default_callbacks([])) == every
    assert kinds(default_callbacks([], progress_bar=False)) == every[1:]
    assert kinds(default_callbacks([], checkpointing=False)) == every[:-1]
    for bar in (RichProgressBar(), TQDMProgressBar(), StepConsole()):
        assert kinds(default_callbacks([bar])) == every[1:]
    assert kinds(default_callbacks([Mine()])) == every[:-1]
    assert kinds(default_callbacks([ModelCheckpoint()])) == every
    assert kinds(default_callbacks([CompletionLog(), EarlyStopping("val/solve_rate")])) == [
        "StepConsole",
        "Preemption",
        "PolicyCheckpoint",
    ]


def test_lightning_s_own_callbacks_run_beside_lmix_s(tmp_path):
    best = ModelCheckpoint(monitor="val/solve_rate", mode="max", filename="{step}-mine")
    callbacks = [
        EarlyStopping("val/solve_rate", mode="max", patience=10),
        LearningRateMonitor(),
        DeviceStatsMonitor(),
        RichProgressBar(),
        best,
    ]
    t = trainer(
        tmp_path,
        2,
        callbacks=[*callbacks, *default_callbacks(callbacks)],
        logger=TensorBoardLogger(tmp_path, "all"),
        enable_progress_bar=True,
        val_check_interval=1,
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
    )
    t.fit(module(), data(prompts=2))
    folder = tmp_path / "all" / "version_0"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"lr-AdamW", "val/solve_rate"} <= set(events.Tags()["scalars"])
    assert any(name.startswith("DeviceStatsMonitor") for name in events.Tags()["scalars"])
    # Lightning's checkpoints stand beside lmix's, are whole, and resume
    assert best.best_model_path.endswith("mine.ckpt")
    assert find_checkpoint(best.best_model_path) == best.best_model_path
    assert find_checkpoint(str(folder)).endswith("step=0002.ckpt")
    resumed = trainer(tmp_path / "resumed", 3, callbacks=[PolicyCheckpoint()])
    resumed.fit(module(), data(prompts=2), ckpt_path=best.best_model_path)
    assert resumed.global_step == 3


def test_early_stopping_stops_and_the_step_is_saved(tmp_path):
    class Flat(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("val/flat", 1.0)

    stop = EarlyStopping("val/flat", patience=1)
    t = trainer(tmp_path, 9, callbacks=[Flat(), stop, PolicyCheckpoint(every_n_steps=100)], val_check_interval=1)
    t.fit(module(), data(prompts=2))
    assert t.global_step == 2
    assert find_checkpoint(str(tmp_path)).endswith("step=0002.ckpt")


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint, PolicyCheckpoint])
def test_a_metric_that_does_not_exist_ends_the_run_before_its_first_step(tmp_path, kind):
    callbacks = [kind(monitor="val/solved"), *([PolicyCheckpoint()] if kind is EarlyStopping else [])]
    t = trainer(tmp_path, 2, callbacks=callbacks, num_sanity_val_steps=-1, enable_checkpointing=True)
    message = rf"^{kind.__name__}.monitor 'val/solved' is not logged: use one of val/answer_rate, val/format"
    with pytest.raises(ValueError, match=message):
        t.fit(module(), data(prompts=2))
    assert t.global_step == 0


def test_monitors_that_can_t_be_known_yet_are_left_alone():
    callbacks = [EarlyStopping("train/reward"), EarlyStopping("val/solve_rate"), StepConsole()]
    check_monitors(callbacks, {})
    check_monitors(callbacks, {"val/solve_rate": 0.5})
    check_monitors([EarlyStopping("val/other")], {"train/loss": 0.5})  # no evaluation so far


def test_a_development_run_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=0001.ckpt").write_text("another run's")
    before = sorted(tmp_path.rglob("*"))
    line = ["fit", "--config=lmix:demo", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"]
    small = ["--data.prompts_per_step=2", "--data.eval_size=4", "--model.sampling.samples_per_prompt=2"]
    assert cli.main([*line, *small]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_flags_that_leave_parts_out(tmp_path, capsys):
    """No bar, no checkpoints, and the settings as hyper-parameters."""
    line = ["fit", "--config=lmix:demo", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    small = ["--data.prompts_per_step=2", "--data.eval_size=4", "--model.sampling.samples_per_prompt=2"]
    flags = ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false", "--model.alpha=0.25"]
    assert cli.main([*line, *small, *flags, f"--trainer.logger.save_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out == ""
    folder = tmp_path / "demo" / "version_0"
    assert not (folder / "checkpoints").exists()
    assert (folder / "config.yaml").is_file()
    settings, metrics = hyperparameters(folder)
    assert settings["model"] == "lmix.GRPOModule"
    assert settings["model.alpha"] == 0.25
    assert settings["data.task"] == "lmix.tasks.ArithmeticTask"
    assert settings["data.prompts_per_step"] == 2
    assert metrics == ["val/solve_rate", "val/answer_rate", "val/format_rate", "val/right_anywhere_rate"]
    assert "model.alpha: 0.25" in (folder / "hparams.yaml").read_text()


def hyperparameters(folder):
    """What TensorBoard's HParams tab reads: the run's settings, and the scalars of its columns."""
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [f"_hparams_/{part}" for part in ("session_start_info", "experiment")]
    start, experiment = (
        plugin_data_pb2.HParamsPluginData.FromString(events.SummaryMetadata(name).plugin_data.content) for name in names
    )
    settings = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in start.session_start_info.hparams.items()
    }
    return settings, [info.name.tag for info in experiment.experiment.metric_infos]


def test_settings_are_named_as_a_user_types_them():
    config = {
        "seed_everything": 0,
        "model": {"class_path": "A", "init_args": {"alpha": 0.5, "sampling": {"slots": 4}, "weights": [1.0, 2.0]}},
        "trainer": {"logger": {"class_path": "L"}, "deterministic": None, "fast_dev_run": False},
    }
    assert dict(flat_settings(config)) == {
        "seed_everything": 0,
        "model": "A",
        "model.alpha": 0.5,
        "model.sampling.slots": 4,
        "model.weights": "[1.0, 2.0]",
        "trainer.logger": "L",
        "trainer.fast_dev_run": False,
    }


def test_other_loggers_get_the_settings_their_own_way(tmp_path):
    logger = CSVLogger(tmp_path)
    log_settings(logger, {"model.alpha": 0.25})
    assert dict(logger.experiment.hparams) == {"model.alpha": 0.25}


def test_a_checkpoint_holds_no_hyper_parameters_that_would_override_what_is_typed(tmp_path):
    trainer(tmp_path, 2, callbacks=[PolicyCheckpoint(), StopAfter(1)]).fit(module(), data(prompts=2))
    checkpoint = torch.load(find_checkpoint(str(tmp_path)), weights_only=True)
    assert not any("hyper" in name for name in checkpoint)
    assert json.dumps(sorted(checkpoint["lmix"]))
