"""Format and solve rate, or pass@k, of the mixed policy and of each of its streams."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lmix.evaluation.config import EvaluationConfig, check_count
from lmix.evaluation.output import new_console, out_folder, write_json
from lmix.evaluation.rows import EvaluationRow, Who, count_answered, count_format, count_solved, write_rows
from lmix.evaluation.session import Measured, Session
from lmix.evaluation.statistics import interval, pass_at_k
from lmix.model.mixture import MixtureKind
from lmix.tasks.task import Task

SUMMARY = "evaluation.json"


def evaluate(
    task: Task,
    alpha: float = 0.5,
    mixture: MixtureKind = "logits",
    who: Sequence[Who] = ("mixed",),
    samples: int = 1,
    out: str = "evaluation",
    **kwargs: Any,
) -> dict[str, Any]:
    """Measure format and solve rate on held-out problems, by greedy decoding, or pass@k from several samples.

    Writes `rows.jsonl` (each completion with its parsed answer) and `evaluation.json` (rates with 95 % Wilson
    intervals, settings, versions) into the folder `out`, and prints the rates.

    Args:
        task: a class: lmix.tasks.MathTask, CnK12Task, MMLUTask, ArithmeticTask, DatasetTask (any file or hub data set)
            or your own (--task.help=lmix.tasks.MathTask lists its options, to be given as --task.NAME after it), or a
            YAML file with class_path and init_args.
        alpha: weight of the reference in the mixed policy, in [0, 1].
        mixture: what is averaged, logits or probabilities.
        who: list of what to measure, such as [mixed,policy,reference]; `policy` and `reference` are each alone.
        samples: completions of a problem. 1 is greedy; more are drawn at temperature 1, and give pass@k for
            k = 1, 2, 4, ...
        out: folder for evaluation.json (rates and settings) and rows.jsonl (each completion); what an earlier
            evaluation left there is overwritten.
        kwargs: see `EvaluationConfig`.

    Returns:
        What evaluation.json holds.

    Raises:
        ValueError: a setting, the data or an adapter is wrong.
    """
    config = EvaluationConfig(task, **kwargs)
    mixtures = config.mixtures(alpha, mixture)
    check_count("samples", samples)
    if not who or len(set(who)) != len(who):
        raise ValueError(f"who must name some of mixed, policy and reference, each once, not {list(who)}")
    folder, console = out_folder(out, SUMMARY), new_console()
    prompts = config.prompts()
    mixed_alpha = None if config.weights else alpha
    settings = config.settings(prompts) | {"alpha": mixed_alpha, "mixture": mixture, "samples": samples}
    try:
        session = Session(config, prompts, console, mixtures["mixed"])
        measured = {name: session.measure(name, mixtures[name], samples) for name in who}
    finally:
        task.close()
    content = {
        "task": task.name,
        "problems": len(prompts),
        "policies": {name: summary(result, samples) for name, result in measured.items()},
        "settings": settings,
    }
    write_rows(folder, (row for result in measured.values() for row in result.rows))
    write_json(folder / SUMMARY, content)
    print_rates(console, content)
    return content


def summary(measured: Measured, samples: int) -> dict[str, Any]:
    """Counts, rates and speed of one policy's completions; rows in order of problem, `samples` of each."""
    rows = measured.rows
    form, solved, tokens = count_format(rows), count_solved(rows), sum(row.tokens for row in rows)
    answered = count_answered(rows)
    return {
        "n": len(rows),
        "format": form,
        "solved": solved,
        "answered": answered,
        "format_rate": form / len(rows),
        "solve_rate": solved / len(rows),
        "answer_rate": answered / len(rows),
        "format_interval": interval(form, len(rows), samples),
        "solve_interval": interval(solved, len(rows), samples),
        "pass_at_k": pass_rates(rows, samples),
        "ended": sum(row.ended for row in rows),
        "tokens": tokens,
        "seconds": round(measured.seconds, 3),
        "tokens_per_second": round(tokens / measured.seconds, 1),
    }


def pass_rates(rows: Sequence[EvaluationRow], samples: int) -> dict[str, float]:
    """Mean of pass@k over problems for k = 1, 2, 4, ... up to `samples`."""
    correct = [count_solved(rows[i : i + samples]) for i in range(0, len(rows), samples)]
    powers = [2**i for i in range(samples.bit_length())]
    return {str(k): sum(pass_at_k(samples, c, k) for c in correct) / len(correct) for k in powers}


def print_rates(console: Console, content: dict[str, Any]) -> None:
    samples = content["settings"]["samples"]
    how = "greedy" if samples == 1 else f"{samples} samples each"
    table = Table(title=f"{content['task']}, {content['problems']} problems, {how} (95 % intervals)")
    table.add_column("policy")
    powers = [k for k in next(iter(content["policies"].values()))["pass_at_k"] if k != "1"]
    for column in ("format rate", "solve rate", *(f"pass@{k}" for k in powers)):
        table.add_column(column, justify="right")
    for name, rates in content["policies"].items():
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(rates[f"{kind}_rate"], *rates[f"{kind}_interval"])
            for kind in ("format", "solve")
        ]
        table.add_row(name, *cells, *(f"{rates['pass_at_k'][k]:.3f}" for k in powers))
    console.print(table)
