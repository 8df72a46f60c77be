"""The contenders of `benchmark.py`, each a process that works when it is told to and answers with figures.

    ours    sampling and update of lmix's GRPOModule, both streams
    naive   the same mixture as one would write it: peft's set_adapter, two dynamic caches, whole logits averaged, a
            softmax over the vocabulary and multinomial; the update by two forward passes with whole logits
    trl     TRL's GRPOTrainer, one stream (transformers' generate); trl_kl the same at beta 0.01

Legend: P prompts, G samples of a prompt, S tokens of a prompt, T of a completion.
"""

import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lmix.rollout.rollout import micro_batches, pack
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

from lmix.functional import clipped_surrogate_loss, group_advantages
from lmix.model.adapters import AdapterConfig, save_adapter
from lmix.model.backbone import BackboneConfig, best_device, compute_dtype, load_backbone, skeleton
from lmix.model.sources import load_config
from lmix.model.tokenizer import load_tokenizer
from lmix.planning import estimates
from lmix.planning.shape import RunShape, model_shape
from lmix.rollout.engine import Draw, RolloutEngine
from lmix.tasks.arithmetic import ArithmeticTask
from lmix.training.config import ObjectiveConfig, SamplingConfig
from lmix.training.grpo import BeforeUpdate, GRPOModule

MARK = "BENCHMARK "


