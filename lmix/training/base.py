"""What all training of the policy adapter shares: the model, the optimiser, greedy evaluation, the checkpoint."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from lmix.data.example import Example
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, dtype_name
from lmix.model.mixed_policy import MixedPolicy, Mixture, check_alpha, check_weights
from lmix.model.streams import POLICY
from lmix.model.tokenizer import check_places, end_tokens, load_tokenizer
from lmix.rollout.engine import Draw, Progress, RolloutEngine
from lmix.rollout.rollout import Packed, Rollout, decode_texts
from lmix.seed import run_seed
from lmix.tasks.task import Judgement, Task
from lmix.training.completions import CompletionRow, completion_rows
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.guards import Suspect, unsound, write_report
from lmix.training.metrics import FormatRate, SolveRate
from lmix.training.ranks import RankedModule
from lmix.training.run_folder import run_folder
from lmix.training.schedule import learning_rate_schedule
from lmix.training.state import check_adapter_state, check_origin
from lmix.training.strategies import check_strategy
from lmix.training.trainer_flags import check_monitors, check_trainer_flags

log = logging.getLogger(__name__)


class AdapterModule(RankedModule):
    """A mixed policy under training; subclasses give `training_step`.

    `trainer.max_steps` counts their outer steps. Nothing heavy happens before `configure_model`, so mistakes in
    settings and data are found first.
    """

    policy: MixedPolicy
    engine: RolloutEngine

    def __init__(
        self,
        backbone: BackboneConfig,
        adapters: AdapterConfig,
        alpha: float,
        mixture: Mixture,
        sampling: SamplingConfig,
        optimizer: OptimizerConfig,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold adapters only; load_state_dict makes the check
        self.backbone, self.adapters = backbone, adapters
        self.initial_alpha = check_alpha(alpha)
        self.mixture: Mixture = mixture
        self.weights = check_weights(weights, adapters, mixture)
        self.sampling, self.optimizer = sampling, optimizer
        self.format_rate, self.solve_rate = FormatRate(), SolveRate()
        self.rows: list[CompletionRow] = []
        """The completions of the newest step or evaluation, for callbacks."""
        self.suspects: list[Suspect] = []
        """Of the step under way, on this rank."""
        self.refused = 0
        """The newest step whose update was left out."""
        self.progress: Progress | None = None
        """Told of each token that is drawn; set by a callback."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.backbone.path)

    @property
    def task(self) -> Task:
        return self.trainer.datamodule.task  # pyright: ignore[reportAttributeAccessIssue]

    def configure_callbacks(self) -> list[Any]:
        """Add none: it is the one hook before Lightning's own check, which can't name lmix's settings."""
        trainer = self.trainer
        check_trainer_flags(trainer.precision, trainer.gradient_clip_val, None, trainer.accumulate_grad_batches)
        return []

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy)
        if self.trainer.world_size > 1 and self.sampling.resample_dead:
            raise ValueError("sampling.resample_dead must be 0 on several ranks: they could draw each other's prompts")
        sets = self.trainer.datamodule.sets.values()  # pyright: ignore[reportAttributeAccessIssue]
        longest = max((len(example.prompt_ids) for examples in sets for example in examples), default=0)
        check_places(self.backbone.path, longest, self.sampling.max_new_tokens)
        if stage == "fit" and self.optimizer.schedule in ("linear", "cosine") and self.trainer.max_steps < 1:
            raise ValueError(f"optimizer.schedule {self.optimizer.schedule} ends at trainer.max_steps: set it above 0")

    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        backbone, device = self.backbone, self.root_device
        if self.sharded:  # it need not fit one device: loaded on the CPU, then sharded layer by layer
            backbone, device = replace(backbone, dtype=dtype_name(backbone.dtype, device)), torch.device("cpu")
        self.policy = MixedPolicy.from_pretrained(
            backbone, self.adapters, self.initial_alpha, self.mixture, self.weights, device=device
        )
        if self.sharded:
            self.policy.gathers_rollouts = self.trainer.strategy.gather_rollouts  # pyright: ignore
            self.policy.shard(self.device_mesh["data_parallel"])  # pyright: ignore[reportOptionalSubscript]
        self.engine = RolloutEngine(self.policy, end_tokens(self.policy, self.tokenizer), self.sampling.slots)

    # sampling, judging, scoring

    def sample(self, batch: Sequence[Example], greedy: bool = False) -> list[Rollout]:
        """Draw G completions of each prompt from the mixed policy, or one greedily."""
        rollouts = self.engine.generate(
            [example.prompt_ids for example in batch],
            self.sampling.max_new_tokens,
            Draw(run_seed(self.sampling.seed), self.global_step, greedy),
            samples=1 if greedy else self.sampling.samples_per_prompt,
            prompt_ids=[example.problem.id for example in batch],
            keep_frozen=self.sampling.keep_frozen and not greedy,
            progress=self.progress,
        )
        if not greedy:
            self.suspects += unsound(rollouts)
        return rollouts

    def judge(self, rollouts: Sequence[Rollout], batch: Sequence[Example]) -> list[Judgement]:
        """Format, answer and reward of each rollout; fills in its text."""
        golds = [batch[r.prompt].problem.answer for r in rollouts]
        decode_texts(rollouts, self.tokenizer)
        return self.task.judge([r.text for r in rollouts], [r.ended for r in rollouts], golds)

    def score(self, packed: Packed) -> Tensor:
        """Log-probability of each completion token under the mixed policy, `[N]`, with the policy's gradient."""
        hidden_K = [self.hidden(packed, stream) for stream in self.policy.streams]
        return self.policy.log_probs(hidden_K, packed.targets)

    def hidden(self, packed: Packed, stream: str) -> Tensor:
        """A stream's hidden states that predict the completion tokens, `[N, H]`: kept ones, or by a pass."""
        frozen = [name for name in self.policy.streams if name != POLICY]
        if packed.frozen_hidden is not None and stream in frozen:
            return packed.frozen_hidden[:, frozen.index(stream)]
        return self.policy.stream_hidden(packed.input_ids, stream, packed.prefix).flatten(0, 1)[packed.predicts]

    # the optimiser

    def configure_optimizers(self) -> Any:
        settings = self.optimizer
        optimizer = torch.optim.AdamW(
            self.policy.policy_parameters(), settings.lr, settings.betas, weight_decay=settings.weight_decay
        )
        return [optimizer], [LambdaLR(optimizer, learning_rate_schedule(settings, self.trainer.max_steps))]

    def on_train_start(self) -> None:
        """Let the settings at hand rule the optimiser, also where a checkpoint has brought another run's."""
        settings = self.optimizer
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        rate = settings.lr * scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group in optimizer.param_groups:
            group.update(lr=rate, initial_lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        scheduler.base_lrs, scheduler._last_lr = [settings.lr], [rate]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.suspects = []

    def optimizer_step(self, last: bool = True) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add up the ranks' gradients, clip, step, and clear; returns the gradient's norm before clipping.

        Only the last inner update goes through Lightning's wrapper, which counts `global_step`: it is the paper's step.

        Raises:
            ValueError: the gradient is not finite, or a rollout was drawn from logits that are not; the adapter is as
                it was before the update. `optimizer.nonfinite: skip` goes on without it.
        """
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        parameters = self.policy.policy_parameters()
        for parameter in parameters:
            if parameter.grad is None:  # all groups dead: a step of zero gradient, so that momentum goes on alike
                parameter.grad = torch.zeros_like(parameter)
        if self.ranks > 1:
            gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])  # pyright: ignore
            gradient = self.trainer.strategy.reduce(gradient, reduce_op="sum")
            torch.nn.utils.vector_to_parameters(gradient, [p.grad for p in parameters])  # pyright: ignore
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.optimizer.max_grad_norm)
        (suspects,) = self.sum_over_ranks([len(self.suspects)])
        if suspects or not torch.isfinite(norm):
            self.refuse()
            optimizer.zero_grad()  # without gradients the optimiser moves nothing, and its state stays
        (optimizer if last else optimizer.optimizer).step()
        optimizer.zero_grad()
        if last:
            scheduler.step()
        return float(norm)

    def refuse(self) -> None:
        """Report the step's suspects, and raise ValueError or, where that is wanted, warn. Every rank must call it."""
        step = self.global_step + 1
        if self.refused == step:
            return  # all inner updates of a step are left out, and one report is enough
        self.refused = step
        folder = run_folder(self.trainer)
        what = f"logits or gradient of step {step} are not finite"
        if self.suspects:
            path = folder / f"nonfinite-step={step:04d}-rank{self.trainer.global_rank}.jsonl"
            write_report(path, step, self.suspects, self.tokenizer.decode)  # pyright: ignore[reportArgumentType]
            what += f" (the {self.suspects[0].cause}; {path} has the rollouts)"
        if self.optimizer.nonfinite == "stop":
            raise ValueError(
                f"{what}: lower optimizer.lr ({self.optimizer.lr}) or set optimizer.nonfinite to skip, and go on from "
                "the newest checkpoint by --ckpt_path"
            )
        log.warning("%s; the update is left out", what)

    def learning_rate(self) -> float:
        """The rate that the next optimiser step will use."""
        scheduler: Any = self.lr_schedulers()
        return scheduler.get_last_lr()[0]

    def backward_and_check(self, losses_b: Tensor, rollouts_b: Sequence[Rollout]) -> None:
        """Add the gradient of a micro-batch's losses, `[b]`, and note which of its rollouts make it NaN or Inf.

        A row whose loss is not finite is named; where only the gradient is, all rows are, as it is their sum.
        """
        if not losses_b.requires_grad:  # at alpha 1 the policy has no part in the mixture
            return
        self.backward_here(losses_b.sum())
        bad = [r for r, loss in zip(rollouts_b, losses_b.tolist(), strict=True) if not math.isfinite(loss)]
        if bad:
            self.suspects += [Suspect(rollout, "loss") for rollout in bad]
            return
        gradients = [p.grad for p in self.policy.policy_parameters() if p.grad is not None]
        if not self.suspects and not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            cause = "gradient" if len(rollouts_b) == 1 else f"gradient of one of {len(rollouts_b)} rollouts"
            self.suspects += [Suspect(rollout, cause) for rollout in rollouts_b]

    def idle_rollout(self) -> Rollout:
        """One token after one token, for passes whose gradient counts nothing."""
        found = Rollout(-1, 0, [0], [0], torch.zeros(1))
        frozen = len(self.policy.streams) - (POLICY in self.policy.streams)
        if self.sampling.keep_frozen and frozen:
            size = self.policy.backbone.config.hidden_size
            found.frozen_hidden = torch.zeros(1, frozen, size, dtype=self.policy.backbone.dtype)
        return found

    # evaluation

    def validation_step(self, batch: list[Example], batch_idx: int) -> None:
        """Greedy completions of held-out problems by the mixed policy."""
        judgements = self.answer(batch)
        self.format_rate.update(judgements)
        self.solve_rate.update(judgements)

    test_step = validation_step

    def predict_step(self, batch: list[Example], batch_idx: int) -> list[dict[str, Any]]:
        """Greedy completions of held-out problems as rows, each with its parsed answer."""
        self.answer(batch)
        return [row.as_dict() for row in self.rows]

    def must_be_finite(self, rollouts: Sequence[Rollout]) -> None:
        """Raise ValueError on all ranks where one has decoded from logits with NaN or Inf. Every rank must call it."""
        here = unsound(rollouts)
        (found,) = self.sum_over_ranks([len(here)])
        if found:
            cause = f"the {here[0].cause}" if here else "logits on another rank"
            raise ValueError(
                f"{cause} are not finite, in greedy decoding after step {self.global_step}: go on from an earlier "
                "checkpoint by --ckpt_path"
            )

    def answer(self, batch: list[Example]) -> list[Judgement]:
        """Decode problems greedily and judge them; their rows are kept for callbacks."""
        rollouts = self.sample(batch, greedy=True)
        self.must_be_finite(rollouts)
        judgements = self.judge(rollouts, batch)
        self.rows = completion_rows(rollouts, judgements, batch, self.global_step)
        return judgements

    def on_validation_end(self) -> None:
        if self.trainer.sanity_checking:  # before the first step, so that a wrong name costs no training
            check_monitors(self.trainer.callbacks, self.trainer.callback_metrics)  # pyright: ignore

    def on_validation_epoch_end(self) -> None:
        self.log_rates("val")

    def on_test_epoch_end(self) -> None:
        self.log_rates("test")

    def log_rates(self, prefix: str) -> None:
        """Log format and solve rate of the evaluation that has just ended."""
        rates = {f"{prefix}/solve_rate": self.solve_rate.compute(), f"{prefix}/format_rate": self.format_rate.compute()}
        self.solve_rate.reset()
        self.format_rate.reset()
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
            "alpha": self.policy.alpha,
            "initial_alpha": self.initial_alpha,
            "weights": None if self.weights is None else list(self.weights),
            "backbone": self.backbone.path,
            "fingerprint": self.policy.fingerprint,
            "scaling": self.policy.adapter_scaling(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the alpha that a callback had moved, where one will go on moving it or nothing is trained.

        In all other cases the settings' alpha holds.
        """
        saved = checkpoint["lmix"]
        check_origin(saved, self.backbone.path, self.policy.fingerprint, self.policy.adapter_scaling())
        if self.weights is not None or saved["weights"] is not None:
            return
        callbacks: list[Any] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        moves = self.trainer.state.fn != "fit" or any(getattr(c, "moves_alpha", False) for c in callbacks)
        if moves and self.initial_alpha == saved["initial_alpha"]:
            self.policy.alpha = saved["alpha"]
        if not self.policy.alpha == saved["alpha"] == self.initial_alpha:
            log.warning("going on at alpha %g; the checkpoint's is %g", self.policy.alpha, saved["alpha"])
