"""Test the verifier with hostile answers, and compare it with math-verify on real answers.

    python scripts/verifier_campaign.py --data $LMIX_DATA/math --answers 10000 --json out.json

Fuzz: hostile answers of all kinds, mixed with harmless ones. None may exceed the deadline or crash the parent.
Agreement: every gold answer in another spelling (correct), and some of them altered (wrong), judged by lmix and by
math-verify as its README calls it.
Spellings: every gold answer respelled by each rule of `verifier_spellings` that applies to it (correct), and altered
gold answers, as they are and respelled by such a rule (wrong).
The JSON file contains each wrong verdict.
"""

import argparse
import json
import random
import re
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

import psutil  # noqa: E402
from verifier_spellings import RULES, altered  # noqa: E402

from lmix.verifier.pool import Verifier  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl of MATH")
    parser.add_argument("--answers", type=int, default=10_000, help="number of fuzzed answers")
    parser.add_argument("--wrong", type=int, default=2_000, help="number of altered gold answers")
    parser.add_argument("--golds", type=int, help="number of gold answers (default: all)")
    parser.add_argument("--deadline", type=float, default=5.0, help="time limit for one answer, in seconds")
    parser.add_argument("--parts", default="fuzz,agreement,spellings")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    golds = read_golds(settings.data)[: settings.golds]
    result: dict[str, dict[str, Any]] = {}
    if "fuzz" in settings.parts:
        result["fuzz"] = fuzz(golds, settings.answers, settings.deadline)
    if "agreement" in settings.parts:
        result["agreement"] = agreement(golds, settings.wrong, settings.deadline)
    if "spellings" in settings.parts:
        result["spellings"] = spellings(golds, settings.wrong, settings.deadline)
    hidden = ("disagreements", "not_altered")
    print(json.dumps({k: {n: v for n, v in r.items() if n not in hidden} for k, r in result.items()}, indent=2))
    if settings.json:
        settings.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return 0


def read_golds(folder: Path) -> list[str]:
    golds = []
    for name in ("train", "test"):
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
            golds += [json.loads(line)["answer"] for line in lines]
    return golds


def hostile(chance: random.Random) -> dict[str, str]:
    """One answer of each hostile kind."""
    n, digit = chance.randint(10, 10**5), chance.randint(2, 9)
    names = "abcdefghijkl"
    return {
        "exponent tower": f"{digit}^{{{digit}^{{{digit}^{{{digit}}}}}}}",
        "two-story tower": f"{digit}^{{{digit}^{{{chance.randint(9, 12)}}}}}",
        "long exponent": f"x^{{{chance.randint(10**5, 10**6 - 1)}}}",
        "factorials": f"{chance.randint(2000, 9999)}!" + "!" * chance.randint(0, 2),
        "nested braces": "{" * n + "1" + "}" * n,
        "nested fractions": r"\frac{1}{" * min(n, 45) + "x" + "}" * min(n, 45),
        "nested roots": r"\sqrt{" * 40 + "2" + "}" * 40,
        "open brackets": "([{" * min(n, 600),
        "long number": "7" * chance.randint(500, 1900),
        "long sum": "+".join(f"{chance.choice(names)}^{i}" for i in range(200)),
        "expansion": f"({'+'.join(names[: chance.randint(3, 9)])})^{{{chance.randint(50, 999)}}}",
        "product": "*".join(f"({chance.choice(names)}+{i})" for i in range(60)),
        "huge matrix": r"\begin{pmatrix}"
        + r"\\".join("&".join("12" * 1 for _ in range(14)) for _ in range(40))
        + r"\end{pmatrix}",
        "integral": r"\int_0^{\infty} e^{-x^" + str(chance.randint(3, 60)) + r"} \sin(x^{9}) dx",
        "sum": rf"\sum_{{k=1}}^{{{10**9}}} \frac{{1}}{{k^{{{digit}}}}}",
        "limit": rf"\lim_{{x\to 0}} \frac{{\sin(x^{{{n}}})}}{{x^{{{n}}}}}",
        "binomial": rf"\binom{{{10**6 + n}}}{{{n}}}",
        "control characters": "".join(chr(chance.randint(0, 31)) for _ in range(20)) + "1",
        "half surrogates": "\ud800" * 3 + "1+x",
        "mixed scripts": "\u0445+\u0661\u202e\u096b\U0001d7d9\u4e00\u200b",
        "redos": " " * 900 + "\\text{" * 150 + ("," * 200) + "and " * 60,
        "redos digits": "1,000" * 300 + "x",
        "redos commands": "\\frac" * 300 + "\\text{a b " * 40,
        "quotes and code": '"]\n__import__("os").system("true")',
        "latex that reads": r"\input{/etc/passwd}\write18{id}",
        "word": "".join(chr(chance.randint(33, 0x2FFF)) for _ in range(60)),
        "long": "x" * 10**5,
        "empty": " " * chance.randint(0, 3),
    }


