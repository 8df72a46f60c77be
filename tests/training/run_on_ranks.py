"""Train a few steps and write down what came out; started by test_ranks.py, on one process or under torchrun."""

import json
import os
import sys
from pathlib import Path

import lightning as L
import torch

from lmix.training.alpha import AdaptiveAlpha
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.completion_log import CompletionLog
from tests.training.test_grpo import data, module, trainer


class Groups(L.Callback):
    """How many groups each step of this rank has, and how many of them are live."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.live: list[int] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        rewards = [row.reward for row in pl_module.rows]
        groups = [rewards[i : i + 4] for i in range(0, len(rewards), 4)]
        self.groups.append(len(groups))
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.live.append(sum(len(set(group)) > 1 for group in groups))


def main(out: Path, prompts: int, steps: int, ckpt_path: str | None) -> None:
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    L.seed_everything(0)
    m = module()
    groups = Groups()
    callbacks = [
        groups,
        CompletionLog(),
        AdaptiveAlpha(offset=1.0, scale=4.0),
        PolicyCheckpoint(every_n_steps=1, keep=-1),
    ]
    settings = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    t = trainer(out, steps, callbacks=callbacks, val_check_interval=steps, **settings)
    t.fit(m, data(prompts=prompts, validation_size=5), ckpt_path=ckpt_path)
    found = {
        "alpha": m.policy.alpha,
        "metrics": groups.metrics,
        "groups": groups.groups,
        "live": groups.live,
    }
    (out / f"rank{t.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
