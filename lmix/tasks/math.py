"""MATH (Hendrycks et al., arXiv 2103.03874): competition problems with a boxed answer."""

from collections.abc import Sequence
from typing import Any

from lmix.tasks.dataset import DatasetTask


class MathTask(DatasetTask):
    r"""MATH, from the hub (`Maxwell-Jia/MATH`, whose answers are in the solutions' last `\boxed{}`) or local files.

    Args:
        source: hub id, local folder, or file with the training problems.
        levels: difficulty levels to keep, from 1 to 5. The column `level` may contain `Level 5` (MATH) or 5 (MATH-500).
        answer_column: column with the answer; null takes the answer from the solution.
        solution_column: column with a worked solution.
        kwargs: see `DatasetTask`.

    Raises:
        ValueError: a level is not one of 1 to 5, or there is none.
    """

    name = "math"

    def __init__(
        self,
        source: str = "Maxwell-Jia/MATH",
        levels: Sequence[int] = (1, 2, 3, 4, 5),
        answer_column: str | None = None,
        solution_column: str | None = "solution",
        **kwargs: Any,
    ) -> None:
        if not levels or set(levels) - {1, 2, 3, 4, 5}:
            raise ValueError(f"task.levels must name some of 1 to 5, not {list(levels)}")
        where = {} if len(set(levels)) == 5 else {"level": [*levels, *(f"Level {level}" for level in levels)]}
        super().__init__(source, answer_column=answer_column, solution_column=solution_column, where=where, **kwargs)
