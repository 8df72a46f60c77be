"""Adapters to and from plain peft, under the backbone as plain transformers loads it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from lmix.model.adapters import AdapterConfig, check_adapter
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from tests.conftest import ALL, make_policy, portable_products, tiny_model, tokens


def plain_backbone(folders: dict[str, Path], name: str) -> PreTrainedModel:
    """By transformers alone, NF4 as most people load it."""
    architecture, _, quantization = name.partition("-")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folders[architecture], dtype=torch.float32, quantization_config=nf4 if quantization else None, device_map="cpu"
    )
    return portable_products(model).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_a_saved_policy_has_the_same_logits_in_plain_peft(name, folders, tmp_path):
    policy = make_policy(name, folders)
    policy.save_policy(tmp_path / "policy")
    base = plain_backbone(folders, name)
    ids = tokens(2, 6)
    bare = base(input_ids=ids).logits
    plain = PeftModel.from_pretrained(base, str(tmp_path / "policy"))
    logits = plain(input_ids=ids).logits.float()
    assert torch.allclose(policy(ids, Mixture.at(0.0)), logits, atol=1e-5)
    assert (logits - bare).abs().max() > 1e-2


FOREIGN = {
    "some layers": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rank-stabilised": {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": "all-linear"},
    "ranks that differ": {
        "r": 4,
        "target_modules": "all-linear",
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"q_proj": 32},
    },
    "dropout, gaussian": {
        "r": 4,
        "lora_dropout": 0.1,
        "init_lora_weights": "gaussian",
        "target_modules": ["o_proj", "up_proj"],
    },
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_adapter_trained_in_plain_peft_is_a_reference_and_a_policy(kind, folders, tmp_path):
    torch.manual_seed(0)
    plain = get_peft_model(tiny_model("qwen2"), LoraConfig(task_type="CAUSAL_LM", **FOREIGN[kind]))
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], 0.02)
    ids = tokens(2, 8)
    for _ in range(3):
        plain.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    plain.save_pretrained(str(tmp_path / "theirs"))
    theirs = str(tmp_path / "theirs")
    check_adapter(theirs, str(folders["qwen2"]))
    with torch.no_grad():
        expected = plain.eval()(input_ids=ids).logits
        assert (expected - tiny_model("qwen2")(input_ids=ids).logits).abs().max() > 1e-2
        for alpha, adapters in ((1.0, AdapterConfig(reference=theirs)), (0.0, AdapterConfig(policy=theirs))):
            found = MixedPolicy(tiny_model("qwen2"), adapters)(ids, Mixture.at(alpha))
            assert torch.allclose(found, expected, atol=1e-5)
