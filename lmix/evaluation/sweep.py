"""Evaluation of the mixed policy at many alphas, averaging logits and probabilities (Table 4)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.output import new_console, out_folder, print_table, write_json
from lmix.evaluation.rows import (
    EvaluationRow,
    count_anywhere,
    count_format,
    count_solved,
    read_rows,
    write_rows,
)
from lmix.evaluation.session import Session
from lmix.model.mixture import POLICY, REFERENCE, Mixture, MixtureKind, check_alpha
from lmix.model.origin import read_origin
from lmix.model.placement import is_model
from lmix.model.sources import resolve
from lmix.rollout.types import Prompt, Who
from lmix.tasks.task import Task

SUMMARY = "sweep.json"
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ALONE: dict[float, Who] = {0.0: "policy", 1.0: "reference"}
"""At these alphas only one stream is used, so both kinds of mixture are the same."""

CHUNK = 64
"""Number of problems to decode at all alphas before results are written."""

Cell = tuple[MixtureKind, float]
"""A kind of mixture and an alpha. Results are listed in the sort order of cells."""


def sweep(
    task: Task,
    alphas: Sequence[float] = ALPHAS,
    mixtures: Sequence[MixtureKind] = ("logits", "probs"),
    out: str = "sweep",
    **kwargs: Any,
) -> dict[str, Any]:
    """Measure format and solve rate by greedy decoding for each alpha and mixture.

    All alphas of a mixture share one prefill of each prompt. Writes `sweep.json` (counts for each alpha and mixture)
    and `rows.jsonl` (each completion) into the folder `out` while it runs, and prints a table. Results that are already
    in the folder are not computed again, so you can resume a stopped sweep and add alphas.

    Args:
        task: a task class: lmix.tasks.MathTask, CnK12Task, MMLUTask, ArithmeticTask, DatasetTask (any file or hub data
            set) or your own; or a YAML file with class_path and init_args. --task.help=lmix.tasks.MathTask lists the
            options of a class; give them as --task.NAME after --task.
        alphas: list of weights of the reference, such as [0,0.5,1]; 0 is the policy alone, 1 the reference alone.
        mixtures: list of kinds of mixture, such as [logits].
        out: folder for sweep.json (counts and settings) and rows.jsonl (each completion). Results in it are reused.
        kwargs: see `EvaluationConfig`.

    Returns:
        The content of sweep.json.

    Raises:
        ValueError: a setting, the data or an adapter is wrong, or `out` contains a sweep with other settings.
    """
    config = EvaluationConfig(task, **kwargs)
    if config.weights or config.adapters.experts:
        raise ValueError("sweep varies alpha, but an ensemble has none: remove weights and adapters.experts")
    if config.plausibility:
        raise ValueError(
            f"plausibility {config.plausibility} needs the policy, which is not used at alpha 1: remove plausibility"
        )
    cells: list[Cell] = sorted((mixture, check_alpha(alpha)) for mixture in set(mixtures) for alpha in set(alphas))
    if not cells:
        raise ValueError("alphas and mixtures must each have at least one value: leave them out for all")
    folder, console = out_folder(out, SUMMARY), new_console()
    prompts = config.prompts()
    settings = config.settings(prompts)
    done = finished(folder, settings)
    ids = [prompt.problem.id for prompt in prompts]
    whole = [cell for cell in cells if set(ids) == {row.problem_id for row in done.get(cell, ())}]
    if whole:
        console.print(f"{len(whole)} of {len(cells)} results are already in {folder}")
    share_ends(cells, done, len(ids))
    content = {
        "task": task.name,
        "problems": len(prompts),
        "trained_alpha": trained_alpha(config.adapters.policy),
        "rows": counts(done, len(ids)),
        "settings": settings,
    }
    write(folder, done, content)
    session = None
    try:
        for part, chunk in work(cells, done, prompts):
            session = session or Session(config, prompts, console, Mixture.at(0.5, cells[0][0]))
            for cell, rows in complete(session, part, chunk).items():
                by_problem = {row.problem_id: row for row in [*done.get(cell, []), *rows]}
                done[cell] = [by_problem[i] for i in ids if i in by_problem]
            content["rows"] = counts(done, len(ids))
            write(folder, done, content)
    finally:
        task.close()
    print_sweep(console, content)
    return content


def trained_alpha(policy: str | None) -> float | None:
    """The alpha that a policy was trained at, if its folder records it; otherwise None."""
    if policy is None or is_model("adapters.policy", policy):
        return None
    origin = read_origin(Path(resolve(policy)).expanduser())
    if origin is None or origin.way != "mixture" or set(origin.weights) != {POLICY, REFERENCE}:
        return None
    return origin.weights[REFERENCE]


def write(folder: Path, done: dict[Cell, list[EvaluationRow]], content: dict[str, Any]) -> None:
    """Write both files, the rows first, so that the summary never counts rows that are missing."""
    write_rows(folder, (row for cell in sorted(done) for row in done[cell]))
    write_json(folder / SUMMARY, content)


def work(
    cells: Sequence[Cell], done: dict[Cell, list[EvaluationRow]], prompts: Sequence[Prompt]
) -> Iterator[tuple[list[Cell], list[Prompt]]]:
    """Yield the remaining work: cells to decode together, and the problems that they lack.

    At alpha 0 and 1 a single stream is decoded, for both kinds of mixture. The other alphas of a mixture are decoded
    together, a chunk of problems at a time, so that little is lost if the sweep is stopped.
    """
    have = {cell: {row.problem_id for row in done.get(cell, ())} for cell in cells}
    for alpha in sorted({alpha for _, alpha in cells if alpha in ALONE}):
        ends = [cell for cell in cells if cell[1] == alpha]
        if any(len(have[cell]) < len(prompts) for cell in ends):
            yield ends, list(prompts)
    for mixture in sorted({mixture for mixture, _ in cells}):
        for start in range(0, len(prompts), CHUNK):
            chunk = prompts[start : start + CHUNK]
            ids = {prompt.problem.id for prompt in chunk}
            between = [cell for cell in cells if cell[0] == mixture and cell[1] not in ALONE and ids - have[cell]]
            if between:
                yield between, list(chunk)


def share_ends(cells: Sequence[Cell], done: dict[Cell, list[EvaluationRow]], problems: int) -> None:
    """At alpha 0 and 1, copy complete rows from one kind of mixture to the other."""
    for mixture, alpha in cells:
        for (_, other), rows in list(done.items()):
            if alpha in ALONE and other == alpha and len(rows) == problems:
                done[mixture, alpha] = [replace(row, mixture=mixture) for row in rows]


def complete(session: Session, cells: list[Cell], prompts: list[Prompt]) -> dict[Cell, list[EvaluationRow]]:
    """Decode the cells of one item of `work`."""
    (kind, alpha), *_ = cells
    if alpha in ALONE:
        rows = session.measure(ALONE[alpha], Mixture.at(alpha, kind)).rows
        return {cell: [replace(row, mixture=cell[0]) for row in rows] for cell in cells}
    by_mixture = session.measure_together([Mixture.at(alpha, kind) for _, alpha in cells], prompts)
    return {(mixture.kind, mixture.alpha): rows for mixture, rows in by_mixture.items()}


def counts(done: dict[Cell, list[EvaluationRow]], problems: int) -> list[dict[str, Any]]:
    """The counts of Table 4, ordered by mixture and then by alpha, for cells with all of their problems."""
    return [
        {
            "mixture": mixture,
            "alpha": alpha,
            "format": count_format(rows),
            "solved": count_solved(rows),
            "anywhere": count_anywhere(rows),
            "n": len(rows),
        }
        for (mixture, alpha), rows in sorted(done.items(), key=lambda item: item[0])
        if len(rows) == problems
    ]


def finished(folder: Path, settings: dict[str, Any]) -> dict[Cell, list[EvaluationRow]]:
    """The finished rows in a folder, by cell.

    Raises:
        ValueError: its files are damaged, or were written with other settings.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    try:
        before = flat(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"out {str(folder)!r}: {SUMMARY} is damaged: remove the folder") from error
    for name, value in flat(json.loads(json.dumps(settings))).items():
        rounds = name == "slots" or name.startswith("sampler")  # these affect greedy results by rounding only
        if not rounds and before.get(name) != value:
            raise ValueError(
                f"out {str(folder)!r} contains a sweep with {name} {before.get(name)!r}, not {value!r}: "
                "choose a separate folder, or use the same settings"
            )
    cells: dict[Cell, list[EvaluationRow]] = {}
    for row in read_rows(folder):
        cells.setdefault((row.mixture, row.alpha), []).append(row)
    return cells


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by their names on the command line, such as backbone.path."""
    fields = {name: value if isinstance(value, dict) else {"": value} for name, value in settings.items()}
    return {f"{name}.{key}" if key else name: v for name, parts in fields.items() for key, v in parts.items()}


def print_sweep(console: Console, content: dict[str, Any]) -> None:
    cells = {(row["mixture"], row["alpha"]): row for row in content["rows"]}
    mixtures, alphas = sorted({m for m, _ in cells}), sorted({a for _, a in cells})
    table = Table(title=f"{content['task']}, {content['problems']} problems, greedy decoding")
    names = {"format": "format rate", "solved": "solve rate", "anywhere": "right anywhere"}
    for column in ("alpha", *(f"{mixture}: {name}" for mixture in mixtures for name in names.values())):
        table.add_column(column, justify="right")
    for alpha in alphas:
        rows = [cells.get((mixture, alpha)) for mixture in mixtures]
        rates = [f"{row[name] / row['n']:.3f}" if row else "" for row in rows for name in names]
        table.add_row(f"{alpha:g}", *rates)
    print_table(console, table)
