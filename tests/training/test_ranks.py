"""Two gloo processes against one: the same adapters, the same alpha, the same figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "run_on_ranks.py"
LOCAL = {"perf/rollout_seconds", "perf/update_seconds", "perf/alpha_share"}
SPEED = {"perf/rollout_tokens_per_second", "perf/train_tokens_per_second"}


def train(out: Path, ranks: int, prompts: int, steps: int = 3, ckpt: str = "") -> tuple[dict, list[dict]]:
    """Run the script; gives the last checkpoint, and what each rank wrote down."""
    out.mkdir()
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    line = [*start, str(SCRIPT), str(out), str(prompts), str(steps), *([ckpt] if ckpt else [])]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    written = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    return torch.load(out / "checkpoints" / f"step={steps:04d}.ckpt", weights_only=True), written


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """5 prompts a step: 3 and 2 of them, and the epoch's last step has 1 of 16."""
    folder = tmp_path_factory.mktemp("ranks")
    return {ranks: (folder / str(ranks), *train(folder / str(ranks), ranks, 5, steps=4)) for ranks in (1, 2)}


def test_two_processes_train_as_one_does(runs):
    (_, one, (alone,)), (_, two, (first, second)) = runs[1], runs[2]
    compare(one, two, alone, first, second)
    assert second["groups"] == [2, 2, 2, 0]
    assert one["lmix"]["alpha"] == two["lmix"]["alpha"] == first["alpha"] == second["alpha"] != 0.5
    for metrics, expected in zip(first["metrics"], alone["metrics"], strict=True):
        assert metrics.keys() == expected.keys()
        for name in expected.keys() - LOCAL - SPEED:
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    rewards = [metrics["train/reward"] for metrics in first["metrics"]]
    assert len(set(rewards)) > 1


def test_a_rank_that_never_has_a_prompt(tmp_path):
    one, (alone,) = train(tmp_path / "one", 1, 1, steps=12)
    two, (first, second) = train(tmp_path / "two", 2, 1, steps=12)
    compare(one, two, alone, first, second)
    assert second["groups"] == [0] * 12


def compare(one: dict, two: dict, alone: dict, first: dict, second: dict) -> None:
    """Adapters that have moved and are the same, and the same groups, shared out."""
    state = one["state_dict"]
    assert any(p.abs().max() > 0 for name, p in state.items() if ".policy." in name and "lora_B" in name)
    for name, value in state.items():
        assert torch.allclose(value, two["state_dict"][name], atol=1e-5), name
    for name in ("groups", "live"):
        assert [a + b for a, b in zip(first[name], second[name], strict=True)] == alone[name]
    # a step in which one rank has no live group, and the other has
    assert any((a == 0) != (b == 0) for a, b in zip(first["live"], second["live"], strict=True))


@pytest.mark.parametrize(("before", "ranks"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_ranks(before, ranks, runs, tmp_path):
    checkpoint = runs[before][0] / "checkpoints" / "step=0002.ckpt"
    more, written = train(tmp_path / "more", ranks, 5, steps=4, ckpt=str(checkpoint))
    assert len(written[0]["groups"]) == 2  # the other two were made before
    whole = runs[1][1]
    for name, value in whole["state_dict"].items():
        assert torch.allclose(value, more["state_dict"][name], atol=1e-5), name
    assert more["lmix"]["alpha"] == whole["lmix"]["alpha"]
