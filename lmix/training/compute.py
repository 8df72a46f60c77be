"""The compute that a run has spent, in floating-point operations and tokens, estimated with the planner's formulas.

Curves can be drawn against it. Evaluations of held-out problems are not counted, since they are not part of a method.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import lightning as L

from lmix.model.flops import drawn_flops, trained_flops
from lmix.model.mixture import POLICY, Mixture
from lmix.model.placement import place_streams
from lmix.model.size import count_weights
from lmix.model.sources import load_config
from lmix.rollout.types import Group, Rollout

if TYPE_CHECKING:
    from lmix.training.module import AdapterModule

COUNTS = ("flops", "drawn_tokens", "trained_tokens")


class Compute:
    """The compute counts of one run, over all ranks.

    Attributes:
        totals: sums over all steps so far, one for each of `COUNTS`. Saved in checkpoints.
    """

    def __init__(self) -> None:
        self.totals = dict.fromkeys(COUNTS, 0.0)
        self.here = dict.fromkeys(COUNTS, 0.0)
        """Counts of this rank since the last `collect`."""
        self.linear: dict[str, int] = {}
        self.heads: dict[str, int] = {}
        self.adapters: dict[str, int] = {}

    def measure(self, module: "AdapterModule") -> None:
        """Count the weights of each stream, from the model configurations and the adapters."""
        for placed in place_streams(module.backbone, module.adapters):
            linear, _, head = count_weights(load_config(placed.backbone.path))
            for stream in placed.adapters:
                self.linear[stream], self.heads[stream] = linear, head
        for stream in self.linear:
            named = module.policy.named_parameters()
            self.adapters[stream] = sum(p.numel() for name, p in named if ".lora_" in name and f".{stream}." in name)

    def draw(self, groups: Sequence[Group], mixtures: Sequence[Mixture]) -> None:
        """Count the sampling of groups; each completion went through every stream that any of the mixtures uses."""
        streams = {stream for mixture in mixtures for stream in mixture.streams}
        tokens = sum(len(r.completion_ids) for group in groups for r in group.rollouts)
        prompts = sum(len(group.prompt.ids) for group in groups)
        self.here["flops"] += self._forward(streams, prompts, tokens)
        self.here["drawn_tokens"] += tokens

    def train(
        self,
        rows: Sequence[Rollout],
        share_prompts: bool,
        passes: float,
        heads: float = 2.0,
        frozen: Sequence[str] = (),
    ) -> None:
        """Count one pass of an update over its rows.

        Args:
            rows: the rollouts of the pass.
            share_prompts: whether rollouts of one prompt share its prefix.
            passes, heads: see `trained_flops`.
            frozen: streams that also make a forward pass.
        """
        prompts, predicted = count_tokens(rows, share_prompts)
        tokens = prompts + predicted
        sizes = self.linear[POLICY], self.adapters[POLICY], self.heads[POLICY]
        self.here["flops"] += trained_flops(*sizes, tokens, predicted, passes, heads)
        self.here["flops"] += sum(drawn_flops(self.linear[stream], 0, 0, tokens, 0) for stream in frozen)
        self.here["trained_tokens"] += tokens

    def score(self, rows: Sequence[Rollout], share_prompts: bool, mixture: Mixture) -> None:
        """Count one forward pass of a mixture over rows, such as a teacher's. Its tokens are not trained on."""
        self.here["flops"] += self._forward(mixture.streams, *count_tokens(rows, share_prompts))

    def _forward(self, streams: Collection[str], prompts: int, tokens: int) -> float:
        """Operations of one forward pass of streams over tokens of prompts, and of completions with the head."""
        linear, adapters = (sum(weights[stream] for stream in streams) for weights in (self.linear, self.adapters))
        return drawn_flops(linear, adapters, self.heads[POLICY], prompts, tokens)

    def collect(self, module: "AdapterModule") -> dict[str, float]:
        """Add the counts of all ranks to the totals, and return the values to log. Every rank must call it."""
        spent = module.sum_over_ranks([self.here[name] for name in COUNTS])
        self.totals = {name: self.totals[name] + value for name, value in zip(COUNTS, spent, strict=True)}
        self.here = dict.fromkeys(COUNTS, 0.0)
        return {f"compute/{name}": value for name, value in self.totals.items()}


def count_tokens(rows: Sequence[Rollout], share_prompts: bool) -> tuple[int, int]:
    """Tokens of the prompts that are read for rows, and of the completions."""
    prompts = {id(r.prompt if share_prompts else r): len(r.prompt.ids) for r in rows}
    return sum(prompts.values()), sum(len(r.completion_ids) for r in rows)


class ComputeBudget(L.Callback):
    """End a run after the step in which it reaches a compute budget, so that methods can be compared at equal compute.

    Args:
        flops: the budget in floating-point operations, on the scale of the metric `compute/flops`.

    Raises:
        ValueError: `flops` is not positive.
    """

    def __init__(self, flops: float) -> None:
        if not flops > 0:
            raise ValueError(f"ComputeBudget.flops must be positive, not {flops}")
        self.flops = flops

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: "AdapterModule", *_: object, **__: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if pl_module.compute.totals["flops"] >= self.flops:
            trainer.should_stop = True
