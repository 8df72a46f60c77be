"""One report from many folders: Markdown, CSV, PNG and SVG."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lmix.report import evidence_tables, figures, tables
from lmix.report.bands import by_method, evaluations, family, seeds_text, steps_text
from lmix.report.claims import check_claims
from lmix.report.evidence import Measured, all_differences, measured
from lmix.report.rates_figure import rates_at_end
from lmix.report.results import COMPARE, SWEEP, Comparison, Sweep, read_comparison, read_sweep
from lmix.report.runs import EVENTS, FLOPS, SOLVE_RATE, Run, join_resumed, read_run, tell_apart
from lmix.report.style import save

RATES_NOTE = (
    "Rates on held-out problems, greedy: mean over seeds (lowest to highest). The best rate is each seed's highest of "
    "its evaluations, chosen on these same problems, so it is optimistic."
)
RATES_CAPTION = (
    "Rates at the last evaluation with 95 % intervals; strokes are seeds, hollow markers the trained policy alone"
)
ALPHAS = ("adaptive", "accuracy_weighted", "schedule", "fixed")


def write_report(folders: list[Path], out: Path, title: str = "lmix report") -> Path:
    """Write report.md, with all tables and figures that the folders have data for.

    Args:
        folders: run folders, and folders with a sweep.json or compare.json.
        out: folder to write into; created if it does not exist.
        title: the report's heading.

    Returns:
        The path of report.md.

    Raises:
        ValueError: there are no folders, or one is of none of these kinds or can't be read.
    """
    if not folders:
        raise ValueError("a report needs folders: give folders of runs, sweeps or comparisons")
    runs, sweeps, comparisons = read_folders(folders)
    out.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}"]
    evaluated = [run for run in runs if SOLVE_RATE in run.scalars]
    if names := [str(run.folder) for run in runs if run not in evaluated]:
        parts.append(f"Left out because they logged no {SOLVE_RATE}: {', '.join(names)}.")
    for setting in dict.fromkeys(run.setting for run in evaluated):
        parts += setting_section([run for run in evaluated if run.setting == setting], out)
    for number, sweep in enumerate(sweeps, 1):
        parts += sweep_section(sweep, out, f"sweep-{number}")
    if len({sweep.trained_alpha for sweep in sweeps} - {None}) > 1:
        parts += realignment_section(sweeps, out)
    for number, comparison in enumerate(comparisons, 1):
        parts += comparison_section(comparison, out, f"compare-{number}")
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def read_folders(folders: Sequence[Path]) -> tuple[list[Run], list[Sweep], list[Comparison]]:
    """Read each folder according to its kind. Raises ValueError for a folder of no known kind."""
    runs, sweeps, comparisons = [], [], []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        if (folder / SWEEP).is_file():
            sweeps.append(read_sweep(folder))
        elif (folder / COMPARE).is_file():
            comparisons.append(read_comparison(folder))
        elif any(folder.glob(EVENTS)):
            runs.append(read_run(folder))
        else:
            raise ValueError(f"{folder} contains no {EVENTS}, {SWEEP} or {COMPARE}: give folders of runs or results")
    return tell_apart(join_resumed(runs)), sweeps, comparisons


def setting_section(runs: Sequence[Run], out: Path) -> list[str]:
    """The section for one task and backbone: rates by method, then the figures that the runs have data for."""
    setting = runs[0].setting
    slug = re.sub(r"[^a-z0-9]+", "-", setting.lower()).strip("-")
    families = {family(run.method) for run in runs}
    parts = [f"## {setting}", lines_text(runs)]
    methods = by_method(runs)
    draw = figures.accuracy_against_step if len(methods) <= figures.MOST_LINES else figures.accuracy_by_method
    if rows := tables.rates_rows(runs):
        parts += [
            tables.rates_markdown(rows),
            RATES_NOTE,
            write_csv(rows, out, f"rates-{slug}"),
            write_figure(draw(runs), out, f"accuracy-{slug}", "Held-out solve rate against step"),
        ]
    if rows and (counted := [run for run in runs if has_compute(run)]):
        figure = figures.accuracy_against_compute(counted)
        parts.append(write_figure(figure, out, f"compute-{slug}", "Held-out solve rate against compute"))
    parts += evidence_section(measured(runs), out, slug)
    if "adaptive" in families and len(families & set(ALPHAS)) > 1:
        figure = figures.adaptive_against_fixed([run for run in runs if family(run.method) in ALPHAS])
        parts.append(write_figure(figure, out, f"adaptive-{slug}", "Adaptive against fixed alpha"))
    if pairs := figures.anchor_pairs(runs):
        parts.append(
            write_figure(figures.anchor_ablation(pairs), out, f"anchor-{slug}", "SFT anchor against base anchor")
        )
    if rollouts := [run for run in runs if "train/reward" in run.scalars]:
        parts.append(write_figure(figures.training_curves(rollouts), out, f"training-{slug}", "Rollouts against step"))
    return parts


def has_compute(run: Run) -> bool:
    """Whether a run logged its compute at every evaluation. Runs from before 0.2.0 did not."""
    counted = {step for step, _ in run.scalars.get(FLOPS, [])}
    return bool(counted) and {step for step, _ in run.scalars[SOLVE_RATE]} <= {0} | counted


def evidence_section(policies: Sequence[Measured], out: Path, slug: str) -> list[str]:
    """Rates, differences and claims from the stored completions of runs; empty if there are none."""
    parts = []
    if policies:
        rows = evidence_tables.policy_rows(policies)
        parts += [evidence_tables.policy_markdown(rows), evidence_tables.RATES_NOTE]
        parts.append(write_csv(rows, out, f"policies-{slug}"))
        parts.append(write_figure(rates_at_end(policies), out, f"ends-{slug}", RATES_CAPTION))
    if differences := all_differences(policies):
        rows = evidence_tables.difference_rows(differences)
        parts += ["### Differences of methods", evidence_tables.difference_markdown(rows)]
        parts += [evidence_tables.DIFFERENCES_NOTE, write_csv(rows, out, f"differences-{slug}")]
    if claims := check_claims(policies):
        rows = evidence_tables.claim_rows(claims)
        parts += ["### Claims", evidence_tables.claim_markdown(rows)]
        parts += [evidence_tables.CLAIMS_NOTE, write_csv(rows, out, f"claims-{slug}")]
    return parts


def lines_text(runs: Sequence[Run]) -> str:
    """A description of each line in the section's figures: seeds, evaluations, steps."""
    lines = []
    for method, group in by_method(runs).items():
        shared = evaluations(group)
        text = f"- {method}: {seeds_text(group)} ({', '.join(str(run.seed) for run in group)}), "
        if not shared:
            lines.append(text + "no step at which all of them were evaluated")
            continue
        first, last, count = steps_text(shared[0]), steps_text(shared[-1]), len(shared)
        text += f"1 evaluation, at step {first}" if count == 1 else f"{count} evaluations, steps {first} to {last}"
        ends = tuple(run.scalars[SOLVE_RATE][-1][0] for run in group)
        if len(set(shared[-1])) > 1:
            text += "; a compute budget ended the runs, and their ends are compared"
        elif ends != shared[-1]:
            text += f"; runs end at steps {', '.join(map(str, sorted(ends)))}, and only steps that all have are shown"
        lines.append(text)
    return "\n".join(lines)


