import pytest
import torch

from lmix.functional import mix_streams, mix_streams_log_probs, token_log_probs
from lmix.model.adapters import AdapterConfig
from lmix.model.head import Head
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, REFERENCE, Mixture, row_mixtures
from lmix.rollout.engine import Engine
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw
from tests.conftest import MIXED, PROBS, SHAPE, close, make_policy, prompts, randomise_adapters, tiny_model, tokens


def separate_logits(policy, ids):
    """Each stream's logits by two passes of the whole model with peft's own forward of one adapter: the slow twin."""
    with torch.no_grad():
        out = []
        for stream in (POLICY, REFERENCE):
            with policy.models[0].router.stacked((stream,)):
                out.append(policy.backbone(input_ids=ids, use_cache=False).logits.float())
    return out


@torch.no_grad()
def test_the_stacked_pass_equals_two_separate_passes(policy):
    ids = tokens(3, 9)
    stacked = policy.hidden(ids, (POLICY, REFERENCE))
    for k, stream in enumerate((POLICY, REFERENCE)):
        assert torch.allclose(stacked[k], policy.hidden(ids, (stream,))[0], atol=1e-5)
    assert (stacked[0] - stacked[1]).abs().max() > 1e-2  # the streams do differ


@torch.no_grad()
def test_mixed_logits_equal_the_mixture_of_both_streams_logits(policy):
    ids = tokens(3, 9)
    expected = mix_streams(separate_logits(policy, ids), [0.7, 0.3])
    assert torch.allclose(policy(ids, MIXED), expected, atol=1e-5)


@torch.no_grad()
def test_hidden_state_mixing_equals_logit_mixing(policy, monkeypatch):
    ids = tokens(2, 7)
    fast = policy(ids, MIXED)
    monkeypatch.setattr(Head, "mixes_hidden", lambda *_: False)
    assert torch.allclose(policy(ids, MIXED), fast, atol=1e-5)


def test_hidden_states_are_not_mixed_where_that_is_not_exact(folders):
    assert make_policy("qwen2", folders).models[0].head.mixes_hidden(weights_sum_to_one=False)
    assert not make_policy("gemma2", folders).models[0].head.mixes_hidden(weights_sum_to_one=True)  # soft-capped
    adapters = AdapterConfig(rank=2, target_modules=["q_proj", "lm_head"])
    assert not MixedPolicy(tiny_model("qwen2"), adapters).models[0].head.mixes_hidden(weights_sum_to_one=True)


@torch.no_grad()
@pytest.mark.parametrize(("alpha", "stream"), [(0.0, POLICY), (1.0, REFERENCE)])
def test_alpha_0_and_1_run_one_stream_and_are_that_stream_bit_for_bit(policy, alpha, stream):
    ids = tokens(2, 8)
    for kind in ("logits", "probs"):
        mixture = Mixture.at(alpha, kind)
        assert mixture.streams == (stream,)
        alone = policy.head.logits(policy.hidden(ids, (stream,))[0], stream).float()
        assert torch.equal(policy(ids, mixture), alone)


@torch.no_grad()
def test_probability_mixture(folders):
    for name in ("qwen2", "gemma2"):
        policy = make_policy(name, folders)
        ids = tokens(2, 6)
        policy_logits, reference_logits = separate_logits(policy, ids)
        expected = mix_streams_log_probs([z.log_softmax(-1) for z in (policy_logits, reference_logits)], [0.7, 0.3])
        assert torch.allclose(policy(ids, PROBS), expected, atol=1e-5)


