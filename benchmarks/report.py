"""Medians, ratios and tables from the figures of all turns."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.work import Work

Figures = dict[str, float]
TABLES = ("natural", "alpha", "growth", "products")
BY_ROWS = ("growth", "products")
"""Tables with several rows, each measured by its own contender."""
PHASES = ("rollout", "score", "update")


def summary(laps: Sequence[Figures]) -> Figures:
    """Medians of seconds, the largest memory peaks, and the median of a whole step (rollouts and update)."""
    figures: Figures = {}
    for key in sorted({key for lap in laps for key in lap}):
        values = [lap[key] for lap in laps if key in lap]
        figures[key] = max(values) if key.endswith("_gb") else statistics.median(values)
    if "update" in figures:
        figures["step"] = statistics.median([lap["rollout"] + lap["update"] for lap in laps if "update" in lap])
    peaks = [value for key, value in figures.items() if key.endswith("_gb")]
    return figures | ({"peak_gb": max(peaks)} if peaks else {})


def ratios(figures: dict[str, Figures], work: Work) -> dict[str, Any]:
    """lmix's speed-up over others, and its fraction of the limit and of TRL's memory; None if not measured."""

    def over(name: str, key: str) -> float | None:
        if key not in figures.get(name, {}) or key not in figures.get("ours", {}):
            return None
        return figures[name][key] / figures["ours"][key]

    memory = over("trl", "peak_gb")
    ours = figures.get("ours")
    return {
        "rollout_vs_naive": over("naive", "rollout"),
        "rollout_of_limit": over("limit", "rollout"),
        "score_vs_naive": over("naive", "score"),
        "update_vs_naive": over("naive", "update"),
        "step_vs_naive": over("naive", "step"),
        "step_vs_trl": over("trl", "step"),
        "step_vs_trl_kl": over("trl_kl", "step"),
        "memory_of_trl": 1.0 / memory if memory else None,
        "rollout_tokens_per_second": work.rows * work.tokens / ours["rollout"] if ours else None,
    }


def table_ratios(tables: dict[str, Any]) -> Figures:
    """Ratios from the additional tables, by name."""
    found: Figures = {}
    if "natural" in tables:
        natural = tables["natural"]
        found["natural_of_forced"] = natural["natural_tokens_per_second"] / natural["forced_tokens_per_second"]
    if "alpha" in tables:
        found["alpha_of_rollouts"] = tables["alpha"]["alpha_seconds"] / tables["alpha"]["rollout_seconds"]
    return found


def report(result: dict[str, Any]) -> str:
    """The tables in Markdown, followed by the ratios."""
    columns = [*PHASES, "step", *(f"{phase}_gb" for phase in PHASES)]
    lines = markdown([{"": name} | {c: of.get(c) for c in columns} for name, of in result["figures"].items()])
    for name in TABLES:
        if name in result:
            rows = result[name] if isinstance(result[name], list) else [result[name]]
            lines += ["", f"{name}:", "", *markdown(rows)]
    lines += [""] + [
        f"{name}: {'not measured' if value is None else f'{value:.2f}'}"
        for name, value in result.items()
        if value is None or isinstance(value, float)
    ]
    return "\n".join(lines)


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table; None becomes an empty cell."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---:" if n else "---" for n in names) + " |"]
    for row in rows:
        cells = ["" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def one_line(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
