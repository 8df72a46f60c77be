"""The runs and numbers of docs/results/deploy.md on the sandbox: one mixture in three ways, other alphas, and SDPO.

`python scripts/deploy_sandbox.py` runs everything and writes the tables. Runs whose results exist are skipped.
"""

import json
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from lmix.evaluation.statistics import wilson_interval
from lmix.report.runs import EVENTS, read_scalars
from lmix.report.write import write_csv

MIXED, OTHERS, DECODED = 0.5, (0.2, 0.8), "[0,0.2,0.5,0.8,1]"
BASE, SFT = "lmix:tiny-arithmetic", "lmix:tiny-arithmetic-sft"
DEMO = ["--config=configs/demo.yaml", "--trainer.enable_progress_bar=false"]
DISTILL = [
    *DEMO,
    "--config=configs/methods/distill.yaml",
    "--model.sampling.samples_per_prompt=2",
    "--model.optimizer.schedule=cosine",
]
SDPO = [
    *DEMO,
    "--config=configs/methods/sdpo.yaml",
    f"--model.adapters.policy={SFT}",
    # the sandbox's vocabulary has 96 tokens, and none for the words of the default
    "--model.feedback.kind=solution",
    '--model.feedback.solution="\\n{solution}"',
    "--model.feedback.closing=",
    "--trainer.max_steps=20",
]
MODEL = ["--backbone.quantization=none", "--backbone.dtype=float32"]
# problems that were not used for choosing settings
HELD_OUT = ["--task=lmix.tasks.ArithmeticTask", "--task.seed=1", "--max_new_tokens=64", "--slots=256", *MODEL]
PARTS = ("train", "distill", "merge", "evaluate", "others", "sweep", "sdpo", "tables")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/deploy"), help="folder of runs and evaluations")
    parser.add_argument("--rows", type=Path, default=Path("docs/results/deploy"), help="folder of the tables")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--launcher", default="", help="prefix of each command, such as `nice -n 10`")
    settings = parser.parse_args()
    work = Work(settings.out, settings.seeds, shlex.split(settings.launcher))
    for part in settings.only:
        if part == "tables":
            write_tables(settings.out, settings.rows)
        else:
            getattr(work, part)()


class Work:
    """Runs lmix's commands, each with its own output folder."""

    def __init__(self, out: Path, seeds: list[int], launcher: list[str]) -> None:
        self.out, self.seeds, self.launcher = out, seeds, launcher

    def lmix(self, command: str, done: Path, *flags: str) -> None:
        """Run a command, unless `done`, the last file or folder that it writes, exists. Output goes to a log file."""
        if done.exists():
            return
        done.parent.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%X')} {command} {done}", flush=True)
        with (self.out / f"{'-'.join(done.relative_to(self.out).parts)}.log").open("w") as log:
            subprocess.run(
                [*self.launcher, sys.executable, "-m", "lmix", command, *flags], check=True, stdout=log, stderr=log
            )

    def fit(self, name: str, seed: int, *flags: str, steps: int = 40) -> None:
        """Train a run in the folder `name`."""
        logger = ["--trainer.logger.version=", f"--trainer.logger.save_dir={self.out}"]
        logger.append(f"--trainer.logger.name={name}")
        self.lmix(
            "fit", self.out / name / f"checkpoints/step={steps:04d}", *flags, f"--seed_everything={seed}", *logger
        )

    def mixture(self, seed: int, alpha: float = MIXED, step: int = 40) -> Path:
        return self.out / f"mixture-a{alpha:g}-s{seed}/checkpoints/step={step:04d}"

    def train(self) -> None:
        """GRPO on the mixture, as in the demo."""
        for seed in self.seeds:
            self.fit(f"mixture-a{MIXED:g}-s{seed}", seed, *DEMO, f"--model.alpha={MIXED}")

    def others(self) -> None:
        """Train 20 steps at other alphas, with the first seed only."""
        for alpha in OTHERS:
            flags = [*DEMO, f"--model.alpha={alpha}", "--trainer.max_steps=20"]
            self.fit(f"mixture-a{alpha:g}-s{self.seeds[0]}", self.seeds[0], *flags, steps=20)

    def distill(self) -> None:
        """Distil the mixture of the same seed into a student that starts at the policy."""
        for seed in self.seeds:
            streams = [f"--model.adapters.policy={self.mixture(seed)}", f"--model.adapters.reference={SFT}"]
            self.fit(f"distilled-s{seed}", seed, *DISTILL, *streams)

    def merge(self) -> None:
        for seed in self.seeds:
            both = [f"--base={BASE}", f"--policy={self.mixture(seed)}", f"--reference={SFT}", "--alpha=0.5"]
            for name, flags in (("merged", []), ("merged16", ["--rank=16"]), ("checkpoint", ["--full=true"])):
                folder = self.out / f"{name}-s{seed}"
                self.lmix("merge", folder, *both, *flags, f"--out={folder}")

    def evaluate(self) -> None:
        """Evaluate greedily on 500 problems that were not used for choosing settings."""
        for seed in self.seeds:
            pair = [f"--adapters.policy={self.mixture(seed)}", f"--adapters.reference={SFT}"]
            for who in ("mixed", "policy", "reference"):
                self.measure(f"{who}-s{seed}", *pair, f"--who=[{who}]")
            last = self.out / f"distilled-s{seed}/checkpoints/step=0040"
            for name, folder in (
                ("distilled", last),
                ("merged", self.out / f"merged-s{seed}"),
                ("merged16", self.out / f"merged16-s{seed}"),
            ):
                self.measure(f"{name}-s{seed}", f"--adapters.policy={folder}", "--who=[policy]")

    def measure(self, name: str, *flags: str) -> None:
        folder = self.out / f"eval/{name}"
        self.lmix("evaluate", folder / "evaluation.json", *HELD_OUT, "--problems=500", *flags, f"--out={folder}")

    def sweep(self) -> None:
        """Decode policies that were trained for 20 steps at one alpha at several alphas."""
        seed = self.seeds[0]
        for alpha in (MIXED, *OTHERS):
            folder = self.out / f"sweep/a{alpha:g}-s{seed}"
            streams = [f"--adapters.policy={self.mixture(seed, alpha, 20)}", f"--adapters.reference={SFT}"]
            flags = [*HELD_OUT, "--problems=200", *streams, f"--alphas={DECODED}", "--mixtures=[logits]"]
            self.lmix("sweep", folder / "sweep.json", *flags, f"--out={folder}")

    def sdpo(self) -> None:
        for seed in self.seeds[:1]:
            self.fit(f"sdpo-s{seed}", seed, *SDPO, steps=20)
            folder = self.out / f"sdpo-s{seed}/checkpoints/step=0020"
            self.measure(f"sdpo-s{seed}", f"--adapters.policy={folder}", "--who=[policy]")


