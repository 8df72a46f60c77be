"""Two gloo processes against one: the same adapters, the same alpha, the same figures."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.model.whole import merged_sft

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "run_on_ranks.py"
LOCAL = {"perf/rollout_seconds", "perf/update_seconds", "perf/alpha_share"}
SPEED = {"perf/rollout_tokens_per_second", "perf/train_tokens_per_second"}
SMALL = {"micro_batch_tokens": 150}  # several passes a step, and not the same number on both ranks


def start(ranks: int, *line: str) -> subprocess.CompletedProcess:
    """Run a script, or `-m` and a module, on one process or under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    line = (sys.executable, *launcher, *line)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)


def train(out: Path, ranks: int, **settings) -> tuple[dict, list[dict]]:
    """Run the script; gives the last checkpoint, and what each rank wrote down."""
    out.mkdir()
    done = start(ranks, str(SCRIPT), str(out), json.dumps(settings))
    assert done.returncode == 0, done.stderr[-3000:]
    written = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    checkpoint = out / "checkpoints" / f"step={settings.get('steps', 3):04d}.ckpt"
    return torch.load(checkpoint, weights_only=True), written


PACKED = {"compute/flops", "compute/trained_tokens"}
"""Ranks pack other rows together, and share prompts where that saves tokens."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """5 prompts a step: 3 and 2 of them, and the epoch's last step has 1 of 16."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {"one": (1, "ddp"), "ddp": (2, "ddp"), "fsdp2": (2, "fsdp2")}
    return {
        name: (folder / name, *train(folder / name, ranks, steps=4, strategy=strategy, **SMALL))
        for name, (ranks, strategy) in cases.items()
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", pytest.param("fsdp2-in-step", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_does(runs, strategy, tmp_path):
    _, one, (alone,) = runs["one"]
    if strategy in runs:
        _, two, (first, second) = runs[strategy]
    else:
        two, (first, second) = train(tmp_path / strategy, 2, steps=4, strategy=strategy, **SMALL)
    compare(one, two, alone, first, second)
    assert second["groups"] == [2, 2, 2, 0]
    assert one["lmix"]["alpha"] == two["lmix"]["alpha"] == first["alpha"] == second["alpha"] != 0.5
    for metrics, expected in zip(first["metrics"], alone["metrics"], strict=True):
        assert metrics.keys() == expected.keys()
        for name in expected.keys() - LOCAL - SPEED - PACKED:
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert first["held_out"].keys() == alone["held_out"].keys()
    assert {"avg_at_k", "policy/maj_at_k", "reference/pass_at_k", "right_anywhere_rate"} <= first["held_out"].keys()
    assert first["held_out"] == second["held_out"] == pytest.approx(alone["held_out"])
    rewards = [metrics["train/reward"] for metrics in first["metrics"]]
    assert len(set(rewards)) > 1


@pytest.mark.slow
def test_a_rank_that_never_has_a_prompt(tmp_path):
    one, (alone,) = train(tmp_path / "one", 1, prompts=1, steps=12)
    two, (first, second) = train(tmp_path / "two", 2, prompts=1, steps=12, strategy="fsdp2")
    compare(one, two, alone, first, second)
    assert second["groups"] == [0] * 12


def compare(one: dict, two: dict, alone: dict, first: dict, second: dict) -> None:
    """Adapters that have moved and are the same, and the same groups, shared out."""
    same_adapters(one, two)
    for name in ("groups", "live"):
        assert [a + b for a, b in zip(first[name], second[name], strict=True)] == alone[name]
    # a step in which one rank has no live group, and the other has
    assert any((a == 0) != (b == 0) for a, b in zip(first["live"], second["live"], strict=True))


def same_adapters(one: dict, two: dict, moved: bool = True) -> None:
    """The same adapters (rtol 1e-5, atol 3e-6) and gradients: Adam's first moments (rtol 1e-5, atol 1e-8)."""
    state = one["state_dict"]
    assert moved == any(p.abs().max() > 0 for name, p in state.items() if ".policy." in name and "lora_B" in name)
    assert state.keys() == two["state_dict"].keys()
    for name, value in state.items():
        assert torch.allclose(value, two["state_dict"][name], atol=3e-6), name
    moments, others = (run["optimizer_states"][0]["state"] for run in (one, two))
    assert moments
    assert moments.keys() == others.keys()
    for index, moment in moments.items():
        assert torch.allclose(moment["exp_avg"], others[index]["exp_avg"], rtol=1e-5, atol=1e-8), index


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("ddp", "one", marks=pytest.mark.slow),
        ("one", "fsdp2"),
        pytest.param("one", "ddp", marks=pytest.mark.slow),
        pytest.param("fsdp2", "one", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(before, after, runs, tmp_path):
    checkpoint = runs[before][0] / "checkpoints" / "step=0002.ckpt"
    ranks = 1 if after == "one" else 2
    more, written = train(tmp_path / "more", ranks, steps=4, ckpt_path=str(checkpoint), strategy=after, **SMALL)
    assert len(written[0]["groups"]) == 2  # the other two were made before
    whole = runs["one"][1]
    same_adapters(whole, more)
    assert more["lmix"]["alpha"] == whole["lmix"]["alpha"]


CASES = {
    "nf4 with a KL, two updates": {"quantization": "nf4", "inner_updates": 2, "beta": 0.01, "alpha": 0.0, **SMALL},
    "sft": {"method": "sft"},
    "sft, sums": {"method": "sft", "loss": "sequence_sum", "steps": 1},
    "nf4, no kept states": {"quantization": "nf4", "keep_frozen": False, **SMALL},
    "batch": {"normaliser": "batch", **SMALL},
    "constant": {"normaliser": "constant", "sampler_weight_cap": 2.0, **SMALL},
    "checkpointed": {"checkpointing": True, **SMALL},
    "mini-batches": {"mini_batches": 2, "normaliser": "response", "advantage_std": "sample", **SMALL},
    "fusion": {"objective": "LogitFusion", "mini_batches": 2, "inner_updates": 2, "entropy_bonus": 0.01, **SMALL},
    "luffy": {"objective": "LUFFY", **SMALL},
    "chord": {"objective": "CHORD", "mini_batches": 3, **SMALL},
    "gspo": {"objective": "GSPO", "mini_batches": 2, **SMALL},
    "cispo": {"objective": "CISPO", "mini_batches": 2, **SMALL},
    "rloo": {"objective": "RLOO", **SMALL},
    "dr_grpo": {"objective": "DrGRPO", **SMALL},
    "dapo": {"objective": "DAPO", "resample_dead": 2, **SMALL},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "case"),
    [(strategy, case) for strategy in ("ddp", "fsdp2", "fsdp2-in-step") for case in CASES],
)
def test_every_method_gives_the_same_on_two_processes(strategy, case, tmp_path):
    one, _ = train(tmp_path / "one", 1, adaptive=False, **CASES[case])
    two, _ = train(tmp_path / "two", 2, adaptive=False, strategy=strategy, **CASES[case])
    same_adapters(one, two)


@pytest.mark.slow
def test_a_stream_of_validation_problems_is_shared_out(tmp_path):
    """5 prompts and 5 validation problems a step, of 16."""
    one, (alone,) = train(tmp_path / "one", 1, steps=4, streamed=True, **SMALL)
    two, (first, second) = train(tmp_path / "two", 2, steps=4, streamed=True, **SMALL)
    same_adapters(one, two)
    assert alone["groups"] == [5] * 4
    assert one["lmix"]["alpha"] == two["lmix"]["alpha"] == first["alpha"] == second["alpha"] != 0.5
    names = [f"alpha/{name}_accuracy" for name in ("policy", "mixed", "reference")]
    for metrics, expected in zip(first["metrics"][1:], alone["metrics"][1:], strict=True):  # before the step's own rule
        assert [metrics[name] for name in names] == [expected[name] for name in names]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_dead_groups_are_replaced_as_one_process_does(strategy, tmp_path):
    """Each problem at most once a step, over both ranks; and the same ones as without ranks."""
    settings = {"objective": "DAPO", "resample_dead": 3, "adaptive": False, **SMALL}
    one, (alone,) = train(tmp_path / "one", 1, **settings)
    two, (first, second) = train(tmp_path / "two", 2, strategy=strategy, **settings)
    same_adapters(one, two)
    replaced = [metrics["train/replaced_groups"] for metrics in alone["metrics"]]
    assert max(replaced) > 0
    for step, drawn in enumerate(alone["drawn"]):
        both = first["drawn"][step] + second["drawn"][step]
        assert len(set(both)) == len(both)
        assert sorted(both) == sorted(drawn)
        assert first["metrics"][step]["train/replaced_groups"] == replaced[step]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "alpha"),
    [
        ("fsdp2", 0.5),
        ("ddp", 0.5),
        ("fsdp2-in-step", 0.5),
        ("fsdp2-in-step", 1.0),  # no rank needs the shards
    ],
)
def test_a_whole_model_beside_the_policy_on_two_processes(strategy, alpha, tmp_path):
    """The policy's backbone is in shards, the reference's whole on each rank."""
    settings = {"reference": merged_sft(tmp_path / "sft"), "alpha": alpha, "adaptive": False, "steps": 2, **SMALL}
    one, _ = train(tmp_path / "one", 1, **settings)
    two, _ = train(tmp_path / "two", 2, strategy=strategy, **settings)
    assert set(one["lmix"]["others"]) == {"reference"}
    same_adapters(one, two, moved=alpha < 1.0)


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_ranks_whose_generators_and_memory_differ_are_as_rank_0(strategy, tmp_path):
    """Rank 1 has drawn a number before the adapters are made, and has no free memory."""
    uneven = {"quantization": "nf4", "adaptive": False, "uneven": True, "steps": 1}
    _, (first, second) = train(tmp_path / "two", 2, strategy=strategy, **uneven)
    assert first["began"] == second["began"]
    assert first["ended"] == second["ended"]
    assert first["dense"] is second["dense"] is True


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_bfloat16_backbone_in_shards(quantization, tmp_path):
    """What rounds depends on what rows are computed with, so tokens may differ from one process's, and adapters too.
    That it trains, and that ranks stay alike, is what there is to see."""
    _, (first, second) = train(tmp_path / "two", 2, strategy="fsdp2", dtype="bfloat16", quantization=quantization)
    assert first["alpha"] == second["alpha"]
    norms = [metrics["train/grad_norm"] for metrics in first["metrics"]]
    assert norms == [metrics["train/grad_norm"] for metrics in second["metrics"]]
    assert max(norms) > 0


