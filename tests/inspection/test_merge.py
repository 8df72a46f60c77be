"""Adapters averaged in weight space, as an adapter and as a full checkpoint; and what a folder says that it is."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmix import cli
from lmix.inspection.merge import merge
from lmix.model.adapters import AdapterConfig, add_adapters, read_adapter, save_adapter
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.sources import load_config, resolve
from lmix.model.streams import StreamRouter
from tests.conftest import close, tiny_model, tokens
from tests.model.tokenizers import copy_of_embedded

TINY, SFT = "lmix:tiny-arithmetic", "lmix:tiny-arithmetic-sft"


def adapter(folder, architecture="qwen2", seed=5, **settings) -> str:
    """A random adapter of a tiny model."""
    config = AdapterConfig(**{"rank": 3, "lora_alpha": 9, **settings})
    model = add_adapters(tiny_model(architecture), config, {}, StreamRouter())
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(model, "policy", folder)  # pyright: ignore[reportArgumentType]
    return str(folder)


def with_tokenizer(model, folder) -> str:
    """A copy of a model's folder, with the embedded model's tokenizer."""
    copy_of_embedded(folder)
    shutil.copytree(model, folder, dirs_exist_ok=True)
    return str(folder)


def deltas(path: str, base: str) -> dict[str, torch.Tensor]:
    """What plain peft adds to each of the base's weights."""
    plain = AutoModelForCausalLM.from_pretrained(resolve(base), dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    merged = PeftModel.from_pretrained(plain, resolve(path)).merge_and_unload()
    return {name: p.detach() - before[name] for name, p in merged.named_parameters()}


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_the_average_is_exact_as_an_adapter_and_as_a_full_checkpoint(architecture, folders, tmp_path):
    """Rank 3 + 4: what plain peft adds is the average of what it adds for each, and both folders give its logits."""
    base, other = with_tokenizer(folders[architecture], tmp_path / "base"), str(folders[f"{architecture}-sft"])
    own = adapter(tmp_path / "own", architecture)
    found = merge(base, own, str(tmp_path / "lora"), reference=other, alpha=0.3)
    assert found == {"rank": 7, "error": 0.0}
    of_own, of_other, of_both = (deltas(path, base) for path in (own, other, str(tmp_path / "lora")))
    for name, change in of_both.items():
        assert close(change, 0.7 * of_own[name] + 0.3 * of_other[name], 1e-6)
    assert any(change.abs().max() > 0.1 for change in of_both.values())

    merge(base, own, str(tmp_path / "full"), reference=other, alpha=0.3, full=True)
    policy = MixedPolicy.from_pretrained(
        BackboneConfig(base, "none", dtype="float32"), AdapterConfig(policy=str(tmp_path / "lora"))
    )
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32)
    with torch.no_grad():
        expected = policy(tokens(2, 9), Mixture.at(0.0))
        assert close(full(tokens(2, 9)).logits, expected, 1e-5)
    origin = json.loads((tmp_path / "full" / "lmix.json").read_text())
    assert origin["way"] == "merged"
    assert origin["weights"] == {"policy": 0.7, "reference": 0.3}
    assert origin["details"] == {"rank": 7, "error": 0.0, "full": True}


def test_a_cut_leaves_the_error_it_says(folders, tmp_path, capsys):
    base, own, other = str(folders["qwen2"]), adapter(tmp_path / "own"), adapter(tmp_path / "other", seed=6)
    error = merge(base, own, str(tmp_path / "cut"), reference=other, rank=4)["error"]
    merge(base, own, str(tmp_path / "whole"), reference=other)
    cut, whole = deltas(str(tmp_path / "cut"), base), deltas(str(tmp_path / "whole"), base)
    left = sum(float((whole[name] - cut[name]).double().square().sum()) for name in whole)
    norm = sum(float(w.double().square().sum()) for w in whole.values())
    assert error == pytest.approx((left / norm) ** 0.5, rel=1e-4)
    assert 0.05 < error < 0.9
    assert read_adapter(str(tmp_path / "cut"))[0].r == 4
    assert f"rank 4: relative error {error:.3g}" in capsys.readouterr().out
    merge(base, own, str(tmp_path / "cut"), reference=own, rank=3)  # the same twice has its own rank; written over
    same = deltas(str(tmp_path / "cut"), base)
    assert all(close(same[name], change, 1e-5) for name, change in deltas(own, base).items())


def test_one_adapter_alone_an_ensemble_and_the_base_as_reference(folders, tmp_path):
    base, own, other = str(folders["qwen2"]), adapter(tmp_path / "own"), adapter(tmp_path / "other", seed=6)
    of_own, of_other = deltas(own, base), deltas(other, base)
    for settings, weights in (
        ({}, (1.0, 0.0)),
        ({"reference": "base", "alpha": 0.25}, (0.75, 0.0)),
        ({"reference": "base", "experts": [other], "weights": [1.0, 1.0, -1.0]}, (1.0, -1.0)),
    ):
        merge(base, own, str(tmp_path / "out"), **settings)
        for name, change in deltas(str(tmp_path / "out"), base).items():
            assert close(change, weights[0] * of_own[name] + weights[1] * of_other[name], 1e-6)


def test_ranks_by_layer_and_rslora_keep_their_scales(folders, tmp_path):
    """peft's own folder with another rank and scale in some layers."""
    base = str(folders["qwen2"])
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"q_proj": 3},
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(4)
    model = PeftModel(tiny_model("qwen2"), config)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(tmp_path / "own"))
    other = adapter(tmp_path / "other", target_modules=["q_proj", "down_proj"])
    merge(base, str(tmp_path / "own"), str(tmp_path / "out"), reference=other)
    of_own, of_other = deltas(str(tmp_path / "own"), base), deltas(other, base)
    for name, change in deltas(str(tmp_path / "out"), base).items():
        assert close(change, 0.5 * of_own[name] + 0.5 * of_other[name], 1e-6)


