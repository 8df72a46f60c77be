import torch

from lmix.rollout.rollout import Rollout, pack, token_budget_batches


def test_masks_come_from_lengths_and_the_end_token_counts():
    # pad id 0 and the end token inside are tokens like any other
    packed = pack([Rollout(0, 0, [5, 6, 7], [0, 8, 1]), Rollout(0, 1, [5, 6, 7], [9]), Rollout(1, 0, [4], [2, 1])])
    assert packed.mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert packed.targets.tolist() == [0, 8, 1, 9, 2, 1]
    places = [divmod(p, 6) for p in packed.predicts.tolist()]
    assert places == [(0, 2), (0, 3), (0, 4), (1, 2), (2, 0), (2, 1)]
    assert packed.input_ids[2].tolist() == [4, 2, 1, 0, 0, 0]


def test_unflatten_keeps_order_and_gradient():
    packed = pack([Rollout(0, 0, [5], [1, 2]), Rollout(0, 1, [5], [3])])
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
