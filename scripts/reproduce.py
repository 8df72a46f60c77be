"""Run a whole preset: SFT, every method and seed, sweep, comparison, report. What is done already is not done again.

    python scripts/reproduce.py --preset arithmetic      # the embedded sandbox, under an hour on two cores
    python scripts/reproduce.py --preset math-0.5b --set="--data.task.source=A.jsonl --data.task.test_source=B.jsonl"
    python scripts/reproduce.py --preset mmlu-0.5b --set="--data.task.source=mmlu/val.jsonl ..."   # as in docs/results
    python scripts/reproduce.py --preset paper --plan    # the paper's nine cells: print what would be run

Each stage is one `python -m lmix` line, which is printed before it runs and can be run by hand. To share a preset
out by `--seeds`, let SFT and sweep end first, and give the line once more without it at the end, for the report of all.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DONE = ".done"
"""Written into a stage's folder when it has ended well."""
PRESET_OWN = ("--data.seed", "--data.eval_size", "--data.validation_size", "--data.max_prompt_tokens")
"""Settings that training and evaluation must share."""
USED = "used.jsonl"
"""In a stage's folder: seconds and peak memory of each time that it was run."""
FLOAT32 = ["--model.backbone.quantization=none", "--model.backbone.dtype=float32"]
"""For machines like ours: whose cores have no bf16 units, and whose memory holds a small model unquantised."""
METHODS = ("fixed", "adaptive", "kl_grpo", "grpo", "fixed_probs", "fixed_base_anchor", "ensemble")


@dataclass(frozen=True)
class Cell:
    """One task on one model."""

    task: str
    """Name of a file in configs/tasks."""
    model: str
    """Name of a file in configs/models."""
    task_class: str
    flags: list[str] = field(default_factory=list)
    """For every training run."""
    task_flags: list[str] = field(default_factory=list)
    """For the task, as --NAME=VALUE: training and evaluation put their own prefix before NAME."""
    sft: str | None = None
    """An adapter that is there already; None trains one."""

    @property
    def name(self) -> str:
        return f"{self.task}-{self.model}"


@dataclass(frozen=True)
class Preset:
    """What is run, and how large."""

    cells: list[Cell]
    seeds: list[int]
    steps: int
    prompts: int
    eval_size: int
    max_new_tokens: int
    mean_length: int
    """Tokens of a completion on average, for the estimate of time only."""
    tokens_per_second: float | None
    """Mixed tokens a second over rollouts and update together, for the estimate; None: nobody has measured it."""
    evaluate_problems: int = 500
    sft_steps: int = 200
    sft_prompts: int = 32
    """Demonstrations of an SFT step."""
    sft_flags: list[str] = field(default_factory=list)
    validation_size: int = 100
    """Kept from every method and SFT, so that all train on the same problems; adaptive decodes them twice a step."""
    max_prompt_tokens: int = 1024
    """Problems with a longer prompt are left out."""
    sweep_trained: bool = True
    """Whether alpha is swept once more, over the policy that `fixed` has trained."""
    slots: int = 64


