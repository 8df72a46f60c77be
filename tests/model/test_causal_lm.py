"""The mixed policy behind transformers' interface, against the mixed policy itself and the rollout engine."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from lmix.model.backbone import BackboneConfig
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.rollout.engine import Engine
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw
from tests.conftest import MIXED, close, make_policy, prompts, tokens

PROMPTS = [tokens(9, seed=1).tolist(), tokens(4, seed=2).tolist(), tokens(6, seed=3).tolist()]
NEW = 12


def wrapped(policy: MixedPolicy) -> MixedPolicyForCausalLM:
    model = MixedPolicyForCausalLM.from_policy(policy, MIXED, BackboneConfig("somewhere", "none"))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def left_padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def test_logits_are_those_of_the_mixed_policy_padded_on_either_side(policy):
    model = wrapped(policy)
    ids, mask = left_padded(PROMPTS)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    left = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            expected = policy(torch.tensor([prompt]), MIXED)[0]
        assert close(left[row, -len(prompt) :], expected, 1e-4)
    right = torch.tensor([p + [0] * (ids.shape[1] - len(p)) for p in PROMPTS])
    with torch.no_grad():
        assert close(model(right).logits, policy(right, MIXED), 1e-5)
        assert close(model(right, logits_to_keep=1).logits, policy(right, MIXED)[:, -1:], 1e-5)
    loss = model(right, labels=right.masked_fill(right == 0, -100)).loss
    chosen = [
        policy(torch.tensor([p]), MIXED).log_softmax(-1)[0, :-1].gather(1, torch.tensor(p[1:])[:, None])
        for p in PROMPTS
    ]
    assert float(loss) == pytest.approx(-float(torch.cat(chosen).mean().detach()), rel=1e-4)


def test_greedy_generation_of_left_padded_rows_is_the_engine_s(policy):
    ids, mask = left_padded(PROMPTS)
    found = wrapped(policy).generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    groups = Engine(policy).generate(prompts(*PROMPTS), Limits(NEW, ()), Draw(greedy=True), MIXED)
    log_probs = torch.stack(found.scores, dim=1).log_softmax(-1)
    for row, group in enumerate(groups):
        (rollout,) = group.rollouts
        assert found.sequences[row, ids.shape[1] :].tolist() == rollout.completion_ids
        chosen = log_probs[row].gather(1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
        assert close(chosen, rollout.log_probs, 1e-3)


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}, {"penalty_alpha": None}]
)
def test_a_cache_changes_nothing(folders, how):
    """Beams reorder the rows of all streams alike."""
    model = wrapped(make_policy("qwen2", folders))
    ids, mask = left_padded(PROMPTS)
    outs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outs.append(model.generate(ids, attention_mask=mask, max_new_tokens=NEW, use_cache=use_cache, **how))
    assert torch.equal(outs[0], outs[1])


class Collected(BaseStreamer):
    def __init__(self):
        self.tokens: list[int] = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append(-1)


class After(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 14)


def test_streamers_and_stopping_criteria(folders):
    model, streamer = wrapped(make_policy("qwen2", folders)), Collected()
    ids = torch.tensor([PROMPTS[0]])
    out = model.generate(ids, max_new_tokens=NEW, do_sample=False, streamer=streamer, stopping_criteria=[After()])
    assert out.shape == (1, 14)
    assert streamer.tokens == [*out[0].tolist(), -1]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_saved_and_loaded_it_is_the_same(folders, tmp_path, alpha):
    policy, backbone = make_policy("qwen2", folders), BackboneConfig(str(folders["qwen2"]), "none", dtype="float32")
    model = MixedPolicyForCausalLM.from_policy(policy, Mixture.at(alpha), backbone)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "generation_config.json", "policy", "reference"}
    ids = tokens(2, 7)
    for again in (
        MixedPolicyForCausalLM.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(str(tmp_path)),
        MixedPolicyForCausalLM.from_pretrained(tmp_path, backbone=str(folders["qwen2"])),
    ):
        assert type(again) is MixedPolicyForCausalLM
        assert again.mixture == Mixture.at(alpha)
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert again.config.vocab_size == policy.backbone.config.vocab_size


def test_an_ensemble_with_the_base_in_it_is_saved_and_loaded(folders, tmp_path):
    from lmix.model.adapters import AdapterConfig

    backbone = BackboneConfig(str(folders["qwen2"]), "none", dtype="float32")
    sft = str(folders["qwen2-sft"])
    policy = MixedPolicy.from_pretrained(backbone, AdapterConfig(None, sft, [sft, "base"]))
    model = MixedPolicyForCausalLM.from_policy(policy, Mixture((1, -0.5, 0.25, 0.25)), backbone)
    model.save_pretrained(tmp_path)
    again = MixedPolicyForCausalLM.from_pretrained(tmp_path)
    assert again.mixture == model.mixture
    ids = tokens(2, 7)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_mistakes(folders, tmp_path):
    model = wrapped(make_policy("qwen2", folders))
    ids = torch.tensor([PROMPTS[0]])
    with pytest.raises(ValueError, match=r"has no config\.json: give a folder that lmix export wrote"):
        MixedPolicyForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="contains a 'qwen2', not a mixed policy of lmix"):
        MixedPolicyForCausalLM.from_pretrained(folders["qwen2"])
    static = StaticCache(config=model.policy.backbone.config, max_cache_len=32)
    with pytest.raises(ValueError, match=r"past_key_values must come from .*, not be a StaticCache"):
        model(ids, past_key_values=static)
    with pytest.raises(ValueError, match="not be a DynamicCache"):
        model(ids, past_key_values=DynamicCache(config=model.policy.backbone.config))


def test_a_cache_of_one_s_own(policy):
    """Filled in two passes, it gives what one pass gives."""
    model, ids = wrapped(policy), torch.tensor([PROMPTS[0]])
    cache = model.new_cache()
    first = model(ids[:, :5], past_key_values=cache).logits
    positions = torch.arange(5, ids.shape[1])[None]
    second = model(ids[:, 5:], past_key_values=cache, position_ids=positions).logits
    assert close(torch.cat([first, second], dim=1), model(ids).logits, 1e-4)
