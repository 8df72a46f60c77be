"""The LightningDataModule: a task's problems, tokenised and checked before any weight is read."""

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from lmix.data.loader import OneBatch, StepLoader
from lmix.data.splits import split_problems
from lmix.rollout.types import Prompt
from lmix.seed import run_seed
from lmix.tasks.task import Problem, Split, Task

log = logging.getLogger(__name__)


class RLDataModule(L.LightningDataModule):
    """Training, validation and held-out problems of a task.

    Args:
        task: the source of problems, with their prompt, answer template and verifier.
        prompts_per_step: prompts per outer step, over all ranks (the paper: 256).
        eval_size: number of held-out problems for `val/` and `test/` rates. null: 500 (as in the paper), but at most a
            fifth of the problems if held-out problems are taken out of the training problems, as from a single file.
        eval_samples: k, the number of completions sampled per held-out problem at model.sampling.temperature, in
            addition to the greedy one, for avg@k, pass@k and maj@k. They are sampled from the mixture, from the policy
            alone, and once per run from the reference. 0 evaluates only the mixture, greedily.
        eval_split: the problems used for evaluations: `test`, or `validation` (data.validation_size of them) for
            choosing settings such as the learning rate.
        validation_size: number of problems for adaptive alpha (the paper: 100); 0 if it is not used.
        validation_source: where these come from. `held_out`: the same problems at every step, never trained on.
            `stream`: at each step the next problems in the order of training problems, which are then not trained on in
            that epoch.
        train_size: train on the first this many training problems in file order, after held-out ones are removed; null
            uses all.
        shuffle: order training problems and choose held-out problems by seed; false uses file order for both.
        max_prompt_tokens: length limit of prompts.
        long_prompts: what to do with longer prompts: `error` stops, `drop` leaves the problems out and logs how many.
            They are dropped before problems are chosen, so that sets have the sizes that are set. SFT applies it
            also to training problems whose prompt and demonstration exceed the backbone's context.
        seed: seed for choosing held-out and validation problems. The order of training problems follows
            seed_everything.
        tokenizer: the backbone's tokenizer; null uses the LightningModule's.

    Raises:
        ValueError: a size is out of range, or the training set is smaller than what one step takes in a stream.
    """

    def __init__(
        self,
        task: Task,
        prompts_per_step: int = 32,
        eval_size: int | None = None,
        validation_size: int = 0,
        max_prompt_tokens: int = 1024,
        long_prompts: Literal["error", "drop"] = "error",
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        validation_source: Literal["held_out", "stream"] = "held_out",
        train_size: int | None = None,
        shuffle: bool = True,
        eval_samples: int = 0,
        eval_split: Literal["test", "validation"] = "test",
    ) -> None:
        super().__init__()
        sizes = {
            "prompts_per_step": prompts_per_step,
            "eval_size": eval_size,
            "max_prompt_tokens": max_prompt_tokens,
            "train_size": train_size,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"data.{name} must be at least 1, not {size}")
        if eval_samples < 0:
            raise ValueError(f"data.eval_samples must be at least 0, not {eval_samples}")
        if eval_split == "validation" and not (validation_size and validation_source == "held_out"):
            raise ValueError(
                f"data.eval_split validation needs held-out validation problems: set data.validation_size above 0, not "
                f"{validation_size}, and data.validation_source to held_out"
            )
        self.task = task
        self.eval_samples = eval_samples
        self.eval_split: Literal["test", "validation"] = eval_split
        if validation_size < 0:
            raise ValueError(f"data.validation_size must be at least 0, not {validation_size}")
        self.prompts_per_step, self.eval_size, self.validation_size = prompts_per_step, eval_size, validation_size
        self.max_prompt_tokens, self.long_prompts = max_prompt_tokens, long_prompts
        self.validation_source: Literal["held_out", "stream"] = validation_source
        self.train_size, self.shuffle, self.seed = train_size, shuffle, seed
        self.tokenizer = tokenizer
        self.sets: dict[Split, list[Prompt]] = {}
        self.loader: StepLoader | None = None

    @property
    def streamed(self) -> int:
        """Number of validation problems that each step takes from the order of training problems."""
        return self.validation_size if self.validation_source == "stream" else 0

    def setup(self, stage: str) -> None:
        """Read and check the data of the stage. Raises ValueError, in one line, if data are missing or malformed."""
        if self.tokenizer is None:
            assert self.trainer is not None
            self.tokenizer = self.trainer.lightning_module.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        splits: list[Split] = ["train", "validation", "test"] if stage == "fit" else [self.eval_split]
        if not set(splits) <= set(self.sets):
            self.sets = self.read(splits)

    def read(self, splits: Sequence[Split]) -> dict[Split, list[Prompt]]:
        """Return the prompts of these splits, with problems chosen by seed."""
        known: dict[int, Prompt] = {}  # by identity, since a custom task's problems may not be hashable

        def prompt(problem: Problem) -> Prompt:
            if id(problem) not in known:
                known[id(problem)] = Prompt(problem, self.task.prompt_ids(problem, self.tokenizer))
            return known[id(problem)]

        def fits(problem: Problem) -> bool:
            return self.long_prompts == "error" or len(prompt(problem).ids) <= self.max_prompt_tokens

        held_out = self.validation_size - self.streamed
        problems = split_problems(
            self.task, splits, self.eval_size, held_out, self.seed if self.shuffle else None, fits
        )
        if "train" in problems:
            problems["train"] = problems["train"][: self.train_size]
        sets: dict[Split, list[Prompt]] = {
            split: [prompt(problem) for problem in problems.get(split, [])] for split in splits
        }
        for split, prompts in sets.items():
            self.check_lengths(split, prompts)
        lengths = [len(p.ids) for p in known.values()]
        if dropped := sum(length > self.max_prompt_tokens for length in lengths):
            limit = self.max_prompt_tokens
            log.warning("%d of %d problems dropped: longer than max_prompt_tokens %d", dropped, len(lengths), limit)
        self.warn_of_unknown_text([prompt for prompts in sets.values() for prompt in prompts])
        return sets

    def warn_of_unknown_text(self, prompts: Sequence[Prompt]) -> None:
        """Tokenizers without bytes, such as the embedded one, replace what they do not know by one token."""
        tokenizer: Any = self.tokenizer
        unknown = tokenizer.unk_token_id
        unread = [prompt for prompt in prompts if unknown is not None and unknown in prompt.ids]
        if unread:
            problem = unread[0].problem
            words = dict.fromkeys(self.task.prompt_text(problem).split())
            lost = [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
            log.warning(
                "%d of %d prompts contain text that the tokenizer can't encode, such as problem %s%s: the model sees "
                "%s",
                len(unread),
                len(prompts),
                problem.id,
                f" with {', '.join(map(repr, lost[:3]))}" if lost else "",
                repr(tokenizer.decode(unread[0].ids))[:200],
            )

    def check_lengths(self, split: Split, prompts: Sequence[Prompt]) -> None:
        """Raise ValueError if a prompt is longer than the limit."""
        worst = max(prompts, key=lambda p: len(p.ids), default=None)
        if worst is not None and len(worst.ids) > self.max_prompt_tokens:
            raise ValueError(
                f"data.max_prompt_tokens is {self.max_prompt_tokens}, but the prompt of {split} problem "
                f"{worst.problem.id} has {len(worst.ids)} tokens: raise the limit, or set data.long_prompts to drop"
            )

    def limit_training(self, length: Callable[[Prompt], int], limit: int) -> None:
        """Drop training problems longer than the backbone's context, or raise an error, depending on `long_prompts`.

        This runs after the sets have been chosen, so that the held-out problems do not depend on this limit.

        Args:
            length: returns the total tokens of a training problem, such as its prompt and demonstration.
            limit: maximum length in tokens.

        Raises:
            ValueError: a problem is longer and `long_prompts` is `error`, or all problems are longer.
        """
        lengths = [length(prompt) for prompt in self.sets["train"]]
        kept = [prompt for prompt, tokens in zip(self.sets["train"], lengths, strict=True) if tokens <= limit]
        if len(kept) == len(lengths):
            return
        worst = max(range(len(lengths)), key=lengths.__getitem__)
        told = (
            f"training problem {self.sets['train'][worst].problem.id} has {lengths[worst]} tokens with its "
            f"demonstration, more than the {limit} of the backbone's context"
        )
        if self.long_prompts == "error" or not kept:
            raise ValueError(
                f"{told}: {'all are longer' if not kept else 'shorten it, or set data.long_prompts to drop'}"
            )
        log.warning("%d of %d training problems dropped: the longest, %s", len(lengths) - len(kept), len(lengths), told)
        self.sets["train"] = kept

    def train_dataloader(self) -> StepLoader:
        rank, world_size = self._rank()
        train = self.sets["train"]
        needed = self.prompts_per_step + self.streamed
        if self.streamed and (needed > len(train) or self._repeated(1) is not None):
            raise ValueError(
                f"data.validation_source stream needs {needed} different training problems per step, out of "
                f"{len(train)}: lower data.prompts_per_step or data.validation_size, and remove trainer.overfit_batches"
            )
        loader = StepLoader(
            train, self.prompts_per_step, run_seed(), rank, world_size, shuffle=self.shuffle, validation=self.streamed
        )
        loader.repeat = self._repeated(len(loader))
        self.loader = loader
        return loader

    def val_dataloader(self) -> OneBatch:
        """A loader with all held-out problems of this rank in one batch, so that the engine can keep its slots full."""
        rank, world_size = self._rank()
        return OneBatch(self.sets[self.eval_split][rank::world_size])

    test_dataloader = predict_dataloader = val_dataloader

    def validation_share(self) -> list[Prompt]:
        """This rank's share of the current step's validation problems."""
        rank, world_size = self._rank()
        streamed = self.loader.validation_prompts if self.streamed and self.loader is not None else None
        return (self.sets["validation"] if streamed is None else streamed)[rank::world_size]

    def spare_prompts(self, count: int, step: int, attempt: int, exclude: set[int]) -> list[Prompt]:
        """Choose up to `count` training prompts by (seed, step, attempt), without the problem ids in `exclude`.

        Empty under `Trainer.overfit_batches`, where a step may use only the problems of its batch.
        """
        if self._repeated(1) is not None:
            return []
        order = list(self.sets["train"])
        if self.streamed and self.loader is not None:
            exclude = exclude | {prompt.problem.id for prompt in self.loader.validation_prompts}
        random.Random(f"spare {run_seed()} {step} {attempt}").shuffle(order)
        return [p for p in order if p.problem.id not in exclude][:count]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # prompts are lists of ids; the engine moves them

    def teardown(self, stage: str) -> None:
        self.task.close()

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _repeated(self, batches: int) -> int | None:
        """How many batches `Trainer.overfit_batches` (a number or a fraction) repeats; None if it is not set."""
        wanted: Any = getattr(self.trainer, "overfit_batches", 0)
        return (wanted if isinstance(wanted, int) else max(1, int(wanted * batches))) if wanted else None
