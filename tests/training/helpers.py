"""A small module, its data and a trainer, for tests of training; an update of given groups, and a canned sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lmix.data.module import RLDataModule
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import Mixture
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.packing import Packed
from lmix.rollout.types import Group, Rollout
from lmix.tasks import ArithmeticTask
from lmix.training import grpo
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.grpo import GRPOModule
from lmix.training.objectives import GRPO
from lmix.training.update import Update
from lmix.training.update_stats import UpdateStats

SFT = "lmix:tiny-arithmetic-sft"


def module(alpha=0.5, **parts) -> GRPOModule:
    return GRPOModule(
        BackboneConfig(quantization="none", dtype="float32"),
        alpha=alpha,
        **{
            "adapters": AdapterConfig(reference=SFT, rank=4),
            "sampling": SamplingConfig(samples_per_prompt=4, max_new_tokens=48, slots=16, seed=0),
            "optimizer": OptimizerConfig(lr=1e-3),
            **parts,
        },
    )


def without_trainer(m: GRPOModule) -> RLDataModule:
    """Give a module its policy, with an adapter that is not the base's, so that updates can be made without a trainer;
    gives its data."""
    m.configure_model()
    with torch.no_grad():
        for name, p in m.policy.named_parameters():
            if ".policy." in name:
                p.normal_(std=0.05)
    source = data()
    source.tokenizer = m.tokenizer
    source.setup("fit")
    m.manual_backward = lambda loss: loss.backward()
    m.__dict__["_fabric"] = None
    return source


def data(prompts=4, **arguments) -> RLDataModule:
    return RLDataModule(ArithmeticTask(train_size=16, test_size=8), prompts_per_step=prompts, eval_size=8, **arguments)


def trainer(tmp_path, steps, **arguments) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "max_steps": steps,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, PolicyCheckpoint) for c in arguments.get("callbacks", ())),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "val_check_interval": 1000,
        "check_val_every_n_epoch": None,
        "default_root_dir": tmp_path,
    }
    return L.Trainer(**{**defaults, **arguments})


def texts(groups: Sequence[Group]) -> list[str]:
    """The completions, group after group."""
    return [rollout.text for group in groups for rollout in group.rollouts]


def changed(groups: Sequence[Group], **changes: Any) -> list[Group]:
    """Copies of groups whose rollouts have other values: the value itself, or a function of the rollout."""

    def copy(rollout: Rollout) -> Rollout:
        return replace(rollout, **{name: v(rollout) if callable(v) else v for name, v in changes.items()})

    return [replace(group, rollouts=[copy(rollout) for rollout in group.rollouts]) for group in groups]


def update_of(
    m: GRPOModule, groups: Sequence[Group], advantages_PG: Tensor, mixture=None, objective=None, **settings
) -> Update:
    """The update of groups under an objective, or GRPO with these settings."""
    return Update(m, mixture or m.mixture, objective or GRPO(**settings), groups, advantages_PG, m.sampling)


def gradient(m: GRPOModule, update: Update) -> tuple[list[Tensor], UpdateStats]:
    """Of one inner update."""
    m.policy.zero_grad()
    stats = update.accumulate_gradient()
    return [p.grad.clone() for p in m.policy.policy_parameters()], stats


def gradients(m, groups, advantages_PG, **changes) -> tuple[list[Tensor], UpdateStats, list[Tensor]]:
    """The gradient, the figures, and each micro-batch's old log-probabilities."""
    update = update_of(m, groups, advantages_PG, **changes)
    return *gradient(m, update), update.old


def written_out_log_probs(m: GRPOModule, packed: Packed, mixture: Mixture | None = None) -> Tensor:
    """The slow twin of `score`: whole logits of all streams, by autograd. `[N]`."""
    logits = m.policy(packed.input_ids, mixture or m.mixture).flatten(0, 1)[packed.predicts]
    return logits.log_softmax(-1).gather(1, packed.targets[:, None]).squeeze(1)


def watch_updates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Group], Tensor]]:
    """The groups and advantages `[P, G]` of each update that a module makes from now on."""
    seen: list[tuple[list[Group], Tensor]] = []

    def watched(module, mixture, objective, groups, advantages_PG, sampling):
        seen.append((list(groups), advantages_PG))
        return Update(module, mixture, objective, groups, advantages_PG, sampling)

    monkeypatch.setattr(grpo, "Update", watched)
    return seen


@dataclass
class Canned:
    """A `Sampler` that knows the answers: sample g is right where g is even, and blank else.

    It draws from no model: log-probabilities are 0, and no hidden states are kept.
    """

    mixtures: list[Any] = field(default_factory=list)
    synced: int = 0

    def generate(self, prompts, limits, draw, mixture, samples=1, keep_frozen=False, progress=None):
        self.mixtures.append(mixture)
        return [Group(prompt, [self.rollout(prompt, g, limits) for g in range(samples)], draw) for prompt in prompts]

    def rollout(self, prompt, sample, limits):
        text = "." if sample % 2 else f"1 + 1 = 2. \\boxed{{{prompt.problem.answer}}}"
        ids = load_tokenizer("lmix:tiny-arithmetic")(text, add_special_tokens=False)["input_ids"]
        ids = [*ids, limits.end_ids[0]]
        count = limits.end_of(ids)
        ids = ids[: count or limits.max_new_tokens]
        return Rollout(prompt, sample, ids, torch.zeros(len(ids)), ended=count is not None)

    def sync(self, policy):
        self.synced += 1
