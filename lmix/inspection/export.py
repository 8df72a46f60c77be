"""Write a mixed policy as a folder that transformers' tools load."""

from typing import Any

from lmix.inspection.config import MixedPolicyChoice
from lmix.model.tokenizer import load_tokenizer


def export(out: str, **kwargs: Any) -> None:
    """Write a mixed policy as a folder: adapters in peft's layout, a small configuration, the tokenizer.

    `lmix.MixedPolicyForCausalLM.from_pretrained(FOLDER)` loads it; the backbone's weights stay where they are.

    Args:
        out: the folder.
        kwargs: see `MixedPolicyChoice`.

    Raises:
        ValueError: a setting, the backbone or an adapter is wrong.
    """
    choice = MixedPolicyChoice(**kwargs)
    model = choice.load()
    model.save_pretrained(out)
    load_tokenizer(model.config.backbone["path"]).save_pretrained(out)
    print(f"{out}: {', '.join(f'{name} {weight:g}' for name, weight in model.mixture.by_name().items())}")
