"""The paper's figures, drawn from runs. Each function returns a figure and writes no files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmix.evaluation.statistics import wilson_interval
from lmix.report.bands import Band, band, by_method, compute_band, detail, family, seeds_text
from lmix.report.methods import ALPHA, method_name, settings
from lmix.report.results import Sweep, SweepRow
from lmix.report.runs import SOLVE_RATE, Run
from lmix.report.style import (
    FONT,
    LINE_STYLES,
    LOOKS,
    TEXT,
    End,
    dress,
    label_ends,
    look,
    panels,
    percent,
    rate_axis,
    step_axis,
)

STEP, SOLVED, WEIGHT = "outer step", "held-out solve rate", f"{ALPHA} (reference's weight)"
ANCHORS = {"fixed": "SFT anchor", "fixed_base_anchor": "base anchor"}
TRAINING = {
    "train/reward": "reward",
    "train/format_rate": "format rate",
    "train/entropy": "entropy (nats a token)",
    "train/completion_length": "completion length (tokens)",
    "train/dead_groups": "dead groups",
}
TRAINING_RATES = ("train/reward", "train/format_rate", "train/dead_groups")
REFERENCE_COLOUR = "#777777"
MIXTURES = {"probs": "fixed_probs", "logits": "fixed"}
"""Kind of mixture -> the method whose colour it has in figures of a sweep."""
MARKED_POINTS = 12
MOST_LINES = 8
"""Maximum number of methods in one panel."""
COLUMNS, WIDTH = 3, 40
"""Panels per row, and characters per line of their titles."""
OTHERS_COLOUR = "#DDDDDD"


def accuracy_against_step(runs: Sequence[Run], references: Mapping[str, float] | None = None) -> Figure:
    """Held-out solve rate against step: for each method the mean over seeds, with a band from lowest to highest.

    The paper's Figures 2 to 5 and 9.

    Args:
        runs: the runs.
        references: horizontal lines, name -> rate, such as the SFT reference alone.
    """
    figure, [axis] = panels(1, 1, 6.4, max(3.4, 0.4 * len(by_method(runs))))
    ends = draw_methods(axis, runs, SOLVE_RATE, seeds_label)
    for name, rate in (references or {}).items():
        axis.axhline(rate, color=REFERENCE_COLOUR, linestyle=(0, (4, 3)), linewidth=1.2)
        ends.append(End(name, axis.get_xlim()[1], rate, REFERENCE_COLOUR))
    dress(axis, STEP, SOLVED)
    step_axis(axis)
    rate_axis(axis)
    label_ends(axis, ends)
    return figure


def accuracy_by_method(runs: Sequence[Run]) -> Figure:
    """Held-out solve rate against step in a panel for each method, with the means of all other methods in grey.

    For more methods than one panel can show. Runs with the same method name (`method_name`) that differ in other
    settings, such as the learning rate, share a panel.
    """
    methods = by_method(runs)
    names = {method: method_name(group[0].config) for method, group in methods.items()}
    titles = list(dict.fromkeys(names.values()))
    means = {method: band(group, SOLVE_RATE) for method, group in methods.items()}
    rows = -(-len(titles) // COLUMNS)
    figure, axes = panels(rows, COLUMNS, 11.0, 2.5 * rows, share_x=True)
    for axis in axes[len(titles) :]:
        figure.delaxes(axis)
    for axis, title in zip(axes, titles, strict=False):
        own = [method for method in methods if names[method] == title]
        for method, line in means.items():
            if line is not None and method not in own:
                axis.plot(line.at, line.mean, color=OTHERS_COLOUR, linewidth=1)
        ends = draw_methods(axis, [run for method in own for run in methods[method]], SOLVE_RATE, method_label)
        axis.set_title(fill(title, WIDTH), fontsize=FONT, color=TEXT, loc="left")
        dress(axis, STEP, SOLVED)
        axis.set_ylim(-0.02, 1.02)
        axis.yaxis.set_major_formatter(percent)
        axis.tick_params(labelbottom=True)
        step_axis(axis)
        if len(own) > 1:
            label_ends(axis, [replace(end, text=end.text.removeprefix(f"{title}, ")) for end in ends])
    return figure


def accuracy_against_compute(runs: Sequence[Run]) -> Figure:
    """Held-out solve rate against the floating-point operations of training, for runs that logged them."""
    figure, [axis] = panels(1, 1, 6.4, max(3.4, 0.4 * len(by_method(runs))))
    ends = draw_methods(axis, runs, SOLVE_RATE, seeds_label, compute_band)
    dress(axis, "training compute (10^15 floating-point operations)", SOLVED)
    rate_axis(axis)
    label_ends(axis, ends)
    return figure


def adaptive_against_fixed(runs: Sequence[Run]) -> Figure:
    """Held-out solve rate and, below it, alpha against step: the paper's Figures 6 and 7."""
    figure, [rate, alpha] = panels(2, 1, 6.4, 5.0, share_x=True)
    rate_ends = draw_methods(rate, runs, SOLVE_RATE, seeds_label)
    alpha_ends = draw_methods(alpha, runs, "alpha", method_label)
    dress(rate, "", SOLVED)
    dress(alpha, STEP, WEIGHT)
    alpha.set_ylim(-0.02, 1.02)
    step_axis(alpha)
    rate_axis(rate)
    label_ends(rate, rate_ends)
    label_ends(alpha, alpha_ends)
    return figure


