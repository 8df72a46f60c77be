"""Checkpoints that are quantised already, damaged ones, and what bitsandbytes says on a start that is in order."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import lmix.model
from lmix.errors import one_line_errors
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, load_backbone
from lmix.model.frozen import freeze_backbone
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.nf4 import is_4bit
from tests.conftest import close, portable_products, randomise_adapters, tokens

LINEARS = 3 * 7


@pytest.fixture
def checkpoint(folders, tmp_path):
    """A copy of the tiny model with a quantization_config, and other weights where they are given."""

    def make(settings: dict | None, weights: dict | None = None) -> str:
        folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "checkpoint"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
        if weights is not None:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    return make


def logits(path: str, quantization: str = "none", dtype: str = "float32") -> torch.Tensor:
    model = load_backbone(BackboneConfig(path, quantization, dtype=dtype))  # pyright: ignore
    freeze_backbone(model)
    with torch.no_grad():
        return model(tokens(2, 9)).logits


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gptq", "requires optimum"),
        ("awq", "requires gptqmodel"),
        ("compressed-tensors", "compressed-tensors>="),
        ("aqlm", "requires AQLM"),
        ("hqq", "HQQ version"),
        ("torchao", "torchao"),
        ("fbgemm_fp8", "requires a GPU"),
        ("of tomorrow", "does not support quantization_config.quant_method 'of tomorrow'"),
    ],
)
def test_methods_that_need_something_else_say_so_in_one_line(checkpoint, method, words):
    path = checkpoint({"quant_method": method, "bits": 4, "group_size": 32, "config_groups": {}})
    with pytest.raises(ValueError, match=r"^backbone .* can't be loaded: ") as error:
        load_backbone(BackboneConfig(path))
    assert words in str(error.value)
    assert f"quantised by {method}: install the packages that it needs, or give" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["fp8", "mxfp8"])
def test_fp8_is_unpacked_and_then_held_as_the_settings_say(checkpoint, folders, method):
    plain = load_file(folders["qwen2"] / "model.safetensors")
    weights = {}
    for name, weight in plain.items():
        if "proj" in name and weight.dim() == 2:
            scale = weight.abs().max() / 448
            weights[name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[name + "_scale_inv"] = torch.full((1, 1), float(scale))
        else:
            weights[name] = weight
    path = checkpoint(
        {"quant_method": method, "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, weights
    )
    expected = {
        name: weights[name].float() * weights[name + "_scale_inv"] if name + "_scale_inv" in weights else weight
        for name, weight in plain.items()
    }
    model = load_backbone(BackboneConfig(path, "none", dtype="float32"))
    for name, weight in model.state_dict().items():
        assert close(weight, expected[name], 1e-2 if "proj" in name else 0.0), name  # unpacked in bfloat16
    assert close(logits(path), logits(str(folders["qwen2"])), 0.1)
    model = load_backbone(BackboneConfig(path, "nf4", dtype="float32"))
    assert sum(is_4bit(m) for m in model.modules()) == LINEARS


@pytest.fixture
def four_bit(folders, tmp_path) -> str:
    """As bitsandbytes saves it, with bfloat16 to compute in."""
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folders["qwen2"], quantization_config=settings, device_map={"": "cpu"})
    model.save_pretrained(tmp_path / "four_bit")
    return str(tmp_path / "four_bit")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_4bit_checkpoint_computes_in_the_run_s_dtype(four_bit, dtype, quantization):
    model = load_backbone(BackboneConfig(four_bit, quantization, dtype=dtype))
    layers = [m for m in model.modules() if is_4bit(m)]
    assert len(layers) == LINEARS
    assert {m.compute_dtype for m in layers} == {getattr(torch, dtype)}
    policy = randomise_adapters(MixedPolicy(model, AdapterConfig(rank=4)))
    ids = tokens(2, 7)
    with policy.rollouts():
        drawn = policy(ids, Mixture.at(0.0))
    trained = policy(ids, Mixture.at(0.0))
    assert trained.dtype == drawn.dtype
    assert close(trained.detach().float(), drawn.float(), 1e-5 if dtype == "float32" else 0.05)
    trained.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.policy_parameters())


def test_a_4bit_checkpoint_in_float32_is_the_model_quantised_here(four_bit, folders):
    plain = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    here = AutoModelForCausalLM.from_pretrained(folders["qwen2"], quantization_config=plain, device_map={"": "cpu"})
    with torch.no_grad():
        assert close(logits(four_bit), portable_products(here)(tokens(2, 9)).logits, 0.02)


def test_an_8bit_checkpoint_is_used_as_it_is(folders, tmp_path, caplog):
    settings = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(folders["qwen2"], quantization_config=settings, device_map={"": "cpu"})
    model.save_pretrained(tmp_path / "eight_bit")
    found = logits(str(tmp_path / "eight_bit"), "nf4")
    expected = logits(str(folders["qwen2"]))
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05
    assert "inputs will be cast" not in caplog.text


def test_files_that_lack_a_weight_are_refused(checkpoint, folders):
    """transformers gives such a weight random values."""
    weights = load_file(folders["qwen2"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.layers.2.mlp.up_proj.weight"]
    path = checkpoint(None, weights)
    for quantization in ("none", "nf4"):
        with pytest.raises(ValueError, match=r"its files lack 2 weights, such as model.layers.1.mlp.up_proj.weight$"):
            load_backbone(BackboneConfig(path, quantization))


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"model_type": 3}', b'{"model_type": "qwen2", "hidden_size": "wide"}', b"[1]", b"\xff\xfe"]
)
def test_configurations_that_can_not_be_read_are_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="backbone") as error:
        load_backbone(BackboneConfig(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_and_no_weights_are_one_line(checkpoint, folders):
    weights = load_file(folders["qwen2"] / "model.safetensors")
    path = checkpoint(None, {**weights, "model.norm.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="can't be loaded") as error:
        load_backbone(BackboneConfig(path, "none"))
    assert "\n" not in str(error.value)
    (Path(path) / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="can't be loaded") as error:
        load_backbone(BackboneConfig(path, "none"))
    (Path(path) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="can't be loaded") as error:
        load_backbone(BackboneConfig(path, "none"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("model.embed_tokens"), "x: KeyError 'model.embed_tokens'; y"),
        (ModuleNotFoundError("No module named 'optimum'"), "x: No module named 'optimum'; y"),
        (RuntimeError("\n\n  first words\nmore"), "x: first words; y"),
        (AssertionError(), "x: AssertionError; y"),
    ],
)
def test_third_parties_errors_keep_their_words(error, line):
    with pytest.raises(ValueError, match=r"^x: ") as caught, one_line_errors("x", "; y"):
        raise error
    assert str(caught.value) == line
    assert caught.value.__cause__ is error


def test_bitsandbytes_is_silent_about_what_lmix_does_not_use(caplog):
    package = Path(bitsandbytes.__file__).parent
    for name, start in lmix.model.EXPECTED.items():
        source = package.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()
        assert f'"{start}' in source  # the words of the installed version
        logger = logging.getLogger(name)
        logger.warning(f"{start}: %s", "No module named 'kernels'")
        assert not caplog.records
        logger.warning("something else")
        assert caplog.messages == ["something else"]
        caplog.clear()


def test_the_filter_is_there_before_bitsandbytes_is_imported():
    """The module writes its line while it is imported, on CPUs with AVX512-BF16."""
    code = """
import logging, sys
name = "bitsandbytes.backends.cpu.ops"
class Finder:
    def find_spec(self, module, *_):
        if module == name:
            print(len(logging.getLogger(name).filters))
sys.meta_path.insert(0, Finder())
from lmix.cli.environment import quieten
quieten()
import lmix.model.mixed_policy, bitsandbytes
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["1"]
