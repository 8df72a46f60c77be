"""The interface of lmix and naive mixing to the benchmark: three phases, each timed separately."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.memory import memory, reset_memory
from benchmarks.work import Work


class Contender:
    """An implementation of a step. Subclasses implement the phases."""

    work: Work
    drawn: Any = None
    """The latest rollouts."""

    def rollouts(self) -> Any:
        """Sample a step's completions."""
        raise NotImplementedError

    def score(self, rollouts: Any) -> None:
        """Compute log-probabilities without a gradient, as a second inner update or a KL needs them."""
        raise NotImplementedError

    def update(self, rollouts: Any) -> None:
        """Make one optimiser step."""
        raise NotImplementedError

    # the orders of `protocol.serve`

    def step(self) -> dict[str, float]:
        """Seconds and peak memory of rollouts and update."""
        figures = self.measured("rollout", self.draw)
        return (
            figures if self.work.only_rollouts else figures | self.measured("update", lambda: self.update(self.drawn))
        )

    def scoring(self) -> dict[str, float]:
        """Seconds and peak memory of scoring the latest rollouts, which is not part of a step with one inner update."""
        return self.measured("score", lambda: self.score(self.drawn))

    def draw(self) -> None:
        self.drawn = self.rollouts()

    def measured(self, name: str, phase: Callable[[], None]) -> dict[str, float]:
        """Run a phase. Returns its seconds and its peak memory in GB."""
        reset_memory()
        start = time.perf_counter()
        phase()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {name: time.perf_counter() - start, f"{name}_gb": memory()}


def randomise(model: torch.nn.Module) -> None:
    """Give the adapters random values, so that no matrix product is with zeros."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.01)
