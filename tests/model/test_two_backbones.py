"""Streams on two models, against plain models of transformers written out."""

import copy

import pytest
import torch

from lmix.functional import token_log_probs
from lmix.model.adapters import AdapterConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture, MixtureKind, row_mixtures
from lmix.model.stacked_model import StackedModel
from lmix.rollout.engine import Engine
from lmix.rollout.packing import pack
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw, flatten
from tests.conftest import ARCHITECTURES, VOCABULARY, close, make_policy, prompts, randomise_adapters, tokens

PAIRS = [
    ("qwen2", "llama"),
    ("gemma3", "llama"),  # its head is tied to the embeddings
    ("llama", "gemma3"),
    ("gemma2", "qwen2"),  # it caps its logits
    ("qwen2", "gemma2"),
    ("phi", "llama"),  # its head has a bias
]
PADDED = 8
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}


def model_of(name: str, seed: int, **changes) -> torch.nn.Module:
    """A random model, the same for the same arguments."""
    if name == "phi":
        from transformers import PhiConfig, PhiForCausalLM

        model_class, config = PhiForCausalLM, PhiConfig(**ARCHITECTURES["llama"][1].to_dict())
    else:
        model_class, config = ARCHITECTURES[name]
    config = copy.deepcopy(config)
    for field, value in changes.items():
        setattr(config, field, value)
    torch.manual_seed(seed)
    attention = "eager" if name == "gemma2" else "sdpa"
    model = model_class._from_config(config, attn_implementation=attention).eval()
    if name == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def other_model(name: str) -> torch.nn.Module:
    """Of another size than the policy's, with more rows for padding."""
    return model_of(name, 7, vocab_size=VOCABULARY + PADDED, **SIZES)


def policy_on_two(own: str, other: str, **adapters) -> MixedPolicy:
    streams = {"reference": None} if "experts" not in adapters else {"expert_1": None}
    policy = MixedPolicy(
        model_of(own, 1), AdapterConfig(rank=4, **adapters), others=[StackedModel(other_model(other), streams)]
    )
    return randomise_adapters(policy)


