"""The tokens that the streams dispute most, as the paper's Figure 1 shows one."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from lmix.inspection.trace import MIXTURE, TokenTrace, disputed
from lmix.model.mixture import POLICY, REFERENCE
from lmix.report.style import FONT, TEXT, dress, look, panels, percent

COLOURS = {POLICY: look("grpo").colour, REFERENCE: look("sft").colour, MIXTURE: look("fixed").colour}
CONTEXT = 24
"""Characters of the completion that are shown before a token."""


def candidates(traces: Sequence[TokenTrace], places: int = 2) -> Figure:
    """The most probable next tokens by each stream and by the mixture, where streams differ most.

    Args:
        traces: of a completion; not empty.
        places: how many tokens, a row of panels each.
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
            # a dollar sign would start matplotlib's mathematics
            axis.set_yticks(range(len(top)), [repr(text).replace("$", r"\$") for text, _ in top])
            axis.set_xlim(0, 1)
            axis.xaxis.set_major_formatter(percent)
            axis.set_title(
                name if column else f"{name}, after {before!r}".replace("$", r"\$"), fontsize=FONT, loc="left"
            )
    return figure
