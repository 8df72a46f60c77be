"""The stages of a study in order, and the choices of learning rates, alpha and compute budget.

A stage's command is created only when it runs, because these choices depend on the results of earlier stages.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reproduction.arguments import flags
from reproduction.cell import method_adapters
from reproduction.preset import CONFIGS
from reproduction.stage import Stage

from lmix.report.runs import EVENTS, read_scalars

from .config import Settings, Study

NEVER = 100_000
"""`trainer.val_check_interval` of runs that a compute budget ends: they are evaluated at their ends."""
REWARDS = {"format_reward": "{format: 1}", "random_reward": "{random: 1}"}


@dataclass(frozen=True)
class LateStage(Stage):
    """A stage whose command is created when it runs."""

    make: Callable[[], list[str]] = field(default=list)
    steps: int | None = None
    """`trainer.max_steps`; None for a run that a budget ends."""

    def line(self) -> list[str]:
        """The command, which resumes from the newest checkpoint before the last step.

        A run resumed from the last step would end without an evaluation.
        """
        saved = sorted((self.folder / "checkpoints").glob("step=*.ckpt"))
        before = [path for path in saved if self.steps is None or int(path.stem.partition("=")[2]) < self.steps]
        return [*self.make(), *(f"--ckpt_path={path}" for path in before[-1:])]


@dataclass(frozen=True)
class TaskStudy:
    """A study's runs on one task."""

    study: Study
    task: str
    out: Path

    def stages(self) -> Iterator[Stage]:
        """Yield the stages in the order in which they run."""
        for number, wave in enumerate(self.waves()):
            yield from (replace(stage, wave=number) for stage in wave)

    def waves(self) -> Iterator[list[Stage]]:
        """Yield groups of stages. A group depends on the choices that follow from earlier groups."""
        study = self.study
        tuning = [self.tuning("sft", rate) for rate in study.tuned["sft"]]
        sft = [self.run("sft", seed) for seed in study.seeds["sft"]]
        yield from ([tuning, sft] if len(tuning) > 1 else [tuning + sft])
        if len(study.alphas) > 1:
            yield [self.sweep()]
        yield [self.tuning(method, rate) for method, rates in study.tuned.items() for rate in rates if method != "sft"]
        fixed = [self.run("fixed", seed) for seed in study.seeds["fixed"]]
        others = [
            self.run(method, seed)
            for seed in study.seeds["sft"]
            for method, seeds in study.seeds.items()
            if method not in ("sft", "fixed") and seed in seeds
        ]
        yield from ([fixed, others] if study.flops is None else [fixed + others])  # `fixed` determines the budget

    def folder(self, method: str, seed: int, rate: float | None = None) -> Path:
        name = method if rate is None else f"tuning/{method}-lr{rate:g}"
        return self.out / self.task / name / f"seed{seed}"

    def tuning(self, method: str, rate: float) -> Stage:
        """A short run at one learning rate with the tuning seed, evaluated on validation problems."""
        study, seed = self.study, self.study.tuning_seed
        steps = study.sft_steps if method == "sft" else study.tuning_steps
        held_out: Settings = {
            "data.eval_split": "validation",
            "data.eval_size": 1,
            "data.validation_size": study.tuning_problems,
            "data.validation_source": "held_out",
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
        }
        folder = self.folder(method, seed, rate)
        return self.stage(method, seed, folder, lambda: {**held_out, "model.optimizer.lr": rate}, steps, f"lr {rate:g}")

    def run(self, method: str, seed: int) -> Stage:
        """A run of the study, evaluated on held-out problems at its end."""
        study = self.study
        steps = {"sft": study.sft_steps, "fixed": study.steps if study.flops is None else None}.get(method)

        def settings() -> Settings:
            end: Settings = {
                "trainer.max_steps": steps or -1,
                "trainer.val_check_interval": steps or NEVER,
            }
            budget = None if steps else self.budget()
            return {
                "data.eval_size": study.eval_size,
                "data.eval_samples": study.eval_samples,
                "model.optimizer.lr": self.chosen_rate(method),
                **end,
                **({} if budget is None else {"trainer.callbacks+": "lmix.training.compute.ComputeBudget"}),
                **({} if budget is None else {"trainer.callbacks.flops": budget}),
            }

        return self.stage(method, seed, self.folder(method, seed), settings, steps)

    def stage(
        self,
        method: str,
        seed: int,
        folder: Path,
        own: Callable[[], Settings],
        steps: int | None,
        note: str = "",
    ) -> Stage:
        """A training run with the shared settings and its own, which are determined when it runs."""
        study = self.study
        family = "fixed" if method in REWARDS else method
        config = CONFIGS / "methods" / f"{family}.yaml"
        is_sft = family.startswith("sft")

        def make() -> list[str]:
            task = dict(study.tasks[self.task])
            shared: Settings = {
                "data.task": task.pop("class"),
                **{f"data.task.{key}": value for key, value in task.items()},
                "seed_everything": seed,
                "data.prompts_per_step": study.sft_prompts_per_step if is_sft else study.prompts_per_step,
                "data.validation_size": 0,
                "model.sampling.max_new_tokens": study.max_new_tokens,
                "trainer.num_sanity_val_steps": 0,
                "trainer.logger.save_dir": str(folder.parent.parent),
                "trainer.logger.name": folder.parent.name,
                "trainer.logger.version": folder.name,
                **study.model,
                **study.settings,
            }
            if not is_sft:
                shared["model.sampling.samples_per_prompt"] = study.samples_per_prompt
            if family in ("fixed", "adaptive", "fixed_probs", "fixed_base_anchor"):
                shared["model.alpha"] = self.chosen_alpha()
            if method == "adaptive":
                shared |= {"data.validation_size": study.validation_size, "data.validation_source": "stream"}
            if method in REWARDS:
                shared["model.rewards"] = REWARDS[method]
            arguments = flags({**shared, **self.adapters(method, seed), **own()})
            return ["python", "-m", "lmix", "fit", f"--config={config}", *arguments]

        name = f"{self.task}: {method}, seed {seed} {note}".rstrip()
        return LateStage(name, [], folder, 1, make=make, steps=steps)

    def adapters(self, method: str, seed: int) -> Settings:
        """The adapters of a method, from the SFT run of the same seed."""
        if method == "sft":
            return {}
        if seed == self.study.tuning_seed:
            rate = self.chosen_rate("sft")
            sft = newest(self.folder("sft", seed, rate))
        else:
            sft = newest(self.folder("sft", seed))
        return method_adapters(method, sft)

    def sweep(self) -> Stage:
        """Evaluate the untrained mixture at each alpha on validation problems."""
        study, folder = self.study, self.out / self.task / "sweep"

        def make() -> list[str]:
            task = dict(study.tasks[self.task])
            settings: Settings = {
                "task": task.pop("class"),
                **{f"task.{key}": value for key, value in task.items()},
                **{name.removeprefix("model."): value for name, value in study.model.items() if "backbone" in name},
                "adapters.reference": newest(self.folder("sft", study.seeds["sft"][0])),
                "split": "validation",
                "problems": study.tuning_problems,
                "max_new_tokens": study.max_new_tokens,
                "alphas": study.alphas,
                "mixtures": ["logits"],
                "out": str(folder),
            }
            return ["python", "-m", "lmix", "sweep", *flags(settings)]

        return LateStage(f"{self.task}: untrained mixtures", [], folder, 1, make=make)

    # what is chosen

    def chosen_alpha(self) -> float:
        """The alpha at which the untrained mixture solves most validation problems; on a tie, that closest to 0.5."""
        if len(self.study.alphas) == 1:
            return self.study.alphas[0]
        rows = json.loads((self.out / self.task / "sweep" / "sweep.json").read_text())["rows"]
        best = max(
            (r for r in rows if 0 < r["alpha"] < 1), key=lambda r: (r["solved"], -round(abs(r["alpha"] - 0.5), 6))
        )
        return best["alpha"]

    def chosen_rate(self, method: str) -> float:
        """The learning rate with which most validation problems are solved; on a tie, the smallest."""
        tuned = method if method in self.study.tuned else self.study.same_rate[method]
        rates = sorted(self.study.tuned[tuned])
        if len(rates) == 1:
            return rates[0]
        solved = [last(self.folder(tuned, self.study.tuning_seed, rate), "val/solve_rate") for rate in rates]
        return rates[solved.index(max(solved))]

    def budget(self) -> float:
        """The compute at which a run ends, in floating-point operations: `flops`, or what `fixed` spends on average.

        All seeds of the other methods get the same number, so that the report recognises them as one method.
        """
        if self.study.flops is not None:
            return self.study.flops
        spent = [last(self.folder("fixed", seed), "compute/flops") for seed in self.study.seeds["fixed"]]
        return float(f"{sum(spent) / len(spent):.4g}")

    def choices(self) -> dict[str, Any]:
        """All choices, and the validation solve rate of every learning rate that was tried."""
        seed = self.study.tuning_seed
        tried = {
            method: {rate: last(self.folder(method, seed, rate), "val/solve_rate") for rate in rates}
            for method, rates in self.study.tuned.items()
        }
        rates = {method: self.chosen_rate(method) for method in self.study.seeds}
        return {"tried": tried, "rates": rates, "alpha": self.chosen_alpha(), "flops": self.budget()}


def last(folder: Path, tag: str) -> float:
    """The last value of a scalar in a run's folder."""
    return read_scalars(sorted(folder.glob(EVENTS)))[tag][-1][1]


def newest(folder: Path) -> str:
    """The last adapter that a run saved."""
    return str(sorted(path for path in (folder / "checkpoints").glob("step=*") if path.is_dir())[-1])


def report(studies: Sequence[TaskStudy], out: Path) -> Stage:
    """The stage that writes tables and figures of all runs, except for those of tuning."""
    folders = [str(s.folder(method, seed)) for s in studies for method, of in s.study.seeds.items() for seed in of]
    line = ["python", "-m", "lmix", "report", *folders, *flags({"out": str(out / "report"), "title": out.name})]
    return Stage("report", line, out / "report", always=True)
