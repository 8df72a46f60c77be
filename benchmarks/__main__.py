"""Time lmix against naive mixing, TRL's GRPOTrainer and the machine's matmul rate, on the same model and prompts.

    python -m benchmarks --model path/to/qwen2.5-0.5b --prompts_from path/to/math/train.jsonl --json out.json
    python -m benchmarks --quick        # the bundled model, one repetition: tests the benchmark itself

Run it from the root of the checkout. Each contender is a process that is started once. They take turns, and only one
works at a time. Every completion has the same forced length, and every group has both rewards, so that all contenders
do the same work. TRL (`pip install lmix[bench]`) is skipped if it is not installed. Figures that were not measured are
null.
"""

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.limit import limit
from benchmarks.protocol import Worker
from benchmarks.report import BY_ROWS, TABLES, Figures, one_line, ratios, report, summary, table_ratios
from benchmarks.work import Work

CONTENDERS = ("ours", "naive", "trl", "trl_kl")


def main() -> int:
    settings = parser().parse_args()
    for name in ("model", "prompts_from"):  # absolute paths, because contenders run in other folders
        if (path := getattr(settings, name)) and Path(path).exists():
            setattr(settings, name, str(Path(path).resolve()))
    work = Work(**{field.name: getattr(settings, field.name) for field in fields(Work)})
    names = [name for name in settings.contenders if not name.startswith("trl") or find_spec("trl")]
    repeats = 1 if settings.quick else settings.repeats
    figures = compare(names, work, settings.warmup, repeats)
    tables = {name: table(name, work, repeats) for name in settings.tables}
    result: dict[str, Any] = ratios(figures, work) | tables | table_ratios(tables)
    result |= {"figures": figures, "repeats": repeats, "settings": json.loads(work.as_json())}
    print(report(result))
    if settings.json:
        settings.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plain = Work(threads=os.cpu_count() or 1)
    flags.add_argument("--model", default=plain.model, help="folder of a causal LM")
    flags.add_argument("--prompts_from", help="jsonl with a column `problem`; default: the sandbox's problems")
    flags.add_argument("--prompts", type=int, default=plain.prompts, help="P, prompts per step")
    flags.add_argument("--samples", type=int, default=plain.samples, help="G, completions per prompt")
    flags.add_argument("--tokens", type=int, default=plain.tokens, help="tokens of each completion")
    flags.add_argument("--prompt_tokens", type=int, default=plain.prompt_tokens, help="tokens of each prompt")
    flags.add_argument("--rank", type=int, default=plain.rank, help="LoRA rank")
    flags.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default=plain.dtype)
    flags.add_argument("--quantization", choices=["none", "nf4"], default=plain.quantization)
    flags.add_argument("--threads", type=int, default=plain.threads)
    flags.add_argument("--pass_tokens", type=int, default=plain.pass_tokens, help="lmix's micro_batch_tokens")
    flags.add_argument("--trl_rows", type=int, default=plain.trl_rows, help="rows per forward pass of TRL")
    flags.add_argument("--alpha_rollouts", type=int, default=plain.alpha_rollouts, help="rollouts for table alpha")
    flags.add_argument("--only_rollouts", action="store_true", help="skip scoring and update of ours and naive")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--warmup", type=int, default=1, help="warm-up turns, not counted")
    flags.add_argument(
        "--contenders", type=names_of(CONTENDERS), default=list(CONTENDERS), help=f"some of {','.join(CONTENDERS)}"
    )
    flags.add_argument("--tables", type=names_of(TABLES), default=[], help=f"additional tables: {','.join(TABLES)}")
    flags.add_argument("--quick", action="store_true", help="one repetition")
    flags.add_argument("--json", type=Path, help="write the figures here")
    return flags


def names_of(known: tuple[str, ...]) -> Any:
    """An argument type for names separated by commas."""

    def names(text: str) -> list[str]:
        given = [name for name in text.split(",") if name]
        if unknown := set(given) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} unknown: use some of {', '.join(known)}")
        return given

    return names


def compare(names: list[str], work: Work, warmup: int, repeats: int) -> dict[str, Figures]:
    """Start the contenders and let them take turns. Returns the medians and largest memory peaks of each."""
    laps: dict[str, list[Figures]] = {name: [] for name in (*names, "limit")}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, work)) for name in names}
        for turn in range(1 - warmup, repeats + 1):
            for name in laps:
                lap = limit(work) if name == "limit" else workers[name].ask("step")
                print(f"turn {turn} of {repeats}, {name}: {one_line(lap)}", file=sys.stderr, flush=True)
                if turn > 0:
                    laps[name].append(lap)
        if not work.only_rollouts:
            for name in {"ours", "naive"} & workers.keys():
                laps[name].append(workers[name].ask("scoring"))
    return {name: summary(of_name) for name, of_name in laps.items()}


def table(name: str, work: Work, repeats: int) -> Any:
    """Measure one of the additional tables, for lmix only."""
    if name in BY_ROWS:
        with Worker(name, work) as worker:
            return worker.ask(name)["rows"]
    with Worker("ours", work) as worker:
        laps = [worker.ask(name) for _ in range(repeats + 1)][1:]  # the first is a warm-up
    return {key: statistics.median([lap[key] for lap in laps]) for key in laps[0]}


if __name__ == "__main__":
    sys.exit(main())
