"""Evaluation on held-out problems during a run: the mixture, the policy and reference alone, and sampled scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmix.evaluation.rows import CompletionRow, completion_rows
from lmix.evaluation.scores import anywhere, avg, by_problem, formatted, passed, voted
from lmix.model.mixture import POLICY, REFERENCE, Mixture
from lmix.rollout.types import Group, Prompt, Who

if TYPE_CHECKING:
    from lmix.training.module import AdapterModule


class HeldOut:
    """Completes the held-out problems, and keeps the sums for rates beyond the mixture's greedy ones.

    With `data.eval_samples` k, it also evaluates the policy alone and, once per run, the reference alone. Each then has
    k samples besides the greedy completion. Greedy completions share one prefill, and samples share another.

    Attributes:
        reference_done: whether this run has evaluated the reference, which never changes.
    """

    def __init__(self) -> None:
        self.reference_done = False
        self.sums: dict[str, float] = {}
        self.problems = 0

    def complete(self, module: "AdapterModule", batch: Sequence[Prompt]) -> tuple[list[Group], list[Group]]:
        """Return the mixture's greedy groups, and all other groups. Every rank must call it."""
        samples = module.datamodule.eval_samples
        if not samples:
            return module.answer(batch, module.mixture), []
        mixtures = self.mixtures(module)
        greedy = split(module.answer(batch, list(mixtures.values()), len(mixtures)), list(mixtures), 1)
        each = [mixture for mixture in mixtures.values() for _ in range(samples)]
        drawn = split(module.answer(batch, each, len(each), greedy=False), list(mixtures), samples)
        self.problems, self.sums = len(batch), {}
        for who in mixtures:
            prefix = "" if who == "mixed" else f"{who}/"
            if prefix:
                self.sums |= {f"{prefix}{name}": v for name, v in greedy_sums(completion_rows(greedy[who])).items()}
            self.sums |= {
                f"{prefix}{name}": v for name, v in sampled_sums(completion_rows(drawn[who]), samples).items()
            }
        beside = [group for part in (greedy, drawn) for who, groups in part.items() for group in groups]
        return greedy["mixed"], beside[len(batch) :]

    def mixtures(self, module: "AdapterModule") -> dict[Who, Mixture]:
        """The mixtures to evaluate, by name. A stream that equals the mixture is left out."""
        mixed = module.mixture
        looked: dict[Who, Mixture] = {"mixed": mixed}
        if mixed.streams != (POLICY,):
            looked["policy"] = alone(mixed, POLICY)
        wanted = REFERENCE in mixed.streams and mixed.streams != (REFERENCE,)
        if wanted and not (self.reference_done and module.trainer.state.fn == "fit"):
            looked["reference"] = alone(mixed, REFERENCE)
            self.reference_done = True
        return looked

    def rates(self, module: "AdapterModule") -> dict[str, float]:
        """Means over the problems of all ranks in the latest evaluation. Every rank must call it."""
        *sums, problems = module.sum_over_ranks([*self.sums.values(), self.problems])
        means = {name: total / problems for name, total in zip(self.sums, sums, strict=True)}
        self.sums, self.problems = {}, 0
        return means


def alone(mixed: Mixture, stream: str) -> Mixture:
    """One stream alone, as a mixture with the same number of streams and the same temperature."""
    weights = (1.0, 0.0) if stream == POLICY else (0.0, 1.0)
    return Mixture((*weights, *(0.0 for _ in mixed.weights[2:])), mixed.kind, mixed.temperature)


def split(groups: Sequence[Group], who: Sequence[Who], samples: int) -> dict[Who, list[Group]]:
    """Split groups that hold `samples` rollouts of each mixture in turn into groups of each mixture."""
    parts: dict[Who, slice] = {name: slice(place * samples, (place + 1) * samples) for place, name in enumerate(who)}
    return {
        name: [Group(g.prompt, g.rollouts[part], g.draw, name, held_out=True) for g in groups]
        for name, part in parts.items()
    }


def greedy_sums(rows: Sequence[CompletionRow]) -> dict[str, float]:
    """Sums over problems with one completion each."""
    problems = by_problem(rows).values()
    scores = {"solve_rate": avg, "format_rate": formatted, "right_anywhere_rate": anywhere}
    return {name: sum(map(score, problems)) for name, score in scores.items()}


def sampled_sums(rows: Sequence[CompletionRow], samples: int) -> dict[str, float]:
    """Sums over problems with k completions each."""
    problems = by_problem(rows).values()
    return {
        "avg_at_k": sum(map(avg, problems)),
        "pass_at_k": sum(passed(problem, samples) for problem in problems),
        "maj_at_k": sum(voted(problem, samples) for problem in problems),
    }