PRESETS = {
    "arithmetic": Preset(
        [
            Cell(
                "arithmetic",
                "tiny",
                "lmix.tasks.ArithmeticTask",
                ["--model.optimizer.lr=2e-3"],
                ["--seed=1"],
                "lmix:tiny-arithmetic-sft",
                # 5e-4 and 2e-3 were tried for grpo, kl_grpo and fixed on the sandbox's own problems, seed 0
                {"grpo": ["--model.optimizer.lr=5e-4"]},
            )
        ],
        seeds=[3, 4, 5],  # the sandbox was made with seeds 0 to 2 and the problems of seed 0
        steps=40,
        prompts=32,
        eval_size=300,
        max_new_tokens=64,
        mean_length=32,
        tokens_per_second=3500,
        slots=256,
    ),
    "math-0.5b": Preset(
        [
            Cell(
                "math",
                "qwen2.5-0.5b",
                "lmix.tasks.MathTask",
                ["--model.optimizer.lr=1e-4", "--model.backbone.dtype=float32"],
                ["--levels=[1,2,3]"],
            )
        ],
        seeds=[0],
        steps=40,
        prompts=32,
        eval_size=200,
        evaluate_problems=200,
        max_new_tokens=512,
        mean_length=250,
        tokens_per_second=30,
    ),
    # answers of a few tokens: the only one of the three tasks that machines like ours can train on in hours
    "mmlu-0.5b": Preset(
        [
            Cell(
                "mmlu",
                "qwen2.5-0.5b",
                "lmix.tasks.MMLUTask",
                # the rate is the first one tried; no method was tuned; the sweep says what there is before step 1
                [
                    "--model.optimizer.lr=2e-4",
                    "--model.objective.micro_batch_tokens=1024",
                    "--trainer.num_sanity_val_steps=0",
                    *FLOAT32,
                ],
                # a template that nobody asks for in the prompt, and the base never uses; questions that are short
                ["--template=hash", "--prompt={problem}", "--system=Answer the question."],
            )
        ],
        seeds=[0, 1],
        steps=20,
        prompts=8,
        eval_size=200,
        max_new_tokens=16,
        mean_length=8,
        tokens_per_second=32,  # the whole preset took 1.7 hours, which this makes of the mean length above
        evaluate_problems=200,
        sft_steps=24,
        sft_prompts=8,
        sft_flags=[
            "--model.optimizer.lr=3e-4",
            "--model.optimizer.warmup_steps=2",
            "--trainer.num_sanity_val_steps=0",
            "--trainer.limit_val_batches=0",
            *FLOAT32,
        ],
        validation_size=20,
        max_prompt_tokens=64,
        sweep_trained=False,
    ),
    "paper": Preset(
        [
            Cell(task, f"qwen2.5-{size}", f"lmix.tasks.{kind}", ["--model.optimizer.lr=1e-5"])
            for size in ("1.5b", "3b", "7b")
            for task, kind in (("math", "MathTask"), ("cn_k12", "CnK12Task"), ("mmlu", "MMLUTask"))
        ],
        seeds=[0, 1, 2],
        steps=40,
        prompts=256,
        eval_size=500,
        max_new_tokens=1024,
        mean_length=400,
        tokens_per_second=None,
        slots=256,
    ),
}


@dataclass(frozen=True)
class Stage:
    """One command, what its result is, and how many completions it draws."""

    name: str
    command: list[str]
    folder: Path
    """Where its results go. A file `.done` in it says that it has ended well."""
    completions: int = 0
    always: bool = False
    """Whether it is run again each time: it is short, or finds out itself what is left to do."""
    last: Path | None = None
    """The checkpoint that it ends with."""

    @property
    def done(self) -> bool:
        return (self.folder / DONE).exists() and not self.always

    def line(self) -> list[str]:
        """The command, going on from the newest checkpoint before the last one where there is one.

        The last one does not count: the run may have been stopped in what comes after it.
        """
        if self.last is None:
            return self.command
        before = sorted(path for path in self.last.parent.glob("step=*.ckpt") if path.name != self.last.name)
        return [*self.command, *(f"--ckpt_path={path}" for path in before[-1:])]


def stages(preset: Preset, out: Path, methods: list[str], extra: list[str], seeds: list[int]) -> Iterator[Stage]:
    """All stages in order; of the preset's runs those of `seeds`."""
    results = []
    for cell in preset.cells:
        folder = out / cell.name
        sft = cell.sft or str(folder / "sft" / "seed0" / "checkpoints" / f"step={preset.sft_steps:04d}")
        if cell.sft is None:
            flags = [f"--trainer.max_steps={preset.sft_steps}", f"--trainer.val_check_interval={preset.sft_steps}"]
            flags += [f"--data.prompts_per_step={preset.sft_prompts}", *preset.sft_flags]
            yield training(cell, preset, out, "sft", 0, flags, extra, preset.sft_steps)
        sweep = evaluation(cell, preset, out, "sweep", None, sft, extra)
        results.append(sweep.folder)
        yield sweep
        for seed in seeds:
            for method in methods:
                stage = training(cell, preset, out, method, seed, method_flags(method, sft), extra, preset.steps)
                results.append(stage.folder)
                yield stage
        if "fixed" in methods and preset.seeds[0] in seeds:  # what its policy alone, without the mixture, has learned
            trained = folder / "fixed" / f"seed{preset.seeds[0]}" / "checkpoints" / f"step={preset.steps:04d}"
            for command in ("sweep", "compare") if preset.sweep_trained else ("compare",):
                stage = evaluation(cell, preset, out, command, trained, sft, extra)
                results.append(stage.folder)
                yield stage
    line = ["python", "-m", "lmix", "report", *map(str, results), f"--out={out / 'report'}", f"--title={out.name}"]
    yield Stage("report", line, out / "report", always=True)


