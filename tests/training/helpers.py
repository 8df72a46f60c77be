"""A small module, its data and a trainer, for tests of training."""

import dataclasses

import lightning as L

from lmix.data.module import RLDataModule
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.tasks import ArithmeticTask
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.config import ObjectiveConfig, OptimizerConfig, SamplingConfig
from lmix.training.grpo import BeforeUpdate, GRPOModule

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


def gradients(m, rollouts, advantages, **changes):
    m.objective = dataclasses.replace(ObjectiveConfig(), **changes)
    m.policy.zero_grad()
    before = BeforeUpdate()
    stats = m.accumulate_gradient(rollouts, advantages, m.token_weights(rollouts), before)
    return [p.grad.clone() for p in m.policy.policy_parameters()], stats, before.log_probs
