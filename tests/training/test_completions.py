"""Rows of completions, and the draw that docs/reliability.md makes of them."""

import json
import re
from pathlib import Path

import pytest

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.tokenizer import load_tokenizer
from lmix.tasks import ArithmeticTask
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.completion_log import CompletionLog
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.objectives import GRPO
from tests.training.helpers import SFT, data, module, trainer

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
TOKENS = 24


def documented(name: str):
    """A function of the page's code."""
    (code,) = re.findall(rf"```python file={name}.py\n(.*?)```", DOCS.read_text(), re.DOTALL)
    space: dict = {}
    exec(code, space)
    return space[name]


def policy_at(folder: Path, step: int) -> MixedPolicy:
    """As the run had it after so many updates."""
    saved = str(folder / "checkpoints" / f"step={step:04d}") if step else "base"
    backbone = BackboneConfig(quantization="none", dtype="float32")
    return MixedPolicy.from_pretrained(backbone, AdapterConfig(reference=SFT, policy=saved, rank=4))


def run(folder: Path, **parts) -> list[dict]:
    """Three steps; gives the rows that training wrote."""
    settings = {"samples_per_prompt": 4, "max_new_tokens": TOKENS, "slots": 16, "seed": 3} | parts.pop("sampling", {})
    m = module(sampling=SamplingConfig(**settings), optimizer=OptimizerConfig(lr=0.02), **parts)
    callbacks = [CompletionLog(), PolicyCheckpoint(every_n_steps=1, keep=-1)]
    trainer(folder, 3, callbacks=callbacks, val_check_interval=3).fit(m, data(prompts=2))
    return [json.loads(line) for line in (folder / "completions" / "train.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize(
    ("alpha", "parts"),
    [
        (0.5, {}),
        (0.0, {"objective": GRPO(inner_updates=2)}),
        (0.25, {"sampling": {"seed": 11, "slots": 4}}),
        (0.5, {"sampling": {"resample_dead": 1}}),
    ],
)
def test_the_documented_call_draws_each_row_again(tmp_path, alpha, parts):
    rows = run(tmp_path, alpha=alpha, **parts)
    assert {(row["step"], row["draw_step"]) for row in rows} == {(1, 0), (2, 1), (3, 2)}
    assert {row["seed"] for row in rows} == {parts.get("sampling", {}).get("seed", 3)}
    draw_again, tokenizer, task = documented("draw_again"), load_tokenizer("lmix:tiny-arithmetic"), ArithmeticTask()
    mixture, as_the_row_s_step_says = Mixture.at(alpha), 0
    for step in range(3):
        policy = policy_at(tmp_path, step)
        drawn = [row for row in rows if row["draw_step"] == step]
        for row in [drawn[0], drawn[-2], drawn[-1]]:
            assert draw_again(row, policy, mixture, tokenizer, task, TOKENS) == row["completion"]
            other = row | {"draw_step": row["step"]}
            as_the_row_s_step_says += draw_again(other, policy, mixture, tokenizer, task, TOKENS) == row["completion"]
    assert as_the_row_s_step_says < 9  # another step is another draw


def test_rows_of_an_evaluation_have_no_seed(tmp_path):
    run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "completions" / "val.jsonl").open(encoding="utf-8")]
    assert {(row["step"], row["draw_step"], row["seed"]) for row in rows} == {(3, 3, None)}
