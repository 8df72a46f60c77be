"""The code of docs/extending.md, as it stands there."""

import csv
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

from lmix import cli
from lmix.model.mixture import Mixture, row_mixtures
from lmix.training.objectives import Scored
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
    assert len(BLOCKS) == 7


def test_a_task_runs(mine, capsys):
    assert fit("--data.task=mine.SpellBackwards", "--data.task.words=12", "--data.task.template=hash") == 0
    problems = mine.SpellBackwards(words=3).problems("train")
    assert [
        mine.SpellBackwards().verify([p.answer.upper(), p.answer + "x", None], [p.answer] * 3) for p in problems
    ] == [[True, False, False]] * 3


def test_an_objective_runs(mine):
    assert fit("--model.objective=mine.SAPO", "--model.objective.mini_batches=2") == 0


def test_the_objectives_are_what_they_say(mine):
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    advantages = mine.GlobalAdvantages().advantages(rewards)
    assert torch.allclose(advantages, torch.tensor([[1.0, -1.0], [0.0, 0.0]]) * math.sqrt(2), atol=1e-4)
    log_probs = torch.tensor([[0.0, 0.0], [math.log(2.0), 5.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    scored = Scored(log_probs, torch.zeros(2, 2), torch.tensor([0.5, -0.5]), mask)
    objective = mine.SAPO(temperature=1.0, temperature_below=2.0)
    terms, logged = objective.terms(scored)
    # at ratio 1 the gate is 2 / temperature and its slope 1: the policy gradient
    assert terms[0].tolist() == pytest.approx([1.0, 1.0])
    assert terms[1].tolist() == pytest.approx([-0.5 * 2.0 / (1.0 + math.exp(-2.0)), 0.0])
    assert torch.autograd.grad(terms.sum(), log_probs)[0][0].tolist() == pytest.approx([0.5, 0.5])
    assert set(logged) == set(objective.logged)


def test_rewards_run_with_their_curves(mine, tmp_path):
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}/csv", "--trainer.logger.name=x"]
    rewards = "--model.rewards={verifier: 1, mine.brevity: 0.1, mine.ShortAnswer: 0.5}"
    assert fit("--trainer.log_every_n_steps=1", *logger, rewards) == 0
    with (tmp_path / "csv/x/version_0/metrics.csv").open() as file:
        (row, *_) = [row for row in csv.DictReader(file) if row["train/reward"]]
    curves = {name: float(row[f"reward/{name}"]) for name in ("verifier", "mine.brevity", "mine.ShortAnswer")}
    weighted = curves["verifier"] + 0.1 * curves["mine.brevity"] + 0.5 * curves["mine.ShortAnswer"]
    assert float(row["train/reward"]) == pytest.approx(weighted, abs=1e-6)
    assert curves["verifier"] == pytest.approx(float(row["train/solve_rate"]))
    assert 0 < curves["mine.brevity"] <= 1


def test_a_sampler_runs(mine, tmp_path):
    assert fit("--model=mine.CannedGRPO", f"--trainer.logger.save_dir={tmp_path}/runs") == 0
    (path,) = tmp_path.glob("runs/**/train.jsonl")
    rows = [json.loads(line) for line in path.open()]
    assert [row["completion"] for row in rows[:4]] == ["1 + 1 = 2.", "2 + 2 = 4. \\boxed{4}"] * 2


def test_alpha_that_depends_on_the_position_is_sampled_and_scored_alike(mine, capsys):
    assert fit("--trainer.callbacks+=mine.FadeAlpha", "--trainer.log_every_n_steps=1") == 0
    positions = torch.tensor([0, 15, 30, 99])
    found = mine.FadingMixture((0.2, 0.8)).of_tokens(positions)
    assert torch.allclose(found.weights_BK[:, 1], torch.tensor([0.8, 0.4, 0.0, 0.0]))
    with pytest.raises(ValueError, match="whose weights depend on the token can't be drawn"):
        row_mixtures([Mixture.at(0.0), mine.FadingMixture((0.2, 0.8))])


def test_a_callback_moves_alpha(mine, capsys):
    assert fit("--trainer.callbacks+=mine.AlphaByReward") == 0
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


@pytest.mark.slow
def test_a_callback_is_added_by_its_name(mine, capsys):
    adaptive = ["--trainer.callbacks+=lmix.training.alpha.AdaptiveAlpha", "--trainer.callbacks.offset=2"]
    assert fit(*adaptive, "--data.validation_size=4") == 0
    assert len(set(re.findall(r"alpha ([\d.]+)", capsys.readouterr().out))) > 1