def written_out(policy: MixedPolicy, other: str, ids: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """Log-probabilities `[B, T, V]` of the mixture, from whole forward passes of both models: the slow twin."""
    z_policy = policy.backbone(input_ids=ids, use_cache=False).logits  # outside of a stacked pass, the policy's
    with torch.no_grad():
        z_other = other_model(other)(input_ids=ids, use_cache=False).logits[..., :VOCABULARY]
    if mixture.kind == "logits":
        return (mixture.weights[0] * z_policy + mixture.weights[1] * z_other).log_softmax(-1)
    return (mixture.weights[0] * z_policy.softmax(-1) + mixture.weights[1] * z_other.softmax(-1)).log()


@pytest.mark.parametrize("kind", ["logits", "probs"])
@pytest.mark.parametrize(("own", "other"), PAIRS)
def test_values_and_gradients_are_those_of_two_plain_models(own, other, kind: MixtureKind):
    policy, mixture = policy_on_two(own, other), Mixture.at(0.3, kind)
    ids, targets = tokens(3, 9), tokens(27, seed=5)
    expected = written_out(policy, other, ids, mixture).flatten(0, 1)
    assert close(policy(ids, mixture).log_softmax(-1).flatten(0, 1), expected)

    upstream = torch.randn(27, generator=torch.Generator().manual_seed(0))
    chosen = expected.gather(1, targets[:, None]).squeeze(1)
    slow = torch.autograd.grad((chosen * upstream).sum(), policy.policy_parameters())
    hidden_K = [policy.stream_hidden(ids, stream).flatten(0, 1) for stream in mixture.streams]
    found = policy.log_probs(hidden_K, targets, mixture, chunk=7)
    fast = torch.autograd.grad((found * upstream).sum(), policy.policy_parameters())
    assert close(found, chosen)
    for a, b in zip(fast, slow, strict=True):
        assert close(a, b)
    assert sum(float(gradient.abs().sum()) for gradient in fast) > 0


@pytest.mark.parametrize("weights", [(1.0, 1.0, -1.0), (0.5, 0.2, 0.3)])
@pytest.mark.parametrize(("own", "other"), [("qwen2", "llama"), ("gemma2", "qwen2"), ("phi", "llama")])
def test_three_streams_on_two_backbones(own, other, weights, folders):
    """The policy and its base share a backbone and one product of its head, the expert has another."""
    policy, mixture = policy_on_two(own, other, experts=["base"]), Mixture(weights)
    assert [part.streams for part in policy.parts(mixture.streams)] == [("policy", "reference"), ("expert_1",)]
    ids, targets = tokens(2, 8), tokens(16, seed=6)
    z_policy = policy.backbone(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        z_base = model_of(own, 1)(input_ids=ids, use_cache=False).logits
        z_other = other_model(other)(input_ids=ids, use_cache=False).logits[..., :VOCABULARY]
    expected = weights[0] * z_policy + weights[1] * z_base + weights[2] * z_other
    with torch.no_grad():
        assert close(policy(ids, mixture), expected)
    slow = token_log_probs(expected.flatten(0, 1), targets)
    hidden_K = [policy.stream_hidden(ids, stream).flatten(0, 1) for stream in mixture.streams]
    fast = policy.log_probs(hidden_K, targets, mixture, chunk=5)
    assert close(fast, slow)
    gradients = [torch.autograd.grad(value.sum(), policy.policy_parameters()) for value in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        assert close(a, b)


def drawn(policy, mixture, **arguments):
    asked = prompts(*(tokens(n, seed=n).tolist() for n in (9, 2, 5)))
    groups = Engine(policy, slots=4).generate(asked, Limits(12, (1, 2)), Draw(seed=0), mixture, 4, **arguments)
    return flatten(groups)


@pytest.mark.parametrize("kind", ["logits", "probs"])
@pytest.mark.parametrize(("own", "other"), [("qwen2", "gemma3"), ("gemma2", "llama")])
def test_sampled_log_probs_and_kept_hidden_states_are_those_of_whole_passes(own, other, kind: MixtureKind):
    """One cache a backbone, of other shapes; rows that leave and come."""
    policy, mixture = policy_on_two(own, other), Mixture.at(0.4, kind)
    rollouts = drawn(policy, mixture, keep_frozen=True)
    packed = pack(rollouts)
    with torch.no_grad():
        logits = written_out(policy, other, packed.input_ids, mixture).flatten(0, 1)[packed.predicts]
        hidden = policy.stream_hidden(packed.input_ids, "reference").flatten(0, 1)[packed.predicts]
    assert packed.frozen_hidden.keys() == {"reference"}
    assert hidden.shape[1] == SIZES["hidden_size"]
    assert close(packed.frozen_hidden["reference"], hidden, 1e-4)
    chosen = logits.gather(1, packed.targets[:, None]).squeeze(1)
    assert close(torch.cat([r.log_probs for r in rollouts]), chosen, 1e-4)


@torch.no_grad()
def test_one_mixture_a_row_is_that_of_each_row():
    policy = policy_on_two("qwen2", "llama")
    mixtures = [Mixture.at(alpha) for alpha in (0.0, 0.3, 1.0)]
    ids = tokens(3, 6)
    hidden_K = [hidden[:, -1] for hidden in policy.hidden(ids, ("policy", "reference"))]
    mixed = policy.mixed_logits(hidden_K, row_mixtures(mixtures))
    found = policy.log_probs(hidden_K, tokens(3, seed=1), row_mixtures(mixtures), chunk=2)
    for row, mixture in enumerate(mixtures):
        expected = policy(ids[row : row + 1], mixture)[0, -1]
        assert close(mixed[row], expected)
        assert close(found[row], expected.log_softmax(-1)[tokens(3, seed=1)[row]])


@pytest.mark.parametrize(("alpha", "runs"), [(0.0, [1, 0]), (1.0, [0, 1]), (0.5, [1, 1])])
def test_a_backbone_of_weight_0_is_not_run(alpha, runs, monkeypatch):
    policy = policy_on_two("qwen2", "llama")
    passes = [0, 0]

    def counted(place, function):
        def hidden(*arguments, **others):
            passes[place] += 1
            return function(*arguments, **others)

        return hidden

    for place, model in enumerate(policy.models):
        monkeypatch.setattr(model, "hidden", counted(place, model.hidden))
    rollouts = drawn(policy, Mixture.at(alpha))
    assert [bool(count) for count in passes] == [bool(run) for run in runs]
    assert all(r.completion_ids for r in rollouts)
    ids = tokens(2, 5)
    alone = policy.backbone if alpha == 0.0 else other_model("llama")
    if alpha != 0.5:
        with torch.no_grad():
            expected = alone(input_ids=ids, use_cache=False).logits[..., :VOCABULARY]
            assert torch.allclose(policy(ids, Mixture.at(alpha)), expected, atol=1e-6)


def test_a_policy_on_one_backbone_is_not_touched_by_another(folders):
    """Streams of the policy's backbone draw the same tokens, bit for bit, whether or not another model is there."""
    alone = make_policy("qwen2", folders)
    adapters = AdapterConfig(reference=str(folders["qwen2-sft"]), rank=4, experts=["base"])
    other = StackedModel(other_model("llama"), {"expert_1": None})
    both = randomise_adapters(MixedPolicy(model_of("qwen2", 1), adapters, others=[other]))
    expected, found = drawn(alone, Mixture.at(0.3)), drawn(both, Mixture((0.7, 0.3, 0.0)))
    for a, b in zip(found, expected, strict=True):
        assert a.completion_ids == b.completion_ids
        assert torch.equal(a.log_probs, b.log_probs)
