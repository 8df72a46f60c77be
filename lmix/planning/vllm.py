"""Memory that vLLM needs if it draws a run's completions, without its compiled code and CUDA graphs."""

from lmix.model.size import cache_bytes, weight_bytes
from lmix.planning.shape import ModelShape, RunShape, VLLMShape
from lmix.rollout.samplers import VLLM, SamplerChoice, VLLMServers

GB = 1e9


def vllm_shape(choice: SamplerChoice, streams: int, device_bytes: float) -> VLLMShape | None:
    """The sizes of a run's vLLM; None if it uses lmix's engine."""
    if isinstance(choice, VLLM):
        return VLLMShape(choice.memory * device_bytes, choice.sleep, streams)
    return VLLMShape(0.0, False, streams) if isinstance(choice, VLLMServers) else None


def with_vllm(parts: dict[str, float], vllm: VLLMShape) -> dict[str, float]:
    """The trainer's parts of memory if vLLM draws: vLLM's memory replaces all rollout parts."""
    kept = {name: size for name, size in parts.items() if not name.startswith("rollout:")}
    if vllm.bytes:
        kept["rollout: vLLM" if vllm.sleeps else "vLLM"] = vllm.bytes
    return kept


def vllm_weights(model: ModelShape, run: RunShape, vllm: VLLMShape) -> float:
    """Bytes of the backbone and all streams' adapters in vLLM, which holds an NF4 backbone in the run's dtype."""
    adapters = run.width * vllm.streams * model.lora
    return weight_bytes(model.linear, model.other, run.width, False, False) + adapters


def cached_token(model: ModelShape, run: RunShape, vllm: VLLMShape) -> float:
    """Bytes of one token's keys and values in vLLM's cache."""
    return vllm.streams * cache_bytes(1, model.layers, model.keys, run.width)


def vllm_line(model: ModelShape, run: RunShape, vllm: VLLMShape) -> str:
    """One line on what vLLM's memory holds, and whether it is enough."""
    weights, token = vllm_weights(model, run, vllm), cached_token(model, run, vllm)
    row = (run.prompt_tokens + run.tokens) * token
    holds = f"weights {weights / GB:.2f} GB, keys and values of one full row {row / GB:.3f} GB ({vllm.streams} streams)"
    if not vllm.bytes:
        return f"each vLLM server: {holds}, {run.active} rows at once {(weights + run.active * row) / GB:.2f} GB"
    rows = int(max(0.0, vllm.bytes - weights) / row)
    verdict = f"room for {rows} full rows at once" if rows else "TOO SMALL for one row: raise model.sampler.memory"
    return f"vLLM: {vllm.bytes / GB:.2f} GB; {holds}; {verdict}"
