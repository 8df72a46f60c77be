"""Tokens per second of rollouts and update on the shapes of real models.

They are compared with the limits that follow from this device's memory bandwidth and matmul rate, measured in the same
run.
"""

import gc
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from gpu_checks.setting import Failed, Result, Setting, unexpected
from lmix.model.adapters import AdapterConfig, save_adapter
from lmix.model.attention import attention_for
from lmix.model.backbone import BackboneConfig, skeleton
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.planning.estimates import rollout_seconds, update_seconds
from lmix.planning.published import planned_config
from lmix.planning.shape import RunShape, model_shape
from lmix.rollout.engine import Engine
from lmix.rollout.limits import Limits
from lmix.rollout.types import Draw, Group, Prompt
from lmix.tasks.task import Problem
from lmix.training.config import SamplingConfig
from lmix.training.grpo import GRPOModule
from lmix.training.objectives import GRPO
from lmix.training.update import Update

TINY: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
}


def rates(setting: Setting) -> Result:
    """Measure matmul rate and memory bandwidth with large tensors."""
    size, numbers = (512, 2**22) if setting.quick else (8192, 2**29)
    if setting.device.type == "cpu":
        size, numbers = min(size, 2048), min(numbers, 2**26)
    a = torch.randn(size, size, device=setting.device, dtype=setting.dtype)
    source = torch.zeros(numbers, device=setting.device, dtype=setting.dtype)
    target = torch.empty_like(source)
    products, copies = [], []
    for _ in range(8):
        products.append(setting.seconds_of(lambda: torch.matmul(a, a)))
        copies.append(setting.seconds_of(lambda: target.copy_(source)))
    return {
        "tflops": 2.0 * size**3 / sorted(products)[4] / 1e12,
        "bandwidth_gb_s": 2.0 * source.nbytes / sorted(copies)[4] / 1e9,
        "dtype": str(setting.dtype).removeprefix("torch."),
    }


class Shape:
    """A model with random weights and adapters of rank 16 for both streams, and the sizes of one step.

    Args:
        name: hub id of a model with a published shape, or `tiny`.
        setting: the device and thoroughness.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        self.setting = setting
        self.config: PretrainedConfig = AutoConfig.for_model(**TINY) if name == "tiny" else planned_config(name)
        self.prompts, self.samples, self.prompt_tokens, self.tokens = (
            (2, 2, 8, 8) if setting.quick else (8, 8, 128, 64)  # one extent of `DecodeStep`, so one compilation
        )
        self.adapters = AdapterConfig()

    def model(self) -> PreTrainedModel:
        """The model without adapters, with the memory of earlier checks freed first."""
        free(self.setting)
        with torch.device(self.setting.device):
            attention = attention_for(self.config)
            model = AutoModelForCausalLM.from_config(
                self.config, dtype=self.setting.dtype, attn_implementation=attention
            )
        return model.eval()

    def policy(self) -> MixedPolicy:
        model = self.model()
        with tempfile.TemporaryDirectory() as folder:
            peft_model: Any = get_peft_model(skeleton(self.config), self.adapters.fresh(), adapter_name="reference")
            factors = {n: 0.01 * torch.randn(p.shape) for n, p in peft_model.named_parameters() if "lora_" in n}
            peft_model.load_state_dict(factors, strict=False, assign=True)
            save_adapter(peft_model, "reference", Path(folder) / "reference")
            policy = MixedPolicy(model, AdapterConfig(reference=str(Path(folder) / "reference")))
        return policy.to(self.setting.device)

    def asked(self) -> list[Prompt]:
        ids = torch.randint(0, self.config.vocab_size, (self.prompts, self.prompt_tokens))
        return [Prompt(Problem(i, "", ""), row.tolist()) for i, row in enumerate(ids)]

    def run_shape(self) -> RunShape:
        return RunShape(
            nf4=False,
            double_quantization=False,
            width=self.setting.dtype.itemsize,
            dense_rollouts=False,
            checkpointing=False,
            streams=2,
            prompts=self.prompts,
            samples=self.samples,
            slots=self.prompts * self.samples,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
            keep_frozen=True,
            pass_tokens=4096,
        )

    def least_seconds(self, tflops: float, bandwidth: float) -> tuple[float, float]:
        """Lower bounds for the seconds of rollouts and update, from matmul rate and memory bandwidth alone."""
        model, run = model_shape(self.config, self.adapters), self.run_shape()
        return rollout_seconds(model, run, tflops * 1e12, bandwidth * 1e9), update_seconds(model, run, tflops * 1e12)


def step_speed(name: str, setting: Setting, measured: Result, compiled: bool) -> Result:
    """Time rollouts, eager and compiled, and one update."""
    shape = Shape(name, setting)
    policy = shape.policy()
    asked, count = shape.asked(), shape.prompts * shape.samples * shape.tokens
    slots = shape.prompts * shape.samples
    groups: list[Group] = []
    least_rollout, least_update = shape.least_seconds(measured["tflops"], measured["bandwidth_gb_s"])
    found: Result = {"prompts": shape.prompts, "samples": shape.samples, "tokens": shape.tokens}

    def phases(engine: Engine, steps: range) -> None:
        mixture, limits = Mixture.at(0.5), Limits(shape.tokens, ())
        for step in steps:
            drawn = engine.generate(asked, limits, Draw(step=step), mixture, shape.samples, keep_frozen=True)
            groups[:] = drawn

    def measure(kind: str) -> Result:
        engine = Engine(policy, slots, compiled=kind == "compiled")
        # the first phase compiles, the second records graphs, later ones replay them
        warm = setting.seconds_of(partial(phases, engine, range(3 if engine.kept else 1)))
        seconds = setting.seconds_of(partial(phases, engine, range(3, 4)))
        return {
            f"{kind}_warm_up_seconds": warm,
            f"{kind}_rollout_tokens_per_second": count / seconds,
            f"{kind}_rollout_of_limit": least_rollout / seconds,
        }

    found |= measure("eager")
    module = GRPOModule(
        BackboneConfig("none"),
        AdapterConfig(),
        sampling=SamplingConfig(shape.samples, shape.tokens),
        objective=GRPO(micro_batch_tokens=4096),
    )
    module.policy = policy
    module.to(setting.device)
    module.backward_here = lambda loss: loss.backward()  # the original needs a Trainer
    rewards = torch.tensor([[float(g % 2) for g in range(shape.samples)]] * shape.prompts)

    def update() -> None:
        advantages = module.objective.advantages(rewards)
        mixture = Mixture.at(0.5)
        Update(module, mixture, module.objective, groups, advantages, module.sampling).accumulate_gradient()

    update()
    seconds = setting.seconds_of(update)
    found |= {"update_tokens_per_second": count / seconds, "update_of_limit": least_update / seconds}
    if setting.device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if compiled:  # last, because it is the most likely to fail
        try:
            found |= measure("compiled")
        except Exception as error:
            raise Failed(f"compiled: {unexpected(error)}", found) from error
    return found


def free(setting: Setting) -> None:
    """Free the memory of checks that have returned, and start a new peak. A frozen layer refers to itself, so that only
    the garbage collector frees a model."""
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
