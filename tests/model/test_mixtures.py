"""Mixtures beyond the paper: the shipped configurations against their papers' formulas."""

from pathlib import Path

import pytest
import torch
import yaml

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture, mixture_of
from tests.conftest import close, randomise_adapters, tokens

CONFIGS = Path(__file__).parents[2] / "configs" / "methods"
# the streams are policy, reference and the expert
FORMULAS = {
    "dexperts": lambda base, expert, anti: base + 1.0 * (expert - anti),
    "contrastive": lambda expert, amateur: (1.0 + 0.5) * expert - 0.5 * amateur,
    "proxy_tuning": lambda model, tuned, untuned: model + (tuned - untuned),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])  # mixed before the head, and after a cap on the logits
def test_a_configuration_is_its_paper_s_formula(name, architecture, folders):
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]
    sft = str(folders[f"{architecture}-sft"])
    given = settings.get("adapters", {})
    experts = given.get("experts", [sft] if name == "dexperts" else [])
    adapters = AdapterConfig(given.get("reference", sft), experts=experts, rank=4)
    policy = MixedPolicy.from_pretrained(
        BackboneConfig(str(folders[architecture]), "none", dtype="float32"),
        adapters,
    )
    randomise_adapters(policy, scale=0.05)
    mixture = mixture_of(0.5, settings["mixture"], settings["weights"], adapters.streams)
    ids, streams = tokens(2, 7), len(mixture.weights)
    with torch.no_grad():
        mixed = policy(ids, mixture).log_softmax(-1)
        alone = [policy(ids, Mixture(tuple(float(k == j) for j in range(streams)))) for k in range(streams)]
    assert close(mixed, FORMULAS[name](*alone).log_softmax(-1), 1e-4)
    assert not close(mixed, alone[0].log_softmax(-1), 1e-2)
