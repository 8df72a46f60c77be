"""Floating-point operations of forward and backward passes: 2 per weight and token, without attention."""


def drawn_flops(linear: float, adapters: float, head: float, prompt_tokens: float, tokens: float) -> float:
    """FLOPs to sample completions: each prompt is read once, each sampled token passes through all streams and heads.

    Args:
        linear: weights of the decoders' linear layers, summed over the streams that run.
        adapters: weights of these streams' adapters.
        head: weights of the heads that are applied.
        prompt_tokens: tokens of all prompts.
        tokens: tokens that are sampled.
    """
    return 2.0 * (prompt_tokens * linear + tokens * (linear + adapters + head))


def trained_flops(
    linear: float, lora: float, head: float, tokens: float, predicted: float, passes: float = 2.0, heads: float = 2.0
) -> float:
    """FLOPs of an update of the policy's adapter. Only the adapter's weights have a gradient.

    Args:
        linear: weights of the linear layers in the policy's decoder.
        lora: weights of its adapter.
        head: weights of its head.
        tokens: tokens of all rows, prompts included.
        predicted: tokens of the completions.
        passes: passes through the linear layers: 2 for forward and backward, 3 if layers are recomputed, and 1 more for
            each frozen stream of the same model whose hidden states were not kept from sampling.
        heads: passes through the head: 2 for forward and backward.
    """
    return 2.0 * (tokens * (passes * linear + 3.0 * lora) + predicted * head * heads)
