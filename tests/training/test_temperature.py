"""A tempered mixture is drawn, scored and differentiated as softmax(z / temperature); and the entropy bonus."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from lmix.model.mixture import Mixture, row_mixtures
from lmix.rollout.packing import pack
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw, flatten
from lmix.training.config import SamplingConfig
from lmix.training.scoring import score
from tests.training.helpers import gradients, module

TEMPERATURE = 0.6
KINDS = {"logits": Mixture.at(0.4), "probs": Mixture.at(0.4, "probs"), "policy": Mixture.at(0.0)}


def by_hand(m, packed, mixture) -> torch.Tensor:
    """Log-probabilities `[N, V]` of softmax(z_mix / temperature), from each stream's own logits."""
    logits = [
        m.policy.head.logits(m.policy.stream_hidden(packed.input_ids, name), name).flatten(0, 1)[packed.predicts]
        for name in ("policy", "reference")
    ]
    if mixture.kind == "logits":
        mixed = sum(w * z for w, z in zip(mixture.weights, logits, strict=True))
    else:
        mixed = sum(w * z.softmax(-1) for w, z in zip(mixture.weights, logits, strict=True)).log()
    return (mixed / mixture.temperature).log_softmax(-1)


def drawn(m, groups, mixture, samples=4, tokens=48):
    prompts = [group.prompt for group in groups]
    return m.sampler.generate(prompts, Limits(tokens, m.end_ids), Draw(seed=3), mixture, samples, keep_frozen=True)


@pytest.mark.parametrize("kind", KINDS)
def test_scored_are_sampled_log_probabilities_and_those_written_out(step, kind):
    m, groups, _ = step
    mixture = replace(KINDS[kind], temperature=TEMPERATURE)
    packed = pack(flatten(drawn(m, groups, mixture)))
    sampled = torch.cat([r.log_probs for r in flatten(drawn(m, groups, mixture))])
    scored = score(m.policy, mixture, packed)
    written = by_hand(m, packed, mixture).gather(1, packed.targets[:, None]).squeeze(1)
    assert (scored - sampled).abs().max() <= 1e-4
    assert (scored - written).abs().max() <= 1e-4
    assert (scored - score(m.policy, KINDS[kind], packed)).abs().max() > 0.1
    weights = torch.randn(len(scored), generator=torch.Generator().manual_seed(0))
    parameters = m.policy.policy_parameters()
    found = torch.autograd.grad((scored * weights).sum(), parameters)
    expected = torch.autograd.grad((written * weights).sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_first_tokens_follow_the_tempered_mixture(step, kind):
    """Chi-square of 6,000 draws; against temperature 1 it tells the two apart."""
    m, groups, _ = step
    mixture = replace(KINDS[kind], temperature=1.5)
    samples = 6000
    m.sampler.slots, slots = samples, m.sampler.slots
    try:
        (group,) = drawn(m, groups[:1], mixture, samples, tokens=1)
    finally:
        m.sampler.slots = slots
    packed, first = pack(group.rollouts[:1]), torch.tensor([r.completion_ids[0] for r in group.rollouts])
    pvalues = []
    for temperature in (1.5, 1.0):
        with torch.no_grad():
            wanted = by_hand(m, packed, replace(mixture, temperature=temperature))[0].exp().double() * samples
        seen, common = torch.bincount(first, minlength=len(wanted)), wanted >= 5
        cells = [torch.cat([x[common], x[~common].sum()[None]]).tolist() for x in (seen, wanted)]
        pvalues.append(chisquare(*cells, sum_check=False).pvalue)
    assert pvalues[0] > 0.001
    assert pvalues[1] < 1e-6


def test_the_temperature_of_the_settings_goes_with_every_alpha(tmp_path):
    m = module(sampling=SamplingConfig(samples_per_prompt=4, max_new_tokens=48, temperature=0.7))
    assert m.mixture == Mixture((0.5, 0.5), temperature=0.7)
    assert m.mixture.with_alpha(0.25) == Mixture((0.75, 0.25), temperature=0.7)
    assert row_mixtures([m.mixture, m.mixture.with_alpha(0.0)]).temperature == 0.7
    with pytest.raises(ValueError, match="must agree in kind, temperature and plausibility"):
        row_mixtures([m.mixture, Mixture.at(0.5)])
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        Mixture((0.5, 0.5), temperature=0.0)
    with pytest.raises(ValueError, match=r"sampling\.temperature must be positive, not -1"):
        SamplingConfig(temperature=-1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_bonus_is_that_of_the_whole_distribution(step, kind):
    """Dead groups are scored too; against autograd of -sum p log p of the logits, written out."""
    m, groups, advantages = step
    mixture, bonus = KINDS[kind], 0.1
    plain, _, _ = gradients(m, groups, torch.zeros_like(advantages), mixture=mixture, entropy_bonus=bonus)
    packed = pack(flatten(groups))
    log_probs = by_hand(m, packed, mixture)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    rows = packed.mask.nonzero()[:, 0]
    of_group = torch.tensor([float((rows // 4 == p).sum()) for p in range(4)])
    loss = -(bonus * entropy / (4 * of_group[rows // 4])).sum()
    expected = torch.autograd.grad(loss, m.policy.policy_parameters())
    for a, b in zip(plain, expected, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm()
