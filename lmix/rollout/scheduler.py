"""Which rollout is in which slot. Uses lists on the host, and never the device."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmix.rollout.packing import token_budget_batches

WORTH_SHRINKING = 0.8
"""The batch is made smaller only if it then has at most this fraction of its slots."""

LEAST_HALF = 4
"""The batch is never halved below this many slots: torch.compile treats a size of 1 as a special case."""


def slots_taken(slots: int, samples: int, rows: int) -> int:
    """Number of rows that are decoded at once: whole groups, at least one, and at most all rows."""
    return min(max(slots // samples, 1) * samples, rows)


@dataclass(frozen=True)
class Finished:
    """A row that has ended or reached the limit, and leaves its slot."""

    row: int
    slot: int
    count: int
    """Tokens of the completion."""
    ended: bool


class Scheduler:
    """Assigns rows to slots. A group's rows start together, so that its prompt is read once.

    Args:
        prompt_lengths: tokens of each group's prompt.
        samples: rows of a group; row r is sample `r % samples` of group `r // samples`.
        slots: rows that are decoded at once.
        max_new_tokens: maximum tokens of a completion.
        prefill_tokens: maximum padded prompt tokens of one prefill.
        halves: make the batch smaller by halving only, so that it has few sizes.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        samples: int,
        slots: int,
        max_new_tokens: int,
        prefill_tokens: int,
        halves: bool = False,
    ) -> None:
        self.prompt_lengths, self.samples = prompt_lengths, samples
        self.limit, self.prefill_tokens, self.halves = max_new_tokens, prefill_tokens, halves
        self.waiting = list(range(len(prompt_lengths)))
        self.rows = len(prompt_lengths) * samples
        self.row_of: list[int | None] = [None] * slots_taken(slots, samples, self.rows)
        """The row in each slot; None in a free slot, whose results are ignored."""
        self.drawn = [0] * len(self.row_of)
        """Tokens of each slot's row so far."""
        self.ended, self.tokens_drawn = 0, 0

    @property
    def busy(self) -> bool:
        return any(row is not None for row in self.row_of)

    @property
    def can_draw(self) -> bool:
        """Whether any row has room for a token, as far as the host knows without asking the device."""
        return any(row is not None and self.drawn[slot] < self.limit for slot, row in enumerate(self.row_of))

    @property
    def visible(self) -> int:
        """Tokens of the longest live row."""
        live = [(slot, row) for slot, row in enumerate(self.row_of) if row is not None]
        return max(self.prompt_lengths[row // self.samples] + self.drawn[slot] for slot, row in live)

    def admit(self) -> list[tuple[list[int], list[int]]]:
        """Assign waiting groups to free slots, if enough are free to be worth a prefill.

        Returns:
            A pair for each prefill: groups, and their slots (G for each group).
        """
        free = [slot for slot, row in enumerate(self.row_of) if row is None]
        room = len(free) // self.samples
        if not self.waiting or room * self.samples < max(self.samples, len(self.row_of) // 4):
            return []
        count = min(room, len(self.waiting))
        groups, self.waiting = self.waiting[:count], self.waiting[count:]
        prefills = []
        for batch in token_budget_batches([self.prompt_lengths[group] for group in groups], self.prefill_tokens):
            seated = [groups[i] for i in batch]
            slots, free = free[: len(batch) * self.samples], free[len(batch) * self.samples :]
            for slot, row in zip(slots, self.rows_of(seated), strict=True):
                self.row_of[slot], self.drawn[slot] = row, 0
            prefills.append((seated, slots))
        return prefills

    def rows_of(self, groups: Sequence[int]) -> list[int]:
        return [group * self.samples + sample for group in groups for sample in range(self.samples)]

    def count_token(self, slots: Sequence[int] | None = None) -> None:
        """Count one token drawn in these slots, or in all."""
        for slot in range(len(self.row_of)) if slots is None else slots:
            if self.row_of[slot] is not None and self.drawn[slot] < self.limit:
                self.drawn[slot] += 1
                self.tokens_drawn += 1

    def retire(self, first_ends: Sequence[int]) -> list[Finished]:
        """Free the slots of rows that have ended or reached the limit.

        Args:
            first_ends: index of the token that ends each slot's completion; `max_new_tokens` if none does.
        """
        finished = []
        for slot, (row, first_end) in enumerate(zip(self.row_of, first_ends, strict=True)):
            if row is not None and (first_end < self.limit or self.drawn[slot] == self.limit):
                finished.append(Finished(row, slot, min(first_end + 1, self.limit), first_end < self.limit))
                self.row_of[slot] = None
                self.ended += 1
        return finished

    def shrink(self) -> list[int] | None:
        """The slots to keep, if no group waits and enough slots are free; None otherwise."""
        live = [slot for slot, row in enumerate(self.row_of) if row is not None]
        size = len(self.row_of)
        if self.waiting or not live:
            return None
        if self.halves:
            while size // 2 >= max(len(live), LEAST_HALF):
                size //= 2
        else:
            size = len(live)
        if size > WORTH_SHRINKING * len(self.row_of):
            return None
        free = [slot for slot, row in enumerate(self.row_of) if row is None]
        kept = sorted(live + free[: size - len(live)])
        self.row_of = [self.row_of[slot] for slot in kept]
        self.drawn = [self.drawn[slot] for slot in kept]
        return kept
