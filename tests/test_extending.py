"""The code of docs/extending.md, as it stands there."""

import re
import sys
from pathlib import Path

import pytest
import torch

from lmix import cli
from tests.test_cli import DEMO, SMALL

DOCS = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = re.findall(r"```python file=(\S+)\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A newcomer's folder with the blocks in it."""
    for name, code in BLOCKS:
        with (tmp_path / name).open("a") as file:
            file.write(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("mine")
    sys.modules.pop("mine", None)


def fit(*flags: str) -> int:
    return cli.main(["fit", *DEMO, *flags[:1], *SMALL, *flags[1:], "--trainer.num_sanity_val_steps=0"])


def test_there_are_blocks():
    assert {name for name, _ in BLOCKS} == {"mine.py", "run.py"}
    assert len(BLOCKS) == 5


def test_a_task_runs(mine, capsys):
    assert fit("--data.task=mine.SpellBackwards", "--data.task.words=12", "--data.task.template=hash") == 0
    problems = mine.SpellBackwards(words=3).problems("train")
    assert [
        mine.SpellBackwards().verify([p.answer.upper(), p.answer + "x", None], [p.answer] * 3) for p in problems
    ] == [[True, False, False]] * 3


@pytest.mark.parametrize("name", ["RLOO", "CISPO", "ShortGRPO"])
def test_an_objective_or_a_reward_runs(mine, name):
    assert fit(f"--model=mine.{name}") == 0


def test_the_objectives_are_what_they_say(mine):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    rloo = mine.RLOO.advantages(None, rewards)
    others = [(rewards.sum() - r) / 3 for r in rewards[0]]
    assert torch.allclose(rloo[0], rewards[0] - torch.stack(others))
    module = mine.CISPO()
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-2.0, -2.0]])
    terms, clipped = module.surrogate(log_probs, old, torch.tensor([0.5]), torch.ones(1, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(terms.sum(), log_probs)
    assert torch.allclose(gradient, torch.tensor([[0.5 * 1.2, 0.5]]))
    assert clipped.tolist() == [[True, False]]


def test_a_callback_moves_alpha(mine, capsys):
    assert fit("--trainer.callbacks=mine.AlphaByReward") == 0
    alphas = re.findall(r"alpha ([\d.]+)", capsys.readouterr().out)
    assert len(set(alphas)) > 1


def test_loggers_by_configuration_alone(mine, tmp_path):
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}/csv", "--trainer.logger.name=x"]
    assert fit("--trainer.log_every_n_steps=1", *logger) == 0
    assert "train/reward" in (tmp_path / "csv/x/version_0/metrics.csv").read_text().splitlines()[0]
    assert (tmp_path / "csv/x/version_0/completions/train.jsonl").is_file()


def test_the_script_runs(mine, capsys):
    exec((Path("run.py")).read_text(), {})
    assert re.search(r"alpha 0\.\d\d", capsys.readouterr().out)
    assert Path("trained/adapter_model.safetensors").is_file()


def test_each_block_stands_alone():
    for name, code in BLOCKS:
        if name == "mine.py":
            exec(code, {"__name__": "mine"})


def test_a_callback_is_added_by_its_name(mine, capsys):
    adaptive = ["--trainer.callbacks+=lmix.training.alpha.AdaptiveAlpha", "--trainer.callbacks.offset=2"]
    assert fit(*adaptive, "--data.validation_size=4") == 0
    assert len(set(re.findall(r"alpha ([\d.]+)", capsys.readouterr().out))) > 1