def sweep_section(sweep: Sweep, out: Path, name: str) -> list[str]:
    """The section of a sweep: Table 4 and its figure."""
    rows = tables.sweep_rows(sweep)
    return [
        f"## Sweep of alpha: {sweep.task}",
        tables.sweep_markdown(rows),
        problems_text(sorted({row.n for row in sweep.rows}), sweep.problems),
        write_csv(rows, out, name),
        write_figure(figures.alpha_sweep(sweep.rows), out, name, "Format and solve rate against alpha"),
    ]


def realignment_section(sweeps: Sequence[Sweep], out: Path) -> list[str]:
    """The section on policies trained at several alphas and each decoded at several."""
    return [
        "## Trained at one alpha, decoded at another",
        "Logits, greedy; a ring marks the alpha that a policy was trained at. If several sweeps have the same trained "
        "alpha, the mean with a band from lowest to highest.",
        write_figure(figures.realignment(sweeps), out, "realignment", "Trained at a, decoded at b"),
    ]


def comparison_section(comparison: Comparison, out: Path, name: str) -> list[str]:
    """The section of a comparison: Tables 1 to 3."""
    rows = tables.policies_rows(comparison)
    return [
        f"## {comparison.names[0]} and {comparison.names[1]}: {comparison.task}",
        tables.policies_markdown(rows),
        problems_text([comparison.n], comparison.problems),
        tables.contingency_markdown(comparison),
        tables.disagreement_markdown(comparison),
        write_csv(rows, out, f"{name}-policies"),
        write_csv(tables.contingency_rows(comparison), out, f"{name}-contingency"),
    ]


def problems_text(counts: Sequence[int], kind: str) -> str:
    """The problems and intervals behind a table, as text."""
    return f"{' or '.join(map(str, counts))} {kind}, one greedy completion each; in brackets 95 % Wilson intervals."


def write_csv(rows: Sequence[dict[str, Any]], out: Path, name: str) -> str:
    """Write rows as CSV. Returns a Markdown link to the file."""
    (out / f"{name}.csv").write_text(tables.csv_text(rows), encoding="utf-8")
    return f"[{name}.csv]({name}.csv)"


def write_figure(figure: Figure, out: Path, name: str, caption: str) -> str:
    """Write a figure as PNG and SVG. Returns the Markdown that shows it."""
    save(figure, out / name)
    return f"![{caption}]({name}.png)\n\n{caption} ([svg]({name}.svg))."
