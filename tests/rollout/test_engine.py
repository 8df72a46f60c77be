from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from lmix.model.mixture import Mixture
from lmix.rollout.engine import Engine
from lmix.rollout.packing import pack
from lmix.rollout.sampler import Limits
from lmix.rollout.types import Draw, Prompt, flatten
from lmix.tasks import Problem
from tests.conftest import ARCHITECTURES, MIXED, MIXTURES, make_policy, tokens

PROMPTS = [tokens(n, seed=n).tolist() for n in (9, 2, 5, 14, 3)]
ENDS = [1, 2, 3, 4, 5]


def generate(
    policy,
    prompts=PROMPTS,
    limit=16,
    draw=None,
    samples=4,
    ends=ENDS,
    slots=8,
    check_every=1,
    mixture=MIXED,
    numbers=None,
    **arguments,
):
    """Rollouts of prompts that are numbered from 0, or by `numbers`."""
    engine = Engine(policy, slots, check_every=check_every)
    asked = [Prompt(Problem(i, "", ""), ids) for i, ids in zip(numbers or range(len(prompts)), prompts, strict=True)]
    limits = Limits(limit, tuple(ends))
    return flatten(engine.generate(asked, limits, draw or Draw(seed=0), mixture, samples, **arguments))


@torch.no_grad()
def naive(policy, prompt, limit, ends, mixture=MIXED):
    """Greedy decoding by whole passes without a cache: the slow twin."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        ids.append(int(policy(torch.tensor([ids]), mixture)[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def test_greedy_decoding_equals_decoding_without_a_cache(policy):
    rollouts = generate(policy, draw=Draw(greedy=True), samples=1, slots=2)
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        assert rollout.completion_ids == naive(policy, prompt, 16, ENDS)


def test_windows_without_a_list_of_layers(folders):
    """Mistral's prompts and completions are longer than its window of 6."""
    policy = make_policy("mistral", folders)
    assert policy.backbone.config.sliding_window == 6
    for prompt, rollout in zip(PROMPTS, generate(policy, draw=Draw(greedy=True), samples=1), strict=True):
        assert rollout.completion_ids == naive(policy, prompt, 16, ENDS)


@pytest.mark.parametrize("mixture", ["logits", "probs"])
def test_the_sampler_s_log_probs_equal_teacher_forced_ones(policy, mixture):
    """With padding, with rows that end at different times, and with rows that come into slots of others."""
    mixture = MIXTURES[mixture]
    rollouts = generate(policy, mixture=mixture, keep_frozen=True)
    assert len({len(r.completion_ids) for r in rollouts}) > 3
    packed = pack(rollouts)
    with torch.no_grad():
        hidden = [policy.stream_hidden(packed.input_ids, s).flatten(0, 1)[packed.predicts] for s in mixture.streams]
        forced = policy.log_probs(hidden, packed.targets, mixture)
    assert torch.allclose(forced, torch.cat([r.log_probs for r in rollouts]), atol=1e-4)
    # the reference's hidden states, kept from decoding, are those of a whole pass
    assert torch.allclose(packed.frozen_hidden["reference"], hidden[1], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "mixture"),
    [("qwen2", "logits"), ("qwen2", "probs"), ("llama", "logits"), ("gemma3", "probs"), ("qwen2-nf4", "logits")],
)
def test_in_bfloat16_the_sampler_s_gap_is_bounded(name, mixture, folders):
    """One token a pass against whole rows: layers round differently, and nothing else may differ."""
    policy, mixture = make_policy(name, folders, dtype="bfloat16"), MIXTURES[mixture]
    packed = pack(rollouts := generate(policy, mixture=mixture, keep_frozen=True))
    with torch.no_grad():
        hidden = [policy.stream_hidden(packed.input_ids, s).flatten(0, 1)[packed.predicts] for s in mixture.streams]
        gap = policy.log_probs(hidden, packed.targets, mixture) - torch.cat([r.log_probs for r in rollouts])
    assert gap.abs().mean() < 0.01  # measured: 0.0020 to 0.0035, and at most 0.025
    assert gap.abs().max() < 0.1


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_in_bfloat16_an_alpha_for_each_sample_decodes_what_the_scalar_does(name, alpha, folders):
    """The alpha rule's and the sweep's path against training's."""
    policy, mixture = make_policy(name, folders, dtype="bfloat16"), Mixture.at(alpha)
    scalar = generate(policy, draw=Draw(greedy=True), samples=1, mixture=mixture)
    by_row = generate(policy, draw=Draw(greedy=True), samples=1, mixture=[mixture])
    assert [r.completion_ids for r in scalar] == [r.completion_ids for r in by_row]
    for a, b in zip(scalar, by_row, strict=True):
        assert torch.equal(a.log_probs, b.log_probs)


