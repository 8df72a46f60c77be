"""Rates of the mixed policy and of each of its streams: greedy decoding, and avg@k, pass@k and maj@k of samples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.output import new_console, out_folder, print_table, write_json
from lmix.evaluation.rows import count_answered, count_anywhere, count_format, count_solved, write_rows
from lmix.evaluation.scores import sampled_summary
from lmix.evaluation.session import Measured, Session
from lmix.evaluation.statistics import wilson_interval
from lmix.model.mixture import MixtureKind
from lmix.rollout.types import Who
from lmix.tasks.task import Task

SUMMARY = "evaluation.json"


def evaluate(
    task: Task,
    alpha: float = 0.5,
    mixture: MixtureKind = "logits",
    who: Sequence[Who] = ("mixed",),
    samples: int = 0,
    temperature: float = 1.0,
    out: str = "evaluation",
    **kwargs: Any,
) -> dict[str, Any]:
    """Measure format and solve rate on held-out problems by greedy decoding, and avg@k, pass@k, maj@k of k samples.

    Writes `rows.jsonl` (each completion with its parsed answer) and `evaluation.json` (rates with 95 % intervals
    clustered by problem, settings, versions) into the folder `out`, and prints the rates.

    Args:
        task: a task class: lmix.tasks.MathTask, CnK12Task, MMLUTask, ArithmeticTask, DatasetTask (any file or hub data
            set) or your own; or a YAML file with class_path and init_args. --task.help=lmix.tasks.MathTask lists the
            options of a class; give them as --task.NAME after --task.
        alpha: weight of the reference in the mixed policy, in [0, 1].
        mixture: what is averaged, logits or probabilities.
        who: list of policies to evaluate, such as [mixed,policy,reference]; `policy` and `reference` are each stream
            alone.
        samples: k, the number of completions sampled per problem in addition to the greedy one; 0 for none.
        temperature: sampling temperature of these completions.
        out: folder for evaluation.json (rates and settings) and rows.jsonl (each completion); an earlier evaluation in
            it is overwritten.
        kwargs: see `EvaluationConfig`.

    Returns:
        The content of evaluation.json.

    Raises:
        ValueError: a setting, the data or an adapter is wrong.
    """
    config = EvaluationConfig(task, **kwargs)
    mixtures = config.mixtures(alpha, mixture)
    if samples < 0:
        raise ValueError(f"samples must be at least 0, not {samples}: 0 decodes greedily only")
    tempered = {name: replace(mixtures[name], temperature=temperature) for name in mixtures}
    if not who or len(set(who)) != len(who):
        raise ValueError(f"who must name some of mixed, policy and reference, each once, not {list(who)}")
    folder, console = out_folder(out, SUMMARY), new_console()
    prompts = config.prompts()
    drawn = {"samples": samples, "temperature": temperature if samples else None}
    settings = config.settings(prompts) | {"alpha": None if config.weights else alpha, "mixture": mixture} | drawn
    try:
        session = Session(config, prompts, console, mixtures["mixed"])
        greedy = {name: session.measure(name, mixtures[name]) for name in who}
        sampled = {name: session.measure(name, tempered[name], samples) for name in who if samples}
    finally:
        task.close()
    policies = {name: summary(result) for name, result in greedy.items()}
    for name, result in sampled.items():
        policies[name]["sampled"] = sampled_summary(result.rows, samples)
    content = {"task": task.name, "problems": len(prompts), "policies": policies, "settings": settings}
    write_rows(folder, (row for part in (greedy, sampled) for result in part.values() for row in result.rows))
    write_json(folder / SUMMARY, content)
    print_rates(console, content)
    return content


def summary(measured: Measured) -> dict[str, Any]:
    """Counts, rates and speed of one policy's greedy completions."""
    rows = measured.rows
    n, tokens = len(rows), sum(row.tokens for row in rows)
    counts = {
        "format": count_format(rows),
        "solve": count_solved(rows),
        "answer": count_answered(rows),
        "anywhere": count_anywhere(rows),
    }
    return {
        "n": n,
        "format": counts["format"],
        "solved": counts["solve"],
        "answered": counts["answer"],
        "anywhere": counts["anywhere"],
        **{f"{name}_rate": count / n for name, count in counts.items()},
        **{f"{name}_interval": list(wilson_interval(count, n)) for name, count in counts.items()},
        "ended": sum(row.ended for row in rows),
        "tokens": tokens,
        "seconds": round(measured.seconds, 3),
        "tokens_per_second": round(tokens / measured.seconds, 1),
    }


def print_rates(console: Console, content: dict[str, Any]) -> None:
    samples, temperature = content["settings"]["samples"], content["settings"]["temperature"]
    how = "greedy" + (f", and {samples} samples at temperature {temperature:g}" if samples else "")
    title = f"{content['task']}, {content['problems']} problems, {how} (95 % intervals)"
    names = {"format": "format rate", "solve": "solve rate", "anywhere": "right anywhere"}
    rows = {text: [interval_of(rates, kind) for rates in content["policies"].values()] for kind, text in names.items()}
    if samples:
        drawn = [rates["sampled"] for rates in content["policies"].values()]
        rows[f"avg@{samples}"] = [cell(**each["avg_at_k"]) for each in drawn]
        for kind in ("pass", "maj") if samples > 1 else ():
            rows[f"{kind}@{samples}"] = [cell(**each[f"{kind}_at_k"][str(samples)]) for each in drawn]
    # a line for each rate, since there are at most three policies: this fits into 80 columns
    table = Table("", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in content["policies"]:
        table.add_column(name, justify="right")
    for text, cells in rows.items():
        table.add_row(text, *cells)
    console.print(title, soft_wrap=False)
    print_table(console, table)


def interval_of(rates: dict[str, Any], kind: str) -> str:
    """A greedy rate with its interval."""
    return cell(rates[f"{kind}_rate"], rates[f"{kind}_interval"])


def cell(rate: float, interval: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(rate, *interval)
