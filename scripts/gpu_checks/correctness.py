"""Correctness checks: whether lmix gives the expected results on this device."""

import re
import tempfile
import time
from dataclasses import replace

import torch

from gpu_checks.setting import ROOT, Failed, Result, Setting, Skipped, run
from lmix.functional import token_log_probs
from lmix.model.adapters import AdapterConfig
from lmix.model.attention import avoid_cudnn_attention
from lmix.model.backbone import BackboneConfig
from lmix.model.frozen import dequantized
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.rollout.engine import Engine
from lmix.rollout.limits import Limits
from lmix.rollout.packing import pack
from lmix.rollout.types import Draw, Prompt, Rollout, flatten
from lmix.tasks.arithmetic import ArithmeticTask
from lmix.training.scoring import score

SANDBOX = "lmix:tiny-arithmetic"
MIXTURE = Mixture.at(0.5)


def marked_tests(setting: Setting) -> Result:
    """Run the tests marked `gpu`."""
    setting.needs_cuda()
    if not (files := marked_files()):
        raise Skipped("tests are not installed: run it from a checkout")
    done = run(["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files], ROOT, 180)
    return {"result": done.stdout.strip().splitlines()[-1]}


def marked_files() -> list[str]:
    """The files with such tests. pytest would import all files to find them, which takes a minute from a cold disk."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = re.compile(r"^(@|pytestmark = )pytest\.mark\.gpu$", re.MULTILINE)
    return [str(path) for path in files if marked.search(path.read_text(encoding="utf-8"))]


def demo(setting: Setting) -> Result:
    """Run a few steps of the demo."""
    return fit(setting, [])


def sharded(setting: Setting) -> Result:
    """Run a few steps of the demo under FSDP2, on one device."""
    setting.needs_cuda()
    return fit(setting, ["--config", str(ROOT / "lmix/configs/strategies/fsdp2.yaml")])


def fit(setting: Setting, extra: list[str]) -> Result:
    steps, prompts = (1, 2) if setting.quick else (3, 16)
    with tempfile.TemporaryDirectory() as folder:
        line = ["-m", "lmix", "fit", "--config", "lmix:demo", *extra, f"--trainer.max_steps={steps}"]
        line += [f"--trainer.accelerator={setting.device.type}", "--trainer.devices=1", f"--data.eval_size={prompts}"]
        line += [f"--data.prompts_per_step={prompts}", "--trainer.num_sanity_val_steps=0"]
        start = time.monotonic()
        run(line, folder, 300)
        return {"steps": steps, "seconds": time.monotonic() - start}


def nf4_gradients(setting: Setting) -> Result:
    """Compare the policy's gradient through bitsandbytes' 4-bit layers with that through a dequantised copy."""
    policy = sandbox(setting, "nf4", "float32")
    ids = torch.arange(5, 37, device=setting.device).view(2, 16)

    def gradient() -> torch.Tensor:
        loss = token_log_probs(policy(ids, MIXTURE)[:, :-1], ids[:, 1:]).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.policy_parameters())])

    four_bit = gradient()
    with dequantized(policy, True):
        dense = gradient()
    difference = float((four_bit - dense).norm() / dense.norm())
    if not difference < 1e-2:
        raise Failed(f"gradients differ by {difference:.2g} of their norm")
    return {"difference_of_norm": difference}


def masked_attention(setting: Setting) -> Result:
    """Compare the gradient of masked attention, with the kernels that lmix allows, with that in float32.

    The scores are very negative and there are 192 keys, for which some versions of cuDNN's kernel give NaN. The figure
    `cudnn_nonfinite` counts these; lmix does not use that kernel.
    """
    setting.needs_cuda()
    torch.manual_seed(0)
    q, k, v, cotangent = (0.1 * torch.randn(2, 4, 192, 64, device=setting.device) for _ in range(4))
    q[..., 0], k[..., 0] = 1.0, -120 * 8.0  # every score is about -120
    mask = torch.ones(192, 192, dtype=torch.bool, device=setting.device).tril()[None, None]

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        leaves = [x.bfloat16().to(dtype).requires_grad_() for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=mask)
        (gradient,) = torch.autograd.grad(out, leaves[0], cotangent.to(dtype))
        return gradient[..., 1:].float()  # the first is a small difference of large numbers

    torch.backends.cuda.enable_cudnn_sdp(True)
    nonfinite = int((~gradient(torch.bfloat16).isfinite()).sum())
    avoid_cudnn_attention()
    found, expected = gradient(torch.bfloat16), gradient(torch.float32)
    difference = float((found - expected).norm() / expected.norm())
    if not difference < 0.1:
        raise Failed(f"gradients differ by {difference:.2g} of their norm")
    return {"difference_of_norm": difference, "cudnn_nonfinite": nonfinite}


def engines(setting: Setting) -> Result:
    """Compare the compiled decode step (on a GPU with graphs) with the eager one.

    In float32 both must draw the same tokens. In bfloat16 they round differently, so each is compared with float32:
    the mean gap of the compiled step's log-probabilities may be at most twice that of the eager one's.
    """
    if setting.device.type == "cpu":
        raise Skipped("takes a minute of compiling on a CPU: tests/rollout/test_compiled.py does it there")
    found: Result = {}
    exact = sandbox(setting, "none", "float32")
    for dtype, policy in (("float32", exact), ("bfloat16", sandbox(setting, "none", "bfloat16"))):
        eager = drawn(Engine(policy, 16), 3)
        compiled = drawn(Engine(policy, 16, compiled=True), 3)  # the third phase is replayed from recorded graphs
        found[dtype] = {
            "rows": len(eager),
            "rows_equal": sum(a.completion_ids == b.completion_ids for a, b in zip(eager, compiled, strict=True)),
            "eager_gap": gap_to(exact, eager),
            "compiled_gap": gap_to(exact, compiled),
        }
    if found["float32"]["rows_equal"] < 0.9 * found["float32"]["rows"] or found["float32"]["compiled_gap"] > 1e-4:
        raise Failed("float32: the compiled step differs from the eager one", found)
    if found["bfloat16"]["compiled_gap"] > 2 * found["bfloat16"]["eager_gap"]:
        raise Failed("bfloat16: the compiled step is further from float32 than the eager one", found)
    return found


@torch.no_grad()
def gap_to(exact: MixedPolicy, rollouts: list[Rollout]) -> float:
    """Mean distance of the rollouts' log-probabilities from those that a policy in float32 gives the same tokens."""
    packed = pack([replace(rollout, frozen_hidden=None) for rollout in rollouts], exact.device)
    forced = score(exact, MIXTURE, packed)
    return float((forced.cpu() - torch.cat([r.log_probs for r in rollouts])).abs().mean())


def sandbox(setting: Setting, quantization: str, dtype: str) -> MixedPolicy:
    """The bundled model, with random values in the policy's adapter."""
    backbone = BackboneConfig(SANDBOX, quantization, dtype=dtype)  # pyright: ignore[reportArgumentType]
    policy = MixedPolicy.from_pretrained(backbone, AdapterConfig(reference=f"{SANDBOX}-sft"), setting.device)
    torch.manual_seed(0)
    for parameter in policy.policy_parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return policy


def drawn(engine: Engine, phases: int) -> list[Rollout]:
    """Completions of the last of `phases` rollout phases."""
    problems = ArithmeticTask(train_size=4).problems("train")
    prompts = [Prompt(problem, [5 + i, 6, 7, 8]) for i, problem in enumerate(problems)]
    for step in range(phases):
        groups = engine.generate(prompts, Limits(24, ()), Draw(seed=0, step=step), MIXTURE, 4)
    return flatten(groups)  # pyright: ignore[reportPossiblyUnbound]
