"""Strategies for several ranks: Lightning's DDP, and its FSDP2 with adapters that are not sharded."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 of the frozen backbone over all ranks, for a backbone that does not fit on a device during the update.

    During rollouts the backbone is gathered, so it must fit on a device together with the KV cache, unless
    `gather_rollouts` is false.

    Adapters and optimiser state are not sharded (`lmix.model.sharding`), so they are saved, restored and reduced as
    under DDP. The overrides here undo what `ModelParallelStrategy` does for sharded parameters.
    """

    def __init__(self, timeout: timedelta | None = None, gather_rollouts: bool = True) -> None:
        """Create the strategy.

        Args:
            timeout: how long a rank waits for the others; null is torch's default of 30 minutes.
            gather_rollouts: gather the backbone once per rollout phase. false gathers each layer for each token, with
                all ranks in lockstep. This is much slower, and meant for backbones that do not fit otherwise.
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
    """Raise ValueError unless the strategy is one of the tested ones, with a separate process for each rank."""
    plain = type(strategy) is DDPStrategy and strategy._start_method == "popen"
    if not (plain or isinstance(strategy, SingleDeviceStrategy) or type(strategy) is ShardedStrategy):
        start = f" ({strategy._start_method})" if type(strategy) is DDPStrategy else ""
        raise ValueError(
            f"trainer.strategy must be auto, ddp or lmix.training.strategies.ShardedStrategy (FSDP2), not "
            f"{type(strategy).__name__}{start}: see configs/strategies"
        )