@dataclass(frozen=True)
class Work:
    """What every contender does in a step."""

    model: str = "lmix:tiny-arithmetic"
    prompts_from: str | None = None
    prompts: int = 4
    samples: int = 8
    tokens: int = 64
    prompt_tokens: int = 64
    rank: int = 16
    dtype: str = "auto"
    quantization: str = "none"
    threads: int = 2
    pass_tokens: int = 1024
    trl_rows: int = 8
    only_rollouts: bool = False
    alpha_rollouts: int = 2048

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    @property
    def backbone(self) -> BackboneConfig:
        return BackboneConfig(self.model, self.quantization, dtype=self.dtype)  # pyright: ignore[reportArgumentType]

    @property
    def lora(self) -> LoraConfig:
        """A new adapter's, as lmix's policy has it."""
        return AdapterConfig(rank=self.rank).fresh()

    @property
    def device(self) -> str:
        return best_device()

    def prompt_ids(self) -> list[list[int]]:
        """`prompts` prompts of exactly `prompt_tokens` tokens, cut or repeated to it."""
        if self.prompts_from:
            lines = Path(self.prompts_from).read_text(encoding="utf-8").splitlines()[: self.prompts]
            texts = [json.loads(line)["problem"] for line in lines]
        else:
            texts = [problem.problem for problem in ArithmeticTask(train_size=self.prompts).problems("train")]
        tokenizer = load_tokenizer(self.model)
        found = []
        for text in texts[: self.prompts]:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
            found.append((ids * (1 + self.prompt_tokens // len(ids)))[: self.prompt_tokens])
        return found

    def rewards(self) -> torch.Tensor:
        """0, 1, 0, 1 in every group, `[P, G]`: all groups are live."""
        return torch.tensor([[float(g % 2) for g in range(self.samples)]] * self.prompts)

    def as_json(self) -> str:
        return json.dumps(asdict(self))


class Contender:
    """What `benchmark.py` asks for of ours and naive; they give the phases."""

    work: Work
    drawn: Any = None

    def step(self) -> dict[str, float]:
        """Seconds and peak memory of rollouts and update."""
        found = self.measured("rollout", self.draw)
        return found if self.work.only_rollouts else found | self.measured("update", lambda: self.update(self.drawn))

    def scoring(self) -> dict[str, float]:
        """Of log-probabilities without a gradient, of the rollouts drawn last: no part of a step at mu = 1."""
        return self.measured("score", lambda: self.score(self.drawn))

    def draw(self) -> None:
        self.drawn = self.rollouts()

    def measured(self, name: str, phase: Callable[[], None]) -> dict[str, float]:
        reset_memory()
        start = time.perf_counter()
        phase()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {name: time.perf_counter() - start, f"{name}_gb": memory()}

    def rollouts(self) -> Any:
        raise NotImplementedError

    def score(self, rollouts: Any) -> None:
        raise NotImplementedError

    def update(self, rollouts: Any) -> None:
        raise NotImplementedError


class Ours(Contender):
    """One GRPO step of lmix: its own methods, without a Trainer around them."""

    def __init__(self, work: Work, vocabulary: int | None = None) -> None:
        self.work, self.number = work, 0
        objective = ObjectiveConfig(micro_batch_tokens=work.pass_tokens)
        with tempfile.TemporaryDirectory() as folder:
            adapters = AdapterConfig(reference=random_adapter(work, Path(folder) / "reference"), rank=work.rank)
            self.module = GRPOModule(
                work.backbone, adapters, sampling=SamplingConfig(work.samples), objective=objective
            )
            self.module.to(work.device).configure_model()
        self.module.backward_here = lambda loss: loss.backward()
        if vocabulary:
            cut_vocabulary(self.module.policy.backbone, vocabulary)
        randomise(self.module.policy)
        self.engine = RolloutEngine(self.module.policy, [], slots=work.rows)
        self.optimizer = torch.optim.AdamW(self.module.policy.policy_parameters(), 1e-5)
        self.prompts = [[i % (vocabulary or 10**9) for i in ids] for ids in work.prompt_ids()]

    def rollouts(self) -> list[Any]:
        self.number += 1
        draw = Draw(0, self.number)
        return self.engine.generate(self.prompts, self.work.tokens, draw, self.work.samples, keep_frozen=True)

    def score(self, rollouts: list[Any]) -> None:
        """Log-probabilities without a gradient: what a second inner update or a KL would need. No part of the step."""
        passes, share = micro_batches(rollouts, self.work.pass_tokens)
        with torch.no_grad():
            for rows in passes:
                self.module.score(pack([rollouts[i] for i in rows], self.module.policy.device, share))

    def update(self, rollouts: list[Any]) -> None:
        advantages = group_advantages(self.work.rewards()).flatten()
        self.module.accumulate_gradient(rollouts, advantages, self.module.token_weights(rollouts), BeforeUpdate())
        torch.nn.utils.clip_grad_norm_(self.module.policy.policy_parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def natural(self) -> dict[str, float]:
        """Four times the prompts through the same slots; one token in T ends a row, and its slot goes to another."""
        size = self.module.policy.backbone.config.vocab_size
        prompts = self.more_prompts(4 * self.work.prompts)
        self.number += 1
        seconds, useful = {}, {}
        for name, ends in (("forced", []), ("natural", range(0, size, self.work.tokens))):
            engine = RolloutEngine(self.module.policy, list(ends), slots=self.work.rows)
            limit = self.work.tokens if name == "forced" else 2 * self.work.tokens
            start = time.perf_counter()
            found = engine.generate(prompts, limit, Draw(0, self.number), self.work.samples, keep_frozen=True)
            seconds[name] = time.perf_counter() - start
            useful[name] = sum(len(r.completion_ids) for r in found)
        return {f"{name}_tokens_per_second": useful[name] / seconds[name] for name in seconds}

    def alpha(self) -> dict[str, float]:
        """Seconds of a step's rollouts and of its alpha step, at the paper's ratio: 200 greedy decodes to 2048."""
        prompts = self.more_prompts(self.work.alpha_rollouts // self.work.samples)
        examples = max(1, round(len(prompts) * self.work.samples * 100 / 2048))
        engine = RolloutEngine(self.module.policy, [], slots=64)
        start = time.perf_counter()
        engine.generate(prompts, self.work.tokens, Draw(0, 1), self.work.samples, keep_frozen=True)
        drawn = time.perf_counter()
        engine.generate(prompts[:examples], self.work.tokens, Draw(greedy=True), 2, alphas=[0.0, 0.5])
        return {
            "rollouts": len(prompts) * self.work.samples,
            "decodes": 2 * examples,
            "rollout_seconds": drawn - start,
            "alpha_seconds": time.perf_counter() - drawn,
        }

    def more_prompts(self, count: int) -> list[list[int]]:
        """Of the same length: the step's prompts, turned around."""
        turned = [ids[i:] + ids[:i] for i in range(-(-count // len(self.prompts))) for ids in self.prompts]
        return turned[:count]


def growth(work: Work) -> list[dict[str, float]]:
    """Tokens a second and peak memory of rollouts and update, one size changed at a time, beside the planner's peak."""
    start = memory()  # Python and its libraries: no part of what is planned
    small = replace(work, only_rollouts=False, prompts=2, samples=4, tokens=32, prompt_tokens=64, pass_tokens=10**6)
    sizes = [small]
    sizes += [replace(small, samples=g) for g in (8, 16)]
    sizes += [replace(small, tokens=t) for t in (64, 128)]
    sizes += [replace(small, prompt_tokens=s) for s in (128, 256)]
    whole = load_config(work.model).vocab_size
    found = []
    for size, vocabulary in [(size, whole) for size in sizes] + [(small, whole // 4), (sizes[2], whole // 4)]:
        contender = Ours(size, vocabulary if vocabulary < whole else None)
        figures = contender.step()
        del contender
        reset_memory()
        planned = planned_gb(size, vocabulary)
        found.append(
            {
                "samples": size.samples,
                "tokens": size.tokens,
                "prompt_tokens": size.prompt_tokens,
                "vocabulary": vocabulary,
                "rollout_tokens_per_second": size.rows * size.tokens / figures["rollout"],
                "update_tokens_per_second": size.rows * size.tokens / figures["update"],
                "rollout_gb": figures["rollout_gb"] - start,
                "update_gb": figures["update_gb"] - start,
                "planned_gb": planned,
                "planned_of_peak": planned / (max(figures["rollout_gb"], figures["update_gb"]) - start),
            }
        )
    return found


def planned_gb(work: Work, vocabulary: int) -> float:
    """The planner's peak for a step of this work."""
    config = load_config(work.model)
    config.vocab_size, config.pad_token_id = vocabulary, None
    model = model_shape(config, AdapterConfig(rank=work.rank))
    run = RunShape(
        nf4=work.quantization == "nf4",
        double_quantization=True,
        width=compute_dtype(work.dtype, work.device).itemsize,
        dense_rollouts=work.quantization == "nf4",
        checkpointing=False,
        streams=2,
        prompts=work.prompts,
        samples=work.samples,
        slots=work.rows,
        prompt_tokens=work.prompt_tokens,
        tokens=work.tokens,
        keep_frozen=True,
        pass_tokens=work.pass_tokens,
    )
    # its reference has an adapter of the policy's size
    return estimates.peak(estimates.memory(replace(model, frozen_lora=model.lora), run)) / 1e9


class Naive(Contender):
    """The mixture in the plainest correct way."""

    def __init__(self, work: Work) -> None:
        self.work = work
        base = load_backbone(work.backbone, work.device)
        base.requires_grad_(False)
        self.model: Any = get_peft_model(base, work.lora, adapter_name="policy")
        self.model.add_adapter("reference", work.lora)
        randomise(self.model)
        self.prompts = torch.tensor(work.prompt_ids(), device=work.device).repeat_interleave(work.samples, dim=0)
        self.parameters = [p for name, p in self.model.named_parameters() if ".policy." in name]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-5)

    def use(self, adapter: str) -> None:
        self.model.set_adapter(adapter)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".policy." in name)

    @torch.no_grad()
    def rollouts(self) -> torch.Tensor:
        self.model.eval()
        caches = {stream: DynamicCache() for stream in ("policy", "reference")}
        ids, fed = self.prompts, self.prompts
        for _ in range(self.work.tokens):
            logits = []
            for stream, cache in caches.items():
                self.use(stream)
                out = self.model(input_ids=fed, past_key_values=cache, use_cache=True)
                logits.append(out.logits[:, -1].float())
            mixed = 0.5 * logits[0] + 0.5 * logits[1]
            fed = torch.multinomial(mixed.softmax(-1), 1)
            ids = torch.cat([ids, fed], dim=1)
        return ids

    def log_probs(self, ids: torch.Tensor) -> torch.Tensor:
        self.use("reference")
        with torch.no_grad():
            reference = self.model(input_ids=ids, use_cache=False).logits.float()
        self.use("policy")
        policy = self.model(input_ids=ids, use_cache=False).logits.float()
        mixed = (0.5 * policy + 0.5 * reference)[:, self.work.prompt_tokens - 1 : -1]
        return mixed.log_softmax(-1).gather(-1, ids[:, self.work.prompt_tokens :, None]).squeeze(-1)

    def parts(self) -> list[slice]:
        """Whole logits of more rows do not fit beside each other."""
        rows = max(1, 512 // (self.work.prompt_tokens + self.work.tokens))
        return [slice(i, i + rows) for i in range(0, self.work.rows, rows)]

    def score(self, ids: torch.Tensor) -> None:
        with torch.no_grad():
            for part in self.parts():
                self.log_probs(ids[part])

    def update(self, ids: torch.Tensor) -> None:
        self.model.train()
        advantages = group_advantages(self.work.rewards()).flatten().to(ids.device)
        groups = torch.arange(self.work.prompts, device=ids.device).repeat_interleave(self.work.samples)
        for part in self.parts():
            new = self.log_probs(ids[part])
            mask = torch.ones_like(new, dtype=torch.bool)
            loss, _ = clipped_surrogate_loss(new, new.detach(), advantages[part], mask, groups[part])
            (loss * len(new) / self.work.rows).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def trl(work: Work, beta: float) -> None:
    """TRL's GRPOTrainer on the same work; its own rollouts and update, one optimiser step a turn."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    if work.rows % work.trl_rows:
        raise SystemExit(f"--trl_rows must divide the {work.rows} rows of a step, not be {work.trl_rows}")
    model = load_backbone(work.backbone, work.device)
    tokenizer = load_tokenizer(work.model)
    config = GRPOConfig(
        output_dir="/tmp/lmix-benchmark-trl",
        per_device_train_batch_size=work.trl_rows,
        gradient_accumulation_steps=work.rows // work.trl_rows,
        num_generations=work.samples,
        max_completion_length=work.tokens,
        generation_kwargs={"min_new_tokens": work.tokens},
        beta=beta,
        max_steps=10**6,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=work.device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    phases = {"rollout": 0.0, "start": 0.0, "rollout_gb": 0.0}

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if next_order() == "end":
                os._exit(0)
            reset_memory()
            phases.update(rollout=0.0, start=time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            whole = time.perf_counter() - phases["start"]
            update_gb = memory()
            reset_memory()
            tell(
                rollout=phases["rollout"],
                update=whole - phases["rollout"],
                rollout_gb=phases["rollout_gb"],
                update_gb=update_gb,
            )

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(ids) for ids in work.prompt_ids()]}),
        processing_class=tokenizer,
        peft_config=work.lora,
        callbacks=[Turns()],
    )
    generate = trainer._generate_and_score_completions

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = generate(*args, **kwargs)
        drawn = time.perf_counter()
        phases["rollout"] += drawn - start
        phases["rollout_gb"] = memory()
        reset_memory()
        phases["start"] += time.perf_counter() - drawn  # our own book-keeping is not TRL's time
        return found

    trainer._generate_and_score_completions = timed
    tell()
    trainer.train()


# what they share


def memory() -> float:
    """GB at most since `reset_memory`: of the process, or of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e9


def reset_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that contenders fit beside each other
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is today's use again


def randomise(model: Any) -> None:
    """Give the adapters values, so that no product is a product with zeros."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.01)


def random_adapter(work: Work, folder: Path) -> str:
    """A reference of the policy's shape, as a peft folder; its values are set later."""
    peft_model: Any = get_peft_model(skeleton(load_config(work.model)), work.lora, adapter_name="reference")
    peft_model.load_state_dict(
        {name: torch.zeros(p.shape) for name, p in peft_model.named_parameters() if "lora_" in name},
        strict=False,
        assign=True,
    )
    save_adapter(peft_model, "reference", folder)
    return str(folder)


def cut_vocabulary(backbone: Any, size: int) -> None:
    """Keep the first `size` tokens only."""
    for layer in {backbone.get_input_embeddings(), backbone.get_output_embeddings()}:
        layer.weight = torch.nn.Parameter(layer.weight.data[:size].clone(), requires_grad=False)
        layer.padding_idx = None
    backbone.config.vocab_size = size


def tell(**figures: Any) -> None:
    print(MARK + json.dumps(figures), flush=True)


def next_order() -> str:
    return (sys.stdin.readline() or "end").strip()


def serve(contender: Any) -> None:
    """Do what is asked for until the end."""
    tell()
    while (order := next_order()) != "end":
        figures = getattr(contender, order)()
        reset_memory()
        tell(**figures)


def main(arguments: Sequence[str]) -> None:
    name, settings = arguments
    work = Work(**json.loads(settings))
    torch.set_num_threads(work.threads)
    if name == "growth":
        tell()
        next_order()
        tell(rows=growth(work))
    elif name.startswith("trl"):
        trl(work, 0.01 if name == "trl_kl" else 0.0)
    else:
        serve({"ours": Ours, "naive": Naive}[name](work))


if __name__ == "__main__":
    main(sys.argv[1:])
