"""The LightningDataModule: a task's problems, tokenised and checked before any weight is read."""

import logging
from typing import Any, Literal

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from lmix.data.example import Example
from lmix.data.loader import OneBatch, StepLoader
from lmix.seed import run_seed
from lmix.tasks.task import Split, Task

log = logging.getLogger(__name__)


class RLDataModule(L.LightningDataModule):
    """Training, validation and held-out problems of a task.

    Args:
        task: where problems come from, how they are asked and judged.
        prompts_per_step: prompts of one outer step, over all ranks (the paper: 256).
        eval_size: held-out problems that `val/` and `test/` rates are measured on (the paper: 500).
        max_prompt_tokens: longest prompt.
        long_prompts: what to do with a longer one: stop with an error, or drop the problem and say how many.
        seed: of the choice of held-out problems; the order of training problems follows seed_everything.
        tokenizer: the backbone's tokenizer; by default the LightningModule's.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        task: Task,
        prompts_per_step: int = 32,
        eval_size: int = 500,
        max_prompt_tokens: int = 1024,
        long_prompts: Literal["error", "drop"] = "error",
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        sizes = {"prompts_per_step": prompts_per_step, "eval_size": eval_size, "max_prompt_tokens": max_prompt_tokens}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"data.{name} must be at least 1, not {size}")
        self.task = task
        self.prompts_per_step, self.eval_size = prompts_per_step, eval_size
        self.max_prompt_tokens, self.long_prompts = max_prompt_tokens, long_prompts
        self.seed = seed
        self.tokenizer = tokenizer
        self.sets: dict[str, list[Example]] = {}

    def setup(self, stage: str) -> None:
        """Read and check what the stage needs. Raises ValueError, in one line, where data are missing or malformed."""
        if self.tokenizer is None:
            assert self.trainer is not None
            self.tokenizer = self.trainer.lightning_module.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        splits: tuple[Split, ...] = ("train", "test") if stage == "fit" else ("test",)
        for split in splits:
            if split not in self.sets:
                self.sets[split] = self.examples(split)

    def examples(self, split: Split) -> list[Example]:
        """A split's problems with their prompts; of held-out ones, `eval_size` chosen by seed."""
        problems = list(self.task.problems(split))
        if split == "test" and len(problems) > self.eval_size:
            chosen = torch.randperm(len(problems), generator=torch.Generator().manual_seed(self.seed))[: self.eval_size]
            problems = [problems[i] for i in sorted(chosen.tolist())]
        examples = [Example(problem, self.task.prompt_ids(problem, self.tokenizer)) for problem in problems]
        if too_long := [e for e in examples if len(e.prompt_ids) > self.max_prompt_tokens]:
            worst = max(too_long, key=lambda e: len(e.prompt_ids))
            if self.long_prompts == "error":
                raise ValueError(
                    f"data.max_prompt_tokens is {self.max_prompt_tokens}, but the prompt of {split} problem "
                    f"{worst.problem.id} has {len(worst.prompt_ids)} tokens: raise it, or set data.long_prompts to drop"
                )
            log.warning(
                "%d of %d %s problems dropped: longer than data.max_prompt_tokens", len(too_long), len(examples), split
            )
            examples = [e for e in examples if len(e.prompt_ids) <= self.max_prompt_tokens]
            if not examples:
                raise ValueError(
                    f"data.max_prompt_tokens of {self.max_prompt_tokens} leaves no {split} problem: raise it"
                )
        return examples

    def train_dataloader(self) -> StepLoader:
        rank, world_size = self._rank()
        return StepLoader(self.sets["train"], self.prompts_per_step, run_seed(), rank, world_size)

    def val_dataloader(self) -> OneBatch:
        """All held-out problems of this rank in one batch, so that the engine can keep its slots full."""
        rank, world_size = self._rank()
        return OneBatch(self.sets["test"][rank::world_size])

    test_dataloader = predict_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # lists of numbers: the engine moves what it needs

    def teardown(self, stage: str) -> None:
        self.task.close()

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