def fuzz(golds: list[str], count: int, deadline: float, workers: int = 2) -> dict[str, Any]:
    """Judge hostile and harmless answers, each in its own call, so that each is timed."""
    chance = random.Random(0)
    answers: list[tuple[str, str, str]] = []
    while len(answers) < count:
        mixed = [*hostile(chance).items(), *[("harmless", respelled(chance.choice(golds))) for _ in range(173)]]
        chance.shuffle(mixed)
        answers += [(kind, answer, chance.choice(golds)) for kind, answer in mixed]
    answers = answers[:count]
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda k: judged(answers[k::workers], deadline), range(workers))
        judgements = [judgement for part in parts for judgement in part]
    seconds = time.perf_counter() - start
    outcomes: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    for kind, outcome, duration in judgements:
        outcomes.setdefault(kind, Counter())[outcome] += 1
        slowest[kind] = max(slowest.get(kind, 0.0), duration)
    return {
        "answers": len(judgements),
        "workers": workers,
        "deadline": deadline,
        "seconds": seconds,
        "answers_per_second": len(judgements) / seconds,
        # includes starting a new worker, which happens in the call after a kill
        "slowest_seconds": max(slowest.values()),
        "parent_grown_mb": (process.memory_info().rss - before) / 2**20,
        "worker_peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
        "outcomes": dict(sum(outcomes.values(), Counter())),
        "by_kind": {kind: {**of, "slowest": round(slowest[kind], 2)} for kind, of in sorted(outcomes.items())},
    }


def judged(answers: list[tuple[str, str, str]], deadline: float) -> list[tuple[str, str, float]]:
    """Kind, outcome and seconds of each answer, judged by a verifier with one worker."""
    judgements = []
    with Verifier(1, deadline) as verifier:
        verifier.verify(["1+x"], ["x+1"])  # starts the worker
        for kind, answer, gold in answers:
            begin = time.perf_counter()
            (verdict,) = verifier.verify([answer], [gold])
            judgements.append((kind, verdict.outcome, time.perf_counter() - begin))
    return judgements


def respelled(gold: str) -> str:
    """The same answer in another spelling."""
    text = gold.replace(r"\frac", r"\dfrac").replace(r"\le ", r"\leq ").replace(r"\ge ", r"\geq ")
    if text.count("(") == text.count(")") == 1 and r"\left" not in text:
        text = text.replace("(", r"\left(").replace(")", r"\right)")
    text = re.sub(r"(?<=[0-9a-z])\s*([+=])\s*(?=[0-9a-z\\])", r" \1 ", text)
    return f"${text}$" if "$" not in text else text


