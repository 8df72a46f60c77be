"""TRL's GRPOTrainer with one stream, its own rollouts (transformers' generate) and update. One step per order."""

import os
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.memory import memory, reset_memory
from benchmarks.protocol import next_order, tell
from benchmarks.work import Work
from lmix.model.backbone import load_backbone
from lmix.model.tokenizer import load_tokenizer


def serve_trl(work: Work, beta: float) -> None:
    """Train for as long as steps are ordered.

    Args:
        work: the sizes of a step, and the model.
        beta: weight of TRL's KL to the base model.
    """
    if work.rows % work.trl_rows:
        raise SystemExit(f"--trl_rows must divide the {work.rows} rows of a step, not be {work.trl_rows}")
    model = load_backbone(work.backbone, work.device)
    tokenizer = load_tokenizer(work.model)
    turns = Turns()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=alternating_reward,
        args=configuration(work, beta, model.dtype == torch.bfloat16),
        train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(ids) for ids in work.prompt_ids()]}),
        processing_class=tokenizer,
        peft_config=work.lora,
        callbacks=[turns],
    )
    trainer._generate_and_score_completions = turns.timed(trainer._generate_and_score_completions)
    tell()
    trainer.train()


class Turns(TrainerCallback):
    """Starts a step when it is ordered, and answers with its figures."""

    def __init__(self) -> None:
        self.start = self.rollout = self.rollout_gb = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if next_order() == "end":
            os._exit(0)  # TRL can't stop in the middle of training without writing a checkpoint
        reset_memory()
        self.rollout, self.start = 0.0, time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        whole = time.perf_counter() - self.start
        update_gb = memory()
        reset_memory()
        tell(rollout=self.rollout, update=whole - self.rollout, rollout_gb=self.rollout_gb, update_gb=update_gb)

    def timed(self, generate: Any) -> Any:
        """Wrap TRL's function for rollouts to measure its time."""

        def generate_timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = generate(*args, **kwargs)
            drawn = time.perf_counter()
            self.rollout += drawn - start
            self.rollout_gb = memory()
            reset_memory()
            self.start += time.perf_counter() - drawn  # exclude the time of this bookkeeping
            return result

        return generate_timed


def alternating_reward(completions: list[str], **_: Any) -> list[float]:
    """The rewards of `Work.rewards`, for TRL."""
    return [float(i % 2) for i in range(len(completions))]


def configuration(work: Work, beta: float, bf16: bool) -> GRPOConfig:
    """TRL's settings for this work. TRL writes into the current folder, which is the contender's own."""
    return GRPOConfig(
        output_dir="trl",
        per_device_train_batch_size=work.trl_rows,
        gradient_accumulation_steps=work.rows // work.trl_rows,
        num_generations=work.samples,
        max_completion_length=work.tokens,
        generation_kwargs={"min_new_tokens": work.tokens},
        beta=beta,
        max_steps=10**6,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=bf16,
        use_cpu=work.device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        shuffle_dataset=False,
    )
