"""lmix's own sampler: one prefill per prompt and stream, then decoding with continuous batching."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture, row_mixtures
from lmix.rollout.compiled import KeptSteps
from lmix.rollout.decode_step import DecodeStep
from lmix.rollout.limits import Limits
from lmix.rollout.randomness import rollout_keys
from lmix.rollout.sampler import Progress
from lmix.rollout.scheduler import Scheduler
from lmix.rollout.types import Draw, Group, Prompt, Rollout, flatten

PREFILL_TOKENS = 8192
"""Default of `Engine.prefill_tokens`."""


class Engine:
    """Draws completions from a mixed policy; a `Sampler`.

    Args:
        policy: the policy to sample from.
        slots: rows that are decoded at once; a prompt's samples always start together, so at least G are used.
        prefill_tokens: maximum padded prompt tokens of one prefill.
        check_every: tokens between two checks of which rows have ended; None is 8 on a GPU and 1 on a CPU. On a GPU
            each check waits for the device. Tokens drawn past the end are discarded, so the result is the same.
        compiled: run the decode step under `torch.compile`, and on a GPU as CUDA graphs. Calls with the same settings
            then share buffers.
        on_tokens: called with each pass's tokens, one for each slot, to show completions while they are drawn.
    """

    def __init__(
        self,
        policy: MixedPolicy,
        slots: int = 64,
        prefill_tokens: int = PREFILL_TOKENS,
        check_every: int | None = None,
        compiled: bool = False,
        on_tokens: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.policy, self.slots, self.prefill_tokens = policy, slots, prefill_tokens
        self.check_every, self.on_tokens = check_every, on_tokens
        self.kept = KeptSteps(policy) if compiled else None

    def sync(self, policy: MixedPolicy) -> None:
        """Do nothing: the engine samples from the weights that are trained."""
        assert policy is self.policy, "the engine samples from the policy that it was made with"

    def generate(
        self,
        prompts: Sequence[Prompt],
        limits: Limits,
        draw: Draw,
        mixture: Mixture | Sequence[Mixture],
        samples: int = 1,
        keep_frozen: bool = False,
        progress: Progress | None = None,
    ) -> list[Group]:
        """See `Sampler.generate`."""
        groups = [Group(prompt, [Rollout(prompt, g) for g in range(samples)], draw) for prompt in prompts]
        # enter even without prompts, because ranks that share a backbone gather it together
        with self.policy.rollouts(self.kept is not None):
            if groups and samples and limits.max_new_tokens > 0:
                self._draw(groups, limits, draw, mixture, samples, keep_frozen, progress)
            while self._in_step(False):  # other ranks still draw, and need this rank's shard of the backbone
                self._idle_pass(mixture)
        return groups

    def _draw(
        self,
        groups: list[Group],
        limits: Limits,
        draw: Draw,
        mixture: Mixture | Sequence[Mixture],
        samples: int,
        keep_frozen: bool,
        progress: Progress | None,
    ) -> None:
        """Fill in the groups' rollouts."""
        device, rollouts = self.policy.device, flatten(groups)
        check_every = self.check_every or (8 if device.type == "cuda" else 1)
        lengths = [len(group.prompt.ids) for group in groups]
        scheduler = Scheduler(
            lengths, samples, self.slots, limits.max_new_tokens, self.prefill_tokens, halves=self.kept is not None
        )
        length = max(lengths) + limits.max_new_tokens
        slots = len(scheduler.row_of)
        if self.kept is not None:
            step, decode = self.kept.get(mixture, limits, draw.greedy, slots, length, keep_frozen, samples)
        else:
            of_rows = mixture if isinstance(mixture, Mixture) else row_mixtures(mixture, device)
            step = DecodeStep(self.policy, of_rows, limits, draw.greedy, slots, length, keep_frozen)
            decode = step.decode
        keys = rollout_keys(rollouts, draw, device)

        def admit() -> None:
            for seated, slots in scheduler.admit():
                self._in_step(True)
                rows = torch.tensor(scheduler.rows_of(seated), device=device)
                tokens = step.prefill([groups[i].prompt.ids for i in seated], slots, keys[rows])
                self._show(tokens)
                scheduler.count_token(slots)

        admit()
        while scheduler.busy:
            for _ in range(check_every):
                if not scheduler.can_draw:
                    break
                self._in_step(True)
                self._show(decode(step.extent(scheduler.visible)))
                scheduler.count_token()
            # check the token of a prefill and those of the steps after it; earlier ones have been checked
            finished = scheduler.retire(step.first_ends(check_every + 1))
            for row, read in zip(finished, step.read([(row.slot, row.count) for row in finished]), strict=True):
                rollout = rollouts[row.row]
                rollout.completion_ids, rollout.log_probs, frozen = read
                rollout.frozen_hidden, rollout.ended = frozen or None, row.ended
            if progress:
                progress(scheduler.ended, scheduler.rows, scheduler.tokens_drawn)
            if (live := scheduler.shrink()) is not None:
                step.shrink(live)
            admit()

    def _idle_pass(self, mixture: Mixture | Sequence[Mixture]) -> None:
        """Take part in another rank's pass of the policy's model, if the mixture runs that model."""
        mixtures = [mixture] if isinstance(mixture, Mixture) else mixture
        own = self.policy.models[0]
        if any(stream in own.streams for each in mixtures for stream in each.streams):
            own.hidden(torch.zeros(1, 1, dtype=torch.long, device=self.policy.device), (POLICY,))

    def _show(self, tokens: Tensor) -> None:
        if self.on_tokens:
            self.on_tokens(tokens)

    def _in_step(self, draws: bool) -> bool:
        """Whether any rank makes a pass now.

        If passes need all ranks, every rank must call this before each pass. Their inputs may differ, because ranks
        only exchange weights.

        Args:
            draws: whether this rank has a pass to make.
        """
        if not self.policy.draws_in_step:
            return draws
        any_draws = torch.tensor(int(draws), device=self.policy.device)
        torch.distributed.all_reduce(any_draws, torch.distributed.ReduceOp.MAX)
        return bool(any_draws)
