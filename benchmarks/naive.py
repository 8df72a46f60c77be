"""The simplest correct implementation of logit averaging.

It uses peft's `set_adapter`, two dynamic caches, averaged full logits, and a softmax with `multinomial`. The update
makes two forward passes with full logits.
"""

from typing import Any

import torch
from peft import get_peft_model
from transformers import DynamicCache

from benchmarks.contender import Contender, randomise
from benchmarks.work import Work
from lmix.functional import clipped_surrogate_loss, group_advantages
from lmix.model.backbone import load_backbone


class Naive(Contender):
    """Naive mixing of two streams."""

    def __init__(self, work: Work) -> None:
        self.work = work
        base = load_backbone(work.backbone, work.device)
        base.requires_grad_(False)
        self.model: Any = get_peft_model(base, work.lora, adapter_name="policy")
        self.model.add_adapter("reference", work.lora)
        randomise(self.model)
        self.prompts = torch.tensor(work.prompt_ids(), device=work.device).repeat_interleave(work.samples, dim=0)
        self.parameters = [p for name, p in self.model.named_parameters() if ".policy." in name]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-5)

    def use(self, adapter: str) -> None:
        """Switch to an adapter; only the policy stays trainable."""
        self.model.set_adapter(adapter)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".policy." in name)

    @torch.no_grad()
    def rollouts(self) -> torch.Tensor:
        self.model.eval()
        caches = {stream: DynamicCache() for stream in ("policy", "reference")}
        ids, fed = self.prompts, self.prompts
        for _ in range(self.work.tokens):
            logits = []
            for stream, cache in caches.items():
                self.use(stream)
                out = self.model(input_ids=fed, past_key_values=cache, use_cache=True)
                logits.append(out.logits[:, -1].float())
            mixed = 0.5 * logits[0] + 0.5 * logits[1]
            fed = torch.multinomial(mixed.softmax(-1), 1)
            ids = torch.cat([ids, fed], dim=1)
        return ids

    def log_probs(self, ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the completion tokens under the mixture, `[B, T]`."""
        self.use("reference")
        with torch.no_grad():
            reference = self.model(input_ids=ids, use_cache=False).logits.float()
        self.use("policy")
        policy = self.model(input_ids=ids, use_cache=False).logits.float()
        mixed = (0.5 * policy + 0.5 * reference)[:, self.work.prompt_tokens - 1 : -1]
        return mixed.log_softmax(-1).gather(-1, ids[:, self.work.prompt_tokens :, None]).squeeze(-1)

    def parts(self) -> list[slice]:
        """Micro-batches of rows, because the full logits of all rows do not fit into memory."""
        rows = max(1, 512 // (self.work.prompt_tokens + self.work.tokens))
        return [slice(i, i + rows) for i in range(0, self.work.rows, rows)]

    def score(self, rollouts: torch.Tensor) -> None:
        with torch.no_grad():
            for part in self.parts():
                self.log_probs(rollouts[part])

    def update(self, rollouts: torch.Tensor) -> None:
        self.model.train()
        device = rollouts.device
        advantages = group_advantages(self.work.rewards()).flatten().to(device)
        groups = torch.arange(self.work.prompts, device=device).repeat_interleave(self.work.samples)
        for part in self.parts():
            new = self.log_probs(rollouts[part])
            mask = torch.ones_like(new, dtype=torch.bool)
            loss, _ = clipped_surrogate_loss(new, new.detach(), advantages[part], mask, groups[part])
            (loss * len(new) / self.work.rows).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
