"""What a frozen backbone computes in, and from which copy of its weights."""

import pytest
import torch

from lmix.model.backbone import BackboneConfig, compute_dtype
from lmix.model.frozen import freeze_backbone
from lmix.model.nf4 import is_4bit, quantize_linears
from tests.conftest import MIXED, close, make_policy, tiny_model, tokens


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_a_dequantised_copy_changes_no_value_and_lasts_as_long_as_the_rollouts(folders, architecture):
    policy = make_policy(f"{architecture}-nf4", folders)
    layers = [m for m in policy.modules() if is_4bit(m)]
    ids, found = tokens(4, 3), []
    for wanted in (False, True, None):
        policy.dense_rollouts = wanted
        with policy.rollouts():
            assert [layer.dense is not None for layer in layers] == [wanted is not False] * len(layers)
            found.append(policy(ids, MIXED))
        assert all(layer.dense is None for layer in layers)
    policy.dense_rollouts = False
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with torch.no_grad():
        assert close(policy(ids, MIXED), found[0])
    assert close(policy(ids, MIXED).detach(), found[0])  # with a gradient: bitsandbytes' own product


def test_a_copy_is_made_by_itself_where_half_of_the_free_memory_holds_it(folders, monkeypatch):
    policy = make_policy("qwen2-nf4", folders)
    layers = [m for m in policy.modules() if is_4bit(m)]
    size = sum(4 * layer.in_features * layer.out_features for layer in layers)
    for free, copied in ((2 * size, False), (2 * size + 1, True)):
        monkeypatch.setattr("lmix.model.frozen.free_memory", lambda device, free=free: free)
        policy.dense_rollouts = None
        with policy.rollouts():
            assert (layers[0].dense is not None) == copied
        assert policy.dense_rollouts is copied


@pytest.mark.parametrize(("first", "kept"), [(2**40, True), (0, False)])
def test_the_copy_is_decided_once_whatever_is_free_later(folders, monkeypatch, first, kept):
    policy = make_policy("qwen2-nf4", folders)
    layers = [m for m in policy.modules() if is_4bit(m)]
    for free in (first, 0, 2**40):
        monkeypatch.setattr("lmix.model.frozen.free_memory", lambda device, free=free: free)
        with policy.rollouts():
            # where the CPU has the products for it, the copy is packed
            assert (layers[0].dense is not None or layers[0].packed is not None) == kept


def test_layers_that_lmix_quantises_are_those_that_transformers_does(folders):
    """As .gguf files need it."""
    expected = make_policy("qwen2-nf4", folders)
    model = tiny_model("qwen2")
    quantize_linears(model, BackboneConfig(), torch.float32)
    model.to("cpu")
    freeze_backbone(model)
    assert sum(is_4bit(m) for m in model.modules()) == 3 * 7
    ids = tokens(2, 5)
    with torch.no_grad():
        found = model(input_ids=ids).logits
        for name, parameter in expected.named_parameters():
            if ".lora_B" in name:
                parameter.zero_()
        assert close(found, expected.backbone(input_ids=ids).logits, 1e-4)


def test_the_dtype_is_what_the_device_has_units_for(monkeypatch):
    units: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert compute_dtype("auto", "cpu") == torch.float32
    units["avx512_bf16"] = True
    assert compute_dtype("auto", "cpu") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert compute_dtype("auto", "cuda:0") == torch.float32
    assert compute_dtype("float32", "cpu") == torch.float32


def test_low_rank_products_are_in_the_backbone_s_dtype(folders):
    policy = make_policy("qwen2", folders)
    policy.backbone.to(torch.bfloat16)  # the adapters too
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    layer = policy.backbone.model.layers[0].self_attn.q_proj
    with policy.rollouts():
        a, b, _ = policy.models[0].router.factors(layer, "policy", torch.bfloat16)
        assert a.dtype == b.dtype == torch.bfloat16
        assert policy.models[0].router.factors(layer, "policy", torch.bfloat16)[0] is a  # cast once
    assert layer(torch.ones(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
