"""Whole models as streams, found by looking at their paths."""

import json
import shutil

import pytest
import torch

from lmix.inspection.completer import Completer
from lmix.inspection.config import MixedPolicyChoice
from lmix.inspection.export import export
from lmix.model import backbone as backbone_module
from lmix.model import placement
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.nf4 import is_4bit
from lmix.model.placement import place_streams
from lmix.model.sources import load_config, resolve
from tests.conftest import close, folders, randomise_adapters  # noqa: F401
from tests.model.tokenizers import copy_of_embedded
from tests.model.whole import BASE, SFT, without_weights

BACKBONE = BackboneConfig(BASE, "none", dtype="float32")
IDS = torch.randint(4, 60, (3, 12), generator=torch.Generator().manual_seed(0))


def load(reference=None, **others) -> MixedPolicy:
    adapters = AdapterConfig(**{"reference": reference, "rank": 4, "frozen_quantization": "none", **others})
    return MixedPolicy.from_pretrained(BACKBONE, adapters)


def test_what_a_path_is_is_found_by_looking(merged, small):
    adapters = AdapterConfig(SFT, experts=["base", merged, small, BASE, "Qwen/Qwen2.5-7B-Instruct"])
    own, *others = place_streams(BACKBONE, adapters)
    assert own.adapters == {"policy": None, "reference": resolve(SFT) and SFT, "expert_1": None, "expert_4": None}
    assert own.backbone is not None
    assert own.backbone == BACKBONE
    assert [(other.backbone.path, list(other.adapters)) for other in others] == [
        (merged, ["expert_2"]),
        (small, ["expert_3"]),
        ("Qwen/Qwen2.5-7B-Instruct", ["expert_5"]),
    ]
    assert {other.backbone.quantization for other in others} == {"nf4"}
    # the same place by another spelling is loaded once
    (_, twice) = place_streams(BACKBONE, AdapterConfig(merged, experts=[f"{merged}/../sft"]))
    assert list(twice.adapters) == ["reference", "expert_1"]


@torch.no_grad()
def test_the_sft_adapter_merged_into_a_whole_model_is_the_same_reference(merged):
    as_adapter, as_model = load(SFT), load(merged)
    assert [part.streams for part in as_model.parts(("policy", "reference"))] == [("policy",), ("reference",)]
    for mixture in (Mixture.at(0.5), Mixture.at(0.5, "probs"), Mixture.at(1.0)):
        expected = as_adapter(IDS, mixture).log_softmax(-1)
        assert close(as_model(IDS, mixture).log_softmax(-1), expected, 1e-5)
    assert not close(as_model(IDS, Mixture.at(0.0)), as_model(IDS, Mixture.at(1.0)), 1e-2)


def test_a_whole_model_has_a_quantisation_of_its_own(merged):
    for name, four_bit in (("nf4", True), ("none", False)):
        policy = load(merged, frozen_quantization=name)
        assert not any(is_4bit(module) for module in policy.models[0].model.modules())
        assert any(is_4bit(module) for module in policy.models[1].model.modules()) == four_bit
        with policy.rollouts():  # a copy of all models, dequantised or packed
            assert policy.dense_rollouts is not None
            assert all(m.dense is not None or m.packed is not None for m in policy.modules() if is_4bit(m))


@torch.no_grad()
def test_a_policy_that_starts_at_a_whole_model_is_that_model(merged):
    """A new adapter on it; `base` and adapters stay those of backbone.path."""
    policy, plain = load(SFT, policy=merged, experts=["base"]), load(SFT)
    assert [part.streams for part in policy.parts(policy.stream_names)] == [("policy",), ("reference", "expert_1")]
    for mixture, expected in (
        (Mixture((1.0, 0.0, 0.0)), Mixture.at(1.0)),
        (Mixture((0.0, 1.0, 0.0)), Mixture.at(1.0)),
        (Mixture((0.0, 0.0, 1.0)), Mixture.at(0.0)),
    ):
        assert close(policy(IDS, mixture), plain(IDS, expected), 1e-5)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(".policy." in name and name.startswith("peft_model.") for name in trained)
    # with its own model as the reference there is one model, and one pass
    one = load(merged, policy=merged)
    assert [part.streams for part in one.parts(("policy", "reference"))] == [("policy", "reference")]


