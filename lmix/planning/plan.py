"""`python -m lmix plan`: takes the flags of `fit`, and estimates what the run will need."""

from dataclasses import dataclass, replace
from functools import cached_property

from lmix.data.module import RLDataModule
from lmix.data.splits import HELD_OUT
from lmix.model.adapters import AdapterConfig
from lmix.model.frozen import copy_fits
from lmix.model.mixture import REFERENCE
from lmix.model.placement import place_streams
from lmix.planning.estimates import (
    host_bytes,
    largest,
    memory,
    old_seconds,
    peak,
    rollout_seconds,
    update_seconds,
)
from lmix.planning.published import planned_config
from lmix.planning.shape import FrozenModel, ModelShape, RunShape, model_shape
from lmix.planning.vllm import vllm_line, vllm_shape
from lmix.training.grpo import GRPOModule
from lmix.training.module import AdapterModule
from lmix.training.sft import SFTModule

GB = 1e9


@dataclass(frozen=True)
class Device:
    """The device to plan for.

    Raises:
        ValueError: a value that is not positive.
    """

    device_gb: float = 80.0
    """Memory, in GB (10^9 bytes)."""
    tflops: float = 300.0
    """Speed of matmuls in the backbone's dtype, in TFLOP/s, as measured on large matrices."""
    bandwidth: float = 2000.0
    """Memory bandwidth, in GB/s."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"--{name} must be positive, not {value}")


@dataclass(frozen=True)
class Needs:
    """What a run needs on each of its devices. `run` has the lengths of prompts and completions."""

    model: ModelShape
    run: RunShape
    device: Device

    @cached_property
    def parts(self) -> dict[str, float]:
        """Bytes by purpose."""
        return memory(self.model, self.run)

    @property
    def rollout_seconds(self) -> float:
        """Seconds of a step's rollouts."""
        if not self.run.draws:
            return 0.0
        return rollout_seconds(self.model, self.run, self.device.tflops * 1e12, self.device.bandwidth * GB)

    @property
    def update_seconds(self) -> float:
        """Seconds of a step's update: all of its passes over the completions."""
        flops = self.device.tflops * 1e12
        every = self.run.inner_updates * update_seconds(self.model, self.run, flops)
        return every + old_seconds(self.model, self.run, flops)

    @property
    def completion_seconds(self) -> float:
        """Seconds per completion if a device decodes as many at a time as it has slots, as in evaluations."""
        rows = max(1, self.run.slots)
        run = replace(self.run, draws=True, prompts=rows * self.run.devices, samples=1)
        return rollout_seconds(self.model, run, self.device.tflops * 1e12, self.device.bandwidth * GB) / rows


def needs(
    module: AdapterModule,
    data: RLDataModule,
    devices: int,
    sharded: bool,
    device: Device,
    prompt_tokens: int,
    live: float = 1.0,
) -> Needs:
    """Estimate what a run with these settings needs. No weights are read.

    Args:
        module: the run's module, as configured.
        data: the run's data, as configured.
        devices: number of all ranks.
        sharded: whether the backbone is sharded (FSDP2).
        device: what each rank runs on.
        prompt_tokens: tokens of the longest prompt.
        live: fraction of the groups that are expected to be live (their rewards differ).

    Raises:
        ValueError: a value outside its range, or a module of another kind than GRPO and SFT.
    """
    if not prompt_tokens > 0:
        raise ValueError(f"--prompt_tokens must be positive, not {prompt_tokens}")
    if isinstance(module, GRPOModule) and module.objective.needs_teacher:
        raise ValueError(
            f"plan does not support {type(module).__name__}, because it does not count a teacher's passes: plan the "
            "corresponding GRPO run"
        )
    if not 0 <= live <= 1:
        raise ValueError(f"--live must lie between 0 and 1, not {live}")
    own, *_ = place_streams(module.backbone, module.adapters)
    model = model_shape(planned_config(own.backbone.path), module.adapters)
    run = settle_dense(module, model, run_shape(module, data, devices, sharded, prompt_tokens, live), device)
    run = replace(run, vllm=vllm_shape(module.sampler_choice, module.adapters.streams, device.device_gb * GB))
    if module.sampling.slots == "auto":
        run = replace(run, slots=max(run.samples, largest(model, run, device.device_gb * GB)[0]))
    return Needs(model, run, device)


