"""On a GPU, against the CPU as the slow twin: tokens, log-probabilities and gradients, and CUDA graphs against eager.

Draws are functions of seed, step, prompt, sample and position, so both devices draw the same tokens.
"""

import pytest
import torch
from torch import Tensor

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.rollout.engine import Engine
from lmix.rollout.limits import Limits
from lmix.rollout.packing import pack
from lmix.rollout.types import Draw, Rollout, flatten
from lmix.training.scoring import score
from tests.conftest import ARCHITECTURES, MIXED, PROBS, make_policy, portable_products, prompts, tokens

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
PROMPTS = prompts(*(tokens(n, seed=n).tolist() for n in (9, 2, 5, 14)))
ALL = [*ARCHITECTURES, "qwen2-nf4"]


@pytest.fixture(params=ALL)
def twins(request, folders) -> tuple[MixedPolicy, MixedPolicy]:
    """The same mixed policy on the CPU and on the GPU."""
    on_cpu, on_gpu = make_policy(request.param, folders), make_policy(request.param, folders, device=CUDA)
    portable_products(on_cpu.backbone)
    with torch.no_grad():
        for (name, a), b in zip(on_cpu.named_parameters(), on_gpu.parameters(), strict=True):
            if ".lora_" in name:
                b.copy_(a)
    return on_cpu, on_gpu


def draw(engine: Engine, mixture: Mixture = MIXED, step: int = 0, limit: int = 40) -> list[Rollout]:
    groups = engine.generate(PROMPTS, Limits(limit, (1,)), Draw(seed=0, step=step), mixture, 4, keep_frozen=True)
    return flatten(groups)


def test_both_devices_draw_the_same_tokens(twins):
    of_cpu, of_gpu = (draw(Engine(policy, 8)) for policy in twins)
    assert [r.completion_ids for r in of_gpu] == [r.completion_ids for r in of_cpu]
    for a, b in zip(of_gpu, of_cpu, strict=True):
        assert torch.allclose(a.log_probs.cpu(), b.log_probs, atol=1e-4)


@pytest.mark.parametrize("mixture", [MIXED, PROBS], ids=["logits", "probs"])
@pytest.mark.parametrize("share_prompts", [False, True])
def test_both_devices_have_the_same_gradient(twins, mixture, share_prompts):
    rollouts = draw(Engine(twins[0], 8), mixture)
    for rollout in rollouts:
        rollout.frozen_hidden = None  # both streams by a pass on the device

    def gradient(policy: MixedPolicy) -> Tensor:
        loss = score(policy, mixture, pack(rollouts, policy.device, share_prompts)).sum()
        return torch.cat([g.flatten().cpu() for g in torch.autograd.grad(loss, policy.policy_parameters())])

    of_cpu, of_gpu = (gradient(policy) for policy in twins)
    assert float((of_gpu - of_cpu).norm() / of_cpu.norm()) < 1e-4


@pytest.mark.parametrize(
    ("name", "mixture"), [("qwen2", MIXED), ("llama", PROBS), ("gemma3", MIXED), ("gemma2", MIXED)]
)
def test_cuda_graphs_draw_what_eager_does(name, mixture, folders):
    """Compiled in the first phase, recorded in the second and replayed in later ones, with another alpha in each."""
    policy = make_policy(name, folders, device=CUDA)
    eager, compiled = Engine(policy, 16), Engine(policy, 16, compiled=True)
    for step, alpha in enumerate((0.3, 0.6, 0.1, 0.5)):
        of_eager, of_compiled = (draw(engine, mixture.with_alpha(alpha), step) for engine in (eager, compiled))
        assert [r.completion_ids for r in of_compiled] == [r.completion_ids for r in of_eager]
        for a, b in zip(of_compiled, of_eager, strict=True):
            assert torch.allclose(a.log_probs, b.log_probs, atol=1e-4)
            assert torch.allclose(a.frozen_hidden["reference"], b.frozen_hidden["reference"], atol=1e-4)
