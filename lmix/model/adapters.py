"""LoRA adapters on the backbone, read from and written to ordinary peft folders."""

import errno
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lmix.errors import one_line_errors
from lmix.files import SUMS, differing_file, whole_folder, write_lines
from lmix.model.adapter_base import warn_of_other_base
from lmix.model.backbone import skeleton
from lmix.model.lora_fields import other_weight, unknown_field
from lmix.model.mixture import POLICY, REFERENCE
from lmix.model.origin import Origin, policy_card
from lmix.model.sources import file_stamps, load_config, resolve
from lmix.model.streams import StreamRouter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterConfig:
    """The trainable policy adapter, and the frozen streams."""

    reference: str | None = None
    """The frozen reference: the folder of a peft adapter; a whole model (folder, hub id or .gguf file) of any size with
    the same tokens as the backbone; or `base` or null for the backbone itself."""
    policy: str | None = None
    """What the policy starts from: the folder of a peft adapter; a whole model, on which the policy is a new adapter;
    or `base` or null for a new adapter on the backbone (LoRA B = 0, as in Algorithm 1)."""
    experts: list[str] = field(default_factory=list)
    """Further frozen streams for an ensemble, each given like `reference`. `model.weights` sets their weights."""
    frozen_quantization: Literal["nf4", "none"] = "nf4"
    """Quantisation of frozen whole models; see `backbone.quantization`."""
    rank: int = 16
    """LoRA rank of a policy that starts as a new adapter."""
    lora_alpha: float = 32
    """LoRA's scale: the low-rank product is multiplied by lora_alpha / rank. Not the alpha of the mixture."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get a LoRA: names, or all-linear for every linear layer but the head."""
    dropout: float = 0.0
    """Must be 0: dropout would make the ratio of eq. 5 wrong. Other values are rejected."""

    def __post_init__(self) -> None:
        for name in ("reference", "policy"):
            if getattr(self, name) == "base":
                object.__setattr__(self, name, None)
        if self.dropout != 0.0:
            raise ValueError(f"adapters.dropout must be 0, not {self.dropout}: it makes GRPO's ratio wrong")
        if self.rank < 1:
            raise ValueError(f"adapters.rank must be at least 1, not {self.rank}")

    def frozen(self) -> dict[str, str | None]:
        """The frozen streams by name, each with its path, or None for the backbone itself."""
        experts = {f"expert_{k}": path for k, path in enumerate(self.experts, start=1)}
        return {REFERENCE: self.reference, **{name: None if path == "base" else path for name, path in experts.items()}}

    def paths(self) -> dict[str, str | None]:
        """All streams by name, each with its path, or None for the backbone itself."""
        return {POLICY: self.policy, **self.frozen()}

    @property
    def streams(self) -> int:
        """How many streams there are: the policy and the frozen ones."""
        return 1 + len(self.frozen())

    def fresh(self) -> LoraConfig:
        """peft's configuration of a policy that starts as a new adapter."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.lora_alpha,  # pyright: ignore[reportArgumentType]
            target_modules=self.target_modules,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )


def read_adapter(path: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read the configuration and the LoRA weights of a peft folder.

    The result is cached as long as the files do not change, and all callers share its tensors: do not write to them.

    Raises:
        ValueError: a missing folder, missing or damaged files, an adapter that is not plain LoRA, weights of the base,
            or weights that are not finite.
    """
    folder = Path(resolve(path)).expanduser()
    if not folder.exists():
        raise ValueError(f"adapter {path!r} does not exist: give an adapter folder, or a model's folder or hub id")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"adapter {path!r} has no {name}: give an adapter folder written by peft (safetensors), or the folder "
                "of a model"
            )
    config, weights = _read_adapter(path, folder, file_stamps(path))
    return deepcopy(config), dict(weights)


@lru_cache(maxsize=4)
def _read_adapter(path: str, folder: Path, _: Any) -> tuple[LoraConfig, dict[str, Tensor]]:
    with one_line_errors(f"adapter {path!r} can't be read"):
        fields = json.loads((folder / CONFIG).read_text())
        if not isinstance(fields, dict):
            raise ValueError(f"{CONFIG} is not a JSON object")
        if fields.get("peft_type") != "LORA":
            raise ValueError(f"peft_type is {fields.get('peft_type')}, not LORA")
    if unknown := unknown_field(fields):
        raise ValueError(
            f"adapter {path!r} uses {unknown}, which lmix does not support: it supports plain LoRA only (if this "
            "initialisation changes the base's weights, save the adapter with peft's "
            "path_initial_model_for_weight_conversion)"
        )
    with one_line_errors(f"adapter {path!r} can't be read"):
        config = LoraConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS)
    if name := differing_file(folder, (WEIGHTS, CONFIG)):
        raise ValueError(
            f"adapter {path!r} is damaged: {name} does not match {SUMS}: copy the adapter again, or delete {SUMS} if "
            "you changed the file yourself"
        )
    assert isinstance(config, LoraConfig)
    if other := other_weight(weights):
        raise ValueError(
            f"adapter {path!r} contains {other}, which is not a LoRA weight: the streams share one base, so save the "
            "adapter without the base's weights (peft's save_pretrained with save_embedding_layers=False)"
        )
    if bad := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
        raise ValueError(f"adapter {path!r} contains NaN or Inf in {bad[0]}: get another copy of it")
    config.init_lora_weights = True  # the saved values replace any initialisation
    config.lora_dropout = 0.0
    config.inference_mode = False
    config.base_model_name_or_path = None  # peft fills in the backbone's
    return config, weights


