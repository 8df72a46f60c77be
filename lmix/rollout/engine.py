"""Sampling from the mixed policy, token by token: one prefill a prompt and stream; rows come to slots and leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.streams import POLICY, REFERENCE
from lmix.rollout.cache import StreamCache
from lmix.rollout.randomness import row_keys, uniforms
from lmix.rollout.rollout import Rollout, pad_right, token_budget_batches
from lmix.rollout.sampling import greedy, inverse_cdf

PREFILL_TOKENS = 8192
"""Padded prompt tokens of one prefill pass, where nothing else is said."""

Progress = Callable[[int, int, int], None]
"""Called after each token with (rows ended, rows in all, tokens drawn)."""


@dataclass(frozen=True)
class Draw:
    """How tokens are chosen: a draw from the mixed policy at temperature 1, or the most probable token."""

    seed: int = 0
    step: int = 0
    """Outer step; the same seed and step give the same tokens."""
    greedy: bool = False


class RolloutEngine:
    """Draws completions from a mixed policy.

    Args:
        policy: what is sampled from, at its alpha of that moment.
        eos_ids: a completion ends with any of these tokens.
        slots: rows that are decoded at once; a prompt's samples always start together, so at least G are used.
        prefill_tokens: padded prompt tokens of one prefill pass.
        check_every: steps between looks at which rows have ended. 1 costs a GPU a synchronisation each token; tokens
            drawn past the end are thrown away, and change nothing.
        on_tokens: called with each pass's tokens, one a slot, to show a completion while it is drawn.
    """

    def __init__(
        self,
        policy: MixedPolicy,
        eos_ids: Sequence[int],
        slots: int = 64,
        prefill_tokens: int = PREFILL_TOKENS,
        check_every: int | None = None,
        on_tokens: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.policy = policy
        self.eos_ids = tuple(eos_ids)
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.check_every = check_every
        self.on_tokens = on_tokens

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        draw: Draw,
        samples: int = 1,
        prompt_ids: Sequence[int] | None = None,
        keep_frozen: bool = False,
        progress: Progress | None = None,
        alphas: Sequence[float] | None = None,
    ) -> list[Rollout]:
        """Complete each prompt `samples` times.

        Args:
            prompts: token ids of each prompt; none empty.
            max_new_tokens: a completion that has not ended by then is cut.
            draw: sampled or greedy, and from which seed.
            samples: G.
            prompt_ids: a number for each prompt that its random numbers depend on (its place in the data set), so that
                they do not depend on what it is batched with; by default its place in `prompts`.
            keep_frozen: keep the frozen streams' hidden states, so that scoring needs no pass of theirs.
            progress: see `Progress`.
            alphas: a weight of the reference for each of the G samples in place of the policy's alpha, so that one
                pass decodes several mixtures from the same prefill.

        Returns:
            Rollouts in order of prompt, then sample.
        """
        rollouts = [Rollout(p, g, list(ids)) for p, ids in enumerate(prompts) for g in range(samples)]
        with self.policy.rollouts():  # also without a prompt: ranks that share a backbone gather it together
            if rollouts and max_new_tokens > 0:
                _Wave(self, rollouts, samples, max_new_tokens, draw, prompt_ids, keep_frozen, progress, alphas).run()
            while self.in_step(False):  # others still draw, from a backbone of which a part lies here
                self.policy.hidden(torch.zeros(1, 1, dtype=torch.long, device=self.policy.device))
        return rollouts

    def in_step(self, draws: bool) -> bool:
        """Whether any rank makes a pass now. Where passes need all ranks, each must ask before each of them; what they
        feed may differ, as only weights are exchanged.

        Args:
            draws: whether this rank has one to make.
        """
        if not self.policy.draws_in_step:
            return draws
        any_draws = torch.tensor(int(draws), device=self.policy.device)
        torch.distributed.all_reduce(any_draws, torch.distributed.ReduceOp.MAX)
        return bool(any_draws)


def slots_taken(slots: int, samples: int, rows: int) -> int:
    """Rows that are decoded at once: whole groups, at least one, and no more than there are."""
    return min(max(slots // samples, 1) * samples, rows)


def streams_at(alpha: float) -> tuple[str, ...]:
    """The streams that a mixture of this alpha runs."""
    return tuple(stream for stream, weight in ((POLICY, 1.0 - alpha), (REFERENCE, alpha)) if weight != 0.0)


def slot_pools(
    needs: Sequence[tuple[str, ...]], groups: int, streams: tuple[str, ...]
) -> tuple[dict[tuple[str, ...], range], list[slice]]:
    """Lay out the slots of `groups` groups so that each stream runs a run of them without a gap.

    Args:
        needs: which streams each sample of a group runs: all, or one of two.

    Returns:
        The slots for samples of each need (the first stream's alone, then both's, then the second's alone), and the
        slots of each stream.
    """
    kinds = sorted(set(needs), key=lambda need: (streams[0] not in need, streams[-1] in need))
    pools, start = {}, 0
    for need in kinds:
        pools[need] = range(start, start := start + groups * needs.count(need))
    spans = []
    for stream in streams:
        having = [pool for need, pool in pools.items() if stream in need]
        spans.append(slice(having[0].start, having[-1].stop) if having else slice(0, 0))
    return pools, spans


class _Wave:
    """One call of `generate`: its slots, and what each of them has drawn so far."""

    def __init__(
        self,
        engine: RolloutEngine,
        rollouts: list[Rollout],
        samples: int,
        max_new_tokens: int,
        draw: Draw,
        prompt_ids: Sequence[int] | None,
        keep_frozen: bool,
        progress: Progress | None,
        alphas: Sequence[float] | None,
    ) -> None:
        self.engine, self.policy, self.draw, self.progress = engine, engine.policy, draw, progress
        self.device = engine.policy.device
        self.check_every = engine.check_every or (8 if self.device.type == "cuda" else 1)
        self.streams = engine.policy.streams if alphas is None else (POLICY, REFERENCE)
        self.alphas = None if alphas is None else torch.tensor(alphas, device=self.device)
        self.rollouts, self.samples, self.limit = rollouts, samples, max_new_tokens
        self.waiting = list(range(0, len(rollouts), samples))  # first rollout of each group that has not started
        self.ended, self.tokens_drawn = 0, 0
        self.ends = torch.tensor(engine.eos_ids, dtype=torch.long, device=self.device)
        slots = slots_taken(engine.slots, samples, len(rollouts))
        length = max(len(r.prompt_ids) for r in rollouts) + max_new_tokens
        self.needs = [self.streams] * samples if alphas is None else [streams_at(alpha) for alpha in alphas]
        """Which streams each sample of a group runs: those of weight zero cost it nothing."""
        self.pools, spans = slot_pools(self.needs, slots // samples, self.streams)
        self.cache = StreamCache(self.policy.backbone.config, spans, length)
        self.rollout_of: list[int | None] = [None] * slots
        """Which rollout sits in a slot; None in a free one, which goes on computing what nobody reads."""
        self.drawn = [0] * slots
        self.keys = row_keys(
            draw.seed,
            draw.step,
            torch.tensor([prompt_ids[r.prompt] if prompt_ids else r.prompt for r in rollouts], device=self.device),
            torch.tensor([r.sample for r in rollouts], device=self.device),
        )
        # per slot: its key, its sample, the position of its newest token, and what it has drawn
        self.slot_keys = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.slot_samples = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.tokens = torch.zeros(slots, max_new_tokens, dtype=torch.long, device=self.device)
        self.log_probs = torch.zeros(slots, max_new_tokens, device=self.device)
        self.places = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.last = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.frozen: Tensor | None = None
        self.kept = [k for k, name in enumerate(self.streams) if keep_frozen and name != POLICY]

    def run(self) -> None:
        self.admit()
        while any(r is not None for r in self.rollout_of):
            for _ in range(self.check_every):
                if self.open_slots() == 0:
                    break
                self.step()
            self.retire()
            self.admit()

    def open_slots(self) -> int:
        """Slots whose row can still draw a token, as far as the host knows without asking the device."""
        return sum(r is not None and self.drawn[s] < self.limit for s, r in enumerate(self.rollout_of))

    def admit(self) -> None:
        """Start waiting groups when enough slots are free to be worth a prefill."""
        if not self.waiting:
            return
        free = {need: [s for s in pool if self.rollout_of[s] is None] for need, pool in self.pools.items()}
        room = min(len(slots) // self.needs.count(need) for need, slots in free.items())
        if room * self.samples < max(self.samples, len(self.rollout_of) // 4):
            return
        groups = [self.waiting.pop(0) for _ in range(min(room, len(self.waiting)))]
        lengths = [len(self.rollouts[first].prompt_ids) for first in groups]
        for batch in token_budget_batches(lengths, self.engine.prefill_tokens):
            taken = [free[need].pop(0) for _ in batch for need in self.needs]
            self.prefill([groups[i] for i in batch], taken)

    def prefill(self, groups: list[int], slots: list[int]) -> None:
        """Read each prompt once a stream, give its keys and values to its G slots, and draw their first tokens."""
        prompts = [self.rollouts[first].prompt_ids for first in groups]
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        ids = pad_right(prompts).to(self.device)
        cache = DynamicCache()
        self.engine.in_step(True)
        hidden_KPTH = self.policy.hidden(ids, self.streams, past_key_values=cache, use_cache=True)
        last_KPH = hidden_KPTH[:, torch.arange(len(prompts), device=self.device), lengths - 1]
        self.cache.insert(cache, [i for i in range(len(prompts)) for _ in range(self.samples)], slots)
        at = torch.tensor(slots, device=self.device)
        rows = [first + g for first in groups for g in range(self.samples)]
        for slot, row in zip(slots, rows, strict=True):
            self.rollout_of[slot], self.drawn[slot] = row, 0
        self.slot_keys[at] = self.keys[torch.tensor(rows, device=self.device)]
        self.slot_samples[at] = torch.arange(self.samples, device=self.device).repeat(len(groups))
        self.positions[at] = lengths.repeat_interleave(self.samples) - 1
        self.places[at] = 0
        self.choose(list(last_KPH.repeat_interleave(self.samples, dim=1)), at, slots)

    def step(self) -> None:
        """Feed every slot's newest token, and draw the next."""
        live = [(s, r) for s, r in enumerate(self.rollout_of) if r is not None]
        visible = max(len(self.rollouts[r].prompt_ids) + self.drawn[s] for s, r in live)
        # rows that reached their limit, and free ones, write their last place again and again
        arguments = self.cache.step_arguments(
            self.positions.clamp(max=visible - 1), visible, self.policy.backbone.dtype
        )
        self.engine.in_step(True)
        spans = dict(zip(self.streams, self.cache.spans, strict=True))
        running = {stream: span for stream, span in spans.items() if span.start < span.stop}
        parts = self.policy.hidden_of(self.last[:, None], running, **arguments)
        found, nothing = dict(zip(running, parts, strict=True)), parts[0][:0]
        hidden_KSH = [self.on_all_slots(found.get(stream, nothing)[:, 0], span) for stream, span in spans.items()]
        slots = list(range(len(self.rollout_of)))
        self.choose(hidden_KSH, torch.arange(len(slots), device=self.device), slots)

    def on_all_slots(self, hidden: Tensor, span: slice) -> Tensor:
        """`[rows, H]` of a stream's slots -> `[S, H]`, zeros in the others, where the stream has no weight."""
        slots = len(self.rollout_of)
        if len(hidden) == slots:
            return hidden
        spread = hidden.new_zeros(slots, hidden.shape[-1])
        spread[span] = hidden
        return spread

    def choose(self, hidden_KSH: list[Tensor], at: Tensor, slots: list[int]) -> None:
        """Draw a token for the slots `at` from the streams' hidden states, and write it down."""
        alphas = None if self.alphas is None else self.alphas[self.slot_samples[at]]
        logits = self.policy.mixed_logits(hidden_KSH, alphas)
        if self.draw.greedy:
            tokens, log_probs = greedy(logits)
        else:
            tokens, log_probs = inverse_cdf(logits, uniforms(self.slot_keys[at], self.places[at]))
        if self.engine.on_tokens:
            self.engine.on_tokens(tokens)
        places = self.places[at].clamp(max=self.limit - 1)
        writes = self.places[at] < self.limit
        self.tokens[at, places] = torch.where(writes, tokens, self.tokens[at, places])
        self.log_probs[at, places] = torch.where(writes, log_probs, self.log_probs[at, places])
        if self.kept:
            hidden_SFH = torch.stack([hidden_KSH[k] for k in self.kept], dim=1)
            if self.frozen is None:
                self.frozen = hidden_SFH.new_zeros(len(self.rollout_of), self.limit, *hidden_SFH.shape[1:])
            self.frozen[at, places] = torch.where(writes[:, None, None], hidden_SFH, self.frozen[at, places])
        self.last[at] = tokens
        self.places[at] += 1
        self.positions[at] += 1
        for slot in slots:
            if self.rollout_of[slot] is not None and self.drawn[slot] < self.limit:
                self.drawn[slot] += 1
                self.tokens_drawn += 1

    def retire(self) -> None:
        """Take out rows that drew an end-of-sequence token or reached the limit; shrink the batch when none wait."""
        for slot, (row, first_end) in enumerate(zip(self.rollout_of, self.first_ends(), strict=True)):
            if row is not None and (first_end < self.limit or self.drawn[slot] == self.limit):
                self.finish(slot, self.rollouts[row], min(first_end + 1, self.limit), first_end < self.limit)
        if self.progress:
            self.progress(self.ended, len(self.rollouts), self.tokens_drawn)
        live = [s for s, r in enumerate(self.rollout_of) if r is not None]
        if not self.waiting and live and len(live) <= 0.8 * len(self.rollout_of):
            self.keep(live)

    def first_ends(self) -> list[int]:
        """Place of each slot's first end-of-sequence token since the last look; the limit where there is none."""
        # a prefill's token and those of the steps after it; what was drawn before has been looked at
        window = torch.arange(self.check_every + 1, device=self.device)
        places = (self.places.clamp(max=self.limit)[:, None] - 1 - window).clamp(min=0)
        ends = torch.isin(self.tokens.gather(1, places), self.ends)
        return places.masked_fill(~ends, self.limit).amin(dim=1).tolist()

    def finish(self, slot: int, rollout: Rollout, count: int, ended: bool) -> None:
        rollout.completion_ids = self.tokens[slot, :count].tolist()
        rollout.log_probs = self.log_probs[slot, :count].to("cpu", copy=True)  # the slot will be used again
        rollout.ended = ended
        if self.frozen is not None:
            rollout.frozen_hidden = self.frozen[slot, :count].to("cpu", copy=True)
        self.rollout_of[slot] = None
        self.ended += 1

    def keep(self, slots: list[int]) -> None:
        """Go on with these slots only."""
        self.cache.keep(slots)
        at = torch.tensor(slots, device=self.device)
        self.rollout_of = [self.rollout_of[s] for s in slots]
        self.drawn = [self.drawn[s] for s in slots]
        for name in ("slot_keys", "slot_samples", "positions", "tokens", "log_probs", "places", "last", "frozen"):
            if (tensor := getattr(self, name)) is not None:
                setattr(self, name, tensor[at])
