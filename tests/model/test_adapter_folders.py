"""Adapters by what is allowed: fields, weights; and a base that has changed."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lmix.files import checksum
from lmix.model import adapters as adapters_module
from lmix.model.adapter_base import model_names, warn_of_other_base
from lmix.model.adapters import AdapterConfig, check_adapter, read_adapter
from lmix.model.backbone import BackboneConfig, fingerprint, load_backbone
from lmix.model.lora_fields import FACTOR, FREE, other_weight, unknown_field
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.source_digest import weights_digest
from lmix.training.state import check_origin
from tests.conftest import close, tiny_model, tokens


@pytest.fixture
def adapter(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders["qwen2-sft"], tmp_path / "adapter"))


def with_fields(folder: Path, **fields) -> str:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return str(folder)


def test_what_peft_writes_by_default_is_allowed():
    assert unknown_field(LoraConfig(target_modules=["q_proj"]).to_dict()) is None
    assert set(LoraConfig().to_dict()) >= FREE  # no name that peft does not have


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("init_lora_weights", "lora_ga"),
        ("use_qalora", True),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", "of tomorrow"),
        ("qalora_group_size", 32),
        ("use_bdlora", {"nblocks": 2}),
        ("kasa_config", {"beta": 1.0}),
        ("velora_config", {"num_groups": 2}),
        ("arrow_config", {"top_k": 1}),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("modules_to_save", ["lm_head"]),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("ensure_weight_tying", True),
        ("megatron_config", {"a": 1}),
        ("field_of_tomorrow", "rotated"),
    ],
)
def test_fields_that_change_what_is_computed_are_refused_by_name(adapter, field, value):
    path = with_fields(adapter, **{field: value})
    with pytest.raises(ValueError, match=rf"uses {field}=.*does not support: it supports plain LoRA only") as error:
        read_adapter(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"field_of_tomorrow": None},
        {"field_of_tomorrow": False, "another": [], "third": {}},
        {"use_rslora": True, "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
        {"init_lora_weights": False, "eva_config": {"rho": 2.0}},
        {"base_model_name_or_path": "somewhere", "revision": "main", "peft_version": "0.99"},
    ],
)
def test_fields_that_are_off_or_say_nothing_of_the_product_are_allowed(adapter, fields):
    config, weights = read_adapter(with_fields(adapter, **fields))
    assert config.lora_dropout == 0.0
    assert weights


def test_patterns_are_computed_as_peft_does(folders, tmp_path):
    """Ranks and scales that differ by layer, layers left out, and rank-stabilised scales."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        exclude_modules=["down_proj"],
        layers_to_transform=[0, 2],
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 3},
        use_rslora=True,
        init_lora_weights=False,
    )
    model = get_peft_model(tiny_model("qwen2"), config)
    model.save_pretrained(str(tmp_path / "patterns"))
    policy = MixedPolicy.from_pretrained(
        BackboneConfig(str(folders["qwen2"]), "none", dtype="float32"),
        AdapterConfig(policy=str(tmp_path / "patterns")),
    )
    ids = tokens(2, 7)
    with torch.no_grad():
        assert close(policy(ids, Mixture.at(0.0)), model(ids).logits)


def test_an_adapted_head_brings_no_weights_of_the_base(folders, tmp_path):
    """peft writes the head itself beside its factors."""
    model = get_peft_model(tiny_model("qwen2"), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(tmp_path / "peft"))
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"contains base_model.model.lm_head.base_layer.weight, which is not a LoRA"
    ) as error:
        read_adapter(str(tmp_path / "peft"))
    assert "\n" not in str(error.value)
    # what the line says to do
    model.save_pretrained(str(tmp_path / "without"), save_embedding_layers=False)
    check_adapter(str(tmp_path / "without"), str(folders["qwen2"]))
    backbone = BackboneConfig(str(folders["qwen2"]), "none", dtype="float32")
    policy = MixedPolicy.from_pretrained(
        backbone, AdapterConfig(reference=str(tmp_path / "without"), policy=str(tmp_path / "without"))
    )
    assert torch.equal(policy.models[0].head.module.base_layer.weight, tiny_model("qwen2").lm_head.weight)
    policy.save_policy(tmp_path / "own")
    assert set(load_file(tmp_path / "own" / "adapter_model.safetensors")) == set(read_adapter(str(tmp_path / "own"))[1])
    check_adapter(str(tmp_path / "own"), str(folders["qwen2"]))


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "lora_A.weight.extra",
    ],
)
def test_weights_that_are_no_factors_are_refused_by_name(adapter, name):
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), name: torch.zeros(4, 4)}, path)
    with pytest.raises(ValueError, match=rf"contains {name}, which is not a LoRA weight"):
        read_adapter(str(adapter))
    assert other_weight([name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]) == name
    assert FACTOR.fullmatch(name) is None


