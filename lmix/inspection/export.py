"""Write a mixed policy as a folder that transformers' tools load."""

from typing import Any

from lmix.inspection.config import MixedPolicyChoice
from lmix.model.placement import model_paths
from lmix.model.tokenizer import load_tokenizer


def export(out: str, **kwargs: Any) -> None:
    """Write a mixed policy as a folder: adapters in peft's layout, a small configuration, the tokenizer.

    `lmix.MixedPolicyForCausalLM.from_pretrained(FOLDER)` loads it; the backbone's weights stay where they are.

    Args:
        out: the folder.
        kwargs: see `MixedPolicyChoice`.

    Raises:
        ValueError: a setting, the backbone or an adapter is wrong, or a stream is a whole model of its own.
    """
    choice = MixedPolicyChoice(**kwargs)
    if others := [path for path in model_paths(choice.backbone, choice.adapters) if path != choice.backbone.path]:
        raise ValueError(
            f"export writes adapters of backbone.path {choice.backbone.path!r}, but {others[0]!r} is a whole model: "
            "make an adapter of it by lmix delta, or give it as backbone.path"
        )
    model = choice.load()
    model.save_pretrained(out)
    load_tokenizer(model.config.backbone["path"]).save_pretrained(out)
    print(f"{out}: {', '.join(f'{name} {weight:g}' for name, weight in model.mixture.by_name().items())}")
