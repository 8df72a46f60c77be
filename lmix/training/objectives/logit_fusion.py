"""Logit fusion: the mixture draws, the policy alone is optimised (Zhang et al., 2026, notion.site/logit-fusion)."""

from lmix.training.objectives.grpo import GRPO


class LogitFusion(GRPO):
    """GRPO of the policy alone on completions that the mixture drew.

    The ratio of eq. 5 is `pi_policy / pi_mix_old`, an importance weight that does not start at 1: the clip holds tokens
    on which policy and mixture disagree. The policy is what is deployed, so alpha should fall to 0:
    configs/methods/logit_fusion.yaml.

    Args:
        kwargs: of `GRPO`.
    """

    optimises_policy = True
