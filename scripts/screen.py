"""Measure an untrained model on many tasks: format rate, solve rate, and correct answers in any form.

    python scripts/screen.py scripts/studies/screening.yaml --model /models/qwen --out runs/screening

The base alone decodes the first `problems` held-out problems of each task greedily. Tasks that are already in
OUT/screen.jsonl are skipped. A study needs tasks on which the model's answer is correct in any form for 15 to 60 % of
the problems, clearly more often than one constant answer is, and on which it seldom uses the template by itself.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent)]

import yaml  # noqa: E402

from lmix.evaluation.config import EvaluationConfig  # noqa: E402
from lmix.evaluation.output import new_console  # noqa: E402
from lmix.evaluation.rows import count_anywhere, count_format, count_solved  # noqa: E402
from lmix.evaluation.session import Session  # noqa: E402
from lmix.evaluation.statistics import wilson_interval  # noqa: E402
from lmix.model.adapters import AdapterConfig  # noqa: E402
from lmix.model.backbone import BackboneConfig, best_device  # noqa: E402
from lmix.model.mixed_policy import MixedPolicy  # noqa: E402
from lmix.model.mixture import Mixture  # noqa: E402
from lmix.report.tables import markdown  # noqa: E402
from lmix.rollout.engine import Engine  # noqa: E402
from lmix.tasks import ReasoningGymTask  # noqa: E402

ROWS = "screen.jsonl"
SHARES = ("constant", "format", "solved", "ended")
"""Counts of a row that the table shows in percent. Rows from before 0.2.0 lack `constant`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screening", type=Path, help="a YAML file: settings, and tasks by name")
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for screen.jsonl and screen.md")
    arguments = parser.parse_args()
    content = yaml.safe_load(arguments.screening.read_text(encoding="utf-8"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ROWS
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    names = {row["name"] for row in done}
    backbone = BackboneConfig(arguments.model, quantization="none", dtype=content["dtype"])
    policy = None
    for name, settings in content["tasks"].items():
        if name in names:
            continue
        policy = policy or MixedPolicy.from_pretrained(backbone, AdapterConfig(), best_device())
        row = measure(name, settings, content, backbone, policy)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        done.append(row)
    text = table(done)
    (arguments.out / "screen.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(
    name: str, settings: dict[str, Any], content: dict[str, Any], backbone: BackboneConfig, policy: MixedPolicy
) -> dict[str, Any]:
    """The counts of one task."""
    problems = content["problems"]
    own = {"dataset": name, **(settings or {})}  # the name is that of the dataset, unless `dataset` is given
    task = ReasoningGymTask(**own, **content["task"], train_size=1, test_size=problems)
    config = EvaluationConfig(task, backbone, problems=problems, max_new_tokens=content["max_new_tokens"])
    prompts = config.prompts()
    start = time.perf_counter()
    alone = Mixture.alone("policy")
    session = Session(config, prompts, new_console(), alone, Engine(policy, config.slots))
    rows = session.measure("policy", alone).rows
    return {
        "name": name,
        "settings": settings or {},
        "problems": len(rows),
        "format": count_format(rows),
        "solved": count_solved(rows),
        "anywhere": count_anywhere(rows),
        "constant": count_constant([row.gold for row in rows]),
        "ended": sum(row.ended for row in rows),
        "tokens": sum(row.tokens for row in rows) / len(rows),
        "seconds": round(time.perf_counter() - start, 1),
        "examples": [[prompts[i].problem.problem, rows[i].completion, rows[i].gold] for i in range(3)],
    }


def count_constant(golds: Sequence[str]) -> int:
    """The number of problems that the most frequent reference answer solves if it is always given."""
    # as plain text, because two `Gold`s are equal only if their questions are
    return Counter(str(gold) for gold in golds).most_common(1)[0][1]


def table(rows: list[dict[str, Any]]) -> str:
    """A table of all screened tasks, in descending order of correct answers."""

    def cells(row: dict[str, Any]) -> list[str]:
        n = row["problems"]
        low, high = wilson_interval(row["anywhere"], n)
        settings = ", ".join(f"{name}={value}" for name, value in row["settings"].get("config", {}).items())
        anywhere = f"{100 * row['anywhere'] / n:.0f} ({100 * low:.0f} to {100 * high:.0f})"
        shares = [f"{100 * row[field] / n:.0f}" if field in row else "-" for field in SHARES]
        return [row["name"], settings, str(n), anywhere, *shares, f"{row['tokens']:.0f}", f"{row['seconds']:.0f}"]

    header = ["task", "settings", "problems", "right anywhere, %", *(f"{field}, %" for field in SHARES), "tokens", "s"]
    return markdown(header, [cells(row) for row in sorted(rows, key=lambda row: -row["anywhere"] / row["problems"])])


if __name__ == "__main__":
    main()