def anchor_ablation(runs: Sequence[Run]) -> Figure:
    """Held-out solve rate with the SFT adapter as anchor and with the base itself: the paper's Figure 8.

    Args:
        runs: see `anchor_pairs`.
    """
    figure, [axis] = panels(1, 1, 6.4, 3.4)
    ends = draw_methods(axis, runs, SOLVE_RATE, anchor_label)
    dress(axis, STEP, SOLVED)
    step_axis(axis)
    rate_axis(axis)
    label_ends(axis, ends)
    return figure


def anchor_pairs(runs: Sequence[Run]) -> list[Run]:
    """The runs at a fixed alpha that exist with both anchors and otherwise equal settings."""
    anchored = [run for run in runs if family(run.method) in ANCHORS]

    def anchors(run: Run) -> set[str]:
        return {family(other.method) for other in anchored if but_anchor(other) == but_anchor(run)}

    return [run for run in anchored if len(anchors(run)) == len(ANCHORS)]


def but_anchor(run: Run) -> dict[str, object]:
    """A run's settings, except for its reference."""
    return {name: value for name, value in settings(run.config).items() if not name.endswith("adapters.reference")}


def training_curves(runs: Sequence[Run]) -> Figure:
    """Reward, format rate, entropy, completion length and dead groups of the rollouts against step."""
    figure, axes = panels(3, 2, 11.0, 8.6, share_x=True)
    figure.delaxes(axes[-1])
    for axis, (tag, name) in zip(axes, TRAINING.items(), strict=False):
        ends = draw_methods(axis, runs, tag, method_label)
        dress(axis, STEP, name)
        axis.tick_params(labelbottom=True)
        step_axis(axis)
        if tag in TRAINING_RATES:
            rate_axis(axis)
        label_ends(axis, ends)
    return figure


def alpha_sweep(rows: Sequence[SweepRow]) -> Figure:
    """Format and solve rate against alpha for both kinds of mixture, with 95 % Wilson intervals: Table 4."""
    figure, axes = panels(2, 1, 6.4, 5.6, share_x=True)
    for axis, name in zip(axes, ("format", "solve"), strict=True):
        ends = []
        for mixture, method in MIXTURES.items():
            points = sorted((row for row in rows if row.mixture == mixture), key=lambda row: row.alpha)
            if not points:
                continue
            x, style = [row.alpha for row in points], look(method)
            counts = [row.format if name == "format" else row.solved for row in points]
            rates = [count / row.n for count, row in zip(counts, points, strict=True)]
            low, high = zip(*(wilson_interval(c, row.n) for c, row in zip(counts, points, strict=True)), strict=True)
            axis.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
            axis.plot(x, rates, color=style.colour, marker=style.marker, markersize=5, linewidth=1.6)
            ends.append(End(mixture, x[-1], rates[-1], style.colour))
        dress(axis, WEIGHT if name == "solve" else "", f"held-out {name} rate")
        rate_axis(axis)
        label_ends(axis, ends)
    return figure


