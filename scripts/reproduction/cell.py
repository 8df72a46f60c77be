"""A cell: one task on one model, and the commands that a preset runs on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .arguments import below, flags, parse
from .preset import CONFIGS, FROM_BASE, FROM_SFT, Policy, Preset, Settings
from .stage import Stage

SAMPLES, EVALUATE_EVERY = 8, 10
"""Completions per prompt (as in configs/methods) and steps between evaluations (the default), for the estimate."""

VALIDATIONS = {"adaptive": 2, "accuracy_weighted": 3}
"""How many times a method decodes each validation problem per step."""

DECODINGS = {"sweep": 20, "compare": 2}
"""How many times an evaluation decodes each problem."""


@dataclass(frozen=True)
class Cell:
    """One task on one model."""

    preset: Preset
    task: str
    model: str
    out: Path
    """Folder of the whole preset."""
    extra: list[str]
    """The user's arguments for every training run. Evaluations use those for the task and the backbone."""

    @property
    def name(self) -> str:
        return f"{self.task}-{self.model}"

    @property
    def reference(self) -> str:
        """The SFT adapter."""
        return self.preset.sft.adapter or str(self.checkpoint("sft", 0, self.preset.sft.steps))

    @property
    def task_settings(self) -> Settings:
        """The task's arguments, including the prompt's file."""
        name = self.preset.prompt
        file: Settings = {} if name is None else {"prompt": str(CONFIGS / "prompts" / f"{name}.txt")}
        return self.preset.task_settings | file

    def limits(self, prefix: str = "") -> Settings:
        """The limits of completions other than `max_new_tokens` that the preset sets."""
        given: Settings = {"min_new_tokens": self.preset.min_new_tokens, "stop": list(self.preset.stop)}
        return {f"{prefix}{name}": value for name, value in given.items() if value}

    def checkpoint(self, method: str, seed: int, step: int) -> Path:
        """The adapter that a run saves at a step."""
        return self.out / self.name / method / f"seed{seed}" / "checkpoints" / f"step={step:04d}"

    def sft(self) -> Stage:
        """The run that trains the reference. It decodes only the held-out problems, at its end."""
        sft = self.preset.sft
        settings: Settings = {
            "trainer.max_steps": sft.steps,
            "trainer.val_check_interval": sft.steps,
            "data.prompts_per_step": sft.prompts_per_step,
            **sft.settings,
        }
        return self.fit("sft", 0, settings, sft.steps, self.preset.training.eval_size)

    def run(self, method: str, seed: int, rate: str | None = None) -> Stage:
        """One run of a method. `rate` replaces its own learning rate."""
        training = self.preset.training
        settings: Settings = {
            "trainer.max_steps": training.steps,
            **training.settings,
            **self.preset.methods[method],
            **({} if rate is None else {"model.optimizer.lr": rate}),
            **method_adapters(method, self.reference),
        }
        evaluations = training.steps // EVALUATE_EVERY + 1
        completions = training.steps * training.prompts_per_step * SAMPLES + evaluations * training.eval_size
        completions += training.steps * VALIDATIONS.get(method, 0) * training.validation_size
        return self.fit(method, seed, settings, training.steps, completions, f"{method}-lr{rate}" if rate else method)

    def fit(
        self, method: str, seed: int, settings: Settings, steps: int, completions: int, name: str | None = None
    ) -> Stage:
        """A training run with the settings that all runs share, followed by `settings`.

        `name` is the name of its folder; by default it is the method.
        """
        name = name or method
        preset, training = self.preset, self.preset.training
        streamed = training.validation_source == "stream"
        configs = (("tasks", self.task), ("models", self.model), ("methods", method))
        shared: Settings = {
            "seed_everything": seed,
            "data.prompts_per_step": training.prompts_per_step,
            "data.eval_size": training.eval_size,
            "data.validation_size": 0 if method == "sft" and streamed else training.validation_size,
            "data.max_prompt_tokens": preset.max_prompt_tokens,
            "model.sampling.max_new_tokens": preset.max_new_tokens,
            "model.sampling.slots": preset.slots,
            **self.limits("model.sampling."),
            **({} if preset.shuffle else {"data.shuffle": False}),
            **({"data.validation_source": "stream"} if streamed and method != "sft" else {}),
            "trainer.logger.save_dir": str(self.out / self.name),
            "trainer.logger.name": name,
            "trainer.logger.version": f"seed{seed}",
        }
        line = ["python", "-m", "lmix", "fit", *(f"--config={CONFIGS / kind / name}.yaml" for kind, name in configs)]
        line += [*flags(shared | settings), *flags(self.task_settings, "data.task."), *self.extra]
        checkpoint = self.checkpoint(name, seed, steps)
        last = checkpoint.with_name(f"{checkpoint.name}.ckpt")
        return Stage(f"{self.name}: {name}, seed {seed}", line, last.parent.parent, completions, last=last)

    def evaluations(self, policy: Policy) -> Iterator[Stage]:
        """The sweep and the comparison of SFT and a policy, if the preset has them."""
        if policy in self.preset.evaluation.sweep:
            yield self.evaluation("sweep", policy)
        if policy in self.preset.evaluation.compare:
            yield self.evaluation("compare", policy)

    def evaluation(self, command: str, policy: Policy) -> Stage:
        """A command that evaluates SFT and a policy on held-out problems."""
        preset, problems, given = self.preset, self.preset.evaluation.problems, parse(self.extra)
        folder = self.out / self.name / (command if policy == "base" else f"{command}-trained")
        adapters: Settings = {"reference": self.reference}
        if policy == "trained":
            adapters["policy"] = str(self.checkpoint("fixed", preset.seeds[0], preset.training.steps))
        settings: Settings = {
            "problems": problems,
            "max_prompt_tokens": preset.max_prompt_tokens,
            "max_new_tokens": preset.max_new_tokens,
            "slots": preset.slots,
            **self.limits(),
            **({} if preset.shuffle else {"shuffle": False}),
            "out": str(folder),
        }
        if command == "compare":
            settings |= {"a": "policy", "b": "reference"}
        task = read_config("tasks", self.task)["data"]["task"]
        backbone = read_config("models", self.model)["model"]["init_args"]["backbone"]
        backbone |= below("model.backbone.", preset.training.settings) | below("model.backbone.", given)
        line = [
            *("python", "-m", "lmix", command, f"--task={task['class_path']}"),
            *flags(task.get("init_args", {}) | self.task_settings | below("data.task.", given), "task."),
            *flags(backbone, "backbone."),
            *flags(adapters, "adapters."),
            *flags(settings),
        ]
        name = f"{self.name}: {command} of SFT and the {'base' if policy == 'base' else 'trained policy'}"
        return Stage(name, line, folder, DECODINGS[command] * problems, always=command == "sweep")


def method_adapters(method: str, sft: str) -> Settings:
    """The adapter settings of a method, given the SFT adapter."""
    adapters: dict[str, Settings] = {
        **{name: {"model.adapters.policy": sft} for name in FROM_SFT},
        **{name: {} for name in FROM_BASE},
        "sft_continued": {"model.adapters.policy": sft},
        "kl_grpo": {"model.adapters.policy": sft, "model.adapters.reference": sft},
        "fixed_base_anchor": {"model.adapters.reference": "base"},
        "ensemble": {"model.adapters.reference": sft, "model.adapters.experts": "[base]"},
    }
    return adapters.get(method, {"model.adapters.reference": sft})


def read_config(kind: str, name: str) -> dict[str, Any]:
    """Read a file in configs, given by folder and name, such as `models` and `tiny`."""
    return yaml.safe_load((CONFIGS / kind / f"{name}.yaml").read_text(encoding="utf-8"))
