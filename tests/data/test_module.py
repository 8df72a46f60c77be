import json
from itertools import chain

import pytest

from lmix.data.loader import StepLoader
from lmix.data.module import RLDataModule
from lmix.model.tokenizer import load_tokenizer
from lmix.tasks import ArithmeticTask, DatasetTask

TOKENIZER = load_tokenizer("lmix:tiny-arithmetic")


def module(**arguments) -> RLDataModule:
    return RLDataModule(ArithmeticTask(train_size=10, test_size=6), tokenizer=TOKENIZER, **arguments)


def ids(batches):
    return [[e.problem.id for e in batch] for batch in batches]


def loader(**arguments) -> StepLoader:
    m = module()
    return StepLoader(m.read(["train"])["train"], 4, **{"seed": 0, **arguments})


def test_an_epoch_holds_every_problem_once_and_the_next_one_in_another_order():
    one = loader()
    first, second = ids(one), ids(one)
    assert [len(b) for b in first] == [4, 4, 2]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second
    assert first == ids(loader())
    assert first != ids(loader(seed=1))
    assert second != ids(loader(seed=1))  # a seed's second epoch is not another seed's first


def test_the_position_is_saved_and_restored():
    one = loader()
    steps = iter(one)
    next(steps)
    state = one.state_dict()
    rest = [ids([b])[0] for b in steps] + ids(one)
    other = loader()
    other.load_state_dict(state)
    assert ids(other) + ids(other) == rest


def test_another_number_of_prompts_goes_on_at_the_same_problem():
    one = loader()
    steps = iter(one)
    seen = [e.problem.id for e in next(steps)]
    other = StepLoader(one.prompts, 2, seed=0)
    other.load_state_dict(one.state_dict())
    rest = list(chain(*ids(other)))
    assert [*seen, *rest] == list(chain(*ids(loader())))


def test_ranks_share_each_batch():
    whole = ids(loader())
    shares = [ids(loader(rank=r, world_size=3)) for r in range(3)]
    for step, batch in enumerate(whole):
        assert sorted(chain(*(share[step] for share in shares))) == sorted(batch)


def test_held_out_problems_are_chosen_by_seed():
    one, other = module(eval_size=3).read(["test"])["test"], module(eval_size=3, seed=1).read(["test"])["test"]
    assert len(one) == len(other) == 3
    assert one != other
    assert one == module(eval_size=3).read(["test"])["test"]


def test_a_prompt_longer_than_the_limit():
    with pytest.raises(ValueError, match=r"data.max_prompt_tokens is 20, but the prompt of train problem \d+ has \d+"):
        module(max_prompt_tokens=20).read(["train"])["train"]
    lengths = sorted(len(e.ids) for e in module().read(["train"])["train"])
    kept = module(max_prompt_tokens=lengths[4], long_prompts="drop").read(["train"])["train"]
    assert sorted(len(e.ids) for e in kept) == [n for n in lengths if n <= lengths[4]]
    with pytest.raises(ValueError, match=r"no problem is left for \w+: .* all prompts are longer than data.max_prompt"):
        module(max_prompt_tokens=1, long_prompts="drop").read(["train"])["train"]


@pytest.mark.parametrize("own_splits", [True, False])
def test_long_prompts_are_passed_over_before_any_are_chosen(own_splits, tmp_path):
    """As many held-out problems as were asked for, and an evaluation of the same seed has the same ones."""
    problems = ["1 + 1 = ?" + " now" * (40 * (i % 3)) for i in range(30)]  # one in three is short
    rows = [json.dumps({"problem": f"{i}: {text}", "answer": "2"}) + "\n" for i, text in enumerate(problems)]
    (tmp_path / "train.jsonl").write_text("".join(rows[:20]))
    (tmp_path / "test.jsonl").write_text("".join(rows[20:]))
    test = {"test_source": str(tmp_path / "test.jsonl")} if own_splits else {}
    task = DatasetTask(str(tmp_path / "train.jsonl"), **test)
    common = {"max_prompt_tokens": 40, "long_prompts": "drop", "tokenizer": TOKENIZER}
    found = RLDataModule(task, eval_size=3, validation_size=2, **common).read(["train", "validation", "test"])
    sizes = {split: len(examples) for split, examples in found.items()}
    assert sizes == {"train": 5 if own_splits else 2, "validation": 2, "test": 3}
    assert all(len(e.ids) <= 40 for examples in found.values() for e in examples)
    assert RLDataModule(task, eval_size=3, **common).read(["test"])["test"] == found["test"]


@pytest.mark.parametrize("name", ["prompts_per_step", "eval_size", "max_prompt_tokens"])
def test_sizes_below_1(name):
    with pytest.raises(ValueError, match=f"data.{name} must be at least 1, not 0"):
        module(**{name: 0})
