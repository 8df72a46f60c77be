"""Train a few steps and write down what came out; started by test_ranks.py, on one process or under torchrun.

Arguments: a folder, and settings as JSON: prompts, steps, ckpt_path, strategy, and what `module` or SFTModule take.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch

import lmix.model.frozen
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.rollout.engine import Engine
from lmix.training import objectives
from lmix.training.alpha import AccuracyWeightedAlpha, AdaptiveAlpha
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.completion_log import CompletionLog
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.grpo import GRPOModule
from lmix.training.sft import SFTModule
from lmix.training.strategies import ShardedStrategy
from tests.training.helpers import SFT, data, trainer


def checksum(module) -> str:
    """Of all adapters."""
    digest = hashlib.sha256()
    for tensor in module.policy.adapter_state().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


class LargeEps(L.Callback):
    """Gradients here are up to 1e-3 and their rounding about 1e-9: Adam with an eps below that steps by rounding."""

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].param_groups[0]["eps"] = 1e-6


class Endless(Engine):
    """Its rows go on to the limit."""

    def generate(self, prompts, limits, *arguments, **others):
        return super().generate(prompts, replace(limits, end_ids=()), *arguments, **others)


class Groups(L.Callback):
    """How many groups each step of this rank has, and how many of them are live."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.live: list[int] = []
        self.drawn: list[list[int]] = []
        self.metrics: list[dict[str, float]] = []
        self.began = ""

    def on_train_start(self, trainer, pl_module):
        self.began = checksum(pl_module)

        if pl_module.late and trainer.global_rank == 1:
            pl_module.sampler = Endless(pl_module.policy, slots=16)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.groups.append(len(pl_module.groups))
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.live.append(sum(len(set(group.rewards)) > 1 for group in pl_module.groups))
        self.drawn.append([group.problem.id for group in pl_module.groups])


def main(
    out: Path,
    prompts: int = 5,
    steps: int = 3,
    ckpt_path: str | None = None,
    strategy: str = "ddp",
    method: str = "grpo",
    adaptive: bool = True,
    quantization: str = "none",
    dtype: str = "float32",
    keep_frozen: bool = True,
    checkpointing: bool = False,
    late: bool = False,
    uneven: bool = False,
    alpha: float = 0.5,
    resample_dead: int = 0,
    loss: str = "token_mean",
    streamed: bool = False,
    objective: str = "GRPO",
    reference: str = SFT,
    **settings,
) -> None:
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    L.seed_everything(0)
    if uneven:
        torch.rand(int(os.environ["RANK"]))
        lmix.model.frozen.free_memory = lambda device: 0 if os.environ["RANK"] == "1" else 2**40
    backbone = BackboneConfig(quantization=quantization, dtype=dtype, activation_checkpointing=checkpointing)
    sampling = SamplingConfig(
        samples_per_prompt=4, max_new_tokens=48, slots=16, seed=0, keep_frozen=keep_frozen, resample_dead=resample_dead
    )
    common = {"sampling": sampling, "optimizer": OptimizerConfig(lr=1e-3)}
    groups = Groups()
    callbacks = [groups, LargeEps(), CompletionLog(), PolicyCheckpoint(every_n_steps=1, keep=-1)]
    if method == "sft":
        m = SFTModule(backbone, AdapterConfig(rank=4), micro_batch_tokens=100, loss=loss, **common)
    else:
        adapters = AdapterConfig(reference=reference, rank=4, frozen_quantization="none")
        m = GRPOModule(backbone, adapters, alpha, objective=getattr(objectives, objective)(**settings), **common)
        if adaptive:
            callbacks.append(AccuracyWeightedAlpha() if streamed else AdaptiveAlpha(offset=20.0, scale=80.0))
    m.late = late
    kinds = {"ddp": "ddp", "fsdp2": ShardedStrategy(), "fsdp2-in-step": ShardedStrategy(gather_rollouts=False)}
    several = {"strategy": kinds[strategy], "devices": ranks} if ranks > 1 else {}
    t = trainer(out, steps, callbacks=callbacks, val_check_interval=steps, **several)
    source = "stream" if streamed else "held_out"
    problems = data(prompts=prompts, validation_size=5, validation_source=source, eval_samples=2)
    t.fit(m, problems, ckpt_path=ckpt_path)
    found = {"alpha": m.mixture.alpha, "metrics": groups.metrics, "groups": groups.groups, "live": groups.live}
    found["drawn"] = groups.drawn
    found["held_out"] = {
        name.removeprefix("val/"): float(v) for name, v in t.callback_metrics.items() if name.startswith("val/")
    }
    found |= {"began": groups.began, "ended": checksum(m), "dense": m.policy.dense_rollouts}
    (out / f"rank{t.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
