"""Time lmix against naive mixing, TRL's GRPOTrainer and the machine's own matmul rate, on the same model and prompts.

    python scripts/benchmark.py --model path/to/qwen2.5-0.5b --prompts_from path/to/math/train.jsonl --json out.json
    python scripts/benchmark.py --quick        # the embedded model, one repetition: does it run?

One process each (`contenders.py`), started once; they take turns, one working at a time. Every completion is forced to
the same length, and every group has both rewards, so that all of them do all the work. Needs TRL (`pip install
lmix[bench]`), which is left out where it is not installed. Figures that were not measured are null.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from contenders import MARK, Work  # noqa: E402

from lmix.model.adapters import AdapterConfig  # noqa: E402
from lmix.model.backbone import compute_dtype  # noqa: E402
from lmix.model.sources import load_config  # noqa: E402
from lmix.planning.shape import ModelShape, model_shape  # noqa: E402

Figures = dict[str, float]
TABLES = ("natural", "alpha", "growth")


def main() -> int:
    settings = parser().parse_args()
    for name in ("model", "prompts_from"):  # contenders work in folders of their own
        if (path := getattr(settings, name)) and Path(path).exists():
            setattr(settings, name, str(Path(path).resolve()))
    work = Work(**{field.name: getattr(settings, field.name) for field in fields(Work)})
    names, tables = ([n for n in text.split(",") if n] for text in (settings.contenders, settings.tables))
    names = [name for name in names if not name.startswith("trl") or find_spec("trl")]
    repeats = 1 if settings.quick else settings.repeats
    figures = compare(names, work, settings.warmup, repeats)
    result: dict[str, Any] = ratios(figures, work)
    for name in tables:
        result[name] = extra(name, work, repeats)
    if "natural" in result:
        result["natural_of_forced"] = (
            result["natural"]["natural_tokens_per_second"] / (result["natural"]["forced_tokens_per_second"])
        )
    if "alpha" in result:
        result["alpha_of_rollouts"] = result["alpha"]["alpha_seconds"] / result["alpha"]["rollout_seconds"]
    result |= {"figures": figures, "repeats": repeats, "settings": json.loads(work.as_json())}
    print(report(result))
    if settings.json:
        settings.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plain = Work(threads=os.cpu_count() or 1)
    found.add_argument("--model", default=plain.model, help="folder of a causal LM")
    found.add_argument("--prompts_from", help="jsonl with a column `problem`; by default the sandbox's problems")
    found.add_argument("--prompts", type=int, default=plain.prompts, help="P, prompts of a step")
    found.add_argument("--samples", type=int, default=plain.samples, help="G, completions of a prompt")
    found.add_argument("--tokens", type=int, default=plain.tokens, help="tokens of each completion")
    found.add_argument("--prompt_tokens", type=int, default=plain.prompt_tokens, help="tokens of each prompt")
    found.add_argument("--rank", type=int, default=plain.rank, help="LoRA rank")
    found.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default=plain.dtype)
    found.add_argument("--quantization", choices=["none", "nf4"], default=plain.quantization)
    found.add_argument("--threads", type=int, default=plain.threads)
    found.add_argument("--pass_tokens", type=int, default=plain.pass_tokens, help="lmix's micro_batch_tokens")
    found.add_argument("--trl_rows", type=int, default=plain.trl_rows, help="rows of one of TRL's passes")
    found.add_argument("--alpha_rollouts", type=int, default=plain.alpha_rollouts, help="of the table `alpha`")
    found.add_argument("--only_rollouts", action="store_true", help="leave out scoring and update of ours and naive")
    found.add_argument("--repeats", type=int, default=5)
    found.add_argument("--warmup", type=int, default=1, help="turns before those that count")
    found.add_argument("--contenders", default="ours,naive,trl,trl_kl")
    found.add_argument("--tables", default="", help=f"further tables: {','.join(TABLES)}")
    found.add_argument("--quick", action="store_true", help="one repetition")
    found.add_argument("--json", type=Path, help="write the figures here")
    return found


def compare(names: list[str], work: Work, warmup: int, repeats: int) -> dict[str, Figures]:
    """Start the contenders, let them take turns, and give each one's medians and largest peaks."""
    workers = {name: Worker(name, work) for name in names}
    laps: dict[str, list[Figures]] = {name: [] for name in names}
    laps["limit"] = []
    for turn in range(1 - warmup, repeats + 1):
        for name in laps:
            lap = limit(work) if name == "limit" else workers[name].ask("step")
            print(f"turn {turn} of {repeats}, {name}: {shown(lap)}", file=sys.stderr, flush=True)
            if turn > 0:
                laps[name].append(lap)
    for name in {"ours", "naive"} & workers.keys() if not work.only_rollouts else ():
        laps[name].append(workers[name].ask("scoring"))
    for worker in workers.values():
        worker.end()
    return {name: summary(found) for name, found in laps.items()}