def test_an_adapter_is_read_and_hashed_once_and_again_where_it_has_changed(adapter, monkeypatch):
    reads = []
    monkeypatch.setattr(adapters_module, "load_file", lambda path: (reads.append(path), load_file(path))[1])
    (adapter / "SHA256SUMS").write_text("".join(f"{checksum(p)}  {p.name}\n" for p in sorted(adapter.iterdir())))
    config, weights = read_adapter(str(adapter))
    config.r = 99
    weights.clear()
    config, weights = read_adapter(str(adapter))
    assert config.r == 4
    assert weights
    assert len(reads) == 1
    path = adapter / "adapter_model.safetensors"
    save_file({name: weight + 1 for name, weight in weights.items()}, path)
    with pytest.raises(ValueError, match=r"is damaged: adapter_model.safetensors does not match"):
        read_adapter(str(adapter))
    (adapter / "SHA256SUMS").unlink()
    name, before = next(iter(weights.items()))
    assert torch.equal(read_adapter(str(adapter))[1][name], before + 1)
    assert len(reads) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"peft_type": "LORA", "r": "many"}', '{"peft_type": "LORA", "target_modules": 5}']
)
def test_settings_that_peft_can_not_read_are_one_line(adapter, folders, content):
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^adapter ") as error:
        check_adapter(str(adapter), str(folders["qwen2"]))
    assert "\n" not in str(error.value)


def changed(folder: Path, target: Path, name: str, value: float = 1e-3) -> str:
    """A copy of a model in which one weight is another, as a merged LoRA would have it."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    weights[name] = weights[name] + value * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"],
)
def test_a_fingerprint_notices_a_base_of_which_any_weight_has_changed(folders, tmp_path, name):
    path = str(folders["qwen2"])
    prints = {kind: fingerprint(load_backbone(BackboneConfig(path, kind, dtype="float32"))) for kind in ("none", "nf4")}
    assert prints["none"] == prints["nf4"]
    other = changed(folders["qwen2"], tmp_path / "other", name)
    saved = {"fingerprint": prints["none"], "backbone": path, "scaling": {}}
    check_origin(saved, path, prints["nf4"], {}, {})
    for kind in ("none", "nf4"):
        found = fingerprint(load_backbone(BackboneConfig(other, kind, dtype="float32")))
        with pytest.raises(ValueError, match="use the same backbone as in training"):
            check_origin(saved, other, found, {}, {})
        part = found.split("-")[0]  # of an older checkpoint, or of a model that was not read from files
        if name != "model.norm.weight":
            check_origin({**saved, "fingerprint": part}, other, prints["none"], {}, {})


def test_a_digest_is_of_the_weights_and_not_of_how_they_are_stored(folders, tmp_path):
    whole = weights_digest(str(folders["qwen2"]), None)
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert weights_digest(str(tmp_path / "parts"), None) == whole
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert weights_digest(str(tmp_path / "half"), None) == whole
    (tmp_path / "pickled").mkdir()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    assert weights_digest(str(tmp_path / "pickled"), None) is None


INSTRUCT = "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize(
    ("base", "backbone", "same"),
    [
        ("Qwen/Qwen2.5-0.5B", INSTRUCT, False),
        (INSTRUCT, "Qwen/Qwen2.5-Coder-0.5B-Instruct", False),
        ("/models/qwen", INSTRUCT, False),
        (INSTRUCT, INSTRUCT, True),
        ("/old/place/Qwen2.5-0.5B-Instruct", INSTRUCT, True),
        ("/old/place/Qwen2.5-0.5B-Instruct/", "models/qwen2.5-0.5b-instruct", True),
        ("unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit", INSTRUCT, True),
        (INSTRUCT, "/models/qwen2.5-0.5b-instruct-q4_k_m.gguf", True),
        ("/models", "/models/some.Q8_0.gguf", True),  # what transformers calls a .gguf file, and peft records
        ("/cache/models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/7ae557604adf67be", INSTRUCT, True),
        ("/cache/models--Qwen--Qwen2.5-0.5B/snapshots/7ae557604adf67be", INSTRUCT, False),
        ("/site-packages/lmix/assets/tiny-arithmetic", "lmix:tiny-arithmetic", True),
        ("", INSTRUCT, True),
        (None, INSTRUCT, True),
    ],
)
def test_an_adapter_that_names_another_base_is_reported_in_one_line(base, backbone, same, adapter, caplog):
    path = with_fields(adapter, base_model_name_or_path=base)
    warn_of_other_base(path, backbone)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (not same)
    for message in messages:
        assert f"was trained on {base!r}, but the backbone is {backbone!r}" in message
        assert "\n" not in message


def test_a_copy_of_a_model_goes_by_the_name_that_its_configuration_records(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": INSTRUCT}))
    assert model_names(str(tmp_path)) == {tmp_path.name.lower(), "qwen2.5-0.5b-instruct"}


def test_the_base_is_compared_when_an_adapter_is_checked(adapter, folders, caplog):
    check_adapter("lmix:tiny-arithmetic-sft", "lmix:tiny-arithmetic")
    check_adapter(str(adapter), str(folders["qwen2"]))
    assert not caplog.records
    check_adapter(with_fields(adapter, base_model_name_or_path=INSTRUCT), str(folders["qwen2"]))
    assert f"was trained on '{INSTRUCT}', but the backbone is '{folders['qwen2']}'" in caplog.text
