"""Completions of a loaded mixed policy, drawn at any alpha and mixture, and judged."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from lmix.data.example import Example
from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.output import drawing
from lmix.evaluation.rows import EvaluationRow, Who, count_format, count_solved
from lmix.model.backbone import best_device
from lmix.model.mixed_policy import MixedPolicy, Mixture, two_weights
from lmix.model.streams import POLICY, REFERENCE
from lmix.model.tokenizer import end_tokens, load_tokenizer
from lmix.rollout.engine import Draw, Progress, RolloutEngine
from lmix.rollout.rollout import Rollout, decode_texts
from lmix.tasks.task import Judgement, Task


@dataclass(frozen=True)
class Decoded:
    """Rows in order of problem, then sample, and how long drawing them took."""

    rows: list[EvaluationRow]
    seconds: float

    def __str__(self) -> str:
        n, tokens = len(self.rows), sum(row.tokens for row in self.rows)
        form, solved = count_format(self.rows), count_solved(self.rows)
        return f"format {form}/{n}, solved {solved}/{n}, {self.seconds:.1f} s, {tokens / self.seconds:,.0f} tokens/s"


class Decoder:
    """A mixed policy with the problems that it is measured on.

    Raises:
        ValueError: the backbone or an adapter can't be loaded, or they do not fit.
    """

    def __init__(self, config: EvaluationConfig, examples: Sequence[Example], console: Console) -> None:
        self.config, self.examples, self.console = config, examples, console
        self.tokenizer = load_tokenizer(config.backbone.path)
        self.policy = MixedPolicy.from_pretrained(
            config.backbone, config.adapters, weights=config.weights, device=best_device()
        )
        self.ensemble = self.policy.weights
        self.engine = RolloutEngine(self.policy, end_tokens(self.policy, self.tokenizer), config.slots)
        self.judged: dict[tuple[str | None, str], Judgement] = {}

    def decode(self, who: Who, alpha: float, mixture: Mixture, samples: int = 1) -> Decoded:
        """Complete every problem greedily, or `samples` times at temperature 1, judge, and print a line.

        Args:
            who: the mixed policy at `alpha`, or one of its streams alone, whatever `alpha` is.
            alpha: weight of the reference.
            mixture: what is averaged.
            samples: completions of a problem.
        """
        mixed = self.ensemble if self.config.weights else two_weights(alpha)
        self.policy.weights = {"policy": {POLICY: 1.0}, "reference": {REFERENCE: 1.0}, "mixed": mixed}[who]
        self.policy.mixture = mixture
        alpha = self.policy.alpha
        how = f"weights {self.config.weights}" if self.config.weights else f"alpha {alpha:g}"
        name = f"mixed, {mixture}, {how}" if who == "mixed" else f"{who} alone"
        start = time.perf_counter()
        with drawing(self.console, name) as progress:
            rollouts = self.draw(self.examples, samples, progress)
        seconds = time.perf_counter() - start
        decoded = Decoded(self.judge(rollouts, self.examples, who, mixture, [alpha] * samples), seconds)
        self.console.print(f"{name}: {decoded}")
        return decoded

    def decode_alphas(
        self, alphas: Sequence[float], mixture: Mixture, examples: Sequence[Example]
    ) -> dict[float, list[EvaluationRow]]:
        """Complete problems greedily at each of several alphas, all from one prefill, and judge."""
        self.policy.mixture = mixture
        name = f"mixed, {mixture}, {len(alphas)} alphas, {len(examples)} problems"
        start = time.perf_counter()
        with drawing(self.console, name) as progress:
            rollouts = self.draw(examples, len(alphas), progress, alphas)
        seconds = time.perf_counter() - start
        rows = self.judge(rollouts, examples, "mixed", mixture, alphas)
        self.console.print(f"{name}: {Decoded(rows, seconds)}")
        return {alpha: [replace(row, sample=0) for row in rows[i :: len(alphas)]] for i, alpha in enumerate(alphas)}

    def draw(
        self, examples: Sequence[Example], samples: int, progress: Progress, alphas: Sequence[float] | None = None
    ) -> list[Rollout]:
        """Complete problems at the policy's weights, or greedily at each of `alphas`."""
        return self.engine.generate(
            [example.prompt_ids for example in examples],
            self.config.max_new_tokens,
            Draw(self.config.seed, greedy=alphas is not None or samples == 1),
            samples=samples,
            prompt_ids=[example.problem.id for example in examples],
            progress=progress,
            alphas=alphas,
        )

    def judge(
        self,
        rollouts: Sequence[Rollout],
        examples: Sequence[Example],
        who: Who,
        mixture: Mixture,
        alphas: Sequence[float],
    ) -> list[EvaluationRow]:
        """Rows of rollouts, whose sample g was drawn at `alphas[g]`."""
        decode_texts(rollouts, self.tokenizer)
        problems = [examples[r.prompt].problem for r in rollouts]
        judgements = judge_once(self.config.task, [r.text for r in rollouts], [p.answer for p in problems], self.judged)
        return [
            EvaluationRow(
                who=who,
                mixture=mixture,
                alpha=alphas[rollout.sample],
                problem_id=problem.id,
                sample=rollout.sample,
                completion=rollout.text,
                answer=judgement.answer,
                gold=problem.answer,
                format_correct=judgement.format_correct,
                answer_correct=judgement.answer_correct,
                ended=rollout.ended,
                tokens=len(rollout.completion_ids),
            )
            for rollout, problem, judgement in zip(rollouts, problems, judgements, strict=True)
        ]


def judge_once(
    task: Task, completions: Sequence[str], golds: Sequence[str], known: dict[tuple[str | None, str], Judgement]
) -> list[Judgement]:
    """Judge completions for format and answer, each distinct pair of answer and gold once.

    Args:
        known: judgements so far by (answer, gold); new ones are added.

    Returns:
        One judgement a completion, each as if its completion had ended by itself.
    """
    pairs = [(task.template.extract(text), gold) for text, gold in zip(completions, golds, strict=True)]
    fresh = {pair: text for pair, text in zip(pairs, completions, strict=True) if pair not in known}
    if fresh:
        judged = task.judge(list(fresh.values()), [True] * len(fresh), [gold for _, gold in fresh])
        known.update(zip(fresh, judged, strict=True))
    return [known[pair] for pair in pairs]