def agreement(golds: list[str], wrong: int, deadline: float, workers: int = 2) -> dict[str, Any]:
    """Compare lmix and math-verify on respelled and altered gold answers: errors, and answers per second."""
    from math_verify import parse, verify

    chance = random.Random(1)
    pairs = [(respelled(gold), gold, True) for gold in golds]
    pairs += [(answer, gold, False) for answer, gold in wrong_answers(golds, wrong, chance)]
    pairs = list(dict.fromkeys(pairs))  # lmix judges equal pairs once
    with Verifier(workers, deadline) as verifier:
        verifier.verify(["1+x"], ["x+1"])
        start = time.perf_counter()
        ours = [v.correct for v in verifier.verify([p[0] for p in pairs], [p[1] for p in pairs])]
        our_seconds = time.perf_counter() - start
    start = time.perf_counter()
    theirs = [bool(verify(parse(rf"${gold}$"), parse(rf"\boxed{{{answer}}}"))) for answer, gold, _ in pairs]
    their_seconds = time.perf_counter() - start
    right = [p[2] for p in pairs]
    results = {
        "golds": len(golds),
        "distinct_pairs": len(pairs),
        "workers": workers,
        "wrong_pairs": right.count(False),
        "lmix_false_negatives": sum(r and not o for r, o in zip(right, ours, strict=True)),
        "lmix_false_positives": sum(o and not r for r, o in zip(right, ours, strict=True)),
        "math_verify_false_negatives": sum(r and not t for r, t in zip(right, theirs, strict=True)),
        "math_verify_false_positives": sum(t and not r for r, t in zip(right, theirs, strict=True)),
        "lmix_answers_per_second": len(pairs) / our_seconds,
        "math_verify_answers_per_second": len(pairs) / their_seconds,
        "throughput_ratio": their_seconds / our_seconds,
    }
    results["disagreements"] = [
        {"gold": g, "answer": a, "right": r, "lmix": o, "math_verify": t}
        for (a, g, r), o, t in zip(pairs, ours, theirs, strict=True)
        if o != r or t != r
    ]
    return results


def wrong_answers(golds: list[str], count: int, chance: random.Random) -> list[tuple[str, str]]:
    """Up to `count` distinct pairs of an altered gold answer and the gold answer."""
    shuffled = chance.sample(golds, len(golds))
    changed = dict.fromkeys((altered(gold, chance), gold) for gold in [*shuffled, *shuffled])
    return [(answer, gold) for answer, gold in changed if answer is not None][:count]


def spellings(golds: list[str], wrong: int, deadline: float, workers: int = 2) -> dict[str, Any]:
    """Verdicts of lmix on gold answers in every spelling that applies, and on altered ones in one such spelling."""
    chance = random.Random(2)
    right = [(rule, other, gold) for gold in golds for rule, spell in RULES.items() if (other := spell(gold))]
    false = [("altered", answer, gold) for answer, gold in wrong_answers(golds, wrong, chance)]
    for _, answer, gold in list(false):
        fitting = [(rule, other) for rule, spell in RULES.items() if spell(gold) and (other := spell(answer))]
        if fitting:
            rule, other = chance.choice(fitting)
            false.append((f"altered, {rule}", other, gold))
    with Verifier(workers, deadline) as verifier:
        verdicts = [
            [verdict.outcome for verdict in verifier.verify([p[1] for p in pairs], [p[2] for p in pairs])]
            for pairs in (right, false)
        ]
    refused = [(*pair, outcome) for pair, outcome in zip(right, verdicts[0], strict=True) if outcome != "right"]
    rewarded = [(*pair, outcome) for pair, outcome in zip(false, verdicts[1], strict=True) if outcome == "right"]
    fits = {gold: altered(gold, chance) for gold in dict.fromkeys(golds)}
    return {
        "golds": len(golds),
        "right_pairs": len(right),
        "distinct_right_pairs": len(set(right)),
        "right_by_rule": dict(Counter(rule for rule, _, _ in right)),
        "right_refused": len(refused),
        "wrong_pairs": len(false),
        "wrong_rewarded": len(rewarded),
        "golds_not_altered": sum(fits[gold] is None for gold in golds),
        "not_altered": [gold for gold, other in fits.items() if other is None],
        "disagreements": list(dict.fromkeys([*refused, *rewarded])),
    }


if __name__ == "__main__":
    sys.exit(main())