def realignment(sweeps: Sequence[Sweep]) -> Figure:
    """Format and solve rate against the alpha of decoding, with a line for each alpha of training.

    As in decoding-time realignment (Liu et al., arXiv 2402.02992). A ring marks the point where both are equal.

    Args:
        sweeps: the sweeps. Those without a trained alpha are left out. Several with the same trained alpha are shown as
            their mean with a band.
    """
    figure, axes = panels(2, 1, 6.4, 5.6, share_x=True)
    trained = sorted({sweep.trained_alpha for sweep in sweeps if sweep.trained_alpha is not None})
    for axis, name in zip(axes, ("format", "solve"), strict=True):
        ends = []
        for place, alpha in enumerate(trained):
            style = list(LOOKS.values())[3 + place % (len(LOOKS) - 3)]
            lines = [rates_by_alpha(sweep, name) for sweep in sweeps if sweep.trained_alpha == alpha]
            x = sorted(set.intersection(*(set(rates) for rates in lines)))
            if not x:
                continue
            mean = [sum(rates[b] for rates in lines) / len(lines) for b in x]
            low, high = zip(*((min(r[b] for r in lines), max(r[b] for r in lines)) for b in x), strict=True)
            axis.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
            axis.plot(x, mean, color=style.colour, marker=style.marker, markersize=5, linewidth=1.6)
            if alpha in x:
                axis.plot(alpha, mean[x.index(alpha)], "o", markersize=12, fillstyle="none", color=style.colour)
            ends.append(End(f"trained at {ALPHA}={alpha:g}", x[-1], mean[-1], style.colour))
        dress(axis, f"{ALPHA} of decoding" if name == "solve" else "", f"held-out {name} rate")
        rate_axis(axis)
        label_ends(axis, ends)
    return figure


def rates_by_alpha(sweep: Sweep, name: str) -> dict[float, float]:
    """A sweep's format or solve rate by alpha, for averaged logits."""
    rows = [row for row in sweep.rows if row.mixture == "logits"]
    return {row.alpha: (row.format if name == "format" else row.solved) / row.n for row in rows}


def draw_methods(
    axis: Axes,
    runs: Sequence[Run],
    tag: str,
    label: Callable[[str, Sequence[Run]], str],
    line_of: Callable[[Sequence[Run], str], Band | None] = band,
) -> list[End]:
    """Draw the mean and band of a scalar for each method.

    Args:
        axis: the axes to draw on.
        runs: the runs.
        tag: the scalar's tag.
        label: makes a line's label from a method and its runs.
        line_of: makes a line from a method's runs and the tag; by default against steps.

    Returns:
        The ends of the lines, for `label_ends`.
    """
    ends, seen = [], []
    for method, group in by_method(runs).items():
        line = line_of(group, tag)
        if line is None:
            continue
        style, line_style = look(method), LINE_STYLES[seen.count(family(method)) % len(LINE_STYLES)]
        dense = len(line.at) > MARKED_POINTS
        seen.append(family(method))
        axis.fill_between(line.at, line.low, line.high, color=style.colour, alpha=0.18, linewidth=0)
        axis.plot(
            line.at,
            line.mean,
            color=style.colour,
            linestyle=line_style,
            linewidth=1.2 if dense else 1.6,
            marker=style.marker,
            markersize=4 if dense else 5,
            markevery=-(-len(line.at) // MARKED_POINTS),
        )
        ends.append(End(label(method, group), line.at[-1], line.mean[-1], style.colour))
    return ends


def method_label(method: str, runs: Sequence[Run]) -> str:
    """A label with the method only."""
    return method


def seeds_label(method: str, runs: Sequence[Run]) -> str:
    """A label with the method and its number of seeds."""
    return f"{method}\n({seeds_text(runs)})"


def anchor_label(method: str, runs: Sequence[Run]) -> str:
    """A label with the method's anchor, its alpha and its number of seeds."""
    return seeds_label(f"{ANCHORS[family(method)]}, {detail(method)}", runs)
