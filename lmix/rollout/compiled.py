"""The decode step under `torch.compile`, and on a GPU as CUDA graphs."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture, RowMixtures, row_mixtures
from lmix.rollout.decode_step import DecodeStep
from lmix.rollout.limits import Limits

COMPILATIONS = 64
"""Most compilations before an error. torch.compile's default, 8, is too low for training, evaluation and alpha rule."""
LENGTHS = 256
"""Row lengths are rounded up to a multiple of this many tokens, so that a longer prompt rarely needs new buffers."""


def check_can_compile(device: torch.device, sharded: bool) -> None:
    """Raise ValueError if the decode step can't be compiled.

    Args:
        device: where the step runs.
        sharded: whether each rank has only a part of the backbone.
    """
    if sharded:
        raise ValueError(
            "sampling.compile true needs an unsharded backbone: set it to false, or trainer.strategy to ddp"
        )
    compilers = os.environ.get("CXX", "g++"), "clang++", "c++"
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError("sampling.compile true needs a C++ compiler on a CPU: install g++, or set it to false")


class CompiledStep:
    """`DecodeStep.decode`, compiled as one graph.

    Sizes that change become symbolic at their second value, so the number of compilations does not grow during a run.

    On a GPU, the first pass of a shape is compiled, the second is recorded as a CUDA graph, and later ones replay it. A
    replay uses the addresses of the recording. A `DecodeStep` keeps the addresses of its buffers; a new `DecodeStep`
    needs a new `CompiledStep`. torch keeps the compiled code for the whole process.

    Args:
        step: the step to compile.
    """

    def __init__(self, step: DecodeStep) -> None:
        self.step = step
        self.run = torch.compile(step.decode, fullgraph=True)
        self.records = step.device.type == "cuda"
        self._seen: set[tuple[int, int]] = set()
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.records else None

    def decode(self, extent: int) -> Tensor:
        """See `DecodeStep.decode`."""
        shape = self.step.slots, extent
        if not self.records or shape not in self._seen:
            self._seen.add(shape)
            with torch._dynamo.config.patch(recompile_limit=COMPILATIONS):
                return self.run(extent)
        if shape not in self._graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                tokens = self.run(extent)
            self._graphs[shape] = graph, tokens
        graph, tokens = self._graphs[shape]
        graph.replay()
        return tokens


class KeptSteps:
    """Keeps the newest compiled step of a policy, and reuses it for rollout phases with the same settings."""

    def __init__(self, policy: MixedPolicy) -> None:
        self.policy = policy
        self._kind: Any = None
        self._step: CompiledStep | None = None

    def get(
        self,
        mixture: Mixture | Sequence[Mixture],
        limits: Limits,
        greedy: bool,
        slots: int,
        length: int,
        keep_frozen: bool,
        samples: int,
    ) -> tuple[DecodeStep, Callable[[int], Tensor]]:
        """Buffers for a rollout phase, and the pass over them. Arguments as in `DecodeStep`; `samples` is G."""
        of_rows: Mixture | RowMixtures
        if isinstance(mixture, Mixture) and mixture.depends_on_token:
            of_rows = like = mixture
        else:  # weights are in a buffer, so they can change without another compilation or recording
            each = [mixture] * samples if isinstance(mixture, Mixture) else mixture
            of_rows = row_mixtures(each, self.policy.device)
            like = replace(of_rows, weights_BK=tuple(of_rows.weights_BK.shape))  # pyright: ignore[reportArgumentType]
        kind = like, limits, greedy, slots, keep_frozen
        if self._step is not None and self._kind == kind and length <= self._step.step.length:
            self._step.step.restart(of_rows)
        else:
            self._step = None  # free its memory before new buffers are allocated
            length = -(-length // LENGTHS) * LENGTHS
            step = DecodeStep(self.policy, of_rows, limits, greedy, slots, length, keep_frozen)
            self._kind, self._step = kind, CompiledStep(step)
        return self._step.step, self._step.decode
