"""Which backbones vLLM can serve. Does not import vLLM, so that this is known before anything is started."""

from transformers import PretrainedConfig

from lmix.model.prequantized import quantization_method

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
LATENT = "kv_lora_rank"


def check_servable(path: str, config: PretrainedConfig) -> None:
    """Raise a one-line ValueError if vLLM can't serve mixed policies of a backbone."""
    if path.endswith(".gguf"):
        raise ValueError(
            f"backbone {path!r} is a .gguf file, which lmix can't serve with vLLM: give the model as safetensors"
        )
    if any(getattr(config, name, None) for name in EXPERTS):
        raise ValueError(
            f"backbone {path!r} is a mixture of experts: vLLM serves mixed policies of dense models only, so use "
            "lmix's own engine"
        )
    if getattr(config, LATENT, None):
        raise ValueError(
            f"backbone {path!r} has multi-head latent attention: vLLM serves mixed policies with ordinary attention "
            "only, so use lmix's own engine"
        )
    if (method := quantization_method(config)) is not None:
        raise ValueError(
            f"backbone {path!r} is quantised by {method}: vLLM serves mixed policies of unquantised checkpoints only; "
            "backbone.quantization=nf4 rounds their weights to NF4"
        )
