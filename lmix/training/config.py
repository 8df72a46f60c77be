"""Settings of a reinforcement learning run."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lmix.rollout.limits import check_limits


@dataclass(frozen=True)
class SamplingConfig:
    """How rollouts are sampled. There is no top-k or top-p, since in training they would make the ratio wrong."""

    samples_per_prompt: int = 8
    """G, the completions of one prompt."""
    max_new_tokens: int = 512
    """Length limit in tokens. A completion that has not ended by then is cut and counts as unsolved."""
    slots: int | Literal["auto"] = 64
    """Rows decoded at once. More slots need more memory for keys and values. auto: as many as fit into the memory that
    is free on rank 0 before the first step, decided once per run."""
    compile: bool = False
    """Run the decode step with torch.compile, and on a GPU as CUDA graphs. This is faster where launching kernels takes
    longer than running them. The first steps compile. Keys and values, and dequantised copies of a 4-bit backbone, then
    stay in memory during the update. On a CPU it needs a C++ compiler. Tokens change by rounding only."""
    keep_frozen: bool = True
    """Keep the hidden states of frozen streams from decoding, so that the update needs no forward pass of them."""
    resample_dead: int = 0
    """How many times dead groups are replaced by groups of other prompts (DAPO's dynamic sampling); 0 keeps them."""
    temperature: float = 1.0
    """Divisor of the mixture's logits (the paper: 1). Rollouts are sampled from and scored under the tempered mixture,
    so the ratio of eq. 5 stays correct. Evaluation is greedy at any temperature."""
    seed: int | None = None
    """Random seed. A row's random numbers depend only on (seed, step, problem, sample, position). null uses
    seed_everything."""
    min_new_tokens: int = 0
    """Completions have at least this many tokens. At earlier positions the mixture is renormalised without the
    end-of-sequence tokens, in sampling and in scoring. A stop string completed earlier does not end the completion."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion, such as `</answer>`, in addition to the end-of-sequence tokens. The string stays
    in the text, the token that completes it is kept as a whole, and no token is sampled after it."""

    gap_warning: float = 0.015
    """Warn if a step's train/sampler_gap_k3, an estimate of KL(sampler || trainer) per token, is above this."""

    def __post_init__(self) -> None:
        counts = ("samples_per_prompt", "max_new_tokens", *(() if self.slots == "auto" else ("slots",)))
        _at_least_one(self, "sampling", *counts)
        check_limits("sampling.", self.max_new_tokens, self.stop, self.min_new_tokens)
        if self.resample_dead < 0:
            raise ValueError(f"sampling.resample_dead must be at least 0, not {self.resample_dead}")
        if not self.gap_warning > 0:
            raise ValueError(f"sampling.gap_warning must be positive, not {self.gap_warning}; .inf never warns")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"sampling.temperature must be positive, not {self.temperature}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on the policy adapter."""

    lr: float = 1e-4
    """Peak learning rate. LoRA needs about ten times the rate of full fine-tuning (LoRA Without Regret, Thinking
    Machines, 2025), and the paper's 1e-5 hardly moves a rank-16 adapter in 40 steps."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """Schedule after the warm-up. linear and cosine end at trainer.max_steps. `constant` has no warm-up."""
    warmup_steps: int = 0
    """w, the outer steps of the warm-up. Their rates are 1 / (w + 1), ..., w / (w + 1) of lr."""
    weight_decay: float = 0.0
    """Decoupled weight decay. It pulls the LoRA weights to 0, and so the policy towards the base model."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    max_grad_norm: float | None = 1.0
    """Clip gradients to this norm; null turns clipping off."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if a step's logits or gradient contain NaN or Inf: stop the run before the update, or skip the update
    and continue. In both cases a report with the rollouts that caused it is written to the run folder."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optimizer.lr must be positive, not {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay must be at least 0, not {self.weight_decay}")
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be at least 0 and less than 1, not {list(self.betas)}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must be at least 0, not {self.warmup_steps}")
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError(
                f"optimizer.warmup_steps is {self.warmup_steps}, but optimizer.schedule constant has no warm-up: set "
                "constant_with_warmup"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"optimizer.max_grad_norm must be positive or null, not {self.max_grad_norm}")


def _at_least_one(config: object, where: str, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{where}.{name} must be at least 1, not {getattr(config, name)}")
