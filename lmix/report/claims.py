"""The claims of the paper (arXiv 2605.20555), and further comparisons that a sceptical reader would ask for."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmix.evaluation.statistics import Estimate
from lmix.report.bands import family
from lmix.report.evidence import Difference, Measured, difference
from lmix.rollout.types import Who


@dataclass(frozen=True)
class Claim:
    """The claim that one method's policy scores higher than another's."""

    text: str
    better: str
    than: str
    score: str = "solved"
    who: Who = "mixed"
    """The policy of the `better` method; for the other method it is always the policy under training."""


CLAIMS = (
    Claim("Logit averaging solves more than KL-GRPO", "fixed", "kl_grpo"),
    Claim("Adaptive alpha solves more than KL-GRPO", "adaptive", "kl_grpo"),
    Claim("Adaptive alpha solves more than a fixed one", "adaptive", "fixed"),
    Claim("Averaged logits solve more than averaged probabilities", "fixed", "fixed_probs"),
    Claim("An SFT anchor solves more than the base as anchor", "fixed", "fixed_base_anchor"),
    Claim("Logit averaging keeps the format better than GRPO without an anchor", "fixed", "grpo", "format"),
    Claim("Logit averaging solves more than SFT", "fixed", "sft"),
    Claim("Logit averaging solves more than SFT continued", "fixed", "sft_continued"),
    Claim("Logit averaging solves more than SFT then GRPO", "fixed", "grpo"),
    Claim("The trained policy alone solves more than SFT", "fixed", "sft", who="policy"),
    Claim("Logit averaging is right more often than SFT whatever the form", "fixed", "sft", "anywhere"),
)

VERDICTS = {1: "yes", -1: "no, the opposite", 0: "can't be told"}


def verdict(estimate: Estimate) -> str:
    """What the data say about a claim. With one seed this holds for these runs alone, and the text says so."""
    text = VERDICTS[estimate.says]
    return f"{text} (one seed)" if estimate.seeds == 1 else text


def check_claims(policies: Sequence[Measured]) -> list[tuple[Claim, Difference]]:
    """Each claim with the difference of every pair of methods it applies to, among those that were run."""
    checked = []
    for claim in CLAIMS:
        told = [p for p in policies if claim.score in p.scores]
        better = [p for p in told if family(p.method) == claim.better and p.who == claim.who]
        than = [p for p in told if family(p.method) == claim.than and p.who == "mixed"]
        pairs = [difference(a, b, claim.score) for a in better for b in than]
        checked += [(claim, pair) for pair in pairs if pair is not None]
    return checked
