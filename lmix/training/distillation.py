"""The gradient of the divergence from a teacher for one optimiser step, one micro-batch at a time.

Legend: N completion tokens of a micro-batch, n of a chunk, H hidden size, V vocabulary, K streams of the teacher.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lmix.model.mixture import Mixture, RowMixtures
from lmix.rollout.packing import Packed, pack
from lmix.rollout.types import Group, Rollout
from lmix.training.config import SamplingConfig
from lmix.training.objectives import Distillation, Scored
from lmix.training.optimisation import OptimisedModule
from lmix.training.scoring import log_probs_of_drawn, mixture_hidden
from lmix.training.update import Update


class DistillationUpdate(Update):
    """An update whose terms are the student's divergence from a teacher.

    The divergence always covers the whole vocabulary, also at positions where `sampling.min_new_tokens` excludes the
    end-of-sequence tokens.

    Args:
        module, mixture, objective, groups, advantages_PG, sampling: see `Update`; the mixture is the student alone.
        teacher: the mixture to distil. It gets no gradient.
        contexts: for each rollout, the same completion after the prompt that the teacher reads; None if the teacher
            reads the student's prompts.
    """

    objective: Distillation

    def __init__(
        self,
        module: OptimisedModule,
        mixture: Mixture,
        objective: Distillation,
        groups: Sequence[Group],
        advantages_PG: Tensor,
        sampling: SamplingConfig,
        teacher: Mixture,
        contexts: Sequence[Rollout] | None = None,
    ) -> None:
        super().__init__(module, mixture, objective, groups, advantages_PG, sampling)
        self.teacher, self.contexts_B = teacher, contexts

    def count_compute(self) -> None:
        """Count the compute of the passes so far: the student's, and one forward pass of the teacher for each."""
        super().count_compute()
        read_B, share = self.contexts_B or self.rollouts_B, self.share_prompts and self.contexts_B is None
        for _ in range(self.updates):
            for passed in self.passes:
                self.module.compute.score([read_B[i] for i in passed], share, self.teacher)

    def _score(self, number: int, packed: Packed, rows: Sequence[int]) -> tuple[Scored, Tensor | None]:
        policy, student = self.policy, self.optimised
        (hidden,) = mixture_hidden(policy, student, packed)
        divergence_N = policy.divergences(hidden, student, self._teacher(packed, rows), self.objective.divergence)
        entropy_bC = None
        if self.objective.entropy_bonus:
            entropy_bC = packed.unflatten(policy.entropies([hidden], student.of_tokens(packed.positions)))
        with torch.no_grad():
            log_probs_bC = packed.unflatten(log_probs_of_drawn(policy, [hidden], student, packed))
        if not self.has_old and not self.updates:
            self.old.append(log_probs_bC)
        advantages_b = self.advantages_B[rows].to(self.module.device)
        divergence_bC = packed.unflatten(divergence_N)
        scored = Scored(log_probs_bC, self.old[number], advantages_b, packed.counted, divergence=divergence_bC)
        return scored, entropy_bC

    @torch.no_grad()
    def _teacher(self, packed: Packed, rows: Sequence[int] = ()) -> Callable[[Tensor], Tensor]:
        """Run the teacher over a micro-batch. Returns a function from token indices `[n]` to its logits `[n, V]`."""
        read = packed
        if self.contexts_B is not None and rows:
            read = pack([self.contexts_B[i] for i in rows], self.module.device)
        hidden_K = mixture_hidden(self.policy, self.teacher, read)
        mixture = self.teacher.of_tokens(read.positions)

        def logits(tokens_n: Tensor) -> Tensor:
            of_tokens = mixture.rows(tokens_n) if isinstance(mixture, RowMixtures) else mixture
            return self.policy.mixed_logits([hidden[tokens_n] for hidden in hidden_K], of_tokens)

        return logits

    def _idle_pass(self) -> None:
        """The passes of one micro-batch with zero gradient, to keep pace with ranks that have more micro-batches."""
        packed = self._idle_pack()
        (hidden,) = mixture_hidden(self.policy, self.optimised, packed)
        self._teacher(packed)
        self.module.backward_here(0.0 * hidden.sum())
