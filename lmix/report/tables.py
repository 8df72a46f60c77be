"""Tables as rows of plain values for CSV, and as Markdown."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from lmix.evaluation.statistics import wilson_interval
from lmix.report.bands import by_method, evaluations, steps_text
from lmix.report.methods import ALPHA
from lmix.report.results import Comparison, Sweep
from lmix.report.runs import FORMAT_RATE, SOLVE_RATE, Run

Row = dict[str, Any]
MIXTURES = ("logits", "probs")


def rates_rows(runs: Sequence[Run]) -> list[Row]:
    """Held-out rates of each method over its seeds, at the evaluations that its runs share (see `evaluations`).

    Returns:
        A row for each method: its seeds and last step, then mean, lowest and highest value of the final solve rate, the
        best solve rate and the final format rate.
    """
    rows = []
    for method, group in by_method(runs).items():
        shared = evaluations(group)
        if not shared or not all(FORMAT_RATE in run.scalars for run in group):
            continue
        solved, formatted = ([dict(run.scalars[tag]) for run in group] for tag in (SOLVE_RATE, FORMAT_RATE))
        of_runs = list(zip(*shared, strict=True))
        best = [max(rates[step] for step in steps) for rates, steps in zip(solved, of_runs, strict=True)]
        seeds = len({run.seed for run in group})
        row = {"method": method, "seeds": seeds, "runs": len(group), "last_step": steps_text(shared[-1])}
        row |= _spread("final_solve", [rates[step] for rates, step in zip(solved, shared[-1], strict=True)])
        row |= _spread("best_solve", best)
        row |= _spread("final_format", [rates[step] for rates, step in zip(formatted, shared[-1], strict=True)])
        rows.append(row)
    return rows


def rates_markdown(rows: Sequence[Row]) -> str:
    """`rates_rows` as Markdown: mean, and the range in parentheses if there are several runs."""

    def cell(row: Row, name: str) -> str:
        mean, low, high = (100 * row[f"{name}_{part}"] for part in ("mean", "min", "max"))
        return f"{mean:.1f}" + (f" ({low:.1f} to {high:.1f})" if row["runs"] > 1 else "")

    header = ["method", "seeds", "last step", "final solve rate, %", "best solve rate, %", "final format rate, %"]
    return markdown(
        header,
        [
            [row["method"], row["seeds"], row["last_step"]]
            + [cell(row, name) for name in ("final_solve", "best_solve", "final_format")]
            for row in rows
        ],
    )


def sweep_rows(sweep: Sweep) -> list[Row]:
    """Table 4: a row for each mixture and alpha, with rates and their 95 % Wilson intervals."""
    return [
        {"mixture": row.mixture, "alpha": row.alpha, "n": row.n}
        | _proportion("format", row.format, row.n)
        | _proportion("solved", row.solved, row.n)
        | _proportion("anywhere", row.anywhere, row.n)
        for row in sorted(sweep.rows, key=lambda row: (row.mixture, row.alpha))
    ]


def sweep_markdown(rows: Sequence[Row]) -> str:
    """`sweep_rows` as Markdown: a row for each alpha, with the mixtures side by side."""
    cells = {(row["mixture"], row["alpha"]): row for row in rows}
    mixtures = [mixture for mixture in MIXTURES if any(row["mixture"] == mixture for row in rows)]
    columns = [(mixture, name) for name in told(rows) for mixture in mixtures]
    return markdown(
        [ALPHA, *(f"{name}, {mixture}, %" for mixture, name in columns)],
        [
            [f"{alpha:g}", *(_interval(cells.get((mixture, alpha)), name) for mixture, name in columns)]
            for alpha in sorted({row["alpha"] for row in rows})
        ],
    )


def policies_rows(comparison: Comparison) -> list[Row]:
    """Table 1: each policy's format and solve rate with 95 % Wilson intervals."""
    return [
        {"policy": name, "n": comparison.n}
        | _proportion("format", form, comparison.n)
        | _proportion("solved", solved, comparison.n)
        | _proportion("anywhere", comparison.anywhere[name], comparison.n)
        for name, (form, solved) in comparison.policies.items()
    ]


def policies_markdown(rows: Sequence[Row]) -> str:
    """`policies_rows` as Markdown."""
    names = told(rows)
    return markdown(
        ["policy", *(f"{name}, %" for name in names)],
        [[row["policy"], *(_interval(row, name) for name in names)] for row in rows],
    )


def told(rows: Sequence[Row]) -> list[str]:
    """The rates that rows have. Files from before 0.2.0 do not record `anywhere`."""
    return [name for name in ("format", "solved", "anywhere") if any(row[f"{name}_rate"] is not None for row in rows)]


def contingency_rows(comparison: Comparison) -> list[Row]:
    """Tables 2 and 3: how many problems both, one or neither policy solves, and McNemar's test."""
    a, b = comparison.names
    return [
        {
            "a": a,
            "b": b,
            "n": comparison.n,
            "both": comparison.both,
            "only_a": comparison.only_a,
            "only_b": comparison.only_b,
            "neither": comparison.neither,
            "disagreement": comparison.disagreement,
            "mcnemar_p": comparison.mcnemar_p,
        }
    ]


def contingency_markdown(comparison: Comparison) -> str:
    """Table 2 as Markdown: numbers of problems that both, one or neither policy solves."""
    a, b = comparison.names
    return markdown(
        ["", f"{b} solves", f"{b} does not"],
        [
            [f"{a} solves", comparison.both, comparison.only_a],
            [f"{a} does not", comparison.only_b, comparison.neither],
        ],
    )


def disagreement_markdown(comparison: Comparison) -> str:
    """Table 3 as Markdown: problems that exactly one policy solves, and McNemar's test."""
    share = f"{comparison.disagreement} of {comparison.n} ({comparison.disagreement / comparison.n:.1%})"
    return markdown(["exactly one solves", "McNemar's exact p"], [[share, f"{comparison.mcnemar_p:.3g}"]])


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with right-aligned columns, except for the first."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _spread(name: str, values: Sequence[float]) -> Row:
    return {f"{name}_mean": sum(values) / len(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _proportion(name: str, count: int | None, n: int) -> Row:
    if count is None:
        return dict.fromkeys((name, f"{name}_rate", f"{name}_low", f"{name}_high"))
    low, high = wilson_interval(count, n)
    return {name: count, f"{name}_rate": count / n, f"{name}_low": low, f"{name}_high": high}


def _interval(row: Row | None, name: str) -> str:
    if row is None or row[f"{name}_rate"] is None:
        return ""
    rate, low, high = (100 * row[f"{name}_{part}"] for part in ("rate", "low", "high"))
    return f"{rate:.1f} ({low:.1f} to {high:.1f})"