@pytest.mark.parametrize("strategy", ["fsdp2-in-step", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_rank_whose_rows_end_much_later(strategy, tmp_path):
    """The other's rows have ended long before; both come to the same adapters and alpha."""
    _, (first, second) = train(tmp_path / "late", 2, strategy=strategy, late=True, **SMALL)
    lengths = [metrics["train/completion_length"] for metrics in first["metrics"]]
    assert min(lengths) > 20  # of both ranks together; rank 1's are 48
    assert first["alpha"] == second["alpha"]
    assert first["metrics"][-1]["train/grad_norm"] == second["metrics"][-1]["train/grad_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(strategy, tmp_path):
    """By the command line, with the strategy's file."""
    dying = {"class_path": "tests.training.endings.Dying", "init_args": {"at_step": 2}}
    before = time.monotonic()
    done = ended_early(tmp_path, strategy, dying)
    assert time.monotonic() - before < 90  # a minute, and the steps before
    assert "SIGKILL" in done.stderr
    goes_on(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_of_which_one_is_told_to_end_leave_together(strategy, rank, tmp_path):
    told = {"class_path": "tests.training.endings.Told", "init_args": {"at_step": 1, "rank": rank}}
    done = ended_early(tmp_path, strategy, told, every_n_steps=10)
    assert done.stderr.count("lmix: ended by SIGTERM") == 1
    goes_on(tmp_path)


CHECKPOINTS = "lmix.training.checkpoints.PolicyCheckpoint"


def command(tmp_path: Path, name: str, every_n_steps: int, *callbacks: dict) -> list[str]:
    """The command line of a small run of the demo in the folder `name`."""
    often = {"class_path": CHECKPOINTS, "init_args": {"every_n_steps": every_n_steps}}
    (tmp_path / f"{name}.yaml").write_text(json.dumps({"trainer": {"callbacks": [often, *callbacks]}}))
    configs = [f"--config={ROOT}/configs/demo.yaml", f"--config={tmp_path}/{name}.yaml"]
    sizes = ["--data.prompts_per_step=4", "--data.eval_size=4", "--model.sampling.samples_per_prompt=4"]
    run = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.num_sanity_val_steps=0"]
    place = f"--trainer.logger.save_dir={tmp_path / name}"
    return ["-m", "lmix", "fit", *configs, *sizes, *run, place, "--trainer.accelerator=cpu"]


def last(tmp_path: Path, name: str, step: int) -> Path:
    return tmp_path / name / "demo" / "version_0" / "checkpoints" / f"step={step:04d}.ckpt"


def ended_early(tmp_path: Path, strategy: str, callback: dict, every_n_steps: int = 1) -> subprocess.CompletedProcess:
    """Two ranks that end after the second step."""
    ranks = [f"--config={ROOT}/configs/strategies/{strategy}.yaml", "--trainer.devices=2"]
    done = start(2, *command(tmp_path, "early", every_n_steps, callback), *ranks)
    assert done.returncode != 0
    assert last(tmp_path, "early", 2).is_file()
    assert not last(tmp_path, "early", 3).exists()
    return done


def goes_on(tmp_path: Path) -> None:
    done = start(1, *command(tmp_path, "more", 1), f"--ckpt_path={last(tmp_path, 'early', 2)}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert last(tmp_path, "more", 3).is_file()
