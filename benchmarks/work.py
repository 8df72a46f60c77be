"""The work that every contender does in a step."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, best_device
from lmix.model.tokenizer import load_tokenizer
from lmix.tasks.arithmetic import ArithmeticTask


@dataclass(frozen=True)
class Work:
    """The sizes of a step, and the model. The fields are the command line's flags."""

    model: str = "lmix:tiny-arithmetic"
    prompts_from: str | None = None
    prompts: int = 4
    samples: int = 8
    tokens: int = 64
    prompt_tokens: int = 64
    rank: int = 16
    dtype: str = "auto"
    quantization: str = "none"
    threads: int = 2
    pass_tokens: int = 1024
    trl_rows: int = 8
    only_rollouts: bool = False
    alpha_rollouts: int = 2048

    @property
    def rows(self) -> int:
        """Number of completions in a step."""
        return self.prompts * self.samples

    @property
    def backbone(self) -> BackboneConfig:
        return BackboneConfig(self.model, self.quantization, dtype=self.dtype)  # pyright: ignore[reportArgumentType]

    @property
    def lora(self) -> LoraConfig:
        """The LoRA configuration of lmix's policy."""
        return AdapterConfig(rank=self.rank).fresh()

    @property
    def device(self) -> str:
        return best_device()

    def prompt_ids(self) -> list[list[int]]:
        """`prompts` prompts of exactly `prompt_tokens` tokens, each truncated or repeated to that length."""
        if self.prompts_from:
            lines = Path(self.prompts_from).read_text(encoding="utf-8").splitlines()[: self.prompts]
            texts = [json.loads(line)["problem"] for line in lines]
        else:
            texts = [problem.problem for problem in ArithmeticTask(train_size=self.prompts).problems("train")]
        tokenizer = load_tokenizer(self.model)
        prompts = []
        for text in texts[: self.prompts]:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
            prompts.append((ids * (1 + self.prompt_tokens // len(ids)))[: self.prompt_tokens])
        return prompts

    def rewards(self) -> torch.Tensor:
        """Rewards 0, 1, 0, 1, ... in every group, `[P, G]`, so that no group is dead."""
        return torch.tensor([[float(g % 2) for g in range(self.samples)]] * self.prompts)

    def as_json(self) -> str:
        return json.dumps(asdict(self))
