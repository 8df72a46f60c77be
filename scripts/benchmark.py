"""Time lmix against naive mixing, TRL's GRPOTrainer and the machine's own matmul rate, on the same model and prompts.

    python scripts/benchmark.py --model path/to/qwen2.5-0.5b --prompts path/to/math/train.jsonl --json out.json
    python scripts/benchmark.py --quick        # the embedded model, one repetition: does it run?

One process each, started once; they take turns, one working at a time. Every completion is forced to the same length,
and every group has both rewards, so that all of them do all the work. Needs TRL (`pip install lmix[bench]`), which is
left out where it is not installed.

Contenders:
    ours    sampling and update of lmix's GRPOModule, both streams
    naive   the same mixture as one would write it: peft's set_adapter, two dynamic caches, whole logits averaged, a
            softmax over the vocabulary and multinomial; the update by two forward passes with whole logits
    trl     GRPOTrainer, one stream (transformers' generate); trl_kl the same at beta 0.01
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lmix:tiny-arithmetic", help="folder of a causal LM")
    parser.add_argument("--prompts", type=Path, help="jsonl with a column `problem`; null: the sandbox's problems")
    parser.add_argument("--count", type=int, default=4, help="P, prompts of a step")
    parser.add_argument("--samples", type=int, default=8, help="G, completions of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each completion")
    parser.add_argument("--prompt_tokens", type=int, default=64, help="tokens of each prompt (cut or repeated to it)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quantization", choices=["none", "nf4"], default="none")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--contenders", default="ours,naive,trl,trl_kl")
    parser.add_argument("--trl_rows", type=int, default=8, help="rows of one of TRL's forward and backward passes")
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.worker:
        return WORKERS[settings.worker.removesuffix("_kl")](settings)
    return compare(settings)


def compare(settings: argparse.Namespace) -> int:
    """Start the contenders, let them take turns, and print medians and ratios."""
    names = [name for name in settings.contenders.split(",") if not name.startswith("trl") or has_trl()]
    repeats = 1 if settings.quick else settings.repeats
    workers = {name: Worker(name, sys.argv[1:], settings.threads) for name in names}
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, worker in workers.items():
            lap = worker.turn()
            if turn:  # the first one warms up
                laps[name].append(lap)
    figures = {name: medians(found) | workers[name].end() for name, found in laps.items()}
    figures["limit"] = limit(settings)
    result = ratios(figures, settings) | {"figures": figures, "repeats": repeats, "settings": shown(settings)}
    print(table(result))
    if settings.json:
        settings.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


class Worker:
    """A contender's process, which works only when it is told to."""

    def __init__(self, name: str, args: list[str], threads: int) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        line = [sys.executable, __file__, *args, f"--worker={name}"]
        self.name = name
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.answer()  # it is ready

    def turn(self) -> dict[str, float]:
        """Seconds of one step's phases."""
        return self.ask("step")

    def end(self) -> dict[str, float]:
        found = self.ask("end")
        self.process.wait()
        return found

    def ask(self, what: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit(f"benchmark: {self.name} ended: run it alone with --worker={self.name} to see why")


MARK = "BENCHMARK "


def tell(**figures: float) -> None:
    print(MARK + json.dumps(figures), flush=True)


def serve(step: Any) -> int:
    """Do steps as they are asked for."""
    tell()
    for line in sys.stdin:
        if line.strip() == "end":
            tell(peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
            return 0
        tell(**step())
    return 0


# the contenders


def ours(settings: argparse.Namespace) -> int:
    """One GRPO step of lmix: its own methods, without a Trainer around them."""
    import torch

    from lmix.functional import group_advantages
    from lmix.model.adapters import AdapterConfig
    from lmix.model.backbone import BackboneConfig
    from lmix.rollout.engine import Draw, RolloutEngine
    from lmix.training.config import SamplingConfig
    from lmix.training.grpo import BeforeUpdate, GRPOModule

    torch.set_num_threads(settings.threads)
    backbone = BackboneConfig(settings.model, settings.quantization, dtype=settings.dtype)
    module = GRPOModule(backbone, AdapterConfig(rank=settings.rank), sampling=SamplingConfig(settings.samples))
    module.configure_model()
    module.backward_here = lambda loss: loss.backward()
    randomise(module.policy)
    engine = RolloutEngine(module.policy, [], slots=settings.count * settings.samples)
    optimizer = torch.optim.AdamW(module.policy.policy_parameters(), 1e-5)
    prompts = prompt_ids(settings, module.tokenizer)
    rewards_PG = alternating(settings)
    number = 0

    def step() -> dict[str, float]:
        nonlocal number
        number += 1
        start = time.perf_counter()
        rollouts = engine.generate(prompts, settings.tokens, Draw(0, number), settings.samples, keep_frozen=True)
        drawn = time.perf_counter()
        advantages = group_advantages(rewards_PG).flatten()
        module.accumulate_gradient(rollouts, advantages, module.token_weights(rollouts), BeforeUpdate())
        torch.nn.utils.clip_grad_norm_(module.policy.policy_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"rollout": drawn - start, "update": time.perf_counter() - drawn}

    return serve(step)


def naive(settings: argparse.Namespace) -> int:
    """The mixture in the plainest correct way."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import DynamicCache

    from lmix.functional import clipped_surrogate_loss, group_advantages
    from lmix.model.backbone import BackboneConfig, load_backbone
    from lmix.model.tokenizer import load_tokenizer

    torch.set_num_threads(settings.threads)
    base = load_backbone(BackboneConfig(settings.model, settings.quantization, dtype=settings.dtype))
    base.requires_grad_(False)
    lora = LoraConfig(r=settings.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, adapter_name="policy")
    model.add_adapter("reference", lora)  # pyright: ignore
    randomise(model)
    prompts = torch.tensor(prompt_ids(settings, load_tokenizer(settings.model)))
    prompts = prompts.repeat_interleave(settings.samples, dim=0)
    rewards_PG = alternating(settings)
    groups = torch.arange(settings.count).repeat_interleave(settings.samples)
    policy_parameters = [p for name, p in model.named_parameters() if ".policy." in name]
    optimizer = torch.optim.AdamW(policy_parameters, 1e-5)
    streams = ("policy", "reference")

    def use(adapter: str) -> None:
        model.set_adapter(adapter)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".policy." in name)

    @torch.no_grad()
    def rollout() -> torch.Tensor:
        model.eval()
        caches = {stream: DynamicCache() for stream in streams}
        ids, fed = prompts, prompts
        for _ in range(settings.tokens):
            logits = []
            for stream in streams:
                use(stream)
                out = model(input_ids=fed, past_key_values=caches[stream], use_cache=True)
                logits.append(out.logits[:, -1].float())
            mixed = 0.5 * logits[0] + 0.5 * logits[1]
            fed = torch.multinomial(mixed.softmax(-1), 1)
            ids = torch.cat([ids, fed], dim=1)
        return ids

    def log_probs(ids: torch.Tensor) -> torch.Tensor:
        use("reference")
        with torch.no_grad():
            reference = model(input_ids=ids, use_cache=False).logits.float()
        use("policy")
        policy = model(input_ids=ids, use_cache=False).logits.float()
        mixed = (0.5 * policy + 0.5 * reference)[:, prompts.shape[1] - 1 : -1]
        chosen = ids[:, prompts.shape[1] :, None]
        return mixed.log_softmax(-1).gather(-1, chosen).squeeze(-1)

    def step() -> dict[str, float]:
        start = time.perf_counter()
        ids = rollout()
        drawn = time.perf_counter()
        model.train()
        advantages = group_advantages(rewards_PG).flatten()
        rows = max(1, 512 // ids.shape[1])  # whole logits of more rows do not fit beside each other
        for i in range(0, len(ids), rows):
            part = slice(i, i + rows)
            new = log_probs(ids[part])
            loss, _ = clipped_surrogate_loss(
                new, new.detach(), advantages[part], torch.ones_like(new, dtype=torch.bool), groups[part]
            )
            (loss * rows / len(ids)).backward()
        torch.nn.utils.clip_grad_norm_(policy_parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"rollout": drawn - start, "update": time.perf_counter() - drawn}

    return serve(step)


def trl(settings: argparse.Namespace) -> int:
    """TRL's GRPOTrainer on the same work; its own rollouts and update, one optimiser step a turn."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    from lmix.model.backbone import BackboneConfig, load_backbone
    from lmix.model.tokenizer import load_tokenizer

    torch.set_num_threads(settings.threads)
    model = load_backbone(BackboneConfig(settings.model, settings.quantization, dtype=settings.dtype))
    tokenizer = load_tokenizer(settings.model)
    texts = [tokenizer.decode(ids) for ids in prompt_ids(settings, tokenizer)]
    rows = settings.count * settings.samples
    config = GRPOConfig(
        output_dir="/tmp/lmix-benchmark-trl",
        per_device_train_batch_size=settings.trl_rows,
        gradient_accumulation_steps=rows // settings.trl_rows,
        num_generations=settings.samples,
        max_completion_length=settings.tokens,
        generation_kwargs={"min_new_tokens": settings.tokens},
        beta=0.01 if settings.worker.endswith("_kl") else 0.0,
        max_steps=settings.repeats + 2,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    phases = {"rollout": 0.0, "start": 0.0}

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            for line in sys.stdin:
                if line.strip() == "end":
                    tell(peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
                    os._exit(0)
                break
            phases.update(rollout=0.0, start=time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            whole = time.perf_counter() - phases["start"]
            tell(rollout=phases["rollout"], update=whole - phases["rollout"])

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    lora = LoraConfig(r=settings.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Turns()],
    )
    generate = trainer._generate_and_score_completions

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = generate(*args, **kwargs)
        phases["rollout"] += time.perf_counter() - start
        return found

    trainer._generate_and_score_completions = timed
    tell()
    trainer.train()
    return 0


WORKERS = {"ours": ours, "naive": naive, "trl": trl}


def has_trl() -> bool:
    from importlib.util import find_spec

    return find_spec("trl") is not None


# what they share


def prompt_ids(settings: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """`count` prompts of exactly `prompt_tokens` tokens."""
    if settings.prompts:
        texts = [json.loads(line)["problem"] for line in settings.prompts.open(encoding="utf-8")]
    else:
        from lmix.tasks.arithmetic import ArithmeticTask

        texts = [problem.problem for problem in ArithmeticTask(train_size=settings.count).problems("train")]
    prompts = []
    for text in texts[: settings.count]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompts.append((ids * (1 + settings.prompt_tokens // len(ids)))[: settings.prompt_tokens])
    return prompts


def alternating(settings: argparse.Namespace) -> Any:
    """Rewards 0, 1, 0, 1 in every group, `[P, G]`: all groups are live."""
    import torch

    return torch.tensor([[float(g % 2) for g in range(settings.samples)]] * settings.count)


def randomise(model: Any) -> None:
    """Give the adapters values, so that no product is a product with zeros."""
    import torch

    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.01)


def limit(settings: argparse.Namespace) -> dict[str, float]:
    """Seconds that the rollouts' matmuls take at the rate of a large matmul, measured here and now.

    Both streams' prompts once each and their completions token by token through all linear layers, and the head once a
    drawn token, on mixed hidden states.
    """
    import torch

    from lmix.model.backbone import DTYPES
    from lmix.model.tokenizer import load_config

    torch.set_num_threads(settings.threads)
    config = load_config(settings.model)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    head = hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * config.intermediate_size
    rows = settings.count * settings.samples
    passes = 2 * (settings.count * settings.prompt_tokens + rows * (settings.tokens - 1))
    flops = 2.0 * (passes * layers * layer + rows * settings.tokens * hidden * config.vocab_size)
    a = torch.randn(512, hidden, dtype=DTYPES[settings.dtype])
    b = torch.randn(hidden, config.intermediate_size, dtype=DTYPES[settings.dtype])
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.matmul(a, b)
        times.append(time.perf_counter() - start)
    rate = 2.0 * 512 * hidden * config.intermediate_size / statistics.median(times)
    return {"rollout": flops / rate, "gflops": rate / 1e9}


def medians(laps: list[dict[str, float]]) -> dict[str, float]:
    found = {name: statistics.median(lap[name] for lap in laps) for name in ("rollout", "update")}
    return found | {"step": statistics.median(lap["rollout"] + lap["update"] for lap in laps)}


def ratios(figures: dict[str, dict[str, float]], settings: argparse.Namespace) -> dict[str, float | None]:
    """How many times faster lmix is, and which part of the limit and of TRL's memory it takes; None: not measured."""

    def over(name: str, phase: str) -> float | None:
        return figures[name][phase] / figures["ours"][phase] if name in figures else None

    return {
        "rollout_vs_naive": over("naive", "rollout"),
        "rollout_of_limit": figures["limit"]["rollout"] / figures["ours"]["rollout"],
        "step_vs_trl": over("trl", "step"),
        "step_vs_trl_kl": over("trl_kl", "step"),
        "step_vs_naive": over("naive", "step"),
        "memory_of_trl": figures["ours"]["peak_gb"] / figures["trl"]["peak_gb"] if "trl" in figures else None,
        "rollout_tokens_per_second": settings.count * settings.samples * settings.tokens / figures["ours"]["rollout"],
    }


def shown(settings: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}


def table(result: dict[str, Any]) -> str:
    lines = ["| | rollout, s | update, s | step, s | peak, GB |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, figures in result["figures"].items():
        cells = [f"{figures[key]:.2f}" if key in figures else "" for key in ("rollout", "update", "step", "peak_gb")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [""] + [
        f"{name}: {'not measured' if value is None else f'{value:.2f}'}"
        for name, value in result.items()
        if value is None or isinstance(value, float)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