def summary(laps: list[Figures]) -> Figures:
    """Medians of seconds, largest of the peaks, and a step's: rollouts and update."""
    found: Figures = {}
    for key in sorted({key for lap in laps for key in lap}):
        values = [lap[key] for lap in laps if key in lap]
        found[key] = max(values) if key.endswith("_gb") else statistics.median(values)
    if "update" in found:
        found["step"] = statistics.median([lap["rollout"] + lap["update"] for lap in laps if "update" in lap])
    peaks = [value for key, value in found.items() if key.endswith("_gb")]
    return found | ({"peak_gb": max(peaks)} if peaks else {})


def extra(name: str, work: Work, repeats: int) -> Any:
    """One of the further tables, by lmix alone."""
    if name == "growth":
        worker = Worker("growth", work)
        return worker.ask("growth")["rows"]
    worker = Worker("ours", work)
    laps = [worker.ask(name) for _ in range(repeats + 1)][1:]
    worker.end()
    return {key: statistics.median([lap[key] for lap in laps]) for key in laps[0]}


class Worker:
    """A contender's process, which works only when it is told to."""

    def __init__(self, name: str, work: Work) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(work.threads),
            "HF_HUB_OFFLINE": "1",
            "THP_MEM_ALLOC_ENABLE": "1",  # as lmix's command line sets it; here for all of them
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        # of its own: a contender may leave files in the current folder
        self.folder = tempfile.TemporaryDirectory(prefix="lmix-benchmark-")
        self.line = [sys.executable, str(Path(__file__).parent / "contenders.py"), name, work.as_json()]
        self.process = subprocess.Popen(
            self.line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=self.folder.name,
        )
        self.answer()  # it is ready

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("end\n")
        self.process.stdin.flush()
        self.process.wait()
        self.folder.cleanup()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit(f"benchmark: a contender ended; run it alone to see why: {shlex.join(self.line)}")


def limit(work: Work) -> Figures:
    """Seconds that the rollouts' matmuls take at the rate of a large matmul, measured here and now.

    Both streams' prompts once each and their completions token by token through all linear layers, and the head once a
    drawn token, on mixed hidden states.
    """
    torch.set_num_threads(work.threads)
    model = shape_of(work.model)
    passes = 2 * (work.prompts * work.prompt_tokens + work.rows * (work.tokens - 1))
    flops = 2.0 * (passes * model.linear + work.rows * work.tokens * model.head)
    dtype = compute_dtype(work.dtype, work.device)
    a = torch.randn(512, model.hidden, device=work.device, dtype=dtype)
    b = torch.randn(model.hidden, model.inner, device=work.device, dtype=dtype)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.matmul(a, b)
        if work.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rate = 2.0 * 512 * model.hidden * model.inner / statistics.median(times)
    return {"rollout": flops / rate, "gflops": rate / 1e9}


@cache
def shape_of(model: str) -> ModelShape:
    return model_shape(load_config(model), AdapterConfig())


def ratios(figures: dict[str, Figures], work: Work) -> dict[str, Any]:
    """How many times faster lmix is, and which part of the limit and of TRL's memory it takes; None: not measured."""

    def over(name: str, key: str) -> float | None:
        if key not in figures.get(name, {}) or key not in figures.get("ours", {}):
            return None
        return figures[name][key] / figures["ours"][key]

    memory = over("trl", "peak_gb")
    ours = figures.get("ours")
    return {
        "rollout_vs_naive": over("naive", "rollout"),
        "rollout_of_limit": over("limit", "rollout"),
        "score_vs_naive": over("naive", "score"),
        "update_vs_naive": over("naive", "update"),
        "step_vs_naive": over("naive", "step"),
        "step_vs_trl": over("trl", "step"),
        "step_vs_trl_kl": over("trl_kl", "step"),
        "memory_of_trl": 1.0 / memory if memory else None,
        "rollout_tokens_per_second": work.rows * work.tokens / ours["rollout"] if ours else None,
    }


def report(result: dict[str, Any]) -> str:
    """Tables in markdown, then the ratios."""
    phases = ("rollout", "score", "update")
    columns = [*phases, "step", *(f"{phase}_gb" for phase in phases)]
    lines = markdown([{"": name} | {c: found.get(c) for c in columns} for name, found in result["figures"].items()])
    for name in TABLES:
        if name in result:
            rows = result[name] if isinstance(result[name], list) else [result[name]]
            lines += ["", f"{name}:", "", *markdown(rows)]
    lines += [""] + [
        f"{name}: {'not measured' if value is None else f'{value:.2f}'}"
        for name, value in result.items()
        if value is None or isinstance(value, float)
    ]
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---:" if n else "---" for n in names) + " |"]
    for row in rows:
        cells = ["" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def shown(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
