"""Logit fusion: sample from the mixture, optimise the policy alone (Zhang et al., 2026, notion.site/logit-fusion)."""

from lmix.training.objectives.grpo import GRPO


class LogitFusion(GRPO):
    """GRPO of the policy alone on completions sampled from the mixture.

    The ratio of eq. 5 is `pi_policy / pi_mix_old`. This importance weight does not start at 1, so tokens on which
    policy and mixture disagree are clipped. The policy alone is deployed, so alpha should decrease to 0, as in
    configs/methods/logit_fusion.yaml.

    Args:
        kwargs: arguments of `GRPO`.
    """

    optimises_policy = True
