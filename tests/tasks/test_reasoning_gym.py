"""Tasks of reasoning-gym; what needs the package is skipped without it."""

import sys

import pytest

from lmix.data.module import RLDataModule
from lmix.evaluation.decoder import Decoder
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.types import Group, Prompt, Rollout
from lmix.tasks import ReasoningGymTask

try:
    import reasoning_gym  # noqa: F401

    installed = True
except ImportError:
    installed = False
needed = pytest.mark.skipif(not installed, reason="needs reasoning-gym")


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"needs a package .*pip install 'lmix\[reasoning-gym\]'") as caught:
        ReasoningGymTask("chain_sum")
    assert "\n" not in str(caught.value)


@needed
def test_splits_are_disjoint_and_the_same_for_a_seed():
    def questions(seed, split, **sizes):
        task = ReasoningGymTask("chain_sum", {"max_terms": 3, "max_digits": 2}, seed=seed, **sizes)
        return [p.problem for p in task.problems(split)]

    small = {"train_size": 60, "test_size": 30}
    found = {split: questions(0, split, **small) for split in ("train", "validation", "test")}
    assert [len(q) for q in found.values()] == [60, 30, 30]
    assert len({q for of_split in found.values() for q in of_split}) == 120
    assert questions(0, "train", **small) == found["train"]
    assert questions(0, "test", train_size=10, test_size=30) == found["test"]
    assert not set(questions(1, "test", **small)) & set(found["test"])
    assert ReasoningGymTask("chain_sum").name == "chain_sum"


@needed
def test_few_different_problems_are_drawn_once():
    task = ReasoningGymTask(
        "chain_sum", {"min_terms": 2, "max_terms": 2, "max_digits": 1}, train_size=500, test_size=20
    )
    assert len(task.problems("test")) == 20
    train = task.problems("train")
    assert len({p.problem for p in train}) == len(train) < 500  # there are 162


@needed
def test_the_datasets_own_verifier_judges():
    task = ReasoningGymTask("chain_sum", {"max_terms": 2, "max_digits": 1}, test_size=4, train_size=4)
    problem = task.problems("test")[0]
    texts = [rf"\boxed{{{problem.answer}}}", f"It is {problem.answer}.", r"\boxed{1000}"]
    judged = task.judge(texts, [problem.answer] * 3)
    assert [(j.answer_correct, j.right_anywhere) for j in judged] == [(True, True), (False, True), (False, False)]
    assert task.verify(["7"], ["7"]) == [True]  # a gold answer from a file


@needed
def test_an_answer_is_judged_by_its_own_question():
    """Two questions whose gold answers read the same, and an answer that is right for one of them only."""
    task = ReasoningGymTask("chain_sum", test_size=2, train_size=2)
    first, second = task.problems("test")
    second.answer.entry["answer"] = first.answer.entry["answer"]
    same = type(first.answer).of(second.answer.entry)
    assert str.__eq__(same, first.answer)
    assert same != first.answer

    class Verifier:
        def score_answer(self, answer, entry):
            return float(entry["question"] == second.problem)

    task._source = Verifier()
    prompts = [Prompt(first, [1]), Prompt(type(second)(second.id, second.problem, same), [1])]
    groups = [Group(p, [Rollout(p, 0, text=r"\boxed{5}")]) for p in prompts]
    Decoder(None, None, None, task).judge(groups)  # pyright: ignore[reportArgumentType]
    assert [g.rollouts[0].judgement.answer_correct for g in groups] == [False, True]


@needed
def test_a_verifier_that_breaks_is_counted():
    task = ReasoningGymTask("chain_sum", test_size=2, train_size=2)

    class Broken:
        def score_answer(self, answer, entry):
            raise ZeroDivisionError

    task._source = Broken()
    assert task.verify(["5"], [task.problems("test")[0].answer]) == [False]
    assert task.failures == 1


@needed
def test_demonstrations_are_made_of_the_answer():
    problem = ReasoningGymTask("chain_sum", test_size=2, train_size=2).problems("train")[0]
    plain = ReasoningGymTask("chain_sum", test_size=2, train_size=2)
    told = ReasoningGymTask("chain_sum", test_size=2, train_size=2, solution="The answer is {answer}.", template="hash")
    assert plain.demonstration(problem) == rf"\boxed{{{problem.answer}}}"
    assert told.demonstration(told.problems("train")[0]) == f"The answer is {problem.answer}.\n#### {problem.answer}"


@needed
def test_the_data_module_takes_it():
    task = ReasoningGymTask("chain_sum", test_size=6, train_size=20, prompt="{problem}\n")
    source = RLDataModule(task, eval_size=4, validation_size=3, tokenizer=load_tokenizer("lmix:tiny-arithmetic"))
    sets = source.read(["train", "validation", "test"])
    assert {split: len(prompts) for split, prompts in sets.items()} == {"train": 20, "validation": 3, "test": 4}


@needed
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "no_such"}, "task.dataset 'no_such' with task.config {}"),
        ({"dataset": "chain_sum", "config": {"nothing": 1}}, "nothing"),
        ({"dataset": "chain_sum", "config": {"min_terms": 9, "max_terms": 2}}, "task.config"),
        ({"dataset": "chain_sum", "test_size": 0}, "task.test_size must lie between 1 and"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        ReasoningGymTask(**arguments)
    assert "\n" not in str(caught.value)
