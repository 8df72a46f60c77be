"""Each objective's gradient against autograd of its formula, written out sequence by sequence on whole logits."""

from dataclasses import replace

import pytest
import torch

from lmix.model.adapters import AdapterConfig
from lmix.model.mixture import Mixture
from lmix.rollout.limits import Limits
from lmix.rollout.packing import pack
from lmix.rollout.types import flatten
from lmix.training.demonstrations import demonstration
from lmix.training.objectives import CHORD, CISPO, DAPO, GRPO, GSPO, LUFFY, RLOO, DrGRPO, LogitFusion
from tests.training.helpers import SFT, gradient, module, update_of, without_trainer, written_out_log_probs

LIMIT = 48


class Sequence:
    """One completion of a group: its log-probabilities now (with gradient) and before, its advantage, and so on."""

    def __init__(self, now, old, reward, others, shown):
        self.ratio = (now - old).exp()
        self.now, self.reward, self.others, self.shown = now, reward, torch.tensor(others), shown

    def advantage(self, std="population"):
        centred = self.reward - self.others.mean()
        return float(centred) if std == "none" else float(centred / (self.others.std(correction=0) + 1e-6))


def clipped(s, advantage, below, above):
    return torch.minimum(s.ratio * advantage, s.ratio.clamp(1 - below, 1 + above) * advantage)


def group_mean(groups, term):
    """Eq. 6: over a group's tokens, then over groups."""
    return sum(sum(term(s).sum() for s in g) / sum(len(s.now) for s in g) for g in groups) / len(groups)


def token_mean(groups, term):
    every = [s for g in groups for s in g]
    return sum(term(s).sum() for s in every) / sum(len(s.now) for s in every)


def grpo(groups):
    return group_mean(groups, lambda s: clipped(s, s.advantage(), 0.02, 0.02))


def response(groups):
    """The authors': each completion's own mean, and the sample's standard deviation."""
    every = [s for g in groups for s in g]

    def advantage(s):
        return (s.reward - s.others.mean()) / (s.others.std(correction=1) + 1e-6)

    return sum(clipped(s, advantage(s), 0.02, 0.02).mean() for s in every) / len(every)


def dr_grpo(groups):
    every = [s for g in groups for s in g]
    return sum(clipped(s, s.advantage("none"), 0.02, 0.02).sum() / LIMIT for s in every) / len(every)


def dapo(groups):
    return token_mean(groups, lambda s: clipped(s, s.advantage(), 0.02, 0.03))


def rloo(groups):
    every = [s for g in groups for s in g]

    def baseline(s):
        return (s.others.sum() - s.reward) / (len(s.others) - 1)

    return sum((s.reward - baseline(s)) * s.now.sum() for s in every) / len(every)


def cispo(groups):
    return token_mean(groups, lambda s: s.ratio.detach().clamp(max=1.03) * s.advantage() * s.now)


def gspo(groups):
    every = [s for g in groups for s in g]

    def value(s):
        ratio, a = s.ratio.prod() ** (1 / len(s.now)), s.advantage()
        return torch.minimum(ratio * a, ratio.clamp(1 - 0.0005, 1 + 0.0008) * a)

    return sum(value(s) for s in every) / len(every)


def luffy(groups):
    def term(s):
        if not s.shown:
            return clipped(s, s.advantage(), 0.02, 0.02)
        p = s.now.exp()
        return s.advantage() * p / (p + 0.1)

    return group_mean(groups, term)


def chord(groups):
    """mu of the first step, 0.4; eq. 4 over the sampled completions."""
    sampled = [[s for s in g if not s.shown] for g in groups]
    for g in sampled:
        for s in g:
            s.others = s.others[:-1]
    shown = [s for g in groups for s in g if s.shown]
    sft = sum((s.now.exp() * (1 - s.now.exp())).detach().dot(s.now) for s in shown) / sum(len(s.now) for s in shown)
    return 0.6 * grpo(sampled) + 0.4 * sft


CASES = {
    "grpo": (GRPO(clip_radius=0.02), grpo),
    "response": (GRPO(clip_radius=0.02, normaliser="response", advantage_std="sample"), response),
    "dr_grpo": (DrGRPO(clip_radius=0.02), dr_grpo),
    "dapo": (DAPO(clip_radius=0.02, clip_radius_above=0.03), dapo),
    "rloo": (RLOO(), rloo),
    "cispo": (CISPO(clip_radius_above=0.03), cispo),
    "gspo": (GSPO(clip_radius=0.0005, clip_radius_above=0.0008), gspo),
    "luffy": (LUFFY(gamma=0.1, clip_radius=0.02), luffy),
    "chord": (CHORD(mu_peak=0.4, clip_radius=0.02), chord),
    "logit_fusion": (LogitFusion(clip_radius=0.2), lambda groups: group_mean(groups, fused)),
}