def write_tables(out: Path, rows: Path) -> None:
    """Write a row for each evaluation and for each cell of the sweeps, and print the means over seeds."""
    rows.mkdir(parents=True, exist_ok=True)
    evaluations = [evaluation_row(path) for path in sorted(out.glob("eval/*/evaluation.json"))]
    cells = []
    for path in sorted(out.glob("sweep/*/sweep.json")):
        sweep = json.loads(path.read_text())
        seed = path.parent.name.rpartition("-s")[2]
        for cell in sweep["rows"]:
            cells.append({"trained": sweep["trained_alpha"], "seed": seed, "decoded": cell["alpha"]} | counts(cell))
    curves = [row for folder in sorted(out.glob("distilled-s*/")) for row in curve(folder)]
    for name, found in (("evaluations", evaluations), ("sweeps", cells), ("curves", curves)):
        if found:
            write_csv(found, rows, name)
    by_name = {name: [row for row in evaluations if row["name"] == name] for name in {r["name"] for r in evaluations}}
    for name, own in sorted(by_name.items()):
        n, solved, form = (sum(row[key] for row in own) for key in ("n", "solved", "format"))
        rates = [
            f"{rate:.3f} [{low:.3f}, {high:.3f}]" for rate, (low, high) in map(with_interval, (solved, form), (n, n))
        ]
        seeds = [round(row["solved"] / row["n"], 3) for row in own]
        print(f"{name}: solved {rates[0]}, seeds {seeds}, format {rates[1]}, kept {kept(own, by_name)}")


def with_interval(count: int, n: int) -> tuple[float, tuple[float, float]]:
    return count / n, wilson_interval(count, n)


def kept(own: list[dict[str, Any]], by_name: dict[str, list[dict[str, Any]]]) -> str:
    """The share of the mixture's gain that is kept: (own - SFT) / (mixture - SFT) in solved problems.

    The mean over seeds, and the value of each seed.
    """
    whole, none = ({row["seed"]: row["solved"] for row in by_name[name]} for name in ("mixed", "reference"))
    parts = [(row["solved"] - none[row["seed"]]) / (whole[row["seed"]] - none[row["seed"]]) for row in own]
    return f"{sum(parts) / len(parts):.3f} {[round(part, 3) for part in parts]}"


def curve(run: Path) -> list[dict[str, Any]]:
    """Held-out rates of a distillation run at each evaluation, with the divergence of the step before."""
    scalars = read_scalars(sorted(run.glob(EVENTS)))
    divergence, form = dict(scalars["train/divergence"]), dict(scalars["val/format_rate"])
    seed = run.name.rpartition("-s")[2]
    return [
        {
            "seed": seed,
            "step": step,
            "solve_rate": round(rate, 4),
            "format_rate": round(form[step], 4),
            "divergence": round(divergence[max(step, 1)], 5),
        }
        for step, rate in scalars["val/solve_rate"]
    ]


def evaluation_row(path: Path) -> dict[str, Any]:
    (rates,) = json.loads(path.read_text())["policies"].values()
    name, _, seed = path.parent.name.rpartition("-s")
    return {"name": name, "seed": seed} | counts(rates)


def counts(rates: dict[str, Any]) -> dict[str, Any]:
    return {name: rates[name] for name in ("n", "format", "solved")}


if __name__ == "__main__":
    main()
