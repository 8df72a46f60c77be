"""Statistics of correct and wrong answers: for one policy, two policies on the same problems, and methods over seeds.

Intervals are 95 % by default. Problems are the sampling unit: completions of one problem never count as independent.
"""

from lmix.evaluation.statistics.crossed import Components, Estimate, components, crossed_mean, holm, paired_difference
from lmix.evaluation.statistics.power import (
    assumed_components,
    detectable_difference,
    power,
    problems_needed,
    seeds_needed,
)
from lmix.evaluation.statistics.proportions import Contingency, contingency, mcnemar_p, wilson_interval
from lmix.evaluation.statistics.samples import maj_at_k, mean_interval, pass_at_k

__all__ = [
    "Components",
    "Contingency",
    "Estimate",
    "assumed_components",
    "components",
    "contingency",
    "crossed_mean",
    "detectable_difference",
    "holm",
    "maj_at_k",
    "mcnemar_p",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "power",
    "problems_needed",
    "seeds_needed",
    "wilson_interval",
]
