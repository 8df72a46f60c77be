"""The mixed policy at many alphas, by logits and by probabilities (Table 4)."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.decoding import Decoder
from lmix.evaluation.output import new_console, out_folder, write_json
from lmix.evaluation.rows import EvaluationRow, Who, count_format, count_solved, read_rows, write_rows
from lmix.model.mixed_policy import Mixture, check_alpha
from lmix.tasks.task import Task

SUMMARY = "sweep.json"
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ALONE: dict[float, Who] = {0.0: "policy", 1.0: "reference"}
"""At these alphas one stream is alone, so both mixtures are the same."""

Cell = tuple[Mixture, float]
"""A mixture and an alpha; sorts as the results are listed."""


def sweep(
    task: Task,
    alphas: Sequence[float] = ALPHAS,
    mixtures: Sequence[Mixture] = ("logits", "probs"),
    out: str = "sweep",
    **kwargs: Any,
) -> dict[str, Any]:
    """Measure format and solve rate by greedy decoding at each alpha and mixture.

    Writes `sweep.json` (counts for each) and `rows.jsonl` (each completion) into the folder `out` after each alpha and
    mixture, and prints a table. What is in the folder already is not done again, so a sweep that was stopped goes on,
    and alphas can be added.

    Args:
        task: lmix.tasks.MathTask, lmix.tasks.ArithmeticTask or another class (--task.help=CLASS lists its options, to
            be given as --task.NAME after it), or a YAML file with class_path and init_args.
        alphas: list of weights of the reference, such as [0,0.5,1]; 0 is the policy alone, 1 the reference alone.
        mixtures: list of what is averaged, such as [logits].
        out: folder for sweep.json (counts and settings) and rows.jsonl (each completion). What is in it already is not
            done again.
        kwargs: see `EvaluationConfig`.

    Returns:
        What sweep.json holds.

    Raises:
        ValueError: a setting, the data or an adapter is wrong, or `out` holds a sweep with other settings.
    """
    config = EvaluationConfig(task, **kwargs)
    cells: list[Cell] = sorted((mixture, check_alpha(alpha)) for mixture in set(mixtures) for alpha in set(alphas))
    if not cells:
        raise ValueError("alphas and mixtures must name at least one each: leave them out for all")
    folder, console = out_folder(out, SUMMARY), new_console()
    examples = config.examples()
    settings = config.settings(examples)
    done = finished(folder, settings, len(examples))
    waiting = [cell for cell in cells if cell not in done]
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} of {len(cells)} are in {folder} already")
    content = {"task": task.name, "problems": len(examples), "rows": counts(done), "settings": settings}
    decoder = None
    try:
        for mixture, alpha in waiting:
            if (rows := twin(done, mixture, alpha)) is None:
                decoder = decoder or Decoder(config, examples, console)
                rows = decoder.decode(ALONE.get(alpha, "mixed"), alpha, mixture).rows
            done[mixture, alpha] = rows
            content["rows"] = counts(done)
            write_rows(folder, (row for cell in sorted(done) for row in done[cell]))
            write_json(folder / SUMMARY, content)
    finally:
        task.close()
    print_sweep(console, content)
    return content


def twin(done: dict[Cell, list[EvaluationRow]], mixture: Mixture, alpha: float) -> list[EvaluationRow] | None:
    """The rows of a stream alone, where the other mixture has them already."""
    for (_, other), rows in done.items():
        if alpha in ALONE and other == alpha:
            return [replace(row, mixture=mixture) for row in rows]
    return None


def counts(done: dict[Cell, list[EvaluationRow]]) -> list[dict[str, Any]]:
    """What Table 4 is made of, by mixture, then alpha."""
    return [
        {
            "mixture": mixture,
            "alpha": alpha,
            "format": count_format(done[mixture, alpha]),
            "solved": count_solved(done[mixture, alpha]),
            "n": len(done[mixture, alpha]),
        }
        for mixture, alpha in sorted(done)
    ]


def finished(folder: Path, settings: dict[str, Any], problems: int) -> dict[Cell, list[EvaluationRow]]:
    """The cells in a folder that are whole.

    Raises:
        ValueError: its files are damaged, or it was made with other settings.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    try:
        before = flat(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"out {str(folder)!r}: {SUMMARY} is damaged: remove the folder") from error
    for name, value in flat(json.loads(json.dumps(settings))).items():
        if name != "slots" and before.get(name) != value:  # slots change results by rounding only
            raise ValueError(
                f"out {str(folder)!r} holds a sweep with {name} {before.get(name)!r}, not {value!r}: "
                "give a folder of its own, or the same settings"
            )
    cells: dict[Cell, list[EvaluationRow]] = {}
    for row in read_rows(folder):
        cells.setdefault((row.mixture, row.alpha), []).append(row)
    return {cell: rows for cell, rows in cells.items() if len(rows) == problems}


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names that the command line has for them, such as backbone.path."""
    fields = {name: value if isinstance(value, dict) else {"": value} for name, value in settings.items()}
    return {f"{name}.{key}" if key else name: v for name, parts in fields.items() for key, v in parts.items()}


def print_sweep(console: Console, content: dict[str, Any]) -> None:
    cells = {(row["mixture"], row["alpha"]): row for row in content["rows"]}
    mixtures, alphas = sorted({m for m, _ in cells}), sorted({a for _, a in cells})
    table = Table(title=f"{content['task']}, {content['problems']} problems, greedy decoding")
    for column in ("alpha", *(f"{mixture}: {rate} rate" for mixture in mixtures for rate in ("format", "solve"))):
        table.add_column(column, justify="right")
    for alpha in alphas:
        rows = [cells.get((mixture, alpha)) for mixture in mixtures]
        rates = [f"{row[name] / row['n']:.3f}" if row else "" for row in rows for name in ("format", "solved")]
        table.add_row(f"{alpha:g}", *rates)
    console.print(table)
