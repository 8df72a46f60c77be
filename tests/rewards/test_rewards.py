"""Rewards: functions, callables on groups and the verifier, weighted and summed."""

import math

import pytest

from lmix.rewards import RewardSum
from lmix.rewards.overlong import OverlongPenalty
from lmix.rollout.types import Draw, Group, Prompt, Rollout, flatten
from lmix.tasks.task import Judgement, Problem


def groups() -> list[Group]:
    """Two problems of two completions: right; right and truncated; wrong; without an answer."""
    made = []
    for number, cases in enumerate(
        [[("4", True, True), ("4", True, False)], [("5", False, True), (None, False, True)]]
    ):
        prompt = Prompt(Problem(number, "2 + 2", "4"), [7])
        rollouts = [
            Rollout(prompt, g, [5] * (g + 1), ended=ended, text="x" * (10 * g), judgement=Judgement(answer, correct))
            for g, (answer, correct, ended) in enumerate(cases)
        ]
        made.append(Group(prompt, rollouts))
    return made


def length(problem, completion) -> float:
    return len(completion) + 100 * problem.id


class Tokens:
    def __call__(self, groups):
        return [[len(r.completion_ids) * (1 if r.ended else -1) for r in group.rollouts] for group in groups]


def nan(problem, completion):
    return math.nan if completion else 0.0


def infinite(groups):
    return [[math.inf for _ in group.rollouts] for group in groups]


def too_few(groups):
    return [[1.0] for _ in groups]


def one_group(groups):
    return [[1.0, 1.0]]


def nothing_returned(problem, completion):
    return None


def flat(groups):
    return [1.0 for group in groups for _ in group.rollouts]


def three(a, b, c):
    return 0.0


NUMBER = 3
HERE = "tests.rewards.test_rewards"


def rewarded(weights) -> list[Group]:
    judged = groups()
    RewardSum(weights)(judged)
    return judged


def test_the_verifier_rewards_what_ended_with_the_right_answer():
    assert [group.rewards for group in rewarded({"verifier": 1.0})] == [[1.0, 0.0], [0.0, 0.0]]


def test_several_are_weighted_and_each_has_its_curve():
    names = {"verifier": 2.0, f"{HERE}.length": 0.1, f"{HERE}.Tokens": -1.0}
    judged = rewarded(names)
    assert [group.rewards for group in judged] == [
        pytest.approx([2.0 + 0.0 - 1.0, 0.0 + 1.0 + 2.0]),
        pytest.approx([10.0 - 1.0, 11.0 - 2.0]),
    ]
    assert judged[0].rollouts[1].rewards == {"verifier": 0.0, f"{HERE}.length": 10.0, f"{HERE}.Tokens": -2.0}
    means = RewardSum(names).means(flatten(judged))
    assert means == {
        "reward/verifier": (1.0, 4),
        f"reward/{HERE}.length": (220.0, 4),
        f"reward/{HERE}.Tokens": (2.0, 4),
    }
    assert RewardSum({"verifier": 1.0}).means(flatten(judged)) == {}  # train/reward says it


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "is nan on problem 0: it must be finite"),
        ("infinite", "is inf on problem 0: it must be finite"),
        ("too_few", "must return one number for each rollout of each group"),
        ("one_group", "must return one number for each rollout of each group"),
        ("nothing_returned", "must return numbers, a list for each group: float.. argument must be .*NoneType.*"),
        ("flat", "must return numbers, a list for each group: 'float' object is not iterable"),
    ],
)
def test_a_reward_gives_one_finite_number_for_each_rollout(name, message):
    with pytest.raises(ValueError, match=rf"^reward {HERE}.{name} {message}$"):
        rewarded({f"{HERE}.{name}": 1.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "model.rewards is empty: give a weight"),
        ({"verifier": math.nan}, "the weight of verifier must be finite, not nan"),
        ({"verifyer": 1.0}, "model.rewards: verifyer is not a reward: use one of verifier, overlong"),
        ({"no.such.module": 1.0}, r"model.rewards: no.such.module can't be imported: No module named 'no'"),
        ({f"{HERE}.nothing": 1.0}, r"nothing can't be imported: module .* has no attribute 'nothing'"),
        ({f"{HERE}.NUMBER": 1.0}, r"NUMBER is not a reward: .* or the import path of a function of \(problem"),
        ({f"{HERE}.three": 1.0}, r"three is not a reward: .* or the import path"),
        ({"lmix.rollout.types.Group": 1.0}, "Group can't be imported: .*missing 2 required"),
    ],
)
def test_names_and_weights_that_are_wrong(weights, message):
    with pytest.raises(ValueError, match=message) as raised:
        RewardSum(weights)
    assert "\n" not in str(raised.value)


def test_the_penalty_of_overlong_completions_by_hand():
    """Of a limit of 20 the last 4 tokens are the buffer."""
    penalty = OverlongPenalty(20).penalty
    assert [penalty(n, ended=True) for n in (1, 16, 17, 18, 20)] == [0.0, 0.0, -0.25, -0.5, -1.0]
    assert penalty(20, ended=False) == penalty(3, ended=False) == -1.0
    judged = groups()
    RewardSum({"overlong": 2.0}, max_new_tokens=20)(judged)
    expected = [[2.0 * penalty(len(r.completion_ids), r.ended) for r in group.rollouts] for group in judged]
    assert [group.rewards for group in judged] == expected
    assert any(value < 0 for group in expected for value in group)


def test_the_format_reward_looks_at_the_template_alone():
    assert [group.rewards for group in rewarded({"format": 1.0})] == [[1.0, 0.0], [1.0, 0.0]]


def test_random_rewards_say_nothing_and_are_the_same_again():
    def drawn(seed, step):
        many = [Prompt(Problem(i, "", "4"), [7]) for i in range(250)]
        made = [Group(p, [Rollout(p, g) for g in range(4)], Draw(seed, step)) for p in many]
        RewardSum({"random": 1.0})(made)
        return [value for group in made for value in group.rewards]

    first = drawn(0, 0)
    assert set(first) == {0.0, 1.0}
    assert sum(first) / len(first) == pytest.approx(0.5, abs=0.05)  # three standard errors
    assert drawn(0, 0) == first
    for other in (drawn(0, 1), drawn(1, 0)):
        assert sum(a == b for a, b in zip(first, other, strict=True)) / 1000 == pytest.approx(0.5, abs=0.05)
