"""Floating-point operations of passes, as `lmix plan` counts them: two a weight and token, attention left out."""


def drawn_flops(linear: float, adapters: float, head: float, prompt_tokens: float, tokens: float) -> float:
    """Of completions: each prompt is read once, each drawn token goes through all streams, and their head.

    Args:
        linear: weights of the decoders' linear layers, added over the streams that run.
        adapters: weights of these streams' adapters.
        head: weights of the heads that are applied.
        prompt_tokens: of all prompts.
        tokens: that are drawn.
    """
    return 2.0 * (prompt_tokens * linear + tokens * (linear + adapters + head))


def trained_flops(
    linear: float, lora: float, head: float, tokens: float, predicted: float, passes: float = 2.0, heads: float = 2.0
) -> float:
    """Of an update of the policy's adapter: frozen weights have no gradient, adapters have one.

    Args:
        linear: weights of the policy's decoder's linear layers.
        lora: weights of its adapter.
        head: weights of its head.
        tokens: of all rows, prompts included.
        predicted: tokens of the completions.
        passes: through the linear layers: 2 forward and backward, 3 where layers are recomputed, and one more for each
            frozen stream of the same model that is not kept from sampling.
        heads: passes through the head: 2 forward and backward.
    """
    return 2.0 * (tokens * (passes * linear + 3.0 * lora) + predicted * head * heads)