def describe(module: AdapterModule, needed: Needs) -> str:
    """What a run needs, as text."""
    own, *others = place_streams(module.backbone, module.adapters)
    model, run, device = needed.model, needed.run, needed.device
    slots, tokens = largest(model, run, device.device_gb * GB)
    rows = [[name, f"{size / GB:.2f}"] for name, size in needed.parts.items() if size]
    size = peak(needed.parts)
    verdict = "fits" if size <= device.device_gb * GB else "DOES NOT FIT"
    drawn = f"{run.rows} completions of at most {run.tokens} tokens on each device, {run.active} at once"
    return "\n".join(
        [
            f"{own.backbone.path}: {(model.linear + model.other) / 1e9:.2f} billion weights, "
            f"{model.lora / 1e6:.1f} million per adapter; {run.devices} device(s){', sharded' if run.sharded else ''}; "
            + (drawn if run.draws else f"{run.rows} demonstrations of at most {run.tokens} tokens on each device"),
            *(
                f"{placed.backbone.path}: {(other.shape.linear + other.shape.other) / 1e9:.2f} billion weights, frozen "
                f"({placed.backbone.quantization}), for {', '.join(placed.adapters)}"
                for placed, other in zip(others, run.others, strict=True)
            ),
            "",
            "| on each device | GB |",
            "| --- | ---: |",
            *(f"| {name} | {text} |" for name, text in rows),
            f"| **peak** ({verdict} in {device.device_gb:g} GB) | **{size / GB:.2f}** |",
            "",
            *([] if run.vllm is None else [vllm_line(model, run, run.vllm)]),
            f"host memory: {host_bytes(model, run) / GB:.2f} GB per device",
            f"largest values that fit, each with the other at its minimum: model.sampling.slots={slots}, "
            f"model.{'objective.' if run.draws else ''}micro_batch_tokens={tokens}",
            f"seconds per step at {device.tflops:g} TFLOP/s and {device.bandwidth:g} GB/s: "
            f"rollouts {needed.rollout_seconds:.0f}, update {needed.update_seconds:.0f} (matmuls and memory traffic "
            "only, no communication; completions at full length)",
        ]
    )


def run_shape(
    module: AdapterModule, data: RLDataModule, devices: int, sharded: bool, prompt_tokens: int, live: float
) -> RunShape:
    """The sizes of a configured run. Demonstrations of SFT are assumed to have the maximum length of completions."""
    if isinstance(module, GRPOModule):
        objective = module.objective
        pass_tokens, kl = objective.micro_batch_tokens, objective.needs_reference
        inner_updates, mini_batches = objective.inner_updates, objective.mini_batches
    elif isinstance(module, SFTModule):
        pass_tokens, kl, inner_updates, mini_batches = module.micro_batch_tokens, False, 1, 1
    else:
        raise ValueError(f"plan supports GRPOModule and SFTModule, not {type(module).__name__}")
    backbone, sampling, draws = module.backbone, module.sampling, isinstance(module, GRPOModule)
    own, *others = place_streams(backbone, module.adapters)
    counted = module.mixture.streams
    frozen = [
        FrozenModel(
            model_shape(planned_config(placed.backbone.path), AdapterConfig()),
            placed.backbone.quantization == "nf4",
            sum(stream in counted for stream in placed.adapters),
            kl and REFERENCE in placed.adapters,
        )
        for placed in others
    ]
    return RunShape(
        nf4=backbone.quantization == "nf4",
        double_quantization=backbone.double_quantization,
        width=4 if backbone.dtype == "float32" else 2,  # auto is bfloat16 on the GPUs that are planned for
        dense_rollouts=bool(backbone.dense_rollouts),
        checkpointing=backbone.activation_checkpointing,
        streams=sum(stream in counted for stream in own.adapters),
        prompts=data.prompts_per_step,
        samples=sampling.samples_per_prompt if draws else 1,
        draws=draws,
        slots=sampling.samples_per_prompt if sampling.slots == "auto" else sampling.slots,
        prompt_tokens=prompt_tokens,
        tokens=sampling.max_new_tokens,
        keep_frozen=sampling.keep_frozen,
        pass_tokens=pass_tokens,
        inner_updates=inner_updates,
        mini_batches=mini_batches,
        evaluated=-(-max(data.eval_size or HELD_OUT, 2 * data.validation_size) // devices),
        mixes_logits=module.mixture.kind == "probs",
        kl=kl and REFERENCE in own.adapters,
        live=live,
        devices=devices,
        sharded=sharded,
        compiled=sampling.compile,
        others=tuple(frozen),
    )


def settle_dense(module: AdapterModule, model: ModelShape, run: RunShape, device: Device) -> RunShape:
    """Resolve `dense_rollouts: null`: the copy is made if it takes less than half of the memory that is free then."""
    four_bit = [model] * run.nf4 + [other.shape for other in run.others if other.nf4]
    if module.backbone.dense_rollouts is not None or not four_bit:
        return run
    parts = memory(model, run)
    taken = sum(size for name, size in parts.items() if ":" not in name) + parts["rollout: gathered shards"]
    return replace(
        run, dense_rollouts=copy_fits(sum(m.linear for m in four_bit) * run.width, device.device_gb * GB - taken)
    )
