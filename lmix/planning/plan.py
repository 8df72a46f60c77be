"""`python -m lmix plan`: the flags of `fit`, and what its run will need."""

from dataclasses import replace

from lmix.data.module import RLDataModule
from lmix.model.adapters import AdapterConfig
from lmix.model.frozen import copy_fits
from lmix.model.mixture import REFERENCE
from lmix.model.placement import place_streams
from lmix.planning.estimates import host_bytes, largest, memory, peak, rollout_seconds, update_seconds
from lmix.planning.published import planned_config
from lmix.planning.shape import FrozenModel, ModelShape, RunShape, model_shape
from lmix.training.grpo import GRPOModule
from lmix.training.module import AdapterModule

GB = 1e9


def plan(
    module: AdapterModule,
    data: RLDataModule,
    devices: int,
    sharded: bool,
    prompt_tokens: int,
    device_gb: float,
    tflops: float,
    bandwidth: float,
    live: float,
) -> str:
    """What a run of these settings needs, as text. No weight is read.

    Args:
        module: the run's, as configured.
        data: the run's, as configured.
        devices: ranks in all.
        sharded: whether the backbone is (FSDP2).
        prompt_tokens: of the longest prompt.
        device_gb: memory of a device, in GB (10^9 bytes).
        tflops: a device's products in the backbone's dtype, in 10^12 a second, as measured on large matrices.
        bandwidth: of a device's memory, in GB a second.
        live: part of the groups that are expected to be live.

    Raises:
        ValueError: a module that draws no rollouts, or figures that are not positive.
    """
    if not isinstance(module, GRPOModule):
        raise ValueError(f"plan is for GRPOModule, not {type(module).__name__}: SFT draws no rollouts")
    given = {"prompt_tokens": prompt_tokens, "device_gb": device_gb, "tflops": tflops, "bandwidth": bandwidth}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"--{name} must be positive, not {value}")
    if not 0 <= live <= 1:
        raise ValueError(f"--live must lie between 0 and 1, not {live}")
    own, *others = place_streams(module.backbone, module.adapters)
    model = model_shape(planned_config(own.backbone.path), module.adapters)
    run = run_shape(module, data, devices, sharded, prompt_tokens, live)
    run = settle_dense(module, model, run, device_gb * GB)
    if module.sampling.slots == "auto":
        run = replace(run, slots=max(run.samples, largest(model, run, device_gb * GB)[0]))
    parts = memory(model, run)
    slots, tokens = largest(model, run, device_gb * GB)
    rollouts = rollout_seconds(model, run, tflops * 1e12, bandwidth * GB)
    update = update_seconds(model, run, tflops * 1e12) * module.objective.inner_updates
    rows = [[name, f"{size / GB:.2f}"] for name, size in parts.items() if size]
    needed = peak(parts)
    verdict = "fits" if needed <= device_gb * GB else "DOES NOT FIT"
    return "\n".join(
        [
            f"{own.backbone.path}: {(model.linear + model.other) / 1e9:.2f} billion weights, "
            f"{model.lora / 1e6:.1f} million an adapter; {devices} device(s){', sharded' if sharded else ''}; "
            f"{run.rows} completions of at most {run.tokens} tokens on each, {run.active} at once",
            *(
                f"{placed.backbone.path}: {(other.shape.linear + other.shape.other) / 1e9:.2f} billion weights, frozen "
                f"({placed.backbone.quantization}), for {', '.join(placed.adapters)}"
                for placed, other in zip(others, run.others, strict=True)
            ),
            "",
            "| on each device | GB |",
            "| --- | ---: |",
            *(f"| {name} | {size} |" for name, size in rows),
            f"| **peak** ({verdict} in {device_gb:g} GB) | **{needed / GB:.2f}** |",
            "",
            f"memory of the host: {host_bytes(model, run) / GB:.2f} GB a device",
            f"largest that fit, each alone: model.sampling.slots={slots}, model.objective.micro_batch_tokens={tokens}",
            f"seconds a step at {tflops:g} TFLOP/s and {bandwidth:g} GB/s: rollouts {rollouts:.0f}, "
            f"update {update:.0f} (products and memory traffic alone, no communication; completions at full length)",
        ]
    )


def run_shape(
    module: GRPOModule, data: RLDataModule, devices: int, sharded: bool, prompt_tokens: int, live: float
) -> RunShape:
    """The sizes of a configured run."""
    backbone, sampling = module.backbone, module.sampling
    own, *others = place_streams(backbone, module.adapters)
    counted, kl = module.mixture.streams, module.objective.needs_reference
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
        width=4 if backbone.dtype == "float32" else 2,  # auto: of the GPUs that are planned for
        dense_rollouts=bool(backbone.dense_rollouts),
        checkpointing=backbone.activation_checkpointing,
        streams=sum(stream in counted for stream in own.adapters),
        prompts=data.prompts_per_step,
        samples=sampling.samples_per_prompt,
        slots=sampling.samples_per_prompt if sampling.slots == "auto" else sampling.slots,
        prompt_tokens=prompt_tokens,
        tokens=sampling.max_new_tokens,
        keep_frozen=sampling.keep_frozen,
        pass_tokens=module.objective.micro_batch_tokens,
        evaluated=-(-max(data.eval_size, 2 * data.validation_size) // devices),
        mixes_logits=module.mixture.kind == "probs",
        kl=kl and REFERENCE in own.adapters,
        live=live,
        devices=devices,
        sharded=sharded,
        compiled=sampling.compile,
        others=tuple(frozen),
    )


def settle_dense(module: GRPOModule, model: ModelShape, run: RunShape, device_bytes: float) -> RunShape:
    """Where `dense_rollouts` is null, a copy is made if it takes less than half of what is free then."""
    four_bit = [model] * run.nf4 + [other.shape for other in run.others if other.nf4]
    if module.backbone.dense_rollouts is not None or not four_bit:
        return run
    parts = memory(model, run)
    taken = sum(size for name, size in parts.items() if ":" not in name) + parts["rollout: gathered shards"]
    return replace(run, dense_rollouts=copy_fits(sum(m.linear for m in four_bit) * run.width, device_bytes - taken))
