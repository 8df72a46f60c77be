import pytest
import torch

from lmix.rollout.types import Prompt, Rollout
from lmix.tasks.task import Judgement, Problem
from lmix.training.metrics import AnswerRate, FormatRate, SolveRate


def row(answer, correct, ended=True):
    judged = Judgement(answer, correct)
    reward = float(correct and ended)
    return Rollout(Prompt(Problem(0, "2 + 2", "4"), [4]), 0, [5, 6], ended=ended, judgement=judged, reward=reward)


RIGHT, WRONG, BARE, CUT = row("4", True), row("5", False), row(None, False), row("4", True, ended=False)


def test_rates_over_batches():
    form, solve = FormatRate(), SolveRate()
    for batch in ([RIGHT, WRONG, BARE], [RIGHT]):
        form.update(batch)
        solve.update(batch)
    assert form.compute().item() == 0.75
    assert solve.compute().item() == 0.5


@pytest.mark.parametrize(
    ("rows", "rates"),
    [
        ([CUT], (1.0, 1.0, 0.0)),  # right, and cut at max_new_tokens: no reward
        ([RIGHT, CUT, WRONG, BARE], (0.75, 0.5, 0.25)),
        ([row("5", False, ended=False), RIGHT], (1.0, 0.5, 0.5)),
        ([row(None, False, ended=False)] * 3, (0.0, 0.0, 0.0)),
    ],
)
def test_a_solved_problem_is_a_rewarded_one(rows, rates):
    metrics = FormatRate(), AnswerRate(), SolveRate()
    for metric in metrics:
        metric.update(rows)
    assert tuple(metric.compute().item() for metric in metrics) == rates
    assert rates[2] == sum(r.reward for r in rows) / len(rows)


def test_states_of_ranks_add_up():
    ranks = [SolveRate(), SolveRate()]
    ranks[0].update([RIGHT, RIGHT])
    ranks[1].update([WRONG, BARE, BARE])
    ranks[0].count += ranks[1].count
    ranks[0].total += ranks[1].total
    assert torch.isclose(ranks[0].compute(), torch.tensor(0.4))
