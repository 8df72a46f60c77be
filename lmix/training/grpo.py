"""GRPO on the mixed policy: Algorithm 1 of Gan & Zhu (arXiv 2605.20555).

Legend: P prompts, G samples of a prompt, B = P * G rollouts, T tokens, N completion tokens, H hidden size.
"""

import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, get_scheduler

from lmix.data.example import Example
from lmix.functional import clipped_surrogate, dead_groups, group_advantages, group_token_weights
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy, Mixture, check_alpha
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.engine import Draw, Progress, RolloutEngine
from lmix.rollout.rollout import Packed, Rollout, pack, token_budget_batches
from lmix.seed import run_seed
from lmix.tasks.task import Judgement
from lmix.training.completions import CompletionRow, completion_rows, end_tokens
from lmix.training.config import ObjectiveConfig, OptimizerConfig, SamplingConfig
from lmix.training.metrics import FormatRate, SolveRate
from lmix.training.state import check_adapter_state


class GRPOModule(L.LightningModule):
    """Reinforcement learning of the policy adapter inside the mixture with a frozen reference.

    Args:
        backbone: the model that both streams share.
        adapters: where the policy starts, and what the reference is.
        alpha: weight of the reference, in [0, 1]: 0 is the policy alone (GRPO), 1 the reference alone.
        mixture: average logits (eq. 1) or probabilities (section 5).
        sampling: how rollouts are drawn.
        objective: how a step's rollouts become a gradient.
        optimizer: how the gradient becomes a step.

    Raises:
        ValueError: alpha outside [0, 1].
    """

    policy: MixedPolicy
    engine: RolloutEngine

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        adapters: AdapterConfig = AdapterConfig(),
        alpha: float = 0.5,
        mixture: Mixture = "logits",
        sampling: SamplingConfig = SamplingConfig(),
        objective: ObjectiveConfig = ObjectiveConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold adapters only; load_state_dict makes the check
        self.backbone, self.adapters = backbone, adapters
        self.mixture: Mixture = mixture
        self.initial_alpha = check_alpha(alpha)
        self.sampling, self.objective, self.optimizer = sampling, objective, optimizer
        self.format_rate, self.solve_rate = FormatRate(), SolveRate()
        self.rows: list[CompletionRow] = []
        """The completions of the newest step or evaluation, for callbacks."""
        self.progress: Progress | None = None
        """Told of each token that is drawn; set by a callback."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.backbone.path)

    def configure_model(self) -> None:
        if hasattr(self, "policy"):
            return
        self.policy = MixedPolicy.from_pretrained(
            self.backbone, self.adapters, self.initial_alpha, self.mixture, device=self.device
        )
        self.engine = RolloutEngine(self.policy, end_tokens(self.policy, self.tokenizer), self.sampling.slots)

    # Algorithm 1

    def training_step(self, batch: list[Example], batch_idx: int) -> None:
        """One outer step: sample, reward, advantage, loss, step."""
        clock = Clock(self.device)
        rollouts = self.sample(batch)
        rollout_seconds = clock.lap()

        judgements = self.judge(rollouts, batch)
        rewards_PG = torch.tensor([j.reward for j in judgements]).view(len(batch), -1)
        advantages_PG = group_advantages(rewards_PG)
        reward_seconds = clock.lap()

        old_log_probs: list[Tensor] = []  # of each micro-batch, from the first inner update
        for inner in range(self.objective.inner_updates):
            stats = self.accumulate_gradient(rollouts, advantages_PG.flatten(), old_log_probs)
            stats["grad_norm"] = self.optimizer_step(last=inner == self.objective.inner_updates - 1)
        update_seconds = clock.lap()

        self.rows = completion_rows(rollouts, judgements, batch, self.tokenizer, self.global_step)
        self.report(rollouts, judgements, rewards_PG, stats, (rollout_seconds, reward_seconds, update_seconds))

    def sample(self, batch: Sequence[Example], greedy: bool = False) -> list[Rollout]:
        """Draw G completions of each prompt from the mixed policy, or one greedily."""
        return self.engine.generate(
            [example.prompt_ids for example in batch],
            self.sampling.max_new_tokens,
            Draw(run_seed(self.sampling.seed), self.global_step, greedy),
            samples=1 if greedy else self.sampling.samples_per_prompt,
            prompt_ids=[example.problem.id for example in batch],
            keep_reference=self.sampling.keep_reference and not greedy,
            progress=self.progress,
        )

    def judge(self, rollouts: Sequence[Rollout], batch: Sequence[Example]) -> list[Judgement]:
        """Format, answer and reward of each rollout."""
        texts = [self.tokenizer.decode(without_end(r), skip_special_tokens=False) for r in rollouts]
        golds = [batch[r.prompt].problem.answer for r in rollouts]
        return self.task.judge(texts, [r.ended for r in rollouts], golds)

    def accumulate_gradient(
        self, rollouts: Sequence[Rollout], advantages_B: Tensor, old_log_probs: list[Tensor]
    ) -> dict[str, float]:
        """Add the gradient of eq. 6 over all rollouts, a micro-batch at a time.

        Rollouts of dead groups have advantage zero, so gradient zero, and are left out; the mean still counts them.

        Args:
            old_log_probs: `[B', T']` of each micro-batch before the first inner update; filled when empty.
        """
        group_B = torch.tensor([r.prompt for r in rollouts])
        weights_B = token_weights(rollouts, group_B)
        live = [i for i in range(len(rollouts)) if advantages_B[i] != 0]
        totals = {"loss": 0.0, "clip_fraction": 0.0, "sampler_logprob_gap": 0.0}
        counted = sum(len(rollouts[i].completion_ids) for i in live)
        for number, part in enumerate(token_budget_batches([len(rollouts[i]) for i in live], self.micro_batch_tokens)):
            rows = [live[i] for i in part]
            packed = pack([rollouts[i] for i in rows], self.device)
            log_probs = packed.unflatten(self.score(packed))
            if number == len(old_log_probs):
                old_log_probs.append(log_probs.detach())  # before the first update the ratio is exactly 1
            terms, clipped, _ = clipped_surrogate(
                log_probs,
                old_log_probs[number],
                advantages_B[rows].to(self.device),
                packed.mask,
                self.objective.clip_radius,
            )
            loss = -(terms * weights_B[rows].to(self.device)[:, None]).sum()
            if loss.requires_grad:  # at alpha 1 the policy has no part in the mixture
                self.manual_backward(loss)
            sampled = torch.cat([rollouts[i].log_probs for i in rows]).to(self.device)
            gap = (old_log_probs[number][packed.mask] - sampled).abs().sum()
            for name, value in zip(totals, (loss.detach(), clipped.sum() / counted, gap / counted), strict=True):
                totals[name] += float(value)
        return totals

    def score(self, packed: Packed) -> Tensor:
        """Log-probability of each completion token under the mixed policy, `[N]`, with the policy's gradient."""
        hidden_K = []
        for stream in self.policy.streams:
            if stream != "policy" and packed.reference_hidden is not None:
                hidden_K.append(packed.reference_hidden)
            else:
                hidden = self.policy.stream_hidden(packed.input_ids, stream)
                hidden_K.append(hidden.flatten(0, 1)[packed.predicts])
        return self.policy.log_probs(hidden_K, packed.targets)

    def optimizer_step(self, last: bool) -> float:
        """Clip, step, and clear; returns the gradient's norm before clipping.

        Only the last inner update goes through Lightning's wrapper, which counts `global_step`: it is the paper's step.
        """
        optimizer = self.optimizers()
        parameters = self.policy.policy_parameters()
        for parameter in parameters:
            if parameter.grad is None:  # all groups dead: a step of zero gradient, so that momentum goes on alike
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.optimizer.max_grad_norm, error_if_nonfinite=True)
        (optimizer if last else optimizer.optimizer).step()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.zero_grad()  # pyright: ignore[reportAttributeAccessIssue]
        if last:
            self.lr_schedulers().step()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue, reportCallIssue]
        return float(norm)

    def configure_optimizers(self) -> Any:
        settings = self.optimizer
        optimizer = torch.optim.AdamW(
            self.policy.policy_parameters(), settings.lr, settings.betas, weight_decay=settings.weight_decay
        )
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else None
        if steps is None and settings.schedule in ("linear", "cosine"):
            raise ValueError(f"optimizer.schedule {settings.schedule} ends at trainer.max_steps: set it above 0")
        scheduler = get_scheduler(settings.schedule, optimizer, settings.warmup_steps, steps)
        return [optimizer], [scheduler]

    # evaluation

    def validation_step(self, batch: list[Example], batch_idx: int) -> None:
        """Greedy completions of held-out problems by the mixed policy."""
        rollouts = self.sample(batch, greedy=True)
        judgements = self.judge(rollouts, batch)
        self.format_rate.update(judgements)
        self.solve_rate.update(judgements)
        self.rows = completion_rows(rollouts, judgements, batch, self.tokenizer, self.global_step)

    test_step = validation_step

    def predict_step(self, batch: list[Example], batch_idx: int) -> list[CompletionRow]:
        """Greedy completions, each with its parsed answer."""
        rollouts = self.sample(batch, greedy=True)
        return completion_rows(rollouts, self.judge(rollouts, batch), batch, self.tokenizer, self.global_step)

    def on_validation_epoch_end(self) -> None:
        self.report_rates("val")

    def on_test_epoch_end(self) -> None:
        self.report_rates("test")

    def report_rates(self, prefix: str) -> None:
        rates = {f"{prefix}/solve_rate": self.solve_rate.compute(), f"{prefix}/format_rate": self.format_rate.compute()}
        self.solve_rate.reset()
        self.format_rate.reset()
        if self.trainer.sanity_checking:  # the pass before the first step: Lightning would not log it
            for logger in self.trainer.loggers:
                logger.log_metrics({name: float(rate) for name, rate in rates.items()}, step=0)
            self.trainer.callback_metrics.update(rates)
        else:
            self.log_dict(rates)

    # what is logged and saved

    def report(
        self,
        rollouts: Sequence[Rollout],
        judgements: Sequence[Judgement],
        rewards_PG: Tensor,
        stats: dict[str, float],
        seconds: tuple[float, float, float],
    ) -> None:
        """Log a step's figures."""
        tokens = sum(len(r.completion_ids) for r in rollouts)
        count = len(rollouts)
        self.log_dict(
            {
                "alpha": self.policy.alpha,
                "train/reward": float(rewards_PG.mean()),
                "train/solve_rate": sum(j.answer_correct for j in judgements) / count,
                "train/format_rate": sum(j.format_correct for j in judgements) / count,
                # an unbiased estimate of the mixed policy's entropy a token: the mean of -log p of what it drew
                "train/entropy": -float(torch.cat([r.log_probs for r in rollouts]).mean()),
                "train/completion_length": tokens / count,
                "train/dead_groups": float(dead_groups(rewards_PG).float().mean()),
                **{f"train/{name}": value for name, value in stats.items()},
                "train/lr": self.lr_schedulers().get_last_lr()[0],  # pyright: ignore
                "perf/rollout_tokens_per_second": tokens / seconds[0],
                "perf/train_tokens_per_second": tokens / seconds[2],
                "perf/reward_seconds": seconds[1],
                "perf/step_seconds": sum(seconds),
            },
            batch_size=count,
        )

    @property
    def task(self) -> Any:
        return self.trainer.datamodule.task  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def micro_batch_tokens(self) -> int:
        return self.objective.micro_batch_tokens

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """The adapters; never the backbone."""
        return {f"policy.{name}": tensor for name, tensor in self.policy.adapter_state().items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load adapters. Raises ValueError unless names and shapes are exactly those of this model, and all finite."""
        check_adapter_state(state_dict, self.state_dict())
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lmix"] = {"alpha": self.policy.alpha, "backbone": self.backbone.path}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.policy.alpha = checkpoint["lmix"]["alpha"]


class Clock:
    """Seconds between laps, with the device's work waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = time.perf_counter()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


def token_weights(rollouts: Sequence[Rollout], group_B: Tensor) -> Tensor:
    """`group_token_weights` from lengths alone: `[B]`."""
    lengths = torch.tensor([len(r.completion_ids) for r in rollouts])
    return group_token_weights(torch.arange(int(lengths.max())) < lengths[:, None], group_B)


def without_end(rollout: Rollout) -> list[int]:
    """The completion without its end-of-sequence token."""
    return rollout.completion_ids[:-1] if rollout.ended else rollout.completion_ids
