"""Comparison of two policies on the same problems: which ones both solve, and which only one (Tables 1-3)."""

from typing import Any

from rich.console import Console
from rich.table import Table

from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.output import new_console, out_folder, print_table, write_json
from lmix.evaluation.rows import count_anywhere, count_format, count_solved, write_rows
from lmix.evaluation.session import Session
from lmix.evaluation.statistics import contingency, mcnemar_p
from lmix.model.mixture import MixtureKind
from lmix.rollout.types import Who
from lmix.tasks.task import Task

SUMMARY = "compare.json"


def compare(
    task: Task,
    a: Who = "policy",
    b: Who = "reference",
    alpha: float = 0.5,
    mixture: MixtureKind = "logits",
    out: str = "compare",
    **kwargs: Any,
) -> dict[str, Any]:
    """Compare two policies by greedy decoding on the same problems: format and solve rates, and a 2 x 2 table.

    Writes `compare.json` (counts, disagreement, McNemar's exact p) and `rows.jsonl` (each completion) into the folder
    `out`, and prints the table.

    Args:
        task: a task class: lmix.tasks.MathTask, CnK12Task, MMLUTask, ArithmeticTask, DatasetTask (any file or hub data
            set) or your own; or a YAML file with class_path and init_args. --task.help=lmix.tasks.MathTask lists the
            options of a class; give them as --task.NAME after --task.
        a: the first policy; `policy` and `reference` are each stream alone.
        b: the second policy.
        alpha: weight of the reference in the mixed policy, in [0, 1].
        mixture: what the mixed policy averages, logits or probabilities.
        out: folder for compare.json (counts and settings) and rows.jsonl (each completion); an earlier comparison in it
            is overwritten.
        kwargs: see `EvaluationConfig`.

    Returns:
        The content of compare.json.

    Raises:
        ValueError: a setting, the data or an adapter is wrong.
    """
    config = EvaluationConfig(task, **kwargs)
    mixtures = config.mixtures(alpha, mixture)
    if a == b:
        raise ValueError(f"a and b are both {a}: name two of mixed, policy and reference")
    folder, console = out_folder(out, SUMMARY), new_console()
    prompts = config.prompts()
    mixed_alpha = None if config.weights else alpha
    settings = config.settings(prompts) | {"alpha": mixed_alpha, "mixture": mixture}
    try:
        session = Session(config, prompts, console, mixtures["mixed"])
        rows = {name: session.measure(name, mixtures[name]).rows for name in (a, b)}
    finally:
        task.close()
    table = contingency([row.solved for row in rows[a]], [row.solved for row in rows[b]])
    content = {
        "task": task.name,
        "n": len(prompts),
        "policies": {
            name: {"format": count_format(r), "solved": count_solved(r), "anywhere": count_anywhere(r)}
            for name, r in rows.items()
        },
        "contingency": {"names": [a, b], **table._asdict()},
        "disagreement": table.disagreement,
        "mcnemar_p": mcnemar_p(table.only_a, table.only_b),
        "settings": settings,
    }
    write_rows(folder, (row for name in (a, b) for row in rows[name]))
    write_json(folder / SUMMARY, content)
    print_comparison(console, content)
    return content


def print_comparison(console: Console, content: dict[str, Any]) -> None:
    counts, n = content["contingency"], content["n"]
    a, b = counts["names"]
    for name, rates in content["policies"].items():
        console.print(
            f"{name}: format rate {rates['format'] / n:.3f}, solve rate {rates['solved'] / n:.3f}, "
            f"right anywhere {rates['anywhere'] / n:.3f}"
        )
    table = Table(title=f"{content['task']}, {n} problems, greedy decoding")
    for column in ("", f"{b} right", f"{b} wrong"):
        table.add_column(column, justify="right")
    table.add_row(f"{a} right", str(counts["both"]), str(counts["only_a"]))
    table.add_row(f"{a} wrong", str(counts["only_b"]), str(counts["neither"]))
    print_table(console, table)
    one = content["disagreement"]
    console.print(f"exactly one is right on {one} problems ({one / n:.1%}), McNemar's p {content['mcnemar_p']:.3g}")
