"""The results of `evidence` and `claims` as tables of a report, and as rows for CSV."""

from collections.abc import Sequence
from typing import Any

from lmix.evaluation.statistics import Estimate
from lmix.report.bands import steps_text
from lmix.report.claims import Claim, verdict
from lmix.report.evidence import SCORES, Difference, Measured, adjusted, pooled
from lmix.report.tables import Row, markdown

RATES_NOTE = (
    "At each method's last evaluation; 95 % intervals over problems and, where there are several, seeds. One seed's "
    "interval does not cover other seeds. *anywhere*: right in whatever form the answer is stated."
)
DIFFERENCES_NOTE = (
    "First minus second, in points, paired by problem and seed, with 95 % intervals; p adjusted for the number of rows "
    "(Holm). *Could see*: the true difference that such a study detects 4 times in 5. With one seed, all of these are "
    "about this seed's runs: how much runs differ is not known."
)
CLAIMS_NOTE = (
    "*yes* and *no, the opposite*: the 95 % interval of the difference, in points, excludes 0; not adjusted for the "
    "number of claims. *can't be told* is no evidence that there is no difference: see what could be seen. *one seed*: "
    "this holds for the runs of one seed and does not speak for others."
)


def policy_rows(policies: Sequence[Measured]) -> list[Row]:
    """A row for each method and policy: rates with intervals."""
    rows = []
    for policy in policies:
        row: Row = {
            "method": policy.method,
            "policy": "under training" if policy.who == "mixed" else "policy alone",
            "step": steps_text(policy.steps),
            "seeds": len(policy.rows),
            "problems": len(policy.problems),
            "samples": policy.samples,
        }
        for score in SCORES:
            row |= _estimate(score, pooled(policy, score) if score in policy.scores else None)
        rows.append(row)
    return rows


def policy_markdown(rows: Sequence[Row]) -> str:
    """`policy_rows` as Markdown."""
    header = ["method", "decoded", "step", "seeds", "problems", "completions", *(f"{score}, %" for score in SCORES)]
    return markdown(
        header,
        [
            [row["method"], row["policy"], row["step"], row["seeds"], row["problems"], completions(row["samples"])]
            + [percent(row, score) for score in SCORES]
            for row in rows
        ],
    )


def difference_rows(differences: Sequence[Difference]) -> list[Row]:
    """A row for each pair of methods."""
    return [
        {
            "a": each.a.method,
            "b": each.b.method,
            "seeds": each.estimate.seeds,
            "problems": each.estimate.problems,
            **_estimate("difference", each.estimate),
            "p": each.estimate.p,
            "p_holm": p,
            "detectable": each.detectable,
        }
        for each, p in zip(differences, adjusted(differences), strict=True)
    ]


def difference_markdown(rows: Sequence[Row]) -> str:
    """`difference_rows` as Markdown."""
    return markdown(
        ["methods", "seeds", "problems", "difference in solved", "p (Holm)", "could see"],
        [
            [
                f"{row['a']} minus {row['b']}",
                row["seeds"],
                row["problems"],
                signed(row),
                f"{row['p_holm']:.2g}",
                seen(row["detectable"]),
            ]
            for row in rows
        ],
    )


def claim_rows(claims: Sequence[tuple[Claim, Difference]]) -> list[Row]:
    """A row for each claim and pair of methods."""
    return [
        {
            "claim": claim.text,
            "a": each.a.method,
            "b": each.b.method,
            "score": claim.score,
            "seeds": each.estimate.seeds,
            **_estimate("difference", each.estimate),
            "says": verdict(each.estimate),
            "detectable": each.detectable,
        }
        for claim, each in claims
    ]


def claim_markdown(rows: Sequence[Row]) -> str:
    """`claim_rows` as Markdown."""
    return markdown(
        ["claim", "methods", "seeds", "difference", "the data say", "could see"],
        [
            [
                row["claim"],
                f"{row['a']} minus {row['b']}, {row['score']}",
                row["seeds"],
                signed(row),
                row["says"],
                seen(row["detectable"]),
            ]
            for row in rows
        ],
    )


def completions(samples: int) -> str:
    return f"{samples} samples" if samples else "greedy"


def percent(row: Row, name: str) -> str:
    if row[f"{name}_mean"] is None:
        return "not stored"
    rate, low, high = (100 * row[f"{name}_{part}"] for part in ("mean", "low", "high"))
    return f"{rate:.1f} ({low:.1f} to {high:.1f})"


def signed(row: Row) -> str:
    mean, low, high = (100 * row[f"difference_{part}"] for part in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def seen(detectable: float | None) -> str:
    return "nothing" if detectable is None else f"{100 * detectable:.1f}"


def _estimate(name: str, estimate: Estimate | None) -> dict[str, Any]:
    return {f"{name}_{part}": getattr(estimate, part, None) for part in ("mean", "low", "high")}