def method_flags(method: str, sft: str) -> list[str]:
    """Where a method's streams come from, as section 2 of the design has them."""
    return {
        "kl_grpo": [f"--model.adapters.policy={sft}", f"--model.adapters.reference={sft}"],
        "grpo": [f"--model.adapters.policy={sft}"],
        "fixed_base_anchor": ["--model.adapters.reference=base"],
        "ensemble": [f"--model.adapters.reference={sft}", "--model.adapters.experts=[base]"],
    }.get(method, [f"--model.adapters.reference={sft}"])


def training(
    cell: Cell, preset: Preset, out: Path, method: str, seed: int, flags: list[str], extra: list[str], steps: int
) -> Stage:
    """One `fit` line; SFT has no rollouts."""
    folder = out / cell.name / method / f"seed{seed}"
    configs = [("tasks", cell.task), ("models", cell.model), ("methods", method)]
    line = ["python", "-m", "lmix", "fit", *(f"--config={ROOT}/configs/{kind}/{name}.yaml" for kind, name in configs)]
    line += [
        f"--seed_everything={seed}",
        f"--data.prompts_per_step={preset.prompts}",
        f"--data.eval_size={preset.eval_size}",
        f"--data.validation_size={preset.validation_size}",
        f"--data.max_prompt_tokens={preset.max_prompt_tokens}",
        f"--model.sampling.max_new_tokens={preset.max_new_tokens}",
        f"--model.sampling.slots={preset.slots}",
        f"--trainer.logger.save_dir={out / cell.name}",
        f"--trainer.logger.name={method}",
        f"--trainer.logger.version=seed{seed}",
    ]
    completions = preset.eval_size
    if method != "sft":
        evaluations = steps // 10 + 1
        completions = steps * preset.prompts * 8 + evaluations * preset.eval_size
        line += [f"--trainer.max_steps={steps}", *cell.flags]
    if method == "adaptive":
        completions += steps * 2 * preset.validation_size
    line += [*flags, *task_flags(cell, [], "--data.task."), *extra]
    name = f"{cell.name}: {method}, seed {seed}"
    return Stage(name, line, folder, completions, last=folder / "checkpoints" / f"step={steps:04d}.ckpt")


def evaluation(
    cell: Cell, preset: Preset, out: Path, command: str, policy: Path | None, sft: str, extra: list[str]
) -> Stage:
    """A sweep (Table 4) or comparison (Tables 1 to 3) of SFT and a policy: a trained one, or the base."""
    folder = out / cell.name / (command if policy is None else f"{command}-trained")
    decodings = {"sweep": 20, "compare": 2}[command]
    line = ["python", "-m", "lmix", command, f"--task={cell.task_class}", *task_flags(cell, extra, "--task.")]
    line += [
        *backbone_flags(cell, extra),
        f"--adapters.reference={sft}",
        *([] if policy is None else [f"--adapters.policy={policy}"]),
        f"--problems={preset.evaluate_problems}",
        f"--max_prompt_tokens={preset.max_prompt_tokens}",
        f"--max_new_tokens={preset.max_new_tokens}",
        f"--slots={preset.slots}",
        f"--out={folder}",
        *(["--a=policy", "--b=reference"] if command == "compare" else []),
    ]
    name = f"{cell.name}: {command} of SFT and {'the base' if policy is None else 'the trained policy'}"
    return Stage(name, line, folder, decodings * preset.evaluate_problems, always=command == "sweep")


def task_flags(cell: Cell, extra: list[str], prefix: str) -> list[str]:
    """The task's flags with a command's prefix, and those that the user gave for training."""
    given = [flag.replace("--data.task.", prefix, 1) for flag in extra if flag.startswith("--data.task.")]
    return [flag.replace("--", prefix, 1) for flag in cell.task_flags] + given


