import pytest
import torch

from lmix.functional import group_advantages


def test_equation_4_by_hand():
    # mean 1/4, population std sqrt(3)/4
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), eps=0.0)
    assert torch.allclose(advantages, torch.tensor([[3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]]))


def test_eps_is_added_to_the_deviation():
    assert torch.allclose(group_advantages(torch.tensor([[1.0, 0.0]]), eps=0.5), torch.tensor([[0.5, -0.5]]))


def test_dead_groups_are_exact_zeros_whatever_the_rounding():
    rewards = torch.tensor([[0.1] * 7, [1.0] * 7, [0.0] * 7])  # the mean of seven 0.1 is not 0.1 in float32
    assert torch.equal(group_advantages(rewards, eps=0.0), torch.zeros(3, 7))


def test_a_group_of_one_is_dead():
    assert torch.equal(group_advantages(torch.tensor([[1.0], [0.0]])), torch.zeros(2, 1))


def test_without_the_deviation():
    assert torch.allclose(group_advantages(torch.tensor([[1, 0]]), std="none"), torch.tensor([[0.5, -0.5]]))


def test_bad_rewards():
    with pytest.raises(ValueError, match=r"\[P, G\]"):
        group_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match="finite"):
        group_advantages(torch.tensor([[0.0, float("nan")]]))
