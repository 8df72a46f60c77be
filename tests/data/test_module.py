import json
import logging
from itertools import chain

import lightning as L
import pytest
import torch

from lmix.data.loader import StepLoader
from lmix.data.module import RLDataModule
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.tokenizer import load_tokenizer
from lmix.tasks import ArithmeticTask, DatasetTask
from lmix.training.config import SamplingConfig
from lmix.training.sft import SFTModule

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


def test_file_order():
    one = loader(shuffle=False)
    assert ids(one) == ids(one) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    found = module(shuffle=False, eval_size=3, train_size=5).read(["train", "test"])
    assert ids(found.values()) == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert ids([module(eval_size=3, seed=1).read(["test"])["test"]]) != [[0, 1, 2]]
    assert ids([module(train_size=99).read(["train"])["train"]]) == [list(range(10))]


def streamed(one: StepLoader, steps: int) -> list[tuple[list[int], list[int]]]:
    """Problems of the next steps' lists, and their validation problems."""
    found = []
    for batch, _ in zip(one, range(steps), strict=False):
        found.append((ids([batch])[0], ids([one.validation_prompts])[0]))
    return found


def test_a_stream_takes_validation_problems_from_the_order():
    """A pointer walks over the problems; nothing is left out or taken twice in a pass."""
    one = loader(shuffle=False, validation=2)
    assert len(one) == 2
    assert streamed(one, 2) == [([0, 1, 2, 3], [4, 5]), ([6, 7, 8, 9], [0, 1])]
    whole = streamed(loader(validation=3), 10)
    order = [number for pair in whole for part in pair for number in part]
    for start in range(0, 70, 10):
        assert sorted(order[start : start + 10]) == list(range(10))
    assert order[:10] != order[10:20]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("done", [1, 2, 5])
def test_a_stream_goes_on_in_the_middle_of_an_epoch(shuffle, done):
    whole = streamed(loader(shuffle=shuffle, validation=3), 9)
    one = loader(shuffle=shuffle, validation=3)
    steps = iter(one)
    for _ in range(done):
        next(steps)
    other = loader(shuffle=shuffle, validation=3)
    other.load_state_dict(one.state_dict())
    assert streamed(other, 9 - done) == whole[done:]


def test_a_stream_needs_problems_for_a_step(tmp_path):
    with pytest.raises(ValueError, match="stream needs 11 different training problems per step, out of 10"):
        trained(tmp_path, 1, settings={"validation_size": 7, "validation_source": "stream"})
    with pytest.raises(ValueError, match=r"remove trainer.overfit_batches"):
        trained(tmp_path, 1, settings={"validation_size": 2, "validation_source": "stream"}, overfit_batches=1)
    with pytest.raises(ValueError, match=r"data.train_size must be at least 1, not 0"):
        module(train_size=0)


def test_dead_groups_are_not_replaced_by_validation_problems(tmp_path):
    """Steps of 4 and 4 leave 2 of 10 problems that a step may take in."""
    source = module(prompts_per_step=4, eval_size=2, validation_size=4, validation_source="stream")
    source.sets = source.read(["train"])
    batch = next(iter(source.train_dataloader()))
    spare = source.spare_prompts(10, 0, 0, {prompt.problem.id for prompt in batch})
    assert len(spare) == 2
    assert not {p.problem.id for p in spare} & {p.problem.id for p in source.validation_share()}


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
    with pytest.raises(
        ValueError, match=r"no problems are left for split \w+: add .* lower .* raise data.max_prompt_tokens"
    ):
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


