"""Packed products against their slow twin, the layers as they are; used where a table says that they are faster."""

import pytest
import torch

from lmix.model import packed as module
from lmix.model.adapters import AdapterConfig, lora_layers
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.packed import can_pack, packable, packed_bytes
from tests.conftest import ALL, close, make_policy, randomise_adapters, tokens

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
BOTH = ("policy", "reference")


def hidden(policy, streams, packs):
    """Hidden states of a pass in a rollout phase, and a product of the head."""
    policy._packs = packs
    with policy.rollouts():
        assert all((layer.packed is not None) == packs for _, layer in lora_layers(policy))
        states = policy.hidden(tokens(3, 7), streams)
        return [*states, policy.head.logits(states[0], streams[0])]


@pytest.mark.parametrize("name", [*ALL, "mistral"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_they_give_the_hidden_states_and_logits_that_the_layers_give(name, dtype, tolerance, folders):
    policy = make_policy(name, folders, dtype=dtype)
    for streams in (BOTH, BOTH[:1], BOTH[1:], BOTH[::-1]):
        for slow, fast in zip(hidden(policy, streams, False), hidden(policy, streams, True), strict=True):
            assert close(fast.float(), slow.float(), tolerance)
    assert not any(getattr(layer, "packed", None) for layer in policy.modules())


def test_an_update_between_phases_is_seen(folders):
    policy = make_policy("qwen2", folders)
    before = hidden(policy, BOTH, True)
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.mul_(2.0)
    after = hidden(policy, BOTH, True)
    assert not close(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert close(after[0], hidden(policy, BOTH, False)[0])


def test_each_linear_layer_is_packed_once(folders):
    policy = make_policy("qwen2", folders)
    assert len(packable(policy.models[0].module)) == 3 * 7 + 1  # three layers, and the head
    assert packed_bytes(policy.models[0].module, 4) == 4 * sum(
        m.weight.numel() for m in policy.modules() if type(m) is torch.nn.Linear and hasattr(m, "dense")
    )


def test_layers_of_which_some_have_a_lora(folders):
    adapters = AdapterConfig(reference=None, rank=3, target_modules=["q_proj", "v_proj", "up_proj"])
    backbone = BackboneConfig(str(folders["qwen2"]), "none", dtype="float32")
    policy = randomise_adapters(MixedPolicy.from_pretrained(backbone, adapters))
    policy._packs = True
    with policy.rollouts():
        fast = policy.hidden(tokens(2, 5), BOTH)
    policy._packs = False
    with policy.rollouts():
        slow = policy.hidden(tokens(2, 5), BOTH)
    assert all(close(a, b) for a, b in zip(fast, slow, strict=True))


def test_the_table_goes_by_dtype_and_by_what_the_cpu_has(monkeypatch):
    cpu = torch.device("cpu")
    for bf16_units in (True, False):
        monkeypatch.setattr(module, "has_bf16_units", lambda has=bf16_units: has)
        assert can_pack(torch.bfloat16, cpu) == bf16_units
        assert not can_pack(torch.float32, cpu)
        assert not can_pack(torch.bfloat16, torch.device("cuda"))


def test_without_the_memory_for_a_copy_nothing_is_packed(folders, monkeypatch):
    policy = make_policy("qwen2", folders)
    monkeypatch.setattr("lmix.model.mixed_policy.can_pack", lambda dtype, device: True)
    monkeypatch.setattr("lmix.model.mixed_policy.free_memory", lambda device: 1000)
    assert not policy.settle_packing()
    monkeypatch.setattr("lmix.model.mixed_policy.free_memory", lambda device: 10**12)
    assert not policy.settle_packing()  # decided once
    policy._packs = None
    assert policy.settle_packing()