def check_adapter(path: str, backbone: str, model_config: PretrainedConfig | None = None) -> None:
    """Check that an adapter fits a backbone, by names and shapes only, before the backbone's weights are read.

    If the adapter names another base of the same shapes, a warning is logged.

    Raises:
        ValueError: the adapter can't be read, or was made for another backbone.
    """
    config, weights = read_adapter(path)
    model = skeleton(model_config or load_config(backbone))
    with one_line_errors(f"adapter {path!r} does not fit backbone {backbone!r}"):
        expected = adapter_weights(get_peft_model(model, config))
    if differing := sorted(set(expected) ^ set(weights)):
        problem = f"{differing[0]} exists in only one of the two"
    elif differing := [name for name in expected if expected[name].shape != weights[name].shape]:
        name = differing[0]
        problem = f"{name} is {list(weights[name].shape)}, but must be {list(expected[name].shape)}"
    else:
        warn_of_other_base(path, backbone)
        return
    raise ValueError(f"adapter {path!r} does not fit backbone {backbone!r}: {problem}")


def add_adapters(
    model: PreTrainedModel, policy: AdapterConfig | None, streams: Mapping[str, str | None], router: StreamRouter
) -> nn.Module:
    """Add the streams' adapters to a model, and give its LoRA layers the stacked forward pass.

    Args:
        model: changed in place.
        policy: settings of the trainable adapter of the stream `policy`; None freezes all adapters.
        streams: stream name -> peft folder (for the policy: what it starts from), or None for a stream that is the
            model itself.
        router: says which adapter works on which rows.

    Returns:
        The peft model, or the unchanged model if no stream has an adapter.

    Raises:
        ValueError: an adapter that can't be read, or a target module that is not linear.
    """
    read = {name: read_adapter(path) for name, path in streams.items() if path is not None}
    configs = {name: adapter for name, (adapter, _) in read.items()}
    if policy is not None:
        configs = {POLICY: configs.get(POLICY, policy.fresh()), **configs}
    if not configs:
        return model
    (first, config), *others = configs.items()
    peft_model = get_peft_model(model, config, adapter_name=first)
    assert isinstance(peft_model, PeftModel)
    for name, adapter in others:
        peft_model.add_adapter(name, adapter)
    for name, (_, weights) in read.items():
        missing = set_peft_model_state_dict(peft_model, weights, adapter_name=name)
        assert not missing.unexpected_keys, missing.unexpected_keys
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_(policy is not None and f".{POLICY}." in name)
    for name, layer in peft_model.named_modules():
        if isinstance(layer, LoraLayer):
            if not hasattr(layer.get_base_layer(), "in_features"):
                raise ValueError(
                    f"adapters.target_modules names {name}, which is not linear: lmix adapts linear layers only"
                )
            router.attach(layer)  # pyright: ignore[reportArgumentType]
    return peft_model


def lora_layers(peft_model: nn.Module) -> list[tuple[str, Any]]:
    """The layers with a LoRA, each with its name in the model without adapters."""
    layers = [(name, layer) for name, layer in peft_model.named_modules() if isinstance(layer, LoraLayer)]
    return [(name.removeprefix("base_model.model."), layer) for name, layer in layers]


def adapter_weights(peft_model: Any, stream: str = "default") -> dict[str, Tensor]:
    """An adapter's weights by their names in a peft folder, without weights of the base."""
    return get_peft_model_state_dict(peft_model, adapter_name=stream, save_embedding_layers=False)


def is_adapted(module: nn.Module) -> bool:
    """Whether this module has a LoRA."""
    return isinstance(module, LoraLayer)


def adapter_scaling(model: nn.Module) -> dict[str, list[float]]:
    """The distinct scalings of each adapter's layers, sorted."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    names = sorted({name for layer in layers for name in layer.scaling})
    return {name: sorted({float(layer.scaling[name]) for layer in layers if name in layer.scaling}) for name in names}


def save_adapter(peft_model: PeftModel, stream: str, folder: Path, origin: Origin | None = None) -> None:
    """Write one adapter; see `write_adapter`."""
    write_adapter(peft_model.peft_config[stream], adapter_weights(peft_model, stream), folder, origin)


def write_adapter(
    config: PeftConfig, weights: Mapping[str, Tensor], folder: Path, origin: Origin | None = None
) -> None:
    """Write an adapter atomically as a folder that plain peft can load, with checksums.

    Args:
        config: peft's configuration.
        weights: by their names in a peft folder.
        folder: a new folder, or one that holds an adapter, which is replaced.
        origin: what the adapter was made from, if it was merged or distilled.

    Raises:
        ValueError: the folder exists and does not hold an adapter.
        OSError: the folder can't be written.
    """
    if folder.exists() and not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} exists and is not an adapter folder: choose another path")
    with whole_folder(folder) as part:
        config.save_pretrained(str(part))
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, part / WEIGHTS)
        except SafetensorError as error:  # raised when the disk is full
            raise OSError(errno.EIO, str(error)) from error
        if origin is not None:
            origin.write(part)
            if origin.way == "mixture":
                write_lines(part / "README.md", [policy_card(origin)])