def fused(s):
    return clipped(s, s.advantage(), 0.2, 0.2)


MIXTURES = {
    "logits": Mixture.at(0.5),
    "probs": Mixture.at(0.3, "probs"),
    "three streams": Mixture((0.9, 0.6, -0.5)),
    "three averaged": Mixture((0.5, 0.3, 0.2), "probs"),
}


@pytest.fixture(scope="module")
def three():
    """A policy with a reference and an expert, and groups of which some are live."""
    torch.manual_seed(0)
    m = module(alpha=0.5, weights=[0.5, 0.3, 0.2], adapters=AdapterConfig(reference=SFT, experts=["base"], rank=4))
    return m, without_trainer(m)


def drawn(m, source, mixture, objective):
    """Three groups of four, with rewards, and a demonstration each where the objective learns from it."""
    prompts, limits = source.sets["train"][:3], Limits(LIMIT, m.end_ids)
    groups = m.sampler.generate(prompts, limits, m.draw(), mixture, samples=4, keep_frozen=True)
    rewards = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    for group, of_group in zip(groups, rewards, strict=True):
        for rollout, reward in zip(group.rollouts, of_group, strict=True):
            rollout.reward = reward
    if objective.adds_demonstration:
        shown = [demonstration(group.prompt, source.task, m.tokenizer) for group in groups]
        for one in shown:
            one.reward = 1.0
        groups = [replace(g, rollouts=[*g.rollouts, one]) for g, one in zip(groups, shown, strict=True)]
    return groups


def sequences(m, groups, now, old):
    packed = pack(flatten(groups))
    rows = packed.mask.nonzero()[:, 0]
    of_row = iter(range(len(rows)))
    found = []
    for group in groups:
        rewards = [r.reward for r in group.rollouts]
        members = []
        for rollout in group.rollouts:
            places = [next(of_row) for _ in rollout.completion_ids]
            one = Sequence(now[places], old[places], rollout.reward, rewards, rollout.is_demonstration)
            members.append(one)
        found.append(members)
    return found


def expected(m, groups, mixture, objective, formula, old):
    """The formula's gradient by autograd."""
    optimised = Mixture((1.0, *[0.0] * (len(mixture.weights) - 1)), mixture.kind)
    now = written_out_log_probs(m, pack(flatten(groups)), optimised if objective.optimises_policy else mixture)
    value = formula(sequences(m, groups, now, old))
    return value.item(), torch.autograd.grad(-value, m.policy.policy_parameters())


@pytest.mark.parametrize(
    "mixture",
    ["logits", "three averaged", *(pytest.param(m, marks=pytest.mark.slow) for m in ("probs", "three streams"))],
)
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_written_out_objective(three, name, mixture):
    """After the policy has moved, so that ratios are not 1 and some are clipped; in two layouts of micro-batches."""
    m, source = three
    objective, formula = CASES[name]
    mixture = MIXTURES[mixture]
    groups = drawn(m, source, mixture, objective)
    rewards = torch.tensor([group.rewards for group in groups])
    kept = [p.detach().clone() for p in m.policy.policy_parameters()]
    found = {}
    try:
        for budget in (10**6, 1):
            objective.micro_batch_tokens = budget
            update = update_of(m, groups, objective.advantages(rewards), mixture, objective)
            with torch.no_grad():
                for p, value in zip(m.policy.policy_parameters(), kept, strict=True):
                    p.copy_(value)
                old = written_out_log_probs(m, pack(flatten(groups)), mixture)
                update.record_old()
                generator = torch.Generator().manual_seed(1)
                for p in m.policy.policy_parameters():
                    p += 0.01 * torch.randn(p.shape, generator=generator)
            found[budget] = gradient(m, update)
        value, gradients = expected(m, groups, mixture, objective, formula, old)
    finally:
        with torch.no_grad():
            for p, before in zip(m.policy.policy_parameters(), kept, strict=True):
                p.copy_(before)
    for budget, (ours, stats) in found.items():
        assert stats.loss == pytest.approx(-value, abs=2e-6), budget
        for a, b in zip(ours, gradients, strict=True):
            assert (a - b).norm() <= 1e-3 * b.norm() + 1e-8, budget
    if name != "rloo":  # it has no clip
        stats = found[1][1]
        assert 0 < stats.sums["clip_fraction"] < stats.tokens
