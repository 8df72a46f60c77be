"""Prompts read once for several completions, against whole rows: the slow twin."""

import pytest
import torch

from lmix.rollout.packing import micro_batches, pack, shared_tokens
from lmix.rollout.types import Rollout
from tests.conftest import close, make_policy, prompts, tokens

NAMES = ["qwen2", "llama", "gemma3", "mistral", "gemma2", "qwen2-nf4", "llama-nf4"]


def some_rollouts() -> list[Rollout]:
    """Three prompts with one to three completions, of all kinds of length, longer than the tiny models' windows."""
    shapes = [(0, 9, 12), (0, 9, 3), (0, 9, 1), (2, 3, 8), (2, 3, 2), (5, 14, 5)]
    asked = {prompt: prompts(tokens(p, seed=prompt).tolist())[0] for prompt, p, _ in shapes}
    return [
        Rollout(asked[prompt], sample, tokens(c, seed=10 + sample + prompt).tolist())
        for sample, (prompt, _, c) in enumerate(shapes)
    ]


def hidden_and_gradients(policy, packed, stream="policy"):
    found = policy.stream_hidden(packed.input_ids, stream, packed.prefix).flatten(0, 1)[packed.predicts]
    if stream != "policy":
        return found, []
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    gradients = torch.autograd.grad((found * weights).sum(), policy.policy_parameters())
    return found, gradients


@pytest.mark.parametrize("name", NAMES)
def test_shared_prompts_give_the_same_values_and_gradients(folders, name):
    policy = make_policy(name, folders)
    whole, shared = pack(some_rollouts()), pack(some_rollouts(), share_prompts=True)
    assert shared.input_ids.shape == (6, 12)
    assert shared.prefix.input_ids.shape == (3, 14)
    assert torch.equal(whole.targets, shared.targets)
    for stream in ("policy", "reference"):
        slow, slow_gradients = hidden_and_gradients(policy, whole, stream)
        fast, fast_gradients = hidden_and_gradients(policy, shared, stream)
        assert close(fast, slow)
        for a, b in zip(fast_gradients, slow_gradients, strict=True):
            assert close(a, b)


def test_completions_of_one_token_need_no_second_pass(folders):
    policy = make_policy("qwen2", folders)
    (prompt,) = prompts([5, 6, 7])
    rollouts = [Rollout(prompt, g, [8 + g]) for g in range(3)]
    slow, _ = hidden_and_gradients(policy, pack(rollouts))
    fast, _ = hidden_and_gradients(policy, pack(rollouts, share_prompts=True))
    assert close(fast, slow)


@pytest.mark.parametrize("budget", [1, 40, 60, 120, 10**6])
def test_the_cheaper_plan_is_taken_and_holds_every_row_once(budget):
    asked = prompts(*[[5] * 30] * 3)
    rollouts = [Rollout(asked[p], g, [6] * (3 + 2 * g + p)) for p in range(3) for g in range(4)]
    passes, share = micro_batches(rollouts, budget)
    assert sorted(row for rows in passes for row in rows) == list(range(12))
    assert share == (budget > 40)  # below, two completions do not fit beside their prompt
    for rows in passes:
        cost = shared_tokens([rollouts[i] for i in rows]) if share else len(rows) * max(len(rollouts[i]) for i in rows)
        assert cost <= budget or len(rows) == 1
    assert micro_batches(rollouts, budget, share_prompts=False)[1] is False


def test_nothing_is_shared_where_every_prompt_has_one_completion():
    assert micro_batches([Rollout(p, 0, [6] * 9) for p in prompts(*[[5] * 9] * 4)], 10**6)[1] is False
    assert micro_batches([], 10) == ([], False)