def test_the_same_seed_gives_the_same_tokens_and_another_does_not(folders):
    policy = make_policy("qwen2", folders)
    first, again = generate(policy), generate(policy)
    assert [r.completion_ids for r in first] == [r.completion_ids for r in again]
    for other in (Draw(seed=1), Draw(seed=0, step=1)):
        assert [r.completion_ids for r in first] != [r.completion_ids for r in generate(policy, draw=other)]


@pytest.mark.parametrize(("slots", "check_every"), [(4, 1), (64, 1), (8, 3)])
def test_batch_layout_and_retirement_change_no_token(policy, slots, check_every):
    expected = generate(policy)
    found = generate(policy, slots=slots, check_every=check_every)
    assert [r.completion_ids for r in found] == [r.completion_ids for r in expected]
    assert [r.ended for r in found] == [r.ended for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a.log_probs, b.log_probs, atol=1e-4)


def test_a_rollout_can_be_drawn_again_alone(folders):
    policy = make_policy("llama", folders)
    together = generate(policy, numbers=[100, 101, 102, 103, 104])
    alone = generate(policy, prompts=[PROMPTS[3]], numbers=[103])
    assert [r.completion_ids for r in together[12:16]] == [r.completion_ids for r in alone]


def test_samples_of_one_prompt_differ_and_equal_prompts_do_too(folders):
    policy = make_policy("qwen2", folders)
    rollouts = generate(policy, prompts=[PROMPTS[0], PROMPTS[0]])
    assert len({tuple(r.completion_ids) for r in rollouts}) == 8


def test_a_completion_holds_its_end_token_and_nothing_after(policy):
    rollouts = generate(policy)
    assert any(r.ended for r in rollouts)
    assert any(not r.ended for r in rollouts)
    for r in rollouts:
        assert (r.completion_ids[-1] in ENDS) == r.ended
        assert not set(r.completion_ids[:-1]) & set(ENDS)
        assert len(r.completion_ids) == len(r.log_probs) <= 16
        assert r.ended or len(r.completion_ids) == 16


def test_sampled_first_tokens_follow_the_mixed_distribution(folders):
    """Chi-square at a fixed state, fixed seed."""
    from scipy.stats import chisquare

    for mixture in MIXTURES.values():
        policy = make_policy("qwen2", folders)
        count = 4000
        rollouts = generate(policy, [PROMPTS[0]], limit=1, samples=count, ends=[], slots=count, mixture=mixture)
        drawn = torch.tensor([r.completion_ids[0] for r in rollouts])
        with torch.no_grad():
            expected = policy(torch.tensor([PROMPTS[0]]), mixture)[0, -1].double().softmax(-1) * count
        seen = torch.bincount(drawn, minlength=len(expected)).double()
        common = expected >= 5
        observed, wanted = seen[common], expected[common]
        if not common.all():
            observed = torch.cat([observed, seen[~common].sum()[None]])
            wanted = torch.cat([wanted, expected[~common].sum()[None]])
        assert common.sum() > 10
        assert chisquare(observed.numpy(), wanted.numpy()).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_one_stream_at_the_borders(policy, alpha):
    mixture = Mixture.at(alpha)
    rollouts = generate(policy, draw=Draw(greedy=True), samples=1, keep_frozen=True, mixture=mixture)
    assert rollouts[0].completion_ids == naive(policy, PROMPTS[0], 16, ENDS, mixture)
    assert (rollouts[0].frozen_hidden is None) == (alpha == 0.0)


