import json

import pytest

from lmix.data.splits import as_text, split_problems
from lmix.tasks import ArithmeticTask, DatasetTask, MathTask, Problem


def file(tmp_path, count=40, name="all.jsonl", **changes):
    rows = [{"problem": f"Problem  {i}", "answer": str(i), "source": "ab"[i % 2], **changes} for i in range(count)]
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def ids(chosen):
    return {split: {p.id for p in problems} for split, problems in chosen.items()}


def test_one_file_is_split_by_seed_into_three_that_share_nothing(tmp_path):
    task = DatasetTask(file(tmp_path))
    chosen = ids(split_problems(task, ["train", "validation", "test"], 10, 5, seed=0))
    assert {split: len(found) for split, found in chosen.items()} == {"train": 25, "validation": 5, "test": 10}
    assert set.union(*chosen.values()) == set(range(40))
    assert chosen == ids(split_problems(task, ["train", "validation", "test"], 10, 5, seed=0))
    assert chosen != ids(split_problems(task, ["train", "validation", "test"], 10, 5, seed=1))
    # an evaluation alone finds the same held-out problems as training did
    assert ids(split_problems(task, ["test"], 10, 5, seed=0))["test"] == chosen["test"]


@pytest.mark.parametrize(("count", "held"), [(2, 1), (5, 1), (9, 1), (10, 2), (64, 12), (2499, 499), (3000, 500)])
def test_by_default_a_fifth_of_one_file_is_held_out_whatever_its_size(count, held, tmp_path):
    task = DatasetTask(file(tmp_path, count))
    chosen = ids(split_problems(task, ["train", "test"], None, 0, seed=0))
    assert len(chosen["test"]) == held
    assert chosen["train"] == set(range(count)) - chosen["test"]
    assert ids(split_problems(task, ["test"], None, 0, seed=0))["test"] == chosen["test"]


@pytest.mark.parametrize("limit", [10, 25, 40])
def test_the_fifth_is_the_same_whatever_problems_are_too_long(limit, tmp_path):
    """A run and an evaluation with another limit share no problem, and a longer spelling of one is held out with it."""
    rows = [(f"Problem {i}", "1") for i in range(40)] + [(f"problem   {i}", "1") for i in range(40)]
    task = DatasetTask(repeated(tmp_path, *rows))

    def numbers(problems):
        return {int(as_text(p).split()[1]) for p in problems}

    trained = split_problems(task, ["train", "test"], None, 0, 0, lambda p: p.id < 40 and p.id % 40 < limit)
    evaluated = split_problems(task, ["test"], None, 0, 0)
    assert len(evaluated["test"]) == 8
    assert numbers(trained["test"]) <= numbers(evaluated["test"])
    assert not numbers(trained["train"]) & numbers(evaluated["test"])
    assert numbers(trained["train"]) | numbers(trained["test"]) <= set(range(limit))


def test_a_test_file_and_a_task_with_its_own_splits_give_500_by_default(tmp_path):
    task = DatasetTask(file(tmp_path, 9), test_source=file(tmp_path, 600, "test.jsonl"))
    assert len(split_problems(task, ["test"], None, 0, seed=0)["test"]) == 500
    assert len(split_problems(ArithmeticTask(50, 600), ["test"], None, 0, seed=0)["test"]) == 500


def test_training_problems_that_are_held_out_elsewhere_are_left_out(tmp_path, caplog):
    task = DatasetTask(file(tmp_path), test_source=file(tmp_path, 8, "test.jsonl"))
    chosen = split_problems(task, ["train", "validation", "test"], 500, 4, seed=0)
    assert {p.id for p in chosen["test"]} == set(range(8))
    texts = {split: {as_text(p) for p in problems} for split, problems in chosen.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert "left out" in caplog.text


def test_a_task_with_its_own_splits(tmp_path):
    chosen = split_problems(ArithmeticTask(50, 20), ["train", "validation", "test"], 15, 10, seed=0)
    assert {split: len(found) for split, found in chosen.items()} == {"train": 50, "validation": 10, "test": 15}


def test_too_few_problems(tmp_path):
    with pytest.raises(ValueError, match=r"for split train: add problems, or lower data.eval_size \(10\)"):
        split_problems(DatasetTask(file(tmp_path, 5)), ["train", "test"], 10, 0, seed=0)
    with pytest.raises(ValueError, match=r"for split train: add problems, or lower data.eval_size \(null\)"):
        split_problems(DatasetTask(file(tmp_path, 1)), ["train", "test"], None, 0, seed=0)


def test_rows_are_filtered_by_other_columns(tmp_path):
    path = file(tmp_path)
    assert {p.id % 2 for p in DatasetTask(path, where={"source": "b"}).problems("train")} == {1}
    assert len(DatasetTask(path, where={"source": ["a", "b"]}).problems("train")) == 40
    with pytest.raises(ValueError, match="column 'level' is not in"):
        MathTask(path, levels=[1], solution_column=None, answer_column="answer").problems("train")


def repeated(tmp_path, *rows, name="repeated.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in rows))
    return str(path)


@pytest.mark.parametrize("seed", range(5))
def test_a_problem_that_is_there_several_times_is_held_out_once(seed, tmp_path):
    rows = [(f"Problem {i % 10}", "1") for i in range(40)]
    task = DatasetTask(repeated(tmp_path, *rows))
    chosen = split_problems(task, ["train", "validation", "test"], 3, 2, seed)
    texts = {split: [as_text(p) for p in problems] for split, problems in chosen.items()}
    assert {split: len(found) for split, found in texts.items()} == {"train": 20, "validation": 2, "test": 3}
    assert len(set(texts["test"] + texts["validation"])) == 5
    assert not set(texts["train"]) & set(texts["test"] + texts["validation"])
    # each is the same whatever the size of the other
    assert split_problems(task, ["train", "validation", "test"], 3, 0, seed)["test"] == chosen["test"]
    assert split_problems(task, ["train", "validation", "test"], 1, 2, seed)["validation"] == chosen["validation"]


def test_validation_shares_no_problem_with_a_test_file(tmp_path):
    train = repeated(tmp_path, *[(f"problem  {i}", "1") for i in range(20)])
    test = repeated(tmp_path, *[(f"Problem {i}", "1") for i in range(15)], name="test.jsonl")
    chosen = split_problems(DatasetTask(train, test_source=test), ["train", "validation", "test"], 15, 4, seed=0)
    assert len(chosen["validation"]) == 4
    assert {p.id for p in (*chosen["validation"], *chosen["train"])} == set(range(15, 20))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "1"), ("b", "1"), ("c", "1"), ("a", "1")], "1 train problems occur more than once, 0 with different"),
        ([("a", "1"), ("b", "1"), ("c", "1"), (" A", "2")], "1 train problems occur more than once, 1 with different"),
        ([("a", "1"), ("a", "2"), ("b", "3"), ("b", "3"), ("c", "4")], "2 train problems occur more than once, 1 with"),
        ([("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")], ""),
    ],
)
def test_repeated_problems_are_reported(rows, message, tmp_path, caplog):
    split_problems(DatasetTask(repeated(tmp_path, *rows)), ["train", "test"], 1, 0, seed=0)
    assert message in caplog.text
    assert ("occur more than once" in caplog.text) == bool(message)


def test_conversations_differ_by_what_was_said_before():
    one, other = (Problem(0, "And then?", "1", history=(("user", text),)) for text in ("Hello", "Bye"))
    assert as_text(one) != as_text(other)
    assert as_text(one) == as_text(Problem(1, "and  then?", "2", history=(("user", " hello"),)))
