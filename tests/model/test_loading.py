"""What is refused before any weight of a backbone is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmix.model import backbone as backbone_module
from lmix.model.adapters import AdapterConfig, check_adapter, read_adapter
from lmix.model.backbone import BackboneConfig, fingerprint, load_backbone
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import mixture_of
from lmix.model.sources import load_config, resolve
from lmix.model.tokenizer import load_tokenizer


@pytest.fixture
def copy_of(folders, tmp_path):
    """A copy of an adapter folder that a test may damage."""
    import shutil

    return lambda name: shutil.copytree(folders[name], tmp_path / name)


def test_an_adapter_for_another_backbone_is_refused_before_weights_are_read(folders, monkeypatch):
    monkeypatch.setattr(backbone_module.AutoModelForCausalLM, "from_pretrained", None)
    adapters = AdapterConfig(reference="lmix:tiny-arithmetic-sft")
    with pytest.raises(ValueError, match="does not fit backbone") as error:
        MixedPolicy.from_pretrained(BackboneConfig(str(folders["qwen2"]), "none"), adapters)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_width_is_refused(folders, copy_of):
    folder = copy_of("qwen2-sft")
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: torch.zeros(4, 7)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"is \[4, 7\], but must be"):
        check_adapter(str(folder), str(folders["qwen2"]))


def test_an_adapter_that_lacks_a_tensor_is_refused(folders, copy_of):
    folder = copy_of("qwen2-sft")
    weights = load_file(folder / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="exists in only one of the two"):
        check_adapter(str(folder), str(folders["qwen2"]))


def test_damaged_adapters(copy_of, tmp_path):
    folder = copy_of("qwen2-sft")
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    with pytest.raises(ValueError, match=r"has no adapter_config.json"):
        read_adapter(str(tmp_path))
    with pytest.raises(ValueError, match=r"nowhere' does not exist: give an adapter folder"):
        read_adapter(f"{tmp_path}/nowhere")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * float("nan")}, path)
    with pytest.raises(ValueError, match="NaN or Inf"):
        read_adapter(str(folder))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="can't be read"):
        read_adapter(str(folder))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("use_dora", True, "use_dora"),
        ("bias", "all", "bias"),
        ("peft_type", "IA3", "not LORA"),
        ("trainable_token_indices", [1], "trainable_token_indices"),
        ("init_lora_weights", "pissa_niter_4", "changes the base's weights"),
        ("init_lora_weights", "olora", "changes the base's weights"),
    ],
)
def test_adapters_that_are_no_plain_lora(copy_of, field, value, message):
    folder = copy_of("qwen2-sft")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=message):
        read_adapter(str(folder))


def test_layers_that_sampling_keeps_no_state_for_are_refused_before_weights_are_read(folders, tmp_path, monkeypatch):
    import shutil

    folder = shutil.copytree(folders["qwen2"], tmp_path / "chunked")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention", "linear_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(backbone_module.AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match=r"'qwen2' has layers of kind linear_attention"):
        load_backbone(BackboneConfig(str(folder), "none"))


def test_a_text_model_inside_a_larger_one_is_refused(tmp_path):
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gemma3', a text model inside a larger model"):
        load_backbone(BackboneConfig(str(tmp_path), "none"))


def test_a_fingerprint_is_of_the_model_and_not_of_its_precision(folders):
    path = str(folders["qwen2"])
    prints = {
        fingerprint(load_backbone(BackboneConfig(path, "none", dtype="float32"))),
        fingerprint(load_backbone(BackboneConfig(path, "nf4", dtype="float32"))),
        fingerprint(load_backbone(BackboneConfig(path, "nf4", dtype="bfloat16"))),
    }
    assert len(prints) == 1
    other = load_backbone(BackboneConfig(str(folders["qwen2"]), "none", dtype="float32"))
    with torch.no_grad():
        next(p for p in other.parameters() if p.dim() == 1)[0] += 0.1
    assert fingerprint(other) not in prints


@pytest.mark.parametrize(
    ("weights", "mixture", "message"),
    [
        (None, "logits", "experts needs weights"),
        ([0.5, 0.5], "logits", "must be 3 numbers"),
        ([0.0, 0.5, 0.5], "logits", "must not be 0"),
        ([0.5, float("nan"), 0.5], "logits", "must be finite"),
        ([1.0, 0.5, -0.5], "probs", "at least 0 and sum to 1"),
        ([0.5, 0.5, 0.5], "probs", "at least 0 and sum to 1"),
    ],
)
def test_weights_that_do_not_fit(weights, mixture, message):
    with pytest.raises(ValueError, match=message):
        mixture_of(0.5, mixture, weights, AdapterConfig(experts=["somewhere"]).streams)


def test_dropout_on_the_policy_is_refused_and_a_loaded_adapter_s_is_set_to_0(copy_of):
    with pytest.raises(ValueError, match="dropout must be 0"):
        AdapterConfig(dropout=0.1)
    folder = copy_of("qwen2-sft")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_dropout": 0.3}))
    assert read_adapter(str(folder))[0].lora_dropout == 0.0


def test_places_that_hold_no_model(tmp_path, folders):
    with pytest.raises(ValueError, match="is not a model folder"):
        load_backbone(BackboneConfig(str(tmp_path)))
    with pytest.raises(ValueError, match="is not a folder"):
        load_backbone(BackboneConfig(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="does not exist"):
        load_backbone(BackboneConfig(str(tmp_path / "model.gguf")))
    with pytest.raises(ValueError, match="lmix includes lmix:tiny-arithmetic"):
        resolve("lmix:huge")
    with pytest.raises(ValueError, match="tokenizer of backbone"):
        load_tokenizer(str(folders["qwen2"]))


def test_base_means_the_backbone_itself():
    assert AdapterConfig(reference="base", policy="base") == AdapterConfig()


def test_the_embedded_tokenizer_gives_text_back_exactly():
    tokenizer = load_tokenizer("lmix:tiny-arithmetic")
    text = "Tom has 47 eggs. Tom buys 5 more.\n47 + 5 = 52. \\boxed{52}"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < 30


def test_a_model_s_own_code_is_not_run_unless_asked_for(tmp_path, monkeypatch):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(ValueError, match=r"needs its own Python code; if you trust it, set LMIX_TRUST_REMOTE_CODE=1"):
        load_config(str(tmp_path))
    monkeypatch.setenv("LMIX_TRUST_REMOTE_CODE", "1")
    with pytest.raises(SystemExit, match="run"):
        load_config(str(tmp_path))
