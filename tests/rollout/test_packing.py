import torch

from lmix.rollout.packing import pack, token_budget_batches
from lmix.rollout.types import Rollout
from tests.conftest import prompts


def test_masks_come_from_lengths_and_the_end_token_counts():
    # pad id 0 and the end token inside are tokens like any other
    first, second = prompts([5, 6, 7], [4])
    packed = pack([Rollout(first, 0, [0, 8, 1]), Rollout(first, 1, [9]), Rollout(second, 0, [2, 1])])
    assert packed.mask.tolist() == packed.counted.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert packed.targets.tolist() == [0, 8, 1, 9, 2, 1]
    places = [divmod(p, 6) for p in packed.predicts.tolist()]
    assert places == [(0, 2), (0, 3), (0, 4), (1, 2), (2, 0), (2, 1)]
    assert packed.input_ids[2].tolist() == [4, 2, 1, 0, 0, 0]


def test_unflatten_keeps_order_and_gradient():
    (prompt,) = prompts([5])
    packed = pack([Rollout(prompt, 0, [1, 2]), Rollout(prompt, 1, [3])])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    grid = packed.unflatten(values)
    assert grid.tolist() == [[1.0, 2.0], [3.0, 0.0]]
    grid.sum().backward()
    assert values.grad.tolist() == [1.0, 1.0, 1.0]


def test_token_budget_batches_hold_every_row_once_within_the_budget():
    lengths = [3, 50, 7, 7, 120, 1, 33]
    batches = token_budget_batches(lengths, 100)
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 100 for b in batches)
    assert len(batches) == 3
    assert token_budget_batches([], 100) == []


def test_a_mask_of_the_tokens_that_count():
    (prompt,) = prompts([5])
    masked = Rollout(prompt, 0, [1, 2, 3], mask=torch.tensor([True, False, True]))
    packed = pack([masked, Rollout(prompt, 1, [4])])
    assert packed.mask.tolist() == [[True] * 3, [True, False, False]]
    assert packed.counted.tolist() == [[True, False, True], [True, False, False]]
