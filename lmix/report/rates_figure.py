"""The figure of all methods' rates at the end of their runs."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from lmix.report.evidence import SCORES, Measured, means, pooled
from lmix.report.style import FONT, TEXT, dress, look, panels, percent

TITLES = {"solved": "solved", "anywhere": "right anywhere", "format": "format"}


def rates_at_end(policies: Sequence[Measured]) -> Figure:
    """Rates at the last evaluation: a row for each method, a panel for each score.

    Large markers with bars are means with 95 % intervals, small ones the seeds. Filled markers are the policy under
    training, hollow ones the trained policy alone.
    """
    scores = [score for score in SCORES if all(score in policy.scores for policy in policies)]
    figure, axes = panels(1, len(scores), 3.2 + 2.6 * len(scores), 1.0 + 0.34 * len(policies))
    for axis, score in zip(axes, scores, strict=True):
        for row, policy in enumerate(policies):
            style, rate = look(policy.method), pooled(policy, score)
            fill = style.colour if policy.who == "mixed" else "white"
            by_seed = means(policy.flags(score, sorted(policy.rows), policy.problems))
            seeds = [sum(rates) / len(rates) for rates in by_seed]
            axis.plot([rate.low, rate.high], [row, row], color=style.colour, linewidth=1.6)
            axis.plot(seeds, [row] * len(seeds), "|", color=style.colour, markersize=7)
            axis.plot(rate.mean, row, marker=style.marker, markersize=6, color=style.colour, markerfacecolor=fill)
        dress(axis, f"{TITLES[score]}, held out", "")
        axis.xaxis.set_major_formatter(percent)
        axis.set_ylim(len(policies) - 0.5, -0.5)
        names = [name_of(policy) if axis is axes[0] else "" for policy in policies]
        axis.set_yticks(range(len(policies)), names)
        axis.tick_params(axis="y", labelsize=FONT, labelcolor=TEXT, length=0)
    return figure


def name_of(policy: Measured) -> str:
    """A row's label: the method, and whether its policy was decoded alone."""
    return policy.method if policy.who == "mixed" else f"{policy.method}, policy alone"
