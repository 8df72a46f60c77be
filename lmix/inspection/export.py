"""The command `export`: write a mixed policy as a folder that transformers can load."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lmix.inspection.config import MixedPolicyChoice
from lmix.model.mixture import POLICY, Mixture
from lmix.model.origin import Origin, read_origin
from lmix.model.placement import model_paths
from lmix.model.sources import resolve
from lmix.model.tokenizer import load_tokenizer


def export(out: str, **kwargs: Any) -> None:
    """Write a mixed policy as a folder: adapters in peft's layout, a small configuration, the tokenizer.

    `lmix.MixedPolicyForCausalLM.from_pretrained(FOLDER)` loads it. The backbone's weights are not copied. The file
    lmix.json records what was exported: a mixture, or a single adapter that was merged or distilled.

    Args:
        out: folder to write.
        kwargs: see `MixedPolicyChoice`.

    Raises:
        ValueError: a setting, the backbone or an adapter is wrong, or a stream is a full model instead of an adapter.
    """
    choice = MixedPolicyChoice(**kwargs)
    if others := [path for path in model_paths(choice.backbone, choice.adapters) if path != choice.backbone.path]:
        raise ValueError(
            f"export writes adapters of backbone.path {choice.backbone.path!r}, but {others[0]!r} is a whole model: "
            "turn it into an adapter with lmix delta, or give it as backbone.path"
        )
    model = choice.load()
    model.save_pretrained(out)
    load_tokenizer(model.config.backbone["path"]).save_pretrained(out)
    origin = origin_of(choice, model.mixture, model.config.backbone["path"])
    origin.write(Path(out))
    print(f"{out}: {origin}")


def origin_of(choice: MixedPolicyChoice, mixture: Mixture, base: str) -> Origin:
    """The origin to record: a mixture, or, for a policy alone that was merged or distilled, that policy's origin."""
    adapters = choice.adapters
    if choice.folder is not None:
        before = read_origin(Path(choice.folder))
        if before is not None:
            return replace(before, weights=mixture.by_name()) if before.way == "mixture" else before
    elif mixture.streams == (POLICY,) and adapters.policy is not None:
        alone = read_origin(Path(resolve(adapters.policy)).expanduser())
        if alone is not None and alone.way != "mixture":
            return alone
    streams = adapters.paths()
    return Origin("mixture", base, streams, mixture.by_name(), {"mixture": mixture.kind})
