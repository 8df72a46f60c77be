"""Check and time lmix on a GPU, in under nine minutes and without a network. Checks that can't run are reported.

    python scripts/gpu_check.py --json report.json             # on the GPU of this machine
    python scripts/gpu_check.py --device=cpu --quick           # tests the script itself (CI; under a minute)

Attach the JSON file to an issue. It contains versions, the device, the outcome of every check, and tokens per second
together with the memory and matmul rates of the same run. The exit status is 1 if a check failed.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_checks import correctness, others, speed
from gpu_checks.setting import ROOT, Failed, Result, Setting, Skipped, unexpected

from lmix import __version__
from lmix.files import write_lines

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "trl", "vllm")
SMALL, LARGE = "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, and skip checks that take minutes")
    parser.add_argument("--minutes", type=float, default=9.0, help="skip checks that would end later than this")
    parser.add_argument("--only", metavar="NAMES", help="run only these checks, such as rates,nf4_gradients,step small")
    parser.add_argument("--json", type=Path, help="write the report here")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch sees no CUDA device (give --device=cpu)")
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device=cpu needs --quick: models of 1.5 and 7 billion weights are for a GPU")
    setting = Setting(torch.device(arguments.device), arguments.quick, arguments.minutes)
    report: dict[str, Any] = {"machine": machine(setting), "checks": {}}
    everything = checks(setting, report["checks"])
    names = arguments.only.split(",") if arguments.only else list(everything)
    if unknown := set(names) - set(everything):
        parser.error(f"--only: {', '.join(sorted(unknown))} unknown: use some of {','.join(everything)}")
    for name in names:
        report["checks"][name] = outcome(everything[name])
        print(f"{name}: {one_line(report['checks'][name])}", flush=True)
    report["seconds"] = 60 * setting.minutes - setting.seconds_left
    print(readable(report))
    if arguments.json:
        write_lines(arguments.json, [json.dumps(report, indent=2) + "\n"])
    return int(any(found["outcome"] in ("failed", "error") for found in report["checks"].values()))


def checks(setting: Setting, found: dict[str, Result]) -> dict[str, Callable[[], Result]]:
    """The checks by name, in the order in which they run."""
    small = "tiny" if setting.quick else SMALL

    def timed(name: str, seconds: float) -> Callable[[], Result]:
        def run() -> Result:
            setting.needs_seconds(seconds)
            if "tflops" not in found.get("rates", {}):
                raise Skipped("the device's rates were not measured")
            return speed.step_speed(name, setting, found["rates"], compiled=not setting.quick)

        return run

    def large() -> Result:
        setting.not_quick()
        return timed(LARGE, 150)()

    def other(check: Callable[[str, Setting], Result], seconds: float) -> Callable[[], Result]:
        def run() -> Result:
            setting.needs_seconds(0 if setting.quick else seconds)
            return check(small, setting)

        return run

    return {
        "rates": lambda: speed.rates(setting),
        "masked_attention": lambda: correctness.masked_attention(setting),
        "nf4_gradients": lambda: correctness.nf4_gradients(setting),
        "eager_and_compiled": lambda: correctness.engines(setting),
        "demo": lambda: correctness.demo(setting),
        "fsdp2": lambda: correctness.sharded(setting),
        "marked_tests": lambda: correctness.marked_tests(setting),
        "step small": timed(small, 0 if setting.quick else 90),
        "transformers_generate": other(others.transformers_generate, 30),
        "step large": large,
        "trl": other(others.trl_step, 120),
        "vllm": other(others.vllm_rollouts, 120),
    }


def outcome(check: Callable[[], Result]) -> Result:
    """Run a check. Its outcome is `ok` with its figures, or `skipped`, `failed` or `error` with the reason."""
    start = time.monotonic()
    try:
        result = {"outcome": "ok", **check()}
    except Skipped as reason:
        return {"outcome": "skipped", "reason": str(reason)}
    except Failed as failure:
        result = {"outcome": "failed", "reason": str(failure), **failure.figures}
    except Exception as error:  # a check that breaks must not hide the results of the others
        result = {"outcome": "error", "reason": unexpected(error)}
    return result | {"check_seconds": time.monotonic() - start}


def machine(setting: Setting) -> Result:
    """The device, and versions of lmix and of packages."""
    found: Result = {"python": platform.python_version(), "system": platform.platform(), "device": str(setting.device)}
    found |= {"lmix": __version__, "commit": commit()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda}
        found |= {"capability": f"{properties.major}.{properties.minor}"}
    return found


def commit() -> str | None:
    """The checkout's commit; None outside of a checkout, or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def readable(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    about = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if value is not None)
    rows = [f"| {name} | {found['outcome']} | {one_line(found)} |" for name, found in report["checks"].items()]
    counts: dict[str, int] = {}
    for found in report["checks"].values():
        counts[found["outcome"]] = counts.get(found["outcome"], 0) + 1
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    table = ["| check | outcome | figures, or the reason |", "| --- | --- | --- |", *rows]
    return "\n".join(["", about, "", *table, "", f"{summary}; {report['seconds']:.0f} s"])


def one_line(found: Result) -> str:
    """A check's figures in one line, after the reason if it was skipped or failed."""
    reason = " ".join(str(found["reason"]).split()).replace("|", "/") if "reason" in found else ""
    cells = {name: value for name, value in found.items() if name not in ("outcome", "reason")}
    figures = ", ".join(f"{name} {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in cells.items())
    return "; ".join(filter(None, [f"{found['outcome']}: {reason}" if reason else "", figures]))


if __name__ == "__main__":
    sys.exit(main())