@torch.no_grad()
def test_padded_widths_are_cut_to_what_both_have(small):
    policy = randomise_adapters(load(small))
    rows = load_config(BASE).vocab_size
    assert load_config(small).vocab_size == rows + 8
    for alpha in (0.0, 0.5, 1.0):
        assert policy(IDS, Mixture.at(alpha)).shape[-1] == rows
    wide = load(BASE, policy=small)  # the policy's is the wider one
    assert wide(IDS, Mixture.at(0.0)).shape[-1] == rows


def other_tokens(folder):
    """The embedded model's files with two tokens swapped."""
    copy_of_embedded(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.get)
    first, second = ordered[10], ordered[20]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    return str(folder), first


def encoder(folder):
    copy_of_embedded(folder)
    fields = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 128}
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def both_kinds(folder):
    copy_of_embedded(folder)
    shutil.copy(f"{resolve(SFT)}/adapter_config.json", folder)
    return str(folder)


def few_rows(folder):
    without_weights(BASE, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 20}))
    return str(folder)


def exported(folder):
    (folder).mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "lmix_mixed_policy"}))
    return str(folder)


@pytest.mark.parametrize("field", ["reference", "experts"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: other_tokens(folder)[0],
            r"has another vocabulary than 'lmix:tiny-arithmetic': '.+' is \d+ there and is",
        ),
        (encoder, "is a BertForMaskedLM, not a causal language model"),
        (both_kinds, r"contains both an adapter \(adapter_config.json\) and a model \(config.json\)"),
        (few_rows, "has 20 embeddings, too few for the 96 tokens"),
        (exported, "is a mixed policy that lmix export wrote|can't be read"),
        (lambda _: "no/such-model", "can't be read"),
        (lambda _: "./nowhere", "adapter './nowhere' does not exist"),
        (lambda folder: f"{folder}.gguf", "does not exist: give the path of a .gguf file"),
    ],
)
def test_mistakes_are_one_line_before_weights_are_read(field, make, message, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone_module.AutoModelForCausalLM, "from_pretrained", None)
    path = make(tmp_path / "x")
    given = {"reference": path} if field == "reference" else {"experts": [path]}
    with pytest.raises(ValueError, match=message) as error:
        MixedPolicy.from_pretrained(BACKBONE, AdapterConfig(**given))
    assert len(str(error.value).splitlines()) == 1
    assert f"adapters.{field}" in str(error.value) or path == "./nowhere"


def test_the_first_differing_token_is_named(tmp_path):
    path, first = other_tokens(tmp_path / "x")
    with pytest.raises(ValueError, match="has another vocabulary") as error:
        load(path)
    assert f": {first!r} is 10 there and is 20 here" in str(error.value)


def test_models_that_do_not_fit_are_refused_before_weights_are_read(small, monkeypatch):
    monkeypatch.setattr(backbone_module.AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr(placement, "free_memory", lambda device: 1000)
    with pytest.raises(
        ValueError, match=r"^the models' weights need 0.00\d+ GB \(lmix:tiny-arithmetic .* but cpu has 1e-06 GB"
    ):
        load(small)


def test_generate_draws_from_two_models_and_export_says_what_it_can_t(small, tmp_path):
    adapters = AdapterConfig(small, rank=4, frozen_quantization="none")
    choice = MixedPolicyChoice(backbone=BACKBONE, adapters=adapters, alpha=0.5)
    model = choice.load()
    completer = Completer(model, max_new_tokens=8, greedy=True)
    asked = completer.prompt([{"role": "user", "content": "1 + 2 ="}])
    (rollout,) = completer.complete([asked])
    ids = torch.tensor([asked.ids])
    by_transformers = model.generate(ids, do_sample=False, max_new_tokens=8)[0, len(asked.ids) :]
    assert by_transformers.tolist() == rollout.completion_ids
    assert model.generate(ids, do_sample=False, num_beams=3, max_new_tokens=4).shape[0] == 1
    with pytest.raises(ValueError, match=r"export writes adapters of backbone.path 'lmix:tiny-arithmetic', but "):
        export(str(tmp_path / "out"), backbone=BACKBONE, adapters=adapters)
    with pytest.raises(ValueError, match=r"but adapters.reference is a whole model: turn it into an adapter"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
