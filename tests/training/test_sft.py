"""Supervised fine-tuning: its two losses against autograd, and one pass over the first problems."""

import lightning as L
import pytest
import torch

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import Mixture
from lmix.rollout.packing import pack
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.demonstrations import demonstration
from lmix.training.sft import SFTModule
from tests.training.helpers import data, trainer, written_out_log_probs

BACKBONE = BackboneConfig(quantization="none", dtype="float32")
SAMPLING = SamplingConfig(max_new_tokens=40)


class FirstGradient(L.Callback):
    """The gradient of the first step, before it is scaled; and the problems of each."""

    def __init__(self) -> None:
        self.gradient: list[torch.Tensor] = []
        self.problems: list[list[int]] = []
        self.passes: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch
        self.problems.append([prompt.problem.id for prompt in batch])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradient = self.gradient or [p.grad.clone() for p in pl_module.policy.policy_parameters()]


def first_step(tmp_path, loss, micro_batch_tokens):
    """Of 8 demonstrations of different lengths."""
    L.seed_everything(0)
    watch = FirstGradient()
    optimizer = OptimizerConfig(lr=1e-9, max_grad_norm=None)
    m = SFTModule(BACKBONE, AdapterConfig(rank=4), micro_batch_tokens, SAMPLING, optimizer, loss)
    m.update_progress = lambda done, passes: watch.passes.append((done, passes))
    t = trainer(tmp_path, 1, callbacks=[watch])
    t.fit(m, data(prompts=8))
    return m, watch, float(t.callback_metrics["train/loss"])


@pytest.mark.parametrize("loss", ["token_mean", "sequence_sum"])
def test_the_loss_against_autograd_in_one_pass_and_in_eight(tmp_path, loss):
    whole_m, whole, whole_loss = first_step(tmp_path, loss, 10_000)
    _, parts, parts_loss = first_step(tmp_path, loss, 1)
    demonstrations = [demonstration(prompt, data().task, whole_m.tokenizer) for prompt in whole.batch]
    lengths = [len(d.completion_ids) for d in demonstrations]
    assert len(set(lengths)) > 3
    assert whole.passes == [(1, 1)]
    assert parts.passes == [(done, 8) for done in range(1, 9)]
    negative = -written_out_log_probs(whole_m, pack(demonstrations), Mixture.at(0.0))
    expected = negative.mean() if loss == "token_mean" else negative.sum() / 8
    gradient = torch.autograd.grad(expected, whole_m.policy.policy_parameters())
    assert whole_loss == pytest.approx(expected.item(), rel=1e-5)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-5)
    assert max(c.norm() for c in gradient) > 0.01
    for a, b, c in zip(whole.gradient, parts.gradient, gradient, strict=True):
        assert (a - c).norm() <= 1e-4 * c.norm() + 1e-6
        assert (b - c).norm() <= 1e-4 * c.norm() + 1e-6


@pytest.mark.parametrize("flags", [{"max_epochs": 1, "max_steps": -1}, {"max_steps": 3}])
def test_one_pass_over_the_first_problems_in_file_order(tmp_path, flags):
    """12 problems in steps of 4, as 768 in steps of 16 are 48."""
    watch = FirstGradient()
    optimizer = OptimizerConfig(lr=1e-4, schedule="constant")
    m = SFTModule(BACKBONE, AdapterConfig(rank=4), sampling=SAMPLING, optimizer=optimizer)
    steps = flags.pop("max_steps")
    t = trainer(tmp_path, steps, callbacks=[watch], **flags)
    t.fit(m, data(prompts=4, train_size=12, shuffle=False))
    assert watch.problems == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert t.global_step == 3


def test_a_gradient_that_is_not_clipped(tmp_path):
    norms = {}
    for limit in (None, 1e-3):
        m = SFTModule(
            BACKBONE, AdapterConfig(rank=4), sampling=SAMPLING, optimizer=OptimizerConfig(max_grad_norm=limit)
        )
        watch = FirstGradient()
        t = trainer(tmp_path, 1, callbacks=[watch])
        t.fit(m, data(prompts=4))
        norm = torch.cat([gradient.flatten() for gradient in watch.gradient]).norm()
        norms[limit] = float(norm), float(t.callback_metrics["train/grad_norm"])
    assert norms[None][0] == pytest.approx(norms[None][1], rel=1e-5)
    assert norms[1e-3][0] == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(ValueError, match=r"optimizer.max_grad_norm must be positive or null, not 0"):
        OptimizerConfig(max_grad_norm=0.0)
