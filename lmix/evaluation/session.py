"""A mixed policy that is loaded once and evaluated at several mixtures, with a line on the console for each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.decoder import Decoder
from lmix.evaluation.output import drawing, print_prompt
from lmix.evaluation.rows import EvaluationRow, count_format, count_solved, evaluation_rows, rows_as_single
from lmix.model.backbone import best_device
from lmix.model.end_tokens import end_tokens
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.limits import limits_of
from lmix.rollout.sampler import Sampler
from lmix.rollout.types import Draw, Group, Prompt, Who


@dataclass(frozen=True)
class Measured:
    """Rows, ordered by problem and then by sample, and the seconds that sampling took."""

    rows: list[EvaluationRow]
    seconds: float

    def __str__(self) -> str:
        n, tokens = len(self.rows), sum(row.tokens for row in self.rows)
        form, solved = count_format(self.rows), count_solved(self.rows)
        return f"format {form}/{n}, solved {solved}/{n}, {self.seconds:.1f} s, {tokens / self.seconds:,.0f} tokens/s"


class Session:
    """Problems, and a sampler that completes them. Prints the first prompt, before the model is loaded.

    Args:
        config: the task, the model and the decoding settings.
        prompts: the problems.
        console: the console for progress and results.
        mixture: the first mixture that will be sampled.
        sampler: the sampler; None loads the configured model and creates the configured sampler.

    Raises:
        ValueError: the backbone or an adapter can't be loaded, or they do not match.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        prompts: Sequence[Prompt],
        console: Console,
        mixture: Mixture,
        sampler: Sampler | None = None,
    ) -> None:
        self.config, self.prompts, self.console = config, prompts, console
        tokenizer = load_tokenizer(config.backbone.path)
        new_tokens = config.new_tokens(prompts)
        if config.problems is None and config.split == "test" and "test" not in config.task.splits:
            console.print(
                f"problems: {len(prompts)} (those that training holds out by default; --problems=N takes more)"
            )
        print_prompt(console, prompts[0], tokenizer)
        if sampler is None:
            policy = MixedPolicy.from_pretrained(config.backbone, config.adapters, best_device())
            places = max(len(prompt.ids) for prompt in prompts) + new_tokens
            sampler = config.sampler_choice.make(policy, config.backbone, mixture, config.slots, places)
            sampler.sync(policy)
            ends = end_tokens(policy.backbone, tokenizer)
        else:
            ends = [int(tokenizer.eos_token_id)]  # pyright: ignore[reportArgumentType]
        limits = limits_of(tokenizer, ends, new_tokens, config.stop, config.min_new_tokens)
        self.decoder = Decoder(sampler, limits, tokenizer, config.task)

    def measure(self, who: Who, mixture: Mixture, samples: int = 0) -> Measured:
        """Complete every problem greedily, or `samples` times at the mixture's temperature, and judge.

        Args:
            who: the name of this mixture in the rows: `mixed`, or its only stream.
            mixture: the mixture to sample from.
            samples: completions per problem; 0 for greedy decoding.
        """
        count, greedy = max(samples, 1), samples == 0
        name = describe(who, mixture) + ("" if greedy else f", {samples} samples")
        groups, seconds = self._complete(name, self.prompts, mixture, count, greedy)
        measured = Measured(evaluation_rows(groups, who, [mixture] * count, greedy), seconds)
        self.console.print(f"{name}: {measured}")
        return measured

    def measure_together(
        self, mixtures: Sequence[Mixture], prompts: Sequence[Prompt]
    ) -> dict[Mixture, list[EvaluationRow]]:
        """Complete problems greedily with each of several mixtures, sharing one prefill, and judge."""
        name = f"mixed, {mixtures[0].kind}, {len(mixtures)} alphas, {len(prompts)} problems"
        groups, seconds = self._complete(name, prompts, mixtures, len(mixtures), greedy=True)
        rows = evaluation_rows(groups, "mixed", mixtures)
        self.console.print(f"{name}: {Measured(rows, seconds)}")
        return {mixture: rows_as_single(rows[i :: len(mixtures)]) for i, mixture in enumerate(mixtures)}

    def _complete(
        self,
        name: str,
        prompts: Sequence[Prompt],
        mixture: Mixture | Sequence[Mixture],
        samples: int,
        greedy: bool,
    ) -> tuple[list[Group], float]:
        """Return judged groups, and the seconds that sampling took."""
        start = time.perf_counter()
        with drawing(self.console, name) as progress:
            draw = Draw(self.config.seed, greedy=greedy)
            groups = self.decoder.complete(prompts, draw, mixture, samples, progress=progress)
        seconds = time.perf_counter() - start
        self.decoder.judge(groups)
        return groups, seconds


def describe(who: Who, mixture: Mixture) -> str:
    """A short description of a mixture, for the console."""
    if who != "mixed":
        return f"{who} alone"
    is_plain = len(mixture.weights) == 2 and mixture.weights[0] == 1.0 - mixture.alpha
    weights = f"alpha {mixture.alpha:g}" if is_plain else f"weights {list(mixture.weights)}"
    threshold = f", plausibility {mixture.plausibility:g}" if mixture.plausibility else ""
    return f"mixed, {mixture.kind}, {weights}{threshold}"
