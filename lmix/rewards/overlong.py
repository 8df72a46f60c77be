"""DAPO's soft penalty on overlong completions (arXiv 2503.14476, eq. 13)."""

from collections.abc import Sequence

from lmix.rollout.types import Group


class OverlongPenalty:
    """0 up to a buffer before the length limit, then linear down to -1 at the limit; -1 for truncated completions.

    Args:
        max_new_tokens: the length limit in tokens. The buffer is its last fifth, as in the paper.
    """

    def __init__(self, max_new_tokens: int) -> None:
        self.limit, self.buffer = max_new_tokens, max(1, max_new_tokens // 5)

    def penalty(self, tokens: int, ended: bool) -> float:
        """The penalty of one completion, in [-1, 0]."""
        if not ended:
            return -1.0
        return -max(0.0, (tokens - (self.limit - self.buffer)) / self.buffer)

    def __call__(self, groups: Sequence[Group]) -> list[list[float]]:
        """See `Reward`."""
        return [[self.penalty(len(r.completion_ids), r.ended) for r in group.rollouts] for group in groups]
