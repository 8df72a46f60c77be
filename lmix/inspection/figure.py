"""A figure of the tokens on which the streams differ most, similar to the paper's Figure 1."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from lmix.inspection.trace import MIXTURE, TokenTrace, disputed
from lmix.model.mixture import POLICY, REFERENCE
from lmix.report.style import FONT, TEXT, dress, look, panels, percent

COLOURS = {POLICY: look("grpo").colour, REFERENCE: look("sft").colour, MIXTURE: look("fixed").colour}
CONTEXT = 24
"""Number of characters of the completion shown before a token."""


def candidates(traces: Sequence[TokenTrace], places: int = 2) -> Figure:
    """Draw the most probable next tokens of each stream and of the mixture, at the tokens where streams differ most.

    Args:
        traces: the trace of a completion; not empty.
        places: number of tokens to show, with a row of panels each.
    """
    chosen = sorted(sorted(range(len(traces)), key=lambda place: -disputed(traces[place]))[:places])
    names = list(traces[0].tops)
    figure, axes = panels(len(chosen), len(names), 2.5 * len(names) + 0.6, 1.9 * len(chosen) + 0.2)
    for row, place in enumerate(chosen):
        before = "".join(t.token for t in traces[:place])[-CONTEXT:]
        for column, name in enumerate(names):
            axis = axes[row * len(names) + column]
            top = traces[place].tops[name][::-1]
            axis.barh(range(len(top)), [p for _, p in top], color=COLOURS.get(name, TEXT), height=0.7)
            dress(axis, "", "")
            # escape dollar signs, which start math mode in matplotlib
            axis.set_yticks(range(len(top)), [repr(text).replace("$", r"\$") for text, _ in top])
            axis.set_xlim(0, 1)
            axis.xaxis.set_major_formatter(percent)
            axis.set_title(
                name if column else f"{name}, after {before!r}".replace("$", r"\$"), fontsize=FONT, loc="left"
            )
    return figure
