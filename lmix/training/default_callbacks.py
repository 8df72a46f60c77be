"""The callbacks that every run has unless the user configures their own."""

from collections.abc import Sequence

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar

from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.completion_log import CompletionLog
from lmix.training.console import StepConsole
from lmix.training.preemption import Preemption


def default_callbacks(
    given: Sequence[Callback], progress_bar: bool = True, checkpointing: bool = True
) -> list[Callback]:
    """Return lmix's own callbacks that the user has not replaced.

    Args:
        given: the user's callbacks. Each replaces the default of its class, and any progress bar replaces
            `StepConsole`. Lightning's ModelCheckpoint does not replace `PolicyCheckpoint`.
        progress_bar: the Trainer's `enable_progress_bar`.
        checkpointing: the Trainer's `enable_checkpointing`.
    """
    wanted: list[tuple[bool, type[Callback], Callback]] = [
        (progress_bar, ProgressBar, StepConsole()),
        (True, CompletionLog, CompletionLog()),
        (True, Preemption, Preemption()),
        (checkpointing, PolicyCheckpoint, PolicyCheckpoint()),
    ]
    return [
        default
        for enabled, kind, default in wanted
        if enabled and not any(isinstance(callback, kind) for callback in given)
    ]
