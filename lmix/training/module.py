"""What all training of the policy adapter shares: the model, the sampler, greedy evaluation and the checkpoint."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
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
from lmix.rollout.engine import Engine
from lmix.rollout.limits import limits_of
from lmix.rollout.sampler import Progress, Sampler
from lmix.rollout.types import Draw, Group, Prompt, flatten
from lmix.seed import run_seed
from lmix.tasks.task import Task
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.guards import nonfinite_rollouts
from lmix.training.metrics import AnswerRate, FormatRate, Rate, SolveRate
from lmix.training.optimisation import OptimisedModule
from lmix.training.slots import automatic_slots
from lmix.training.state import check_adapter_state, check_origin
from lmix.training.strategies import check_strategy
from lmix.training.trainer_flags import check_monitors, check_trainer_flags

log = logging.getLogger(__name__)


class AdapterModule(OptimisedModule):
    """A mixed policy under training; subclasses give `training_step`.

    `trainer.max_steps` counts their outer steps. Nothing heavy happens before `configure_model`, so mistakes in
    settings and data are found first.

    Attributes:
        mixture: what is sampled, scored and evaluated. Callbacks may put another value there between steps.
        sampler: draws completions from the policy.
        end_ids: the tokens that end a completion.
        groups: the judged groups of the newest step or evaluation on this rank, for callbacks.
        progress: told of each token that is drawn; set by a callback.
    """

    policy: MixedPolicy
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
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold adapters only; load_state_dict makes the check
        self.backbone, self.adapters = backbone, adapters
        self.weights = weights
        self.mixture = self.initial_mixture = mixture_of(
            alpha, mixture, weights, adapters.streams, sampling.temperature
        )
        self.sampling, self.optimizer = sampling, optimizer
        self.solve_rate, self.answer_rate, self.format_rate = SolveRate(), AnswerRate(), FormatRate()
        self.groups: list[Group] = []
        self.progress: Progress | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:  # pyright: ignore[reportIncompatibleVariableOverride]
        return load_tokenizer(self.backbone.path)

    @property
    def model_path(self) -> str:
        """The policy's model: `backbone.path`, or the whole model that `adapters.policy` names."""
        return model_paths(self.backbone, self.adapters)[0]

    @property
    def datamodule(self) -> RLDataModule:
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def task(self) -> Task:
        return self.datamodule.task

    @property
    def rates(self) -> dict[str, Rate]:
        """What an evaluation measures, by name."""
        return {"solve_rate": self.solve_rate, "answer_rate": self.answer_rate, "format_rate": self.format_rate}

    @property
    def decoder(self) -> Decoder:
        settings = self.sampling
        limits = limits_of(
            self.tokenizer, self.end_ids, settings.max_new_tokens, settings.stop, settings.min_new_tokens
        )
        return Decoder(self.sampler, limits, self.tokenizer, self.task)

    def configure_callbacks(self) -> list[Any]:
        """Add none: it is the one hook before Lightning's own check, which can't name lmix's settings."""
        trainer = self.trainer
        check_trainer_flags(trainer.precision, trainer.gradient_clip_val, None, trainer.accumulate_grad_batches)
        return []

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy)
        if self.sampling.compile:
            check_can_compile(self.root_device, self.sharded)
        longest = max((len(p.ids) for prompts in self.datamodule.sets.values() for p in prompts), default=0)
        for path in model_paths(self.backbone, self.adapters):
            check_places(path, longest, self.sampling.max_new_tokens)
        if stage == "fit" and self.optimizer.schedule in ("linear", "cosine") and self.trainer.max_steps < 1:
            raise ValueError(f"optimizer.schedule {self.optimizer.schedule} ends at trainer.max_steps: set it above 0")

    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        backbone, device = self.backbone, self.root_device
        if self.sharded:  # it need not fit one device: loaded on the CPU, then sharded layer by layer
            backbone, device = replace(backbone, dtype=dtype_name(backbone.dtype, device)), torch.device("cpu")
        self.policy = MixedPolicy.from_pretrained(backbone, self.adapters, device)
        if self.sharded:
            self.policy.gathers_rollouts = self.trainer.strategy.gather_rollouts  # pyright: ignore
            self.policy.shard(self.device_mesh["data_parallel"])  # pyright: ignore[reportOptionalSubscript]
        # ranks draw an adapter's first values from generators that need not be in the same state
        self.copy_from_rank_0(self.policy.adapter_state().values())
        self.settle_dense_rollouts()
        self.end_ids = tuple(end_tokens(self.policy.backbone, self.tokenizer))
        if not hasattr(self, "sampler"):
            self.sampler = Engine(self.policy, self.settle_slots(), compiled=self.sampling.compile)

    def on_fit_start(self) -> None:
        self.sampler.sync(self.policy)

    def on_validation_start(self) -> None:
        if self.trainer.state.fn != "fit":  # in `fit` it has been done
            self.sampler.sync(self.policy)

    def on_test_start(self) -> None:
        self.sampler.sync(self.policy)

    def on_predict_start(self) -> None:
        self.sampler.sync(self.policy)

    def settle_dense_rollouts(self) -> None:
        """Decide `dense_rollouts: null` once a run, on rank 0 for all: the two kinds of kernels round differently."""
        if self.backbone.dense_rollouts is not None or self.policy.draws_in_step or not four_bit_layers(self.policy):
            return
        dense = self.policy.settle_dense_rollouts(self.root_device)
        if self.ranks > 1:
            dense = self.policy.dense_rollouts = bool(self.trainer.strategy.broadcast(dense))
        rank_zero_info(f"backbone.dense_rollouts: null is {str(dense).lower()} for all of this run, by the free memory")

    def settle_slots(self) -> int:
        """Decide `sampling.slots: auto` once a run, on rank 0 for all: other slots round otherwise."""
        if self.sampling.slots != "auto":
            return self.sampling.slots
        data = self.datamodule
        longest = max((len(p.ids) for prompts in data.sets.values() for p in prompts), default=1)
        rows = -(-data.prompts_per_step // self.ranks) * self.sampling.samples_per_prompt
        free = free_memory(self.root_device)
        slots = automatic_slots(self.policy, self.mixture, self.sampling, longest, rows, free)
        if self.ranks > 1:
            slots = int(self.trainer.strategy.broadcast(slots))
        rank_zero_info(f"sampling.slots: auto is {slots} for all of this run, by the free memory")
        return slots

    def draw(self, greedy: bool = False) -> Draw:
        """How the next step's tokens are chosen."""
        return Draw(run_seed(self.sampling.seed), self.global_step, greedy)

    def note_nonfinite(self, groups: Sequence[Group]) -> None:
        """Keep rollouts that were drawn from NaN or Inf for the step's report."""
        self.nonfinite += nonfinite_rollouts(flatten(groups))

    # evaluation

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """Greedy completions of held-out problems by the mixed policy."""
        self.groups = self.answer(batch, self.mixture)
        for rate in self.rates.values():
            rate.update(flatten(self.groups))

    test_step = validation_step

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """Greedy completions of held-out problems as rows, each with its parsed answer."""
        self.groups = self.answer(batch, self.mixture)
        return [row.as_dict() for row in completion_rows(self.groups)]

    def answer(self, batch: Sequence[Prompt], mixture: Mixture | Sequence[Mixture], samples: int = 1) -> list[Group]:
        """Decode problems greedily, and judge them; one sample for each of several mixtures. Every rank must call it.

        Raises:
            ValueError: on all ranks, where one has decoded from logits with NaN or Inf.
        """
        groups = self.decoder.complete(batch, self.draw(greedy=True), mixture, samples, progress=self.progress)
        here = nonfinite_rollouts(flatten(groups))
        (bad,) = self.sum_over_ranks([len(here)])
        if bad:
            cause = f"the {here[0].cause}" if here else "logits on another rank"
            raise ValueError(
                f"{cause} are not finite, in greedy decoding after step {self.global_step}: resume from an earlier "
                "checkpoint by --ckpt_path"
            )
        self.decoder.judge(groups)
        for rollout in flatten(groups):
            rollout.reward = float(rollout.solved)  # the rows of an evaluation show the verifier's reward alone
        return groups

    def on_validation_end(self) -> None:
        if self.trainer.sanity_checking:  # before the first step, so that a wrong name costs no training
            check_monitors(self.trainer.callbacks, self.trainer.callback_metrics)  # pyright: ignore

    def on_validation_epoch_end(self) -> None:
        self.log_rates("val")

    def on_test_epoch_end(self) -> None:
        self.log_rates("test")

    def log_rates(self, prefix: str) -> None:
        """Log the rates of the evaluation that has just ended."""
        rates = {f"{prefix}/{name}": rate.compute() for name, rate in self.rates.items()}
        for rate in self.rates.values():
            rate.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(rates | {"step": float(self.global_step)})  # Lightning would date them one step early
            return
        # the evaluation before the first step, which Lightning takes for a rehearsal
        for logger in self.trainer.loggers:
            logger.log_metrics({name: float(rate) for name, rate in rates.items()}, step=0)
        self.trainer.callback_metrics.update(rates)

    # the checkpoint

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """The adapters; never the backbone."""
        return {f"policy.{name}": tensor for name, tensor in self.policy.adapter_state().items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load adapters. Raises ValueError unless names and shapes are exactly those of this model, and all finite."""
        check_adapter_state(state_dict, self.state_dict())
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lmix"] = {
            "alpha": self.mixture.alpha,
            "initial_alpha": self.initial_mixture.alpha,
            "weights": None if self.weights is None else list(self.weights),
            "backbone": self.model_path,
            "fingerprint": self.policy.fingerprint,
            "others": self.policy.other_fingerprints,
            "scaling": self.policy.adapter_scaling(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this model; where nothing is trained, take up its alpha."""
        saved = checkpoint["lmix"]
        policy = self.policy
        check_origin(saved, self.model_path, policy.fingerprint, policy.other_fingerprints, policy.adapter_scaling())
        if self.trainer.state.fn != "fit":
            self.restore_alpha(saved)

    def restore_alpha(self, saved: dict[str, Any]) -> None:
        """Take up the alpha of a checkpoint, unless the settings name another one than they did then."""
        both_move = self.weights is None and saved["weights"] is None
        if both_move and self.initial_mixture.alpha == saved["initial_alpha"]:
            self.mixture = self.mixture.with_alpha(saved["alpha"])
            log.info("alpha %g, as in the checkpoint", saved["alpha"])