class Recorder(L.LightningModule):
    """A module that learns nothing and writes down the problems of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer = TOKENIZER
        self.seen: list[list[int]] = []
        self.spare: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append([example.problem.id for example in batch])
        self.spare.append(len(self.trainer.datamodule.spare_prompts(2, batch_idx, 0, set())))
        self.optimizers().step()  # pyright: ignore

    def configure_optimizers(self):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def trained(tmp_path, steps, recorder=None, checkpoint=None, settings=None, **flags) -> Recorder:
    recorder = recorder or Recorder()
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, limit_val_batches=0, default_root_dir=tmp_path, enable_checkpointing=False,
        **off, **flags,
    )  # fmt: skip
    source = module(prompts_per_step=4, eval_size=2, **(settings or {}))
    trainer.fit(recorder, source, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return recorder


@pytest.mark.parametrize(("flag", "batches"), [(1, 1), (2, 2), (0.4, 1), (0.7, 2), (1.0, 3), (9, 3)])
def test_overfit_batches_repeats_the_same_batches(flag, batches, tmp_path):
    """Ten problems in steps of four are three batches."""
    found = trained(tmp_path, 7, overfit_batches=flag)
    assert found.seen == (found.seen[:batches] * 7)[:7]
    assert len({tuple(batch) for batch in found.seen}) == batches
    assert set(found.spare) == {0}  # nothing comes in for dead groups


def test_without_overfit_batches_each_epoch_has_another_order(tmp_path):
    found = trained(tmp_path, 6)
    assert sorted(chain(*found.seen[:3])) == sorted(chain(*found.seen[3:])) == list(range(10))
    assert found.seen[:3] != found.seen[3:]
    assert set(found.spare) == {2}


@pytest.mark.parametrize("batches", [1, 2])
def test_overfit_batches_goes_on_with_its_batches(batches, tmp_path):
    whole = trained(tmp_path, 5, overfit_batches=batches).seen
    first = trained(tmp_path, 3, overfit_batches=batches).seen
    rest = trained(tmp_path, 5, checkpoint=tmp_path / "last.ckpt", overfit_batches=batches).seen
    assert first + rest == whole


def test_the_last_of_the_repeated_batches_may_be_shorter():
    found = loader(repeat=3)
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert ids(loader(repeat=2)) == ids(loader())[:2]
    one = loader(repeat=2)
    assert ids(one) == ids(one)
    shares = [ids(loader(repeat=1, rank=rank, world_size=2))[0] for rank in (0, 1)]
    assert sorted(chain(*shares)) == sorted(ids(loader())[0])


def demonstrations(tmp_path, *equations) -> DatasetTask:
    """Problems whose solutions have so many equations, of 6 tokens each."""
    rows = [
        {"problem": f"{i} + 1 = ?", "answer": str(i + 1), "solution": "1 + 1 = 2. " * count}
        for i, count in enumerate(equations)
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetTask(str(path), solution_column="solution", prompt="{problem}\n")


def fine_tuned(task, tmp_path, **arguments) -> RLDataModule:
    """One step of SFT with the embedded model, whose context is 512 tokens."""
    backbone = BackboneConfig(quantization="none", dtype="float32")
    sft = SFTModule(backbone, AdapterConfig(rank=2), sampling=SamplingConfig(max_new_tokens=8))
    data = RLDataModule(task, prompts_per_step=2, eval_size=1, tokenizer=TOKENIZER, **arguments)
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    L.Trainer(
        max_steps=1, limit_val_batches=0, default_root_dir=tmp_path, enable_checkpointing=False, **off
    ).fit(sft, data)  # fmt: skip
    return data


def test_a_demonstration_longer_than_the_context_is_an_error(tmp_path):
    task = demonstrations(tmp_path, 1, 2, 100, 3, 340, 120)
    with pytest.raises(ValueError, match=r"training problem \d has \d+ tokens") as error:
        fine_tuned(task, tmp_path)
    longest = task.problems("train")[4]
    parts = (task.prompt_ids(longest, TOKENIZER), TOKENIZER(task.demonstration(longest))["input_ids"])
    tokens = sum(map(len, parts)) + 1  # and the one that ends it
    assert str(error.value) == (
        f"training problem 4 has {tokens} tokens with its demonstration, more than the 512 of the backbone's "
        "context: shorten it, or set data.long_prompts to drop"
    )


def test_a_demonstration_longer_than_the_context_is_dropped_and_counted(tmp_path, caplog):
    task = demonstrations(tmp_path, 1, 2, 340, 100, 3, 120, 80)
    with caplog.at_level(logging.WARNING):
        data = fine_tuned(task, tmp_path, long_prompts="drop")
    held_out = RLDataModule(task, eval_size=1, tokenizer=TOKENIZER).read(["test"])["test"]
    assert data.sets["test"] == held_out  # whatever its demonstration: RL and evaluation have the same one
    assert [e.problem.id for e in held_out] == [4]
    assert [e.problem.id for e in data.sets["train"]] == [0, 1, 6]
    assert "3 of 6 training problems dropped: the longest, training problem 2 has 20" in caplog.text
    with pytest.raises(ValueError, match=r"training problem \d has .*: all are longer"):
        fine_tuned(demonstrations(tmp_path, 100, 101, 102), tmp_path, long_prompts="drop")


@pytest.mark.parametrize(("limit", "kept"), [(12, 10), (9, 10), (8, 9), (4, 5), (0, 1)])
def test_the_limit_on_training_problems_is_inclusive(limit, kept):
    m = module(eval_size=2, long_prompts="drop")
    m.sets = m.read(["train", "test"])
    tested = m.sets["test"]
    m.limit_training(lambda example: example.problem.id, limit)
    assert [e.problem.id for e in m.sets["train"]] == list(range(kept))
    assert m.sets["test"] == tested


def test_text_that_the_tokenizer_does_not_know_is_told(tmp_path, caplog):
    path = tmp_path / "two.jsonl"
    path.write_text(
        '{"problem": "Tom has 2 apples.", "answer": "2"}\n{"problem": "Zoe juggles 3 torches.", "answer": "3"}\n'
    )
    data = RLDataModule(DatasetTask(str(path), prompt="{problem}"), tokenizer=TOKENIZER, eval_size=1)
    with caplog.at_level(logging.WARNING):
        data.read(["train", "test"])
    assert (
        "1 of 2 prompts contain text that the tokenizer can't encode, such as problem 1 with 'juggles', 'torches.': "
        "the model sees"
    ) in caplog.text
    assert "<|unknown|>" in caplog.text
    caplog.clear()
    module().read(["train", "test"])
    assert not caplog.text
