"""The style of all figures: colours and markers of methods, axes, labels at the ends of lines, and file formats."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmix.report.bands import family

TEXT, GRID = "#333333", "#E3E3E3"
FONT = 9
LABEL_WIDTH = 30
"""Maximum characters per line of a label next to the axes."""
LEADER = {"arrowstyle": "-", "linewidth": 1, "shrinkA": 3, "shrinkB": 4, "relpos": (0, 0.5)}
"""Style of the stroke from a line's end to its label."""
LINE_STYLES = ("-", "--", ":", "-.")
"""Line styles that distinguish methods of one family, such as several alphas, which share a colour."""


@dataclass(frozen=True)
class Look:
    """Colour and marker of a family of methods, in every figure."""

    colour: str
    marker: str


LOOKS = {  # Okabe and Ito's palette with greys; the remaining colours are Tol's
    "grpo": Look("#000000", "X"),
    "kl_grpo": Look("#009E73", "s"),
    "sft": Look("#999999", "p"),
    "sft_continued": Look("#777777", "1"),
    "fixed": Look("#0072B2", "o"),
    "fixed_probs": Look("#56B4E9", "D"),
    "fixed_base_anchor": Look("#E69F00", "v"),
    "schedule": Look("#CC79A7", "P"),
    "adaptive": Look("#D55E00", "^"),
    "accuracy_weighted": Look("#882255", "<"),
    "ensemble": Look("#F0E442", "h"),
    "logit_fusion": Look("#332288", ">"),
    "dr_grpo": Look("#117733", "d"),
    "dapo": Look("#44AA99", "*"),
    "rloo": Look("#999933", "H"),
    "cispo": Look("#CC6677", "8"),
    "gspo": Look("#661100", "$\\circ$"),
    "chord": Look("#AA4499", "$+$"),
    "luffy": Look("#6699CC", "$\\times$"),
    "distill": Look("#DDCC77", "$\\triangle$"),
    "sdpo": Look("#88CCEE", "$\\nabla$"),
}


@dataclass(frozen=True)
class End:
    """The end of a line, and its label."""

    text: str
    x: float
    y: float
    colour: str


def look(method: str) -> Look:
    """Colour and marker of a method."""
    return LOOKS[family(method)]


def panels(rows: int, columns: int, width: float, height: float, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    """Create a figure (width and height in inches) with a grid of axes. Returns the axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x)
    return figure, list(axes.flat)


def dress(axis: Axes, x: str, y: str) -> None:
    """Label the axes, and apply the style to ticks, grid and frame."""
    axis.set_xlabel(x, fontsize=FONT, color=TEXT)
    axis.set_ylabel(y, fontsize=FONT, color=TEXT)
    axis.tick_params(labelsize=FONT - 1, color=GRID, labelcolor=TEXT)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#B0B0B0")


def step_axis(axis: Axes) -> None:
    """Show integer ticks on the step axis."""
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def rate_axis(axis: Axes) -> None:
    """Show rates in percent: from 0 to 100 if the lines cover more than half of that, otherwise their own range."""
    axis.yaxis.set_major_formatter(percent)
    axis.yaxis.set_major_locator(MaxNLocator(6))
    low, high = axis.get_ylim()
    whole = high - low > 0.5
    axis.set_ylim(*((-0.02, 1.02) if whole else (max(low, -0.02), min(high, 1.02))))


def percent(rate: float, position: float = 0) -> str:
    """Format a rate as a tick label."""
    return f"{round(100 * rate, 2) + 0.0:g} %"


def label_ends(axis: Axes, ends: Sequence[End]) -> None:
    """Write each line's label next to its end, right of the axes, moved up or down to avoid overlaps.

    Call it when the axes are otherwise complete, because it reads their height.
    """
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    low, high = axis.get_ylim()
    texts = [wrapped(end.text) for end in ends]
    lines = max((text.count("\n") + 1 for text in texts), default=1)
    height = (1.25 * lines + 0.25) * FONT * figure.dpi / 72 / axis.get_window_extent().height
    places = spread([(end.y - low) / (high - low) for end in ends], height)
    for end, text, place in zip(ends, texts, places, strict=True):
        axis.annotate(
            text,
            xy=(end.x, end.y),
            xytext=(1.04, place),
            textcoords="axes fraction",
            fontsize=FONT,
            color=TEXT,
            va="center",
            arrowprops=LEADER | {"color": end.colour},
            annotation_clip=False,
        )


def wrapped(text: str) -> str:
    """Break a label into lines of at most `LABEL_WIDTH` characters, so that the axes keep enough width."""
    lines = (
        textwrap.wrap(line, LABEL_WIDTH, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
    )
    return "\n".join(piece for line in lines for piece in line)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move positions in [0, 1] as little as possible so that neighbours are at least `gap` apart.

    This is least squares with the order of positions fixed: positions that would overlap form a block around their
    mean.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []  # positions minus the gaps below them, which must not decrease
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    moved = [_mean(block) for block in blocks for _ in block]
    top = 1 - (len(places) - 1) * gap
    result = [0.0] * len(places)
    for rank, (i, place) in enumerate(zip(order, moved, strict=True)):
        result[i] = max(min(place, top), 0.0) + rank * gap
    return result


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG. Output is reproducible byte for byte. Returns the paths."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    with mpl.rc_context({"svg.hashsalt": "lmix"}):
        figure.savefig(paths[0], dpi=160)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
