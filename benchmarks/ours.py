"""lmix: sampling and update of GRPOModule with both streams, without a Trainer."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from benchmarks.contender import Contender, randomise
from benchmarks.work import Work
from lmix.model.adapters import AdapterConfig, save_adapter
from lmix.model.backbone import skeleton
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture
from lmix.model.sources import load_config
from lmix.rollout.engine import Engine
from lmix.rollout.packing import micro_batches, pack
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw, Group, Prompt, flatten
from lmix.tasks.task import Problem
from lmix.training.config import SamplingConfig
from lmix.training.grpo import GRPOModule
from lmix.training.objectives import GRPO
from lmix.training.scoring import score
from lmix.training.update import Update


class Ours(Contender):
    """One GRPO step of lmix.

    Args:
        work: the sizes of the step, and the model.
        vocabulary: cut the model's vocabulary to this many tokens; None keeps all.
    """

    def __init__(self, work: Work, vocabulary: int | None = None) -> None:
        self.work, self.step_number = work, 0
        self.sampling = SamplingConfig(work.samples, work.tokens, slots=work.rows)
        self.objective = GRPO(micro_batch_tokens=work.pass_tokens)
        with tempfile.TemporaryDirectory() as folder:
            adapters = AdapterConfig(reference=random_adapter(work, Path(folder) / "reference"), rank=work.rank)
            self.module = GRPOModule(work.backbone, adapters, sampling=self.sampling, objective=self.objective)
            self.module.to(work.device).configure_model()
        self.module.backward_here = lambda loss: loss.backward()  # the original needs a Trainer
        if vocabulary:
            cut_vocabulary(self.policy, vocabulary)
        randomise(self.policy)
        self.optimizer = torch.optim.AdamW(self.policy.policy_parameters(), 1e-5)
        self.prompt_ids = [[i % (vocabulary or 10**9) for i in ids] for ids in work.prompt_ids()]
        self.forced = Limits(work.tokens, end_ids=())
        """No token ends a completion, so that all have the same length."""

    @property
    def policy(self) -> MixedPolicy:
        return self.module.policy

    @property
    def mixture(self) -> Mixture:
        return self.module.mixture

    def rollouts(self) -> list[Group]:
        return self.module.sampler.generate(
            self.prompts(self.work.prompts), self.forced, self.next_draw(), self.mixture, self.work.samples, True
        )

    def score(self, rollouts: list[Group]) -> None:
        rollouts_B = flatten(rollouts)
        passes, share = micro_batches(rollouts_B, self.work.pass_tokens)
        with torch.no_grad():
            for rows in passes:
                score(self.policy, self.mixture, pack([rollouts_B[i] for i in rows], self.policy.device, share))

    def update(self, rollouts: list[Group]) -> None:
        advantages_PG = self.objective.advantages(self.work.rewards())
        update = Update(self.module, self.mixture, self.objective, rollouts, advantages_PG, self.sampling)
        update.accumulate_gradient()
        torch.nn.utils.clip_grad_norm_(self.policy.policy_parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    # the additional tables

    def natural(self) -> dict[str, float]:
        """Tokens per second if completions end by themselves, and with completions of equal length for comparison.

        Four times as many prompts go through the same slots. One in T tokens of the vocabulary ends a row, whose slot
        is then reused.
        """
        prompts = self.prompts(4 * self.work.prompts)
        vocabulary, tokens = self.policy.backbone.config.vocab_size, self.work.tokens
        natural = Limits(2 * tokens, end_ids=tuple(range(0, vocabulary, tokens)))
        draw, rates = self.next_draw(), {}
        for name, limits in (("forced", self.forced), ("natural", natural)):
            start = time.perf_counter()
            groups = self.module.sampler.generate(prompts, limits, draw, self.mixture, self.work.samples, True)
            seconds = time.perf_counter() - start
            rates[f"{name}_tokens_per_second"] = sum(len(r.completion_ids) for r in flatten(groups)) / seconds
        return rates

    def alpha(self) -> dict[str, float]:
        """Seconds of a step's rollouts and of its alpha step, at the paper's ratio of 200 greedy decodes to 2048."""
        prompts = self.prompts(self.work.alpha_rollouts // self.work.samples)
        examples = max(1, round(len(prompts) * self.work.samples * 100 / 2048))
        engine = Engine(self.policy, slots=64)
        start = time.perf_counter()
        engine.generate(prompts, self.forced, Draw(step=1), self.mixture, self.work.samples, keep_frozen=True)
        drawn = time.perf_counter()
        mixtures = [Mixture.alone(POLICY), self.mixture]
        engine.generate(prompts[:examples], self.forced, Draw(greedy=True), mixtures, samples=2)
        return {
            "rollouts": len(prompts) * self.work.samples,
            "decodes": 2 * examples,
            "rollout_seconds": drawn - start,
            "alpha_seconds": time.perf_counter() - drawn,
        }

    def next_draw(self) -> Draw:
        self.step_number += 1
        return Draw(step=self.step_number)

    def prompts(self, count: int) -> list[Prompt]:
        """`count` prompts of the same length: those of the work, then the same with their tokens rotated."""
        turns = -(-count // len(self.prompt_ids))
        rotated = [ids[i:] + ids[:i] for i in range(turns) for ids in self.prompt_ids]
        return [Prompt(Problem(number, "", ""), ids) for number, ids in enumerate(rotated[:count])]


def random_adapter(work: Work, folder: Path) -> str:
    """A reference adapter with the policy's shape, as a peft folder; `randomise` sets its values later."""
    peft_model: Any = get_peft_model(skeleton(load_config(work.model)), work.lora, adapter_name="reference")
    peft_model.load_state_dict(
        {name: torch.zeros(p.shape) for name, p in peft_model.named_parameters() if "lora_" in name},
        strict=False,
        assign=True,
    )
    save_adapter(peft_model, "reference", folder)
    return str(folder)


def cut_vocabulary(policy: MixedPolicy, size: int) -> None:
    """Keep only the first `size` tokens of the vocabulary."""
    backbone: Any = policy.backbone
    for layer in {backbone.get_input_embeddings(), backbone.get_output_embeddings()}:
        layer.weight = torch.nn.Parameter(layer.weight.data[:size].clone(), requires_grad=False)
        layer.padding_idx = None
    backbone.config.vocab_size = policy.models[0].head.vocabulary = size
