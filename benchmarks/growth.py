"""The growth table: lmix's speed and memory with one size changed at a time, and the planner's estimate."""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.memory import memory, reset_memory
from benchmarks.ours import Ours
from benchmarks.work import Work
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import compute_dtype
from lmix.model.packed import can_pack
from lmix.model.sources import load_config
from lmix.planning import estimates
from lmix.planning.shape import RunShape, model_shape


class Growth:
    """The contender for the growth table, with the single order `growth`."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.start = memory()  # Python and its libraries, which the planner does not count

    def growth(self) -> dict[str, Any]:
        """The table's rows."""
        return {"rows": [self.row(size, vocabulary) for size, vocabulary in self.sizes()]}

    def sizes(self) -> list[tuple[Work, int]]:
        """The sizes of each row, with the vocabulary size."""
        small = replace(
            self.work, only_rollouts=False, prompts=2, samples=4, tokens=32, prompt_tokens=64, pass_tokens=10**6
        )
        sizes = [small]
        sizes += [replace(small, samples=g) for g in (8, 16)]
        sizes += [replace(small, tokens=t) for t in (64, 128)]
        sizes += [replace(small, prompt_tokens=s) for s in (128, 256)]
        whole = load_config(self.work.model).vocab_size
        return [(size, whole) for size in sizes] + [(small, whole // 4), (sizes[2], whole // 4)]

    def row(self, size: Work, vocabulary: int) -> dict[str, float]:
        """Tokens per second and peak memory of rollouts and update for one size."""
        whole = load_config(self.work.model).vocab_size
        contender = Ours(size, vocabulary if vocabulary < whole else None)
        figures = contender.step()
        del contender
        reset_memory()
        planned = planned_gb(size, vocabulary)
        return {
            "samples": size.samples,
            "tokens": size.tokens,
            "prompt_tokens": size.prompt_tokens,
            "vocabulary": vocabulary,
            "rollout_tokens_per_second": size.rows * size.tokens / figures["rollout"],
            "update_tokens_per_second": size.rows * size.tokens / figures["update"],
            "rollout_gb": figures["rollout_gb"] - self.start,
            "update_gb": figures["update_gb"] - self.start,
            "planned_gb": planned,
            "planned_of_peak": planned / (max(figures["rollout_gb"], figures["update_gb"]) - self.start),
        }


def planned_gb(work: Work, vocabulary: int) -> float:
    """The planner's estimate of peak memory for a step of this work, in GB."""
    config = load_config(work.model)
    config.vocab_size, config.pad_token_id = vocabulary, None
    model = model_shape(config, AdapterConfig(rank=work.rank))
    dtype = compute_dtype(work.dtype, work.device)
    run = RunShape(
        nf4=work.quantization == "nf4",
        double_quantization=True,
        width=dtype.itemsize,
        dense_rollouts=work.quantization == "nf4",
        checkpointing=False,
        streams=2,
        prompts=work.prompts,
        samples=work.samples,
        slots=work.rows,
        prompt_tokens=work.prompt_tokens,
        tokens=work.tokens,
        keep_frozen=True,
        pass_tokens=work.pass_tokens,
        packed=can_pack(dtype, torch.device(work.device)),
    )
    # the reference's adapter has the size of the policy's
    return estimates.peak(estimates.memory(replace(model, frozen_lora=model.lora), run)) / 1e9
