"""Checks of Trainer flags that lmix replaces by its own settings. Error messages name the setting to use."""

from typing import Any


def check_trainer_flags(
    precision: Any = None,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
    accumulate_grad_batches: int = 1,
    barebones: bool = False,
    **_: Any,
) -> None:
    """Check the Trainer arguments of the same names; others are ignored.

    Raises:
        ValueError: a flag that Lightning would ignore under manual optimisation, or refuse without naming lmix's
            setting.
    """
    if precision not in (None, 32, "32", "32-true"):
        dtype = "bfloat16" if "16" in str(precision) else "float32"
        raise ValueError(
            f"trainer.precision must be 32-true, not {precision}: set model.backbone.dtype={dtype}, which the backbone "
            "computes in; adapters are trained in float32"
        )
    if gradient_clip_val is not None:
        norm = gradient_clip_val if gradient_clip_val > 0 else "null"
        raise ValueError(
            f"trainer.gradient_clip_val must be null, not {gradient_clip_val}: set model.optimizer.max_grad_norm={norm}"
        )
    if gradient_clip_algorithm not in (None, "norm"):
        raise ValueError(
            f"trainer.gradient_clip_algorithm must be null or norm, not {gradient_clip_algorithm}: lmix clips by norm, "
            "so set model.optimizer.max_grad_norm instead"
        )
    if accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches must be 1, not {accumulate_grad_batches}: data.prompts_per_step is the "
            "batch of an optimiser step, and model.objective.micro_batch_tokens (SFT: model.micro_batch_tokens) bounds "
            "the memory of one pass"
        )
    if barebones:
        raise ValueError(
            "trainer.barebones must be false: set trainer.logger, trainer.enable_checkpointing and "
            "trainer.enable_progress_bar to false instead"
        )


def check_monitors(callbacks: list[Any], metrics: dict[str, Any]) -> None:
    """Check that the metrics that callbacks such as EarlyStopping monitor are logged.

    Args:
        callbacks: the Trainer's callbacks.
        metrics: metrics logged by the evaluation before the first step, by name. Without any under `val/`, nothing is
            checked.

    Raises:
        ValueError: a callback monitors a metric under `val/` that is not logged.
    """
    logged = sorted(name for name in metrics if name.startswith("val/"))
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if logged and isinstance(monitor, str) and monitor.startswith("val/") and monitor not in logged:
            raise ValueError(
                f"{type(callback).__name__}.monitor {monitor!r} is not logged: use one of {', '.join(logged)}, or a "
                "metric of training"
            )
