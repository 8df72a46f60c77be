"""The least number of new tokens: scoring leaves out what could not be drawn, as sampling does."""

import pytest
import torch

from lmix.evaluation.decoder import Decoder
from lmix.model.mixture import Mixture
from lmix.rollout.limits import limits_of
from lmix.rollout.packing import pack
from lmix.rollout.types import Draw, flatten
from lmix.training.scoring import score, score_stream
from tests.training.helpers import data, gradients

LEAST = 5


@pytest.fixture(scope="module", params=["logits", "probs"])
def drawn(request, step):
    """Groups that were drawn where most tokens end a completion, but not before the sixth token."""
    m, _, advantages = step
    source = data()
    source.tokenizer = m.tokenizer
    source.setup("fit")
    limits = limits_of(m.tokenizer, [0, *range(3, 60)], 16, (), LEAST)
    mixture = Mixture.at(0.4, request.param)
    decoder = Decoder(m.sampler, limits, m.tokenizer, source.task)
    groups = decoder.complete(source.sets["train"][:4], Draw(seed=3), mixture, 4, keep_frozen=True)
    rollouts = flatten(groups)
    assert {len(r.completion_ids) for r in rollouts} > {LEAST + 1}
    return m, groups, advantages, mixture, torch.tensor(limits.end_ids)


def renormalised(m, groups, mixture, ends):
    """log p(y) - log(1 - sum of p over the end tokens) where no end token could be drawn: the slow twin. `[N]`."""
    packed = pack(flatten(groups))
    # in float64: the end tokens take almost all of some distributions, and 1 - p would cancel
    log_probs = m.policy(packed.input_ids, mixture).flatten(0, 1)[packed.predicts].double().log_softmax(-1)
    plain = log_probs.gather(1, packed.targets[:, None]).squeeze(1)
    of_ends = log_probs[:, ends].exp().sum(-1)
    return torch.where(packed.positions < LEAST, plain - torch.log1p(-of_ends), plain), plain, packed


@pytest.mark.parametrize("share", [False, True])
def test_scored_equals_sampled(drawn, share):
    m, groups, _, mixture, ends = drawn
    sampled = torch.cat([r.log_probs for r in flatten(groups)])
    with torch.no_grad():
        scored = score(m.policy, mixture, pack(flatten(groups), share_prompts=share))
        expected, plain, _ = renormalised(m, groups, mixture, ends)
    assert (scored - sampled).abs().max() < 1e-4
    assert (scored - expected).abs().max() < 1e-4
    assert (plain - sampled).abs().max() > 0.5  # the test can fail


def test_the_reference_alone_is_renormalised_too(drawn):
    m, groups, _, mixture, ends = drawn
    with torch.no_grad():
        found = score_stream(m.policy, mixture, pack(flatten(groups)), "reference")
        expected, _, _ = renormalised(m, groups, Mixture.at(1.0), ends)
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("micro_batch_tokens", [100, 8192])
def test_gradients_are_those_of_the_written_out_formula(drawn, micro_batch_tokens):
    m, groups, advantages, mixture, ends = drawn
    found, _, _ = gradients(
        m, groups, advantages, mixture=mixture, normaliser="batch", micro_batch_tokens=micro_batch_tokens
    )
    log_probs, _, packed = renormalised(m, groups, mixture, ends)
    of_row = advantages.flatten()[packed.mask.nonzero()[:, 0]]
    loss = -((log_probs - log_probs.detach()).exp() * of_row).mean()
    expected = torch.autograd.grad(loss, m.policy.policy_parameters())
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
