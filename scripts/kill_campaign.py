"""Kill a run repeatedly, resume it from its checkpoints, and compare the result with an uninterrupted run.

    python scripts/kill_campaign.py --out /tmp/kills --kills 40 fit --config configs/demo.yaml ...

The flags after `fit` are those of `lmix fit`. Alpha is adaptive, and a checkpoint is written at each step. Each life of
the run ends by SIGKILL at a random moment after the start of a phase: `rollout`, `reward`, `update`, `alpha` or `save`
(at any of its opens, syncs and renames). Adapters, optimiser, alpha and completions must be equal bit for bit, and no
partial file may be used.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

PHASES = ("rollout", "reward", "update", "alpha", "save")
CALLS = 21
"""Maximum number of system calls of a save: opens, syncs, renames, and the removal of an old checkpoint."""
MINE = (
    "--trainer.callbacks+=lmix.training.alpha.AdaptiveAlpha",
    "--trainer.callbacks.offset=1",
    "--trainer.callbacks.scale=4",
    "--trainer.callbacks+=lmix.training.checkpoints.PolicyCheckpoint",
    "--trainer.callbacks.every_n_steps=1",
)


@dataclass(frozen=True)
class Plan:
    """When a life is to be killed."""

    phase: str
    entries: int
    """Which start of the phase in this life leads to the kill, counted from 1."""
    fraction: float
    """Fraction of the phase's duration, or of a save's system calls, after which the kill happens."""


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder, replaced if it exists")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("fit", nargs=argparse.REMAINDER, help="fit and its flags")
    settings = parser.parse_args(args)
    chance = random.Random(settings.seed)
    # few steps per life, so that the run is long enough for all kills
    plans = [
        Plan(chance.choice(PHASES), chance.choice((1, 1, 2, 2, 3)), chance.random()) for _ in range(3 * settings.kills)
    ]
    result = campaign(settings.out, settings.fit[1:], plans, settings.kills)
    if result["kills"] < settings.kills:
        print(f"the run ended after {result['kills']} kills: increase trainer.max_steps", file=sys.stderr)
    return 0 if not result["differing"] and result["kills"] == settings.kills else 1


def campaign(out: Path, flags: list[str], plans: Sequence[Plan], kills: int | None = None) -> dict[str, Any]:
    """Do the uninterrupted run, then one that is killed as planned, `kills` times at most, and compare them."""
    flags = [*flags, *MINE]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if live(out / "whole", flags) != 0:
        raise SystemExit(f"the uninterrupted run failed: see {out / 'whole.log'}")
    killed, status, lives, waiting = Counter[str](), -9, 0, deque(plans)
    while status != 0:
        plan = waiting.popleft() if waiting and killed.total() != kills else None
        status = live(out / "killed", flags, plan)
        lives += 1
        if status == -9 and plan is not None:
            killed[plan.phase] += 1
        elif status != 0:
            raise SystemExit(f"life {lives} failed with status {status}: see {out / 'killed.log'}")
        print(f"life {lives}: {plan or 'not killed'}, status {status}", file=sys.stderr, flush=True)
    result = {"kills": killed.total(), "by_phase": dict(killed), "lives": lives}
    result |= compare(out / "whole", out / "killed")
    print(json.dumps(result, indent=2))
    return result


def live(folder: Path, flags: list[str], plan: Plan | None = None) -> int:
    """Run one life, from the newest checkpoint if there is one. Returns the exit status."""
    if any(folder.glob("run/checkpoints/*.ckpt")):
        flags = [*flags, f"--ckpt_path={folder}/run"]
    logger = [f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=", "--trainer.logger.version=run"]
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.run(
            [sys.executable, __file__, "victim", json.dumps(asdict(plan) if plan else None), "fit", *flags, *logger],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            check=False,
        ).returncode


def compare(whole: Path, killed: Path) -> dict[str, Any]:
    """Compare the last checkpoints and the completions of two runs."""
    import torch

    from lmix.training.state import find_checkpoint

    paths = [find_checkpoint(str(folder / "run")) for folder in (whole, killed)]
    first, second = (torch.load(path, weights_only=True) for path in paths)
    differing = [f"step {Path(path).name}" for path in paths[1:] if Path(path).name != Path(paths[0]).name]
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "lmix"):
        differing += [f"{name}{where}" for where in differences(first[name], second[name])]
    for name in ("train", "val"):
        rows = [(folder / "run/completions" / f"{name}.jsonl").read_text() for folder in (whole, killed)]
        differing += [f"completions {name}"] if rows[0] != rows[1] else []
    left = [p.name for p in killed.rglob(".*.part")]
    return {"steps": first["global_step"], "alpha": first["lmix"]["alpha"], "differing": differing, "left over": left}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The paths at which two nested structures are not equal bit for bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict):
        keys = sorted(set(a) ^ set(b), key=str)
        return [f"{where}.{k}" for k in keys] or [d for k in a for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [where]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]


def victim(plan: str, args: list[str]) -> int:
    """Run the command line in this process, which kills itself as planned."""
    import signal
    import threading
    import time

    from lmix import cli, files
    from lmix.training.alpha import AdaptiveAlpha
    from lmix.training.checkpoints import PolicyCheckpoint
    from lmix.training.grpo import GRPOModule
    from lmix.training.update import Update

    given = json.loads(plan)
    phase, entries, fraction = (given["phase"], given["entries"], given["fraction"]) if given else (None, 0, 0.0)
    seconds: dict[str, float] = {"rollout": 2.0, "reward": 0.02, "update": 0.5, "alpha": 0.5}
    entered = Counter[str]()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(owner: Any, name: str, of: str) -> None:
        """Count the starts of a phase; at the planned one, die after a fraction of the phase's previous duration."""
        plain = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            entered[of] += 1
            if of == phase and entered[of] == entries:
                threading.Timer(fraction * seconds[of], die).start()
            start = time.perf_counter()
            result = plain(*arguments, **named)
            seconds[of] = time.perf_counter() - start
            return result

        setattr(owner, name, watched)

    def watch_call(owner: Any, name: str) -> None:
        """In the planned save, die before the planned system call."""
        plain = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            calls["number"] += 1
            if entered["save"] == entries and calls["number"] - calls["before"] == 1 + int(fraction * CALLS):
                die()
            return plain(*arguments, **named)

        setattr(owner, name, watched)

    watch(GRPOModule, "sample", "rollout")
    watch(GRPOModule, "reward", "reward")
    watch(Update, "accumulate_gradient", "update")
    watch(AdaptiveAlpha, "on_train_batch_end", "alpha")
    if phase == "save":
        calls = {"number": 0, "before": 0}
        save = PolicyCheckpoint.save

        def counted(*arguments: Any) -> None:
            entered["save"] += 1
            calls["before"] = calls["number"]
            save(*arguments)

        PolicyCheckpoint.save = counted  # pyright: ignore[reportAttributeAccessIssue]
        for name in ("fsync", "replace", "open", "unlink", "rmdir"):
            watch_call(files.os, name)
    return cli.main(args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["victim"]:
        sys.exit(victim(sys.argv[2], sys.argv[3:]))
    sys.exit(main())
