"""The equations of the paper as pure functions of tensors.

Shapes are written with one letter per axis. Where it helps, names of tensors have the shape as a suffix:

    P prompts (groups)   G samples of a prompt   B rows (completions)   T tokens
    H hidden size        V vocabulary            N problems             K streams

Equation numbers are those of Gan & Zhu, arXiv 2605.20555. This package imports torch and nothing else.
"""

from lmix.functional.advantages import AdvantageStd, dead_groups, group_advantages, leave_one_out_advantages
from lmix.functional.alpha import (
    AlphaUpdate,
    accuracy_weighted_alpha,
    alpha_of_counts,
    forgetting_and_gain,
)
from lmix.functional.divergences import Divergence, DivergenceKind, divergences, linear_divergences
from lmix.functional.logprobs import (
    entropies,
    linear_entropies,
    linear_log_probs,
    token_log_probs,
    tokenwise,
    without_tokens,
)
from lmix.functional.low_rank import low_rank_factors, low_rank_product
from lmix.functional.mixing import implausible, mix_streams, mix_streams_log_probs
from lmix.functional.objective import (
    SurrogateStats,
    clipped_surrogate,
    clipped_surrogate_loss,
    group_token_weights,
    k3_kl,
    sampler_weights,
    shaped_probability,
    uncertainty_weight,
)

__all__ = [
    "AdvantageStd",
    "AlphaUpdate",
    "Divergence",
    "DivergenceKind",
    "SurrogateStats",
    "accuracy_weighted_alpha",
    "alpha_of_counts",
    "clipped_surrogate",
    "clipped_surrogate_loss",
    "dead_groups",
    "divergences",
    "entropies",
    "forgetting_and_gain",
    "group_advantages",
    "group_token_weights",
    "implausible",
    "k3_kl",
    "leave_one_out_advantages",
    "linear_divergences",
    "linear_entropies",
    "linear_log_probs",
    "low_rank_factors",
    "low_rank_product",
    "mix_streams",
    "mix_streams_log_probs",
    "sampler_weights",
    "shaped_probability",
    "token_log_probs",
    "tokenwise",
    "uncertainty_weight",
    "without_tokens",
]
