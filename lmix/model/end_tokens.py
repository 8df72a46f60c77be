"""Which tokens end a completion, and which one a demonstration ends with."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTENT = "lmix content"


def closing_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template closes an assistant's turn with.

    None if there is no template, if it closes turns with plain text, or if it can't render such a turn.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": CONTENT}, {"role": "assistant", "content": CONTENT}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # from jinja or the template; prompts that can't be rendered are reported elsewhere
        return None
    after: Any = tokenizer(text.rpartition(CONTENT)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in tokenizer.added_tokens_decoder else None


def demonstration_end(tokenizer: PreTrainedTokenizerBase, chat: bool) -> int:
    """The token that ends demonstrations: the chat template's closing token if prompts use it, otherwise the EOS."""
    closing = closing_token(tokenizer) if chat else None
    return tokenizer.eos_token_id if closing is None else closing  # pyright: ignore[reportReturnType]


def all_end_tokens(tokenizer: PreTrainedTokenizerBase, configured: int | list[int] | None) -> list[int]:
    """All tokens that end a completion, sorted.

    Args:
        tokenizer: gives its end-of-sequence token, and the closing token of its chat template.
        configured: `eos_token_id` of the model's generation settings.
    """
    ends = [tokenizer.eos_token_id, closing_token(tokenizer)]
    ends += configured if isinstance(configured, list | tuple) else [configured]
    return sorted({int(token) for token in ends if token is not None})  # pyright: ignore[reportArgumentType]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the tokenizer's, its chat template's, and those of the generation settings."""
    generation = getattr(model, "generation_config", None)
    return all_end_tokens(tokenizer, getattr(generation, "eos_token_id", None))
