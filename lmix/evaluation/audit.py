"""A contamination audit: whether a model can complete a benchmark's problems from their first part."""

from dataclasses import asdict, replace
from itertools import takewhile
from typing import Any

from rich.table import Table

from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.evaluate import cell
from lmix.evaluation.output import new_console, out_folder, print_table, write_json
from lmix.evaluation.session import Session
from lmix.evaluation.statistics import mean_interval
from lmix.files import json_lines, write_lines
from lmix.model.tokenizer import load_tokenizer
from lmix.tasks.task import Task

SUMMARY, ROWS = "audit.json", "rows.jsonl"


def audit(task: Task, fraction: float = 0.6, out: str = "audit", **kwargs: Any) -> dict[str, Any]:
    """Measure how often a model completes a benchmark's problems word for word from their first part.

    The model reads the first `fraction` of a problem's words as plain text, without chat template or instruction, and
    decodes greedily (partial-prompt completion, Wu et al., arXiv 2507.10532). It completes hardly any problems that it
    can't have seen, such as procedurally generated ones: compare with `lmix.tasks.ReasoningGymTask`. Writes
    `audit.json` and `rows.jsonl` into the folder `out`, and prints the rates.

    Args:
        task: see evaluate. Its prompt and template are not used.
        fraction: the fraction of a problem's words that the model reads, between 0 and 1.
        out: folder for audit.json and rows.jsonl; an earlier audit in it is overwritten.
        kwargs: see `EvaluationConfig`. `max_new_tokens` limits the completion; `adapters.policy` is the audited model.

    Returns:
        The content of audit.json: `exact` (the rest is completed word for word), `words` (the fraction of the rest's
        words before the first difference) and `right_anywhere` (the completion contains the correct answer, although
        the model did not see the whole question).

    Raises:
        ValueError: a setting, the data or an adapter is wrong, or a problem has only one word.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}: 0.6 is usual")
    config = EvaluationConfig(task, **kwargs)
    folder, console = out_folder(out, SUMMARY), new_console()
    tokenizer = load_tokenizer(config.backbone.path)
    prompts, rests = [], {}
    for prompt in config.prompts():
        shown, rests[prompt.problem.id] = cut(prompt.problem.problem, fraction)
        prompts.append(replace(prompt, ids=tokenizer(shown)["input_ids"]))
    settings = config.settings(prompts) | {"fraction": fraction}
    try:
        policy = config.mixtures(0.0, "logits")["policy"]
        rows = Session(config, prompts, console, policy).measure("policy", policy).rows
    finally:
        task.close()
    shares = [same_words(row.completion, rests[row.problem_id]) for row in rows]
    values = {
        "exact": [float(share == 1.0) for share in shares],
        "words": shares,
        "right_anywhere": [float(bool(row.right_anywhere)) for row in rows],
    }
    rates = {
        name: {"rate": sum(of_problem) / len(of_problem), "interval": list(mean_interval(of_problem))}
        for name, of_problem in values.items()
    }
    content = {"task": task.name, "problems": len(prompts), "rates": rates, "settings": settings}
    told = [{**asdict(row), "rest": rests[row.problem_id], "words": w} for row, w in zip(rows, shares, strict=True)]
    write_lines(folder / ROWS, json_lines(told))
    write_json(folder / SUMMARY, content)
    table = Table(title=f"{task.name}, {len(prompts)} problems from their first {fraction:.0%} (95 % intervals)")
    names = {"exact": "completed word for word", "words": "words before the first difference"}
    for column in (*names.values(), "right anywhere"):
        table.add_column(column, justify="right")
    table.add_row(*(cell(**rate) for rate in rates.values()))
    print_table(console, table)
    return content


def cut(problem: str, fraction: float) -> tuple[str, str]:
    """Split a problem into its first words and the rest. Both have at least one word.

    Raises:
        ValueError: the problem has only one word.
    """
    words = problem.split()
    if len(words) < 2:
        raise ValueError(f"an audit needs problems of at least two words, not {problem!r}")
    count = min(max(1, round(len(words) * fraction)), len(words) - 1)
    place = 0
    for word in words[:count]:
        place = problem.index(word, place) + len(word)
    return problem[:place], problem[place:].strip()


def same_words(completion: str, rest: str) -> float:
    """The fraction of the rest's words that the completion starts with, ignoring white space."""
    words = rest.split()
    pairs = zip(completion.split(), words, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) / len(words)