def test_log_probs_equal_the_full_softmax_in_value_and_gradient(policy):
    ids, targets = tokens(3, 8), tokens(24, seed=5)
    hidden = [policy.stream_hidden(ids, stream).flatten(0, 1) for stream in MIXED.streams]
    fast = policy.log_probs(hidden, targets, MIXED, chunk=7)
    upstream = torch.randn(24, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((fast * upstream).sum(), policy.policy_parameters())

    slow = token_log_probs(policy(ids, MIXED).flatten(0, 1), targets)
    expected = torch.autograd.grad((slow * upstream).sum(), policy.policy_parameters())
    assert torch.allclose(fast, slow, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert close(a, b)


def test_log_probs_with_a_lora_on_the_head_train_it(folders):
    adapters = AdapterConfig(rank=2, target_modules=["q_proj", "lm_head"])
    policy = randomise_adapters(MixedPolicy(tiny_model("qwen2"), adapters))
    mixture = Mixture.at(0.4)
    ids, targets = tokens(2, 5), tokens(10, seed=1)
    hidden = [policy.stream_hidden(ids, stream).flatten(0, 1) for stream in mixture.streams]
    policy.log_probs(hidden, targets, mixture, chunk=3).sum().backward()
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    token_log_probs(policy(ids, mixture).flatten(0, 1), targets).sum().backward()
    assert any("lm_head" in name for name in found)
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            assert close(parameter.grad, found[name]), name


def test_only_the_policy_gets_a_gradient(policy):
    policy(tokens(2, 6), MIXED).square().sum().backward()
    got = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got
    assert all(f".{POLICY}." in name for name in got)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert got == trainable


@pytest.mark.parametrize("name", ["qwen2-nf4", "llama-nf4", "qwen2", "llama"])
def test_gradients_are_the_same_before_and_after_generating(folders, name):
    """bitsandbytes repacks 4-bit weights in an inference pass on some CPUs, and then gives no gradient."""
    policy = make_policy(name, folders)
    ids = tokens(2, 6)

    def gradients():
        return torch.autograd.grad(policy(ids, MIXED).logsumexp(-1).sum(), policy.policy_parameters())

    before = gradients()
    for dense in (True, False):
        policy.dense_rollouts = dense
        groups = Engine(policy).generate(prompts([4, 5, 6], [7]), Limits(4, (1,)), Draw(seed=1), MIXED, samples=2)
        assert all(r.completion_ids for group in groups for r in group.rollouts)
    with torch.no_grad():
        policy(tokens(1, 1), MIXED)  # one row, for which bitsandbytes has other kernels
    for a, b in zip(before, gradients(), strict=True):
        assert torch.equal(a, b)
        assert a.abs().sum() > 0
    for layer in policy.modules():
        assert getattr(layer, "dense", None) is None  # the rollouts' copy is freed
        # this machine need not have the kernel that gives no gradient
        assert not getattr(layer, "support_avx512bf16_for_cpu", False)


def test_activation_checkpointing_changes_no_gradient_and_leaves_the_cache_alone(folders):
    plain = make_policy("qwen2", folders)
    checkpointed = randomise_adapters(
        MixedPolicy(
            tiny_model("qwen2"),
            AdapterConfig(reference=str(folders["qwen2-sft"]), rank=4),
            activation_checkpointing=True,
        )
    )
    assert plain.shares_prefixes
    assert not checkpointed.shares_prefixes  # its layers keep no keys and values
    ids = tokens(2, 6)
    grads = []
    for policy in (plain, checkpointed):
        policy.train()
        loss = policy(ids, MIXED).logsumexp(-1).sum()
        with torch.no_grad():
            policy.hidden(ids, (POLICY, REFERENCE))  # a stacked pass before the backward pass must change nothing
        grads.append(torch.autograd.grad(loss, policy.policy_parameters()))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    drawn = [
        Engine(p)
        .generate(prompts([4, 5, 6]), Limits(8, (1,)), Draw(seed=1), MIXED, samples=3)[0]
        .rollouts[2]
        .completion_ids
        for p in (plain, checkpointed)
    ]
    assert drawn[0] == drawn[1]


def test_without_a_reference_the_anchor_is_the_base(folders):
    policy = randomise_adapters(MixedPolicy(tiny_model("llama"), AdapterConfig(rank=4)))
    ids = tokens(2, 5)
    with torch.no_grad():
        assert torch.allclose(policy(ids, Mixture.at(1.0)), tiny_model("llama")(ids).logits, atol=1e-6)


def test_a_fresh_policy_is_the_base(folders):
    policy = MixedPolicy(tiny_model("llama"), AdapterConfig(rank=4))
    ids = tokens(2, 5)
    with torch.no_grad():
        assert torch.allclose(policy(ids, Mixture.at(0.0)), tiny_model("llama")(ids).logits, atol=1e-6)


def test_a_policy_that_starts_from_an_adapter_is_that_adapter(folders):
    sft = str(folders["qwen2-sft"])
    policy = MixedPolicy(tiny_model("qwen2"), AdapterConfig(reference=sft, policy=sft))
    ids = tokens(2, 5)
    with torch.no_grad():
        hidden = policy.hidden(ids, (POLICY, REFERENCE))
        assert torch.allclose(hidden[0], hidden[1], atol=1e-6)
        assert (hidden[0] - tiny_model("qwen2").get_decoder()(ids).last_hidden_state).abs().max() > 1e-2


def test_trainer_modes_change_nothing():
    """Of a backbone with dropout, whose layers a mode of the trainer does not reach."""
    from transformers import PhiConfig, PhiForCausalLM

    def policy(dropout: float) -> MixedPolicy:
        torch.manual_seed(4)
        model = PhiForCausalLM(PhiConfig(**SHAPE, resid_pdrop=dropout, embd_pdrop=dropout, attention_dropout=dropout))
        return randomise_adapters(MixedPolicy(model.train(), AdapterConfig(rank=4)))

    ids, dropping = tokens(2, 8), policy(0.5)
    modes = [module.training for module in dropping.modules()]
    with torch.no_grad():
        expected = policy(0.0)(ids, MIXED)
        for mode in (True, False):
            torch.nn.Sequential(dropping).train(mode)  # as a LightningModule does it
            assert torch.equal(dropping(ids, MIXED), expected)
            assert [module.training for module in dropping.modules()] == modes


def test_a_model_that_scales_its_logits_is_refused(monkeypatch):
    model = tiny_model("qwen2")
    forward = type(model).forward

    def scaled(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(ValueError, match="changes its logits"):
        MixedPolicy(model, AdapterConfig(rank=2))


def test_a_head_with_a_bias_in_an_ensemble_whose_weights_do_not_sum_to_1(folders, tmp_path):
    """Mixing hidden states would add the bias once, and the mixture of logits adds it three times."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(4)
    model = PhiForCausalLM(PhiConfig(**SHAPE)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    adapters = AdapterConfig(reference="base", experts=["base"], rank=4)
    policy = randomise_adapters(MixedPolicy(model, adapters))
    mixture = Mixture((1.0, 1.0, 1.0))
    assert not policy.models[0].head.mixes_hidden(mixture.sums_to_one)
    ids = tokens(2, 7)
    with torch.no_grad():
        streams = [policy.head.logits(policy.stream_hidden(ids, s), s) for s in mixture.streams]
        assert close(policy(ids, mixture), streams[0] + streams[1] + streams[2])
        two = Mixture((0.25, 0.75, 0.0))
        assert policy.models[0].head.mixes_hidden(two.sums_to_one)
        assert close(policy(ids, two), 0.25 * streams[0] + 0.75 * streams[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma2", "qwen2-nf4"])  # gemma2 mixes logits, not hidden states
@pytest.mark.parametrize("mixture", ["logits", "probs"])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_in_bfloat16_a_scalar_alpha_and_one_for_each_row_give_the_same_logits(name, mixture, alpha, folders):
    """Training draws at the scalar; the alpha rule and the sweep at one for each row."""
    policy, of_all = make_policy(name, folders, dtype="bfloat16"), Mixture.at(alpha, mixture)
    hidden_K = list(policy.hidden(tokens(3, 8), (POLICY, REFERENCE)))
    assert hidden_K[0].dtype == torch.bfloat16
    hidden_K = [hidden.flatten(0, 1) for hidden in hidden_K]
    scalar = policy.mixed_logits(hidden_K, of_all)
    by_row = policy.mixed_logits(hidden_K, row_mixtures([of_all] * 24))
    assert scalar.dtype == by_row.dtype == torch.float32
    assert torch.equal(scalar, by_row) if mixture == "logits" else close(scalar, by_row, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_in_bfloat16_one_pass_s_log_probs_are_those_of_its_mixed_logits(name, folders):
    """The same hidden states through the update's function and the sampler's: only the head's product is rounded."""
    policy = make_policy(name, folders, dtype="bfloat16")
    targets = tokens(24, seed=5)
    hidden_K = [h.flatten(0, 1) for h in policy.hidden(tokens(3, 8), (POLICY, REFERENCE))]
    sampled = token_log_probs(policy.mixed_logits(hidden_K, MIXED), targets)
    assert close(policy.log_probs(hidden_K, targets, MIXED), sampled, 1e-5)