def backbone_flags(cell: Cell, extra: list[str]) -> list[str]:
    """The model of configs/models, as evaluation commands take it."""
    import yaml

    backbone = yaml.safe_load((ROOT / "configs/models" / f"{cell.model}.yaml").read_text())["model"]["init_args"]
    flags = [*cell.flags, *extra]
    given = [flag.replace("--model.", "--", 1) for flag in flags if flag.startswith("--model.backbone.")]
    return [f"--backbone.{name}={value}" for name, value in backbone["backbone"].items()] + given


def estimate(preset: Preset, waiting: list[Stage]) -> str:
    """How long it may take: completions by their mean length at the preset's measured rate."""
    tokens = sum(stage.completions for stage in waiting) * preset.mean_length
    text = f"{len(waiting)} stages, about {tokens / 1e6:,.1f} million tokens"
    if preset.tokens_per_second is None:
        return f"{text}; no rate was measured on such a machine, so there is no estimate of time"
    hours = tokens / preset.tokens_per_second / 3600
    return f"{text}: {hours:.1f} hours at {preset.tokens_per_second:g} tokens/s (measured on 2 CPU cores)"


def run(line: list[str], folder: Path) -> int:
    """Run a command and write down what it used, a line for each time that it was started; gives its exit status."""
    began = time.monotonic()
    process = subprocess.Popen(line)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    # of its largest process, which holds the model; Linux counts in KiB
    used = {"seconds": round(time.monotonic() - began, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}
    if folder.is_dir():
        with (folder / USED).open("a") as file:
            file.write(json.dumps(used | {"status": process.returncode}) + "\n")
    return process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--out", type=Path, help="folder for everything (default: runs/PRESET)")
    parser.add_argument("--methods", default=",".join(METHODS), help="which methods, with commas between")
    parser.add_argument(
        "--seeds", help="which of the preset's seeds, with commas between: to share them out (default: all)"
    )
    parser.add_argument("--set", default="", help="flags for every training run, such as where local data are")
    parser.add_argument("--plan", action="store_true", help="print the commands and the estimate, and stop")
    settings = parser.parse_args()
    preset, methods = PRESETS[settings.preset], settings.methods.split(",")
    if unknown := sorted(set(methods) - set(METHODS)):
        parser.error(f"--methods names {unknown[0]!r}: use some of {', '.join(METHODS)}")
    known = [str(seed) for seed in preset.seeds]
    seeds = list(dict.fromkeys(settings.seeds.split(","))) if settings.seeds else known
    if unknown := sorted(set(seeds) - set(known)):
        parser.error(f"--seeds names {unknown[0]!r}: use some of {', '.join(known)}")
    try:
        extra = shlex.split(settings.set)
    except ValueError as error:
        parser.error(f"--set: {error}")
    for flag in extra:
        if flag.startswith(PRESET_OWN):
            parser.error(f"--set: {flag} would not reach the evaluations: change the preset")
    out = settings.out or Path("runs") / settings.preset
    plan = list(stages(preset, out, methods, extra, [int(seed) for seed in seeds]))
    waiting = [stage for stage in plan if not stage.done]
    print(f"{len(plan) - len(waiting)} of {len(plan)} stages are done; {estimate(preset, waiting)}", flush=True)
    start = time.monotonic()
    drawn, wanted = 0, sum(stage.completions for stage in waiting)
    for number, stage in enumerate(waiting, start=1):
        line = stage.line()
        print(f"\n[{number}/{len(waiting)}] {stage.name}\n{shlex.join(line)}", flush=True)
        if settings.plan:
            continue
        if run([sys.executable, *line[1:]], stage.folder):
            print(f"\n{stage.name} failed; mend it and give the same command again: finished stages are kept")
            return 1
        if stage.last and not stage.last.is_file():
            print(f"\n{stage.name} ended without {stage.last}: do not set its number of steps or its folder by --set")
            return 1
        (stage.folder / DONE).touch()
        drawn += stage.completions
        minutes = (time.monotonic() - start) / 60
        left = minutes * (wanted - drawn) / drawn if drawn else 0.0
        print(f"{minutes:.1f} minutes so far, about {left:.0f} to go", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
