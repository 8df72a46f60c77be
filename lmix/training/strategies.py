"""The strategies of several ranks: Lightning's DDP as it is, and its FSDP2 with whole adapters."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 of the frozen backbone over all ranks, for one that does not fit a device beside the update's activations.

    Rollouts gather it, so it must fit beside the KV cache; with `gather_rollouts=false` it need not.

    Adapters and optimiser are whole on every rank (`lmix.model.sharding`), so they are saved, restored and summed as
    under DDP: what `ModelParallelStrategy` does for sharded parameters is taken back here.
    """

    def __init__(self, timeout: timedelta | None = None, gather_rollouts: bool = True) -> None:
        """Make it.

        Args:
            timeout: how long a rank waits for the others; null is torch's 30 minutes.
            gather_rollouts: gather the backbone once per rollout phase; false gathers each layer for each token, with
                ranks in lockstep: much slower, for backbones that do not fit otherwise.
        """
        super().__init__(tensor_parallel_size=1)
        self.gather_rollouts = gather_rollouts
        self._timeout = timeout or self._timeout

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    restore_checkpoint_after_setup = False  # pyright: ignore[reportAssignmentType]
    lightning_restore_optimizer = True  # pyright: ignore[reportAssignmentType]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def check_strategy(strategy: Strategy) -> None:
    """Raise ValueError unless each rank is a process of its own, under one of the strategies that were tried."""
    plain = type(strategy) is DDPStrategy and strategy._start_method == "popen"
    if not (plain or isinstance(strategy, SingleDeviceStrategy) or type(strategy) is ShardedStrategy):
        start = f" ({strategy._start_method})" if type(strategy) is DDPStrategy else ""
        raise ValueError(
            f"trainer.strategy must be auto, ddp or lmix.training.strategies.ShardedStrategy (FSDP2), not "
            f"{type(strategy).__name__}{start}: see configs/strategies"
        )
