"""Run a whole preset: SFT, every method and seed, sweep, comparison, report. Finished stages are skipped.

    python scripts/reproduce.py --preset arithmetic      # the bundled sandbox, under an hour on two cores
    python scripts/reproduce.py --preset math-0.5b --set="--data.task.source=A.jsonl --data.task.test_source=B.jsonl"
    python scripts/reproduce.py --preset mmlu-0.5b --set="--data.task.source=mmlu/val.jsonl ..."   # as in docs/results
    python scripts/reproduce.py --preset paper --plan    # the paper's nine cells: print the commands
    python scripts/reproduce.py --preset mine.yaml       # your own, written like those in configs/presets

Each stage is one `python -m lmix` command. It is printed before it runs, and you can run it by hand. To split a preset
by `--seeds` over several processes, let SFT and the sweep finish first. At the end, run the preset once more without
`--seeds` for the report of all runs.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.arguments import parse
from reproduction.execution import execute
from reproduction.preset import SHARED, Preset, preset_names, preset_path, read_preset
from reproduction.stage import Stage
from reproduction.stages import estimate, stages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(preset_names())
    parser.add_argument("--preset", required=True, help=f"one of configs/presets ({names}), or the path of a YAML file")
    parser.add_argument("--out", type=Path, help="folder for all output (default: runs/PRESET)")
    parser.add_argument("--methods", help="methods of the preset to run, separated by commas (default: all)")
    parser.add_argument("--seeds", help="seeds of the preset to run, separated by commas (default: all)")
    parser.add_argument("--set", default="", help="arguments for every training run, such as paths of local data")
    parser.add_argument("--plan", action="store_true", help="print the commands and the estimate, and run nothing")
    settings = parser.parse_args()
    try:
        path = preset_path(settings.preset)
        preset = read_preset(path)
        methods = some_of("--methods", settings.methods, list(preset.methods))
        seeds = some_of("--seeds", settings.seeds, [str(seed) for seed in preset.seeds])
        extra = split_arguments(settings.set)
    except ValueError as error:
        parser.error(str(error))
    plan = stages(preset, settings.out or Path("runs") / path.stem, methods, [int(seed) for seed in seeds], extra)
    waiting = [stage for stage in plan if not stage.done]
    done = len(plan) - len(waiting)
    print(f"{done} of {len(plan)} stages are done; {estimate(preset.estimate, waiting)}", flush=True)
    status = execute(waiting, settings.plan)
    if settings.plan and preset.estimate.tokens_per_second is None:
        print(f"\n{planned(waiting, preset)}")
    return status


def planned(waiting: Sequence[Stage], preset: Preset) -> str:
    """GPU hours and memory of stages, or the reason why the planner can't estimate them."""
    from reproduction.costs import table  # imports models, which takes seconds

    from lmix.cli.environment import quieten
    from lmix.cli.messages import explain

    quieten()
    try:
        return table(waiting, preset)
    except Exception as error:
        if (line := explain(error, [])) is None:
            raise
        return f"The planner can't read these runs: {line}"


def some_of(flag: str, given: str | None, known: Sequence[str]) -> list[str]:
    """The values of a flag, without duplicates; all known values if the flag is not given.

    Raises:
        ValueError: a value is unknown.
    """
    values = list(dict.fromkeys(given.split(","))) if given else list(known)
    for value in values:
        if value not in known:
            raise ValueError(f"{flag} names {value!r}: use some of {', '.join(known)}")
    return values


def split_arguments(text: str) -> list[str]:
    """The arguments in the value of `--set`.

    Raises:
        ValueError: the text can't be split, or an argument must be set in the preset instead.
    """
    try:
        extra = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--set: {error}") from None
    for name, value in parse(extra).items():
        if name in SHARED:
            raise ValueError(f"--set: --{name}={value} would not reach the evaluations: change the preset")
    return extra


if __name__ == "__main__":
    sys.exit(main())
