"""Regenerate README's figure and numbers: the demo with three seeds, and each stream alone.

python scripts/readme.py --out runs/readme      # about 7 minutes on two cores; finished runs are kept
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lmix.report.figures import accuracy_against_step
from lmix.report.runs import SOLVE_RATE, Run, read_run
from lmix.report.style import save
from lmix.report.tables import markdown

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
STEPS = 40
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
MARKED = re.compile(r"(<!-- numbers of scripts/readme.py -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/readme"), help="folder of the runs")
    out = parser.parse_args().out
    folders = [out / "demo" / f"seed{seed}" for seed in SEEDS]
    for seed, folder in zip(SEEDS, folders, strict=True):
        if not (folder / "checkpoints" / f"step={STEPS:04d}.ckpt").is_file():
            line = ["fit", "--config=lmix:demo", f"--trainer.max_steps={STEPS}", f"--seed_everything={seed}"]
            line += [f"--ckpt_path={folder}"] if any(folder.glob("checkpoints/*.ckpt")) else []
            lmix(*line, f"--trainer.logger.save_dir={out}", f"--trainer.logger.version={folder.name}")
    alone = rates_alone(out / "evaluate")
    runs = [read_run(folder) for folder in folders]
    figure = accuracy_against_step(runs, {"SFT reference alone": alone["reference"]})
    save(figure, ROOT / "docs" / "figures" / "demo")
    table = numbers(runs, alone["reference"], alone["policy"])
    for page in PAGES:
        page.write_text(with_numbers(page.read_text(encoding="utf-8"), table), encoding="utf-8")
    print(table)
    return 0


def lmix(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lmix", *arguments], check=True)


def rates_alone(folder: Path) -> dict[str, float]:
    """Solve rate of each stream alone on the demo's held-out problems."""
    if not (folder / "evaluation.json").is_file():
        model = ["--backbone.quantization=none", "--backbone.dtype=float32"]
        model += ["--adapters.reference=lmix:tiny-arithmetic-sft", "--max_new_tokens=64", "--problems=300"]
        task = "--task=lmix.tasks.ArithmeticTask"
        lmix("evaluate", task, *model, "--who=[reference,policy]", f"--out={folder}")
    policies = json.loads((folder / "evaluation.json").read_text())["policies"]
    return {who: found["solve_rate"] for who, found in policies.items()}


def numbers(runs: Sequence[Run], reference: float, base: float) -> str:
    """The table of held-out solve rates: of each run before and after training, and of the streams alone."""
    rows = []
    for run in runs:
        points = dict(run.scalars[SOLVE_RATE])
        rows.append([f"mixed policy, seed {run.seed}", percent(points[0]), percent(points[STEPS])])
    rows.append(["SFT reference alone", percent(reference), ""])
    rows.append(["base policy alone (never uses the answer template)", percent(base), ""])
    return markdown(["held-out solve rate, greedy", "step 0", f"step {STEPS}"], rows)


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def with_numbers(page: str, table: str) -> str:
    """A page with the table inserted between its marks.

    Raises:
        ValueError: the page does not have the marks exactly once.
    """
    found, count = MARKED.subn(lambda marks: marks[1] + table.strip() + "\n" + marks[2], page)
    if count != 1:
        raise ValueError(f"a page must have the marks of {Path(__file__).name} once, not {count} times")
    return found


if __name__ == "__main__":
    sys.exit(main())
