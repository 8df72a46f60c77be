"""The callbacks that every run has unless the user configures others in their place."""

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
    """lmix's own callbacks.

    Args:
        given: the user's; one of these replaces the default of its class, and any progress bar replaces `StepConsole`.
            Lightning's ModelCheckpoint stands beside `PolicyCheckpoint`.
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