def test_progress_moves_while_tokens_are_drawn(folders):
    seen = []
    generate(make_policy("qwen2", folders), progress=lambda *state: seen.append(state))
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1][:2] == (20, 20)


def test_nothing_to_do(folders):
    policy = make_policy("qwen2", folders)
    assert generate(policy, prompts=[]) == []
    assert all(r.completion_ids == [] for r in generate(policy, limit=0))


@pytest.mark.parametrize("mixture", ["logits", "probs"])
@pytest.mark.parametrize("alphas", [[0.0, 0.3, 0.8, 1.0], [0.0, 1.0], [0.0], [1.0]])
def test_several_alphas_in_one_pass_equal_a_pass_for_each(policy, mixture, alphas):
    mixtures = [Mixture.at(alpha, mixture) for alpha in alphas]
    together = generate(policy, draw=Draw(greedy=True), mixture=mixtures, samples=len(alphas))
    for g, of_row in enumerate(mixtures):
        alone = generate(policy, draw=Draw(greedy=True), samples=1, mixture=of_row)
        assert [r.completion_ids for r in together[g :: len(alphas)]] == [r.completion_ids for r in alone]


def test_streams_that_no_sample_needs_are_not_run(folders, monkeypatch):
    policy = make_policy("qwen2", folders)
    run = []
    whole = policy.hidden

    def counted(ids, streams, *arguments):
        run.append(streams)
        return whole(ids, streams, *arguments)

    monkeypatch.setattr(policy, "hidden", counted)
    generate(policy, mixture=[Mixture.at(alpha) for alpha in (0.5, 0.0, 1.0, 0.0)])
    assert set(run) == {("policy", "reference")}
    run.clear()
    generate(policy, mixture=[Mixture.at(0.0)] * 4)
    assert set(run) == {("policy",)}


def test_mixtures_of_two_kinds_are_not_drawn_together(folders):
    with pytest.raises(ValueError, match="must agree in kind"):
        generate(make_policy("qwen2", folders), samples=2, mixture=list(MIXTURES.values()))


class SumModel:
    """Its next token is the sum of all before, modulo 97, which it reads from the engine's cache alone."""

    device, draws_in_step, rollouts = torch.device("cpu"), False, nullcontext
    model = SimpleNamespace(config=ARCHITECTURES["qwen2"][1], dtype=torch.float32)

    def parts(self, streams):
        return [SimpleNamespace(model=self.model, streams=streams)]

    def hidden(self, ids, streams, arguments):
        (given,) = arguments
        keys = ids.float()[:, None, :, None]
        seen, _ = given["past_key_values"].update(keys, keys, 0)
        if "position_ids" not in given:  # a prompt
            return [keys.cumsum(2)[:, 0]]
        visible = torch.arange(seen.shape[2]) <= given["position_ids"]
        return [(seen[:, 0, :, 0] * visible).sum(1)[:, None, None]]

    def mixed_logits(self, hidden_K, mixture):
        return 100.0 * one_hot(hidden_K[0][..., 0].long() % 97, 97).float()


@pytest.mark.parametrize(("slots", "check_every", "greedy"), [(2, 1, True), (4, 3, False), (64, 8, True)])
def test_a_mock_model_gets_each_row_s_own_tokens_and_nothing_else(slots, check_every, greedy):
    model: Any = SumModel()
    ends = [*range(0, 97, 7)]
    for limit in (1, 2, 12):
        draw = Draw(greedy=greedy)
        arguments = {"ends": ends, "slots": slots, "check_every": check_every, "mixture": Mixture.at(0.0)}
        for rollout in generate(model, limit=limit, draw=draw, samples=2, **arguments):
            expected: list[int] = []
            while len(expected) < limit and not (expected and expected[-1] in ends):
                expected.append((sum(rollout.prompt.ids) + sum(expected)) % 97)
            assert rollout.completion_ids == expected
            assert rollout.ended == (expected[-1] in ends)