@pytest.mark.parametrize(
    ("policy", "reference", "named"),
    [
        (["q_proj", "v_proj"], ["q_proj", "down_proj"], {"q_proj", "v_proj", "down_proj"}),
        (["model.layers.0.mlp.down_proj"], ["q_proj"], None),  # one layer's, which only its whole name says
    ],
)
def test_a_layer_that_one_adapter_lacks_counts_as_zero(policy, reference, named, folders, tmp_path):
    base = str(folders["qwen2"])
    own = adapter(tmp_path / "own", target_modules=policy)
    other = adapter(tmp_path / "other", seed=6, rank=4, target_modules=reference)
    merge(base, own, str(tmp_path / "out"), reference=other, alpha=0.25)
    of_own, of_other = deltas(own, base), deltas(other, base)
    for name, change in deltas(str(tmp_path / "out"), base).items():
        assert close(change, 0.75 * of_own[name] + 0.25 * of_other[name], 1e-6)
    if named is not None:
        assert set(read_adapter(str(tmp_path / "out"))[0].target_modules) == named


def test_a_head_tied_to_the_embeddings_is_untied_where_it_is_adapted(folders, tmp_path):
    base = with_tokenizer(folders["gemma3"], tmp_path / "base")
    own = adapter(tmp_path / "own", "gemma3", target_modules=["q_proj", "lm_head"])
    merge(base, own, str(tmp_path / "full"), full=True)
    policy = MixedPolicy.from_pretrained(BackboneConfig(base, "none", dtype="float32"), AdapterConfig(policy=own))
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32)
    with torch.no_grad():
        assert close(full(tokens(2, 9)).logits, policy(tokens(2, 9), Mixture.at(0.0)), 1e-5)


def test_a_full_checkpoint_has_tokenizer_dtype_and_end_tokens(tmp_path):
    merge(TINY, SFT, str(tmp_path / "full"), full=True, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "full")
    ends = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    ids = tokenizer("Tom has 5 apples.", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, ids.shape[1] + 4)
    merge(TINY, SFT, str(tmp_path / "full"), full=True)  # written over, in the base's own dtype
    assert load_config(str(tmp_path / "full")).dtype == load_config(TINY).dtype


def test_export_says_which_way_a_folder_is(tmp_path, capsys):
    flags = ["--backbone.quantization=none", "--backbone.dtype=float32"]
    merge(TINY, SFT, str(tmp_path / "merged"), reference="base", alpha=0.5)
    capsys.readouterr()
    for given, way in (
        ([f"--adapters.reference={SFT}", "--alpha=0.25"], "mixture, policy 0.75, reference 0.25"),
        ([f"--adapters.policy={tmp_path}/merged", "--alpha=0"], "merged, policy 0.5, reference 0.5"),
    ):
        assert cli.main(["export", f"--out={tmp_path}/model", *flags, *given]) == 0
        assert capsys.readouterr().out.strip() == f"{tmp_path}/model: {way}"
        assert json.loads((tmp_path / "model" / "lmix.json").read_text())["way"] == way.split(",")[0]
    (tmp_path / "merged" / "lmix.json").write_text("{")
    assert cli.main(["export", f"--out={tmp_path}/x", *flags, f"--adapters.policy={tmp_path}/merged", "--alpha=0"]) == 1
    assert "lmix.json' is damaged" in capsys.readouterr().err


def test_mistakes_are_one_line(folders, tmp_path, capsys, merged):
    own = adapter(tmp_path / "own")
    wide = adapter(tmp_path / "wide", rank=5)
    (tmp_path / "taken").mkdir()
    base, out = str(folders["qwen2"]), f"--out={tmp_path}/x"
    for given, message in (
        ([f"--policy={own}", f"--reference={SFT}"], f"adapter '{SFT}' does not fit backbone"),
        (
            [f"--policy={own}", f"--reference={wide}", "--rank=9"],
            "rank must be from 1 to 8, not 9 (8, the sum of the adapters'",
        ),
        ([f"--policy={own}", f"--reference={wide}", "--rank=0"], "rank must be from 1 to 8"),
        ([f"--policy={own}", f"--reference={merged}"], "is a whole model: turn it into an adapter with lmix delta"),
        ([f"--policy={merged}"], f"policy '{merged}' is a whole model"),
        (["--policy=base"], "policy and reference are the base itself"),
        ([f"--policy={own}", "--alpha=0.5"], "reference is null, but alpha, weights and experts need one"),
        ([f"--policy={own}", f"--reference={wide}", "--alpha=2"], "alpha must lie in [0, 1], not 2"),
        ([f"--policy={own}", f"--reference={wide}", "--weights=[1]"], "weights must be 2 numbers, not [1.0]"),
        ([f"--policy={own}", "--dtype=bfloat16"], "dtype bfloat16 applies only to a full checkpoint"),
        ([f"--policy={tmp_path}/nowhere"], "nowhere' does not exist: give an adapter folder"),
        ([f"--policy={own}", f"--out={tmp_path}/taken"], "exists and is not an adapter written by merge"),
        ([f"--policy={own}", f"--out={own}"], "exists and is not an adapter written by merge"),
        ([f"--policy={own}", "--full=true", "--base=a.gguf"], "base 'a.gguf' is quantised by its .gguf format"),
        (
            [f"--policy={own}", "--full=true", f"--out={tmp_path}/taken"],
            "exists and is not a full checkpoint written by merge",
        ),
    ):
        assert cli.main(["merge", f"--base={base}", out, *given]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
