"""The base of all training of the policy adapter: the model, the sampler and evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lmix.data.module import RLDataModule
from lmix.evaluation.decoder import Decoder
from lmix.evaluation.rows import completion_rows
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, dtype_name
from lmix.model.end_tokens import end_tokens
from lmix.model.frozen import four_bit_layers, free_memory
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture, MixtureKind, mixture_of
from lmix.model.placement import model_paths
from lmix.model.sources import check_places
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.compiled import check_can_compile
from lmix.rollout.limits import limits_of
from lmix.rollout.sampler import Progress, Sampler
from lmix.rollout.samplers import LmixEngine, SamplerChoice
from lmix.rollout.types import Draw, Group, Prompt, flatten
from lmix.seed import run_seed
from lmix.tasks.task import Task
from lmix.training.checkpoints import naming_last_checkpoint
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.guards import nonfinite_rollouts
from lmix.training.metrics import AnswerRate, FormatRate, Rate, RightAnywhereRate, SolveRate
from lmix.training.saved import SavedModule
from lmix.training.slots import automatic_slots
from lmix.training.strategies import check_strategy
from lmix.training.trainer_flags import check_monitors, check_trainer_flags


class AdapterModule(SavedModule):
    """A mixed policy under training; subclasses implement `training_step`.

    `trainer.max_steps` counts their outer steps. No weights are loaded before `configure_model`, so mistakes in
    settings and data are reported first.

    Attributes:
        sampler: samples completions from the policy.
        end_ids: the tokens that end a completion.
        longest_prompt: tokens of the longest prompt of all sets; 0 before these are read.
        groups: the judged groups of the latest step or evaluation on this rank, for callbacks.
        progress: called while completions are sampled; set by a callback.
    """

    sampler: Sampler
    end_ids: tuple[int, ...]

    def __init__(
        self,
        backbone: BackboneConfig,
        adapters: AdapterConfig,
        alpha: float,
        mixture: MixtureKind,
        sampling: SamplingConfig,
        optimizer: OptimizerConfig,
        weights: Sequence[float] | None = None,
        sampler: SamplerChoice | None = None,
    ) -> None:
        first = mixture_of(alpha, mixture, weights, adapters.streams, sampling.temperature)
        super().__init__(backbone, adapters, first, weights)
        self.sampler_choice = sampler or LmixEngine()
        if not self.sampler_choice.keeps_frozen:
            sampling = replace(sampling, keep_frozen=False)
        self.sampling, self.optimizer = sampling, optimizer
        self.solve_rate, self.answer_rate, self.format_rate = SolveRate(), AnswerRate(), FormatRate()
        self.right_anywhere_rate = RightAnywhereRate()
        self.longest_prompt = 0
        self.groups: list[Group] = []
        self.progress: Progress | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:  # pyright: ignore[reportIncompatibleVariableOverride]
        return load_tokenizer(self.backbone.path)

    @property
    def datamodule(self) -> RLDataModule:
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def task(self) -> Task:
        return self.datamodule.task

    @property
    def rates(self) -> dict[str, Rate]:
        """The metrics of an evaluation, by name."""
        names = ("solve_rate", "answer_rate", "format_rate", "right_anywhere_rate")
        return {name: getattr(self, name) for name in names}

    @property
    def decoder(self) -> Decoder:
        settings = self.sampling
        limits = limits_of(
            self.tokenizer, self.end_ids, settings.max_new_tokens, settings.stop, settings.min_new_tokens
        )
        return Decoder(self.sampler, limits, self.tokenizer, self.task)

    def configure_callbacks(self) -> list[Any]:
        """Check the Trainer's flags and add no callbacks.

        No other hook runs before Lightning's own check, whose messages do not name lmix's settings.
        """
        trainer = self.trainer
        check_trainer_flags(trainer.precision, trainer.gradient_clip_val, None, trainer.accumulate_grad_batches)
        return []

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy)
        if self.sampling.compile and not isinstance(self.sampler_choice, LmixEngine):
            raise ValueError("sampling.compile works only with lmix's own engine: remove it or model.sampler")
        self.sampler_choice.check(self.backbone, self.adapters)
        if self.sampling.compile:
            check_can_compile(self.root_device, self.sharded)
        self.longest_prompt = max((len(p.ids) for prompts in self.datamodule.sets.values() for p in prompts), default=0)
        for path in model_paths(self.backbone, self.adapters):
            check_places(path, self.longest_prompt, self.sampling.max_new_tokens)
        if stage == "fit" and self.optimizer.schedule in ("linear", "cosine") and self.trainer.max_steps < 1:
            raise ValueError(f"optimizer.schedule {self.optimizer.schedule} ends at trainer.max_steps: set it above 0")

    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        backbone, device = self.backbone, self.root_device
        if self.sharded:  # the backbone may not fit one device: load it on the CPU, then shard it layer by layer
            backbone, device = replace(backbone, dtype=dtype_name(backbone.dtype, device)), torch.device("cpu")
        self.policy = MixedPolicy.from_pretrained(backbone, self.adapters, device)
        if self.sharded:
            self.policy.gathers_rollouts = self.trainer.strategy.gather_rollouts  # pyright: ignore
            self.policy.shard(self.device_mesh["data_parallel"])  # pyright: ignore[reportOptionalSubscript]
        # adapters are initialised at random, and the ranks' generators may be in different states
        self.copy_from_rank_0(self.policy.adapter_state().values())
        self.settle_dense_rollouts()
        self.end_ids = tuple(end_tokens(self.policy.backbone, self.tokenizer))
        self.compute.measure(self)
        if not hasattr(self, "sampler"):
            self.sampler = self.sampler_choice.make(
                self.policy,
                self.backbone,
                self.mixture,
                self.settle_slots(),
                self.longest_prompt + self.sampling.max_new_tokens,
                self.sampling.compile,
            )

    def on_fit_start(self) -> None:
        self.sync_sampler()

    def on_validation_start(self) -> None:
        if self.trainer.state.fn != "fit":  # in `fit`, on_fit_start has done it
            self.sync_sampler()

    def on_test_start(self) -> None:
        self.sync_sampler()

    def on_predict_start(self) -> None:
        self.sync_sampler()

    def sync_sampler(self) -> None:
        """Copy the policy's weights to the sampler."""
        with naming_last_checkpoint(self):
            self.sampler.sync(self.policy)

    def settle_dense_rollouts(self) -> None:
        """Resolve `dense_rollouts: null` once per run, on rank 0 for all ranks: dense kernels round differently."""
        if self.backbone.dense_rollouts is not None or self.policy.draws_in_step or not four_bit_layers(self.policy):
            return
        dense = self.policy.settle_dense_rollouts(self.root_device)
        if self.ranks > 1:
            dense = self.policy.dense_rollouts = bool(self.trainer.strategy.broadcast(dense))
        settled = str(dense).lower()
        rank_zero_info(f"backbone.dense_rollouts: null resolved to {settled} for this run, based on free memory")

    def settle_slots(self) -> int:
        """Resolve `sampling.slots: auto` once per run, on rank 0 for all ranks: rounding depends on the slots."""
        if self.sampling.slots != "auto":
            return self.sampling.slots
        data = self.datamodule
        rows = -(-data.prompts_per_step // self.ranks) * self.sampling.samples_per_prompt
        free = free_memory(self.root_device)
        slots = automatic_slots(self.policy, self.mixture, self.sampling, self.longest_prompt, rows, free)
        if self.ranks > 1:
            slots = int(self.trainer.strategy.broadcast(slots))
        rank_zero_info(f"sampling.slots: auto resolved to {slots} for this run, based on free memory")
        return slots

    def draw(self, greedy: bool = False) -> Draw:
        """The seed and mode for choosing the next step's tokens."""
        return Draw(run_seed(self.sampling.seed), self.global_step, greedy)

    def note_nonfinite(self, groups: Sequence[Group]) -> None:
        """Record rollouts sampled from logits with NaN or Inf for the step's report."""
        self.nonfinite += nonfinite_rollouts(flatten(groups))

    # evaluation

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """Complete held-out problems greedily with the mixed policy, and evaluate what `data.eval_samples` adds."""
        mixed, beside = self.held_out.complete(self, batch)
        self.groups = [*mixed, *beside]
        for rate in self.rates.values():
            rate.update(flatten(mixed))

    test_step = validation_step

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """Return greedy completions of held-out problems as rows, each with its parsed answer."""
        self.groups = self.answer(batch, self.mixture)
        return [row.as_dict() for row in completion_rows(self.groups)]

    def answer(
        self, batch: Sequence[Prompt], mixture: Mixture | Sequence[Mixture], samples: int = 1, greedy: bool = True
    ) -> list[Group]:
        """Complete and judge problems. With a list of mixtures, sample i comes from mixture i. Every rank must call it.

        Raises:
            ValueError: logits contain NaN or Inf on any rank; raised on all ranks.
        """
        with naming_last_checkpoint(self):
            groups = self.decoder.complete(batch, self.draw(greedy), mixture, samples, progress=self.progress)
        here = nonfinite_rollouts(flatten(groups))
        (bad,) = self.sum_over_ranks([len(here)])
        if bad:
            cause = f"the {here[0].cause}" if here else "logits on another rank"
            raise ValueError(
                f"{cause} are not finite, in an evaluation after step {self.global_step}: resume from an earlier "
                "checkpoint with --ckpt_path"
            )
        self.decoder.judge(groups)
        for rollout in flatten(groups):
            rollout.reward = float(rollout.solved)  # evaluations report only the verifier's reward
        return groups

    def on_validation_end(self) -> None:
        if self.trainer.sanity_checking:  # before the first step, so that a wrong metric name is found at once
            check_monitors(self.trainer.callbacks, self.trainer.callback_metrics)  # pyright: ignore

    def on_validation_epoch_end(self) -> None:
        self.log_rates("val")

    def on_test_epoch_end(self) -> None:
        self.log_rates("test")

    def log_rates(self, prefix: str) -> None:
        """Log the rates of the evaluation that just ended."""
        rates: dict[str, Any] = {f"{prefix}/{name}": rate.compute() for name, rate in self.rates.items()}
        rates |= {f"{prefix}/{name}": torch.tensor(v) for name, v in self.held_out.rates(self).items()}
        for rate in self.rates.values():
            rate.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(rates | {"step": float(self.global_step)})  # Lightning's own x value is one step too low
            return
        # the evaluation before the first step: for Lightning it is a sanity check, which is not logged
        for logger in self.trainer.loggers:
            logger.log_metrics({name: float(rate) for name, rate in rates.items()}, step=0)
        self.trainer.callback_metrics.update(rates)
