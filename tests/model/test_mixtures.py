"""Mixtures beyond the paper: the shipped configurations against their papers' formulas."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture, mixture_of, row_mixtures, stream_names
from lmix.model.stacked_model import StackedModel
from lmix.rollout.engine import Engine
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw, flatten
from tests.conftest import close, prompts, randomise_adapters, tokens
from tests.model.test_two_backbones import SIZES, model_of

CONFIGS = Path(__file__).parents[2] / "configs"
# the streams are policy, reference and the expert
FORMULAS = {
    "dexperts": lambda base, expert, anti: base + 1.0 * (expert - anti),
    "contrastive": lambda expert, amateur: (1.0 + 0.5) * expert - 0.5 * amateur,
    "proxy_tuning": lambda large, tuned, untuned: large + (tuned - untuned),
    "ensemble": lambda one, two, three: 0.5 * one + 0.25 * two + 0.25 * three,
}


def settings_of(name: str) -> dict:
    return yaml.safe_load((CONFIGS / f"methods/{name}.yaml").read_text())["model"]["init_args"]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])  # mixed before the head, and after a cap on the logits
def test_a_configuration_is_its_paper_s_formula_on_one_backbone(name, architecture, folders):
    settings = settings_of(name)
    sft = str(folders[f"{architecture}-sft"])
    given = settings.get("adapters", {})
    adapters = AdapterConfig(given.get("reference", sft), experts=["base"] * (len(settings["weights"]) - 2), rank=4)
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


def separate_models(own: str, other: str, streams: int) -> tuple[MixedPolicy, list[torch.nn.Module]]:
    """A policy whose frozen streams are models of their own, of another architecture and size; and plain copies."""
    names = stream_names(streams)[1:]
    frozen = [model_of(other, 10 + k, **SIZES) for k in range(len(names))]
    others = [StackedModel(model, {name: None}) for model, name in zip(frozen, names, strict=True)]
    adapters = AdapterConfig(experts=["base"] * (streams - 2), rank=4)
    policy = MixedPolicy(model_of(own, 1), adapters, others=others)
    return randomise_adapters(policy), [model_of(other, 10 + k, **SIZES) for k in range(len(names))]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("own", "other"), [("qwen2", "llama"), ("llama", "qwen2")])
def test_a_configuration_is_its_paper_s_formula_with_separate_models(name, own, other):
    """In value, and in the gradient of what is trained."""
    settings = settings_of(name)
    mixture = mixture_of(0.5, settings["mixture"], settings["weights"], len(settings["weights"]))
    policy, frozen = separate_models(own, other, len(mixture.weights))
    ids, targets = tokens(2, 7), tokens(14, seed=3)
    z_policy = policy.backbone(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        others = [model(input_ids=ids, use_cache=False).logits for model in frozen]
    expected = FORMULAS[name](z_policy, *others).log_softmax(-1)
    assert close(policy(ids, mixture).log_softmax(-1), expected, 1e-5)
    chosen = expected.flatten(0, 1).gather(1, targets[:, None]).squeeze(1)
    hidden_K = [policy.stream_hidden(ids, stream).flatten(0, 1) for stream in mixture.streams]
    found = policy.log_probs(hidden_K, targets, mixture)
    gradients = [torch.autograd.grad(value.sum(), policy.policy_parameters()) for value in (found, chosen)]
    for a, b in zip(*gradients, strict=True):
        assert close(a, b)


def plausible(expert: torch.Tensor, threshold: float) -> torch.Tensor:
    """V_head of Li et al., eq. 3, written out."""
    probabilities = expert.softmax(-1)
    return probabilities >= threshold * probabilities.max(-1, keepdim=True).values


@torch.no_grad()
@pytest.mark.parametrize(("own", "other"), [("qwen2", "llama"), ("gemma2", "qwen2")])
def test_contrastive_decoding_with_its_threshold(own, other):
    settings = yaml.safe_load((CONFIGS / "evaluation/contrastive.yaml").read_text())
    weights = settings["weights"]
    assert [*weights, settings["plausibility"]] == [1.5, -0.5, 0.1]
    mixture = Mixture(tuple(weights), plausibility=settings["plausibility"])
    policy, (amateur,) = separate_models(own, other, 2)

    def expected(ids: torch.Tensor) -> torch.Tensor:
        z_expert = policy.backbone(input_ids=ids, use_cache=False).logits
        z_amateur = amateur(input_ids=ids, use_cache=False).logits
        allowed = plausible(z_expert, 0.1)
        return (1.5 * z_expert - 0.5 * z_amateur).masked_fill(~allowed, -math.inf)

    ids = tokens(3, 9)
    found, wanted = policy(ids, mixture), expected(ids)
    assert torch.equal(found.isinf(), wanted.isinf())
    assert 0 < found.isinf().sum() < found.numel()
    assert close(found[~found.isinf()], wanted[~wanted.isinf()], 1e-5)
    hidden_K = [hidden[:, -1] for hidden in policy.hidden(ids, mixture.streams)]
    rows = policy.mixed_logits(hidden_K, row_mixtures([mixture] * 3))
    assert torch.equal(rows.isinf(), found[:, -1].isinf())

    asked = prompts(tokens(4, seed=1).tolist(), tokens(7, seed=2).tolist())
    greedy = flatten(Engine(policy).generate(asked, Limits(8, (1,)), Draw(greedy=True), mixture))
    for prompt, rollout in zip(asked, greedy, strict=True):
        row = list(prompt.ids)
        for token in rollout.completion_ids:
            assert token == int(expected(torch.tensor([row]))[0, -1].argmax())
            row.append(token)
    for rollout in flatten(Engine(policy).generate(asked, Limits(8, (1,)), Draw(seed=2), mixture, samples=8)):
        row = torch.tensor([[*rollout.prompt.ids, *rollout.completion_ids]])
        of_tokens = expected(row)[0, len(rollout.prompt.ids) - 1 : -1].log_softmax(-1)
        chosen = of_tokens.gather(1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(1)
        assert close(rollout.log_probs, chosen, 1e-4)  # finite: nothing implausible is drawn


def test_the_threshold_is_refused_where_it_has_no_meaning():
    with pytest.raises(ValueError, match=r"plausibility must lie in \[0, 1\], not 1.5"):
        Mixture((1.5, -0.5), plausibility=1.5)
    with pytest.raises(ValueError, match="requires a nonzero policy weight"):
        Mixture((0.0, 1.0), plausibility=0.1)
    with pytest.raises(ValueError, match="must agree in kind"):
        row_mixtures([Mixture((1.0, 0.5)), Mixture((1.0, 0.5), plausibility=0.1)])
    policy, _ = separate_models("qwen2", "llama", 2)
    mixture = Mixture((1.5, -0.5), plausibility=0.1)
    hidden_K = [policy.stream_hidden(tokens(1, 4), stream)[0] for stream in (POLICY, "reference")]
    with pytest.raises(ValueError, match=r"^plausibility 0.1 is for evaluation and generation: in training the ratio"):
        policy.log_probs(hidden_K, tokens(4), mixture)
