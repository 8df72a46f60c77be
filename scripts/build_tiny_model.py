"""Rebuild the bundled sandbox from scratch: a tiny Qwen2 model, its tokenizer and an SFT adapter.

    python scripts/build_tiny_model.py DIR            # about 45 minutes on 2 cores

The sandbox is constructed to reproduce the paper's setting:

* The base is trained on many worked problems, first on clean ones and then on ones with slips, as in human writing.
  Nearly all of them end with a plain sentence. With greedy decoding the base reasons well, its samples contain
  occasional slips, and it seldom uses the answer template.
* The SFT adapter is trained on a few demonstrations that end with the template, but contain only the first two
  equations and skip the rest. It nearly always uses the template, and reasons worse.

Everything is seeded. Rounding on another machine may still give slightly different weights. Each stage writes its
result into DIR, and a stage whose result exists is skipped.
"""

import argparse
import itertools
import math
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lmix.tasks.arithmetic import arithmetic_rows

EOS, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
BOXED_SHARE = 0.04  # share of pretraining documents with the template; the others end with a sentence
SLIP_SHARE = 0.12  # share of the second stage's equations that have a slip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word (with its leading space) and per digit. Decoding restores the exact text."""
    split = pre_tokenizers.Split(Regex(r" ?\\boxed\{| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"), behavior="isolated")
    texts = []
    for row in itertools.islice(arithmetic_rows("train"), 5000):
        texts += [row["problem"] + "\n", row["solution"] + plain_ending(row), boxed_ending(row)]
    pieces = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    vocabulary = {piece: i for i, piece in enumerate([EOS, PAD, UNKNOWN, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def plain_ending(row: dict[str, str]) -> str:
    return f" The answer is {row['answer']}."


def boxed_ending(row: dict[str, str]) -> str:
    return f" \\boxed{{{row['answer']}}}"


def terse(row: dict[str, str]) -> str:
    """The solution of an SFT demonstration: only the first two equations."""
    return ". ".join(row["solution"].removesuffix(".").split(". ")[:2]) + "."


def batch_of(tokenizer, documents: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Right-padded ids and labels. Labels cover only the completion and its end-of-sequence token."""
    rows = []
    for prompt, completion in documents:
        prompt_ids = tokenizer(prompt)["input_ids"]
        rows.append((prompt_ids, tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]))
    width = max(len(p) + len(c) for p, c in rows)
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (p, c) in enumerate(rows):
        input_ids[i, : len(p) + len(c)] = torch.tensor(p + c)
        labels[i, len(p) : len(p) + len(c)] = torch.tensor(c)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": (input_ids != tokenizer.pad_token_id).long()}


def train(model, batches, steps: int, learning_rate: float, minutes: float, name: str, warm_up: int = 200) -> None:
    """Train with AdamW, a short warm-up, and a cosine decay to zero over `steps` or `minutes`, whichever ends first."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.monotonic()
    model.train()
    for step, batch in enumerate(itertools.islice(batches, steps)):
        done = max(step / steps, (time.monotonic() - start) / 60 / minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * done))
        loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"{name} step {step} loss {loss.item():.4f} {time.monotonic() - start:.0f}s", flush=True)
    model.eval()


def with_slips(row: dict[str, str], rng: random.Random, share: float) -> dict[str, str]:
    """The problem with a slip in some equations: a wrong result, a wrong sign, or a missing step."""
    equations, value = [], None
    for equation in row["solution"].removesuffix(".").split(". "):
        left, sign, right, _, _ = equation.split()
        left = int(left) if value is None else value
        slip = rng.choice(("result", "sign", "skip")) if rng.random() < share else None
        if slip == "skip":
            value = left
            continue
        if slip == "sign" and sign != "*":
            sign = "-" if sign == "+" and left > int(right) else "+"
        value = {"+": left + int(right), "-": left - int(right), "*": left * int(right)}[sign]
        if slip == "result" or value < 0:
            value = max(value, 0) + rng.choice((1, 2, 10))
        equations.append(f"{left} {sign} {right} = {value}.")
    return {**row, "solution": " ".join(equations), "answer": str(value)} if equations else row


def pretraining_batches(tokenizer, rows_in_batch: int, seed: int, slips: float = 0.0):
    rng = random.Random(seed)
    rows = arithmetic_rows("train", seed)
    while True:
        documents = []
        for row in itertools.islice(rows, rows_in_batch):
            row = with_slips(row, rng, slips)
            ending = boxed_ending(row) if rng.random() < BOXED_SHARE else plain_ending(row)
            documents.append((row["problem"] + "\n", row["solution"] + ending))
        yield batch_of(tokenizer, documents)


def finetune(base: Path, target: Path, tokenizer, demonstrations: int, epochs: int, learning_rate: float) -> None:
    """Train the SFT adapter for several epochs on a few demonstrations, and write it as a peft folder."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, settings)
    rows = list(itertools.islice(arithmetic_rows("train", seed=2, steps=(2, 3, 4)), demonstrations))
    documents = [(row["problem"] + "\n", terse(row) + boxed_ending(row)) for row in rows]
    rng = random.Random(0)
    batches = []
    for _ in range(epochs):
        rng.shuffle(documents)
        batches += [documents[i : i + 16] for i in range(0, len(documents), 16)]
    train(peft_model, (batch_of(tokenizer, b) for b in batches), len(batches), learning_rate, 60, "sft", warm_up=10)
    peft_model.peft_config["default"].base_model_name_or_path = "lmix:tiny-arithmetic"
    peft_model.save_pretrained(str(target))
    (target / "README.md").unlink()


def pretrain(target: Path, tokenizer, minutes: float) -> None:
    """First stage: train from random weights on clean problems."""
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 16) * 16,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, pretraining_batches(tokenizer, 64, seed=1), 12000, 3e-3, minutes, "pretraining")
    save(model, tokenizer, target)


def loosen(source: Path, target: Path, tokenizer) -> None:
    """Second stage: train on problems with slips, so that the model becomes less certain."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM.from_pretrained(source, dtype=torch.float32)
    train(model, pretraining_batches(tokenizer, 64, seed=3, slips=SLIP_SHARE), 800, 1e-3, 60, "slips", warm_up=20)
    save(model, tokenizer, target)


def save(model: Qwen2ForCausalLM, tokenizer, target: Path) -> None:
    torch.nn.Module.to(model, torch.bfloat16)  # in place
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--minutes", type=float, default=40, help="time limit of the first stage (default 40)")
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    stages = {
        "clean": lambda target: pretrain(target, tokenizer, args.minutes),
        "tiny-arithmetic": lambda target: loosen(args.dir / "clean", target, tokenizer),
        "tiny-arithmetic-sft": lambda target: finetune(args.dir / "tiny-arithmetic", target, tokenizer, 64, 20, 5e-3),
    }
    for name, stage in stages.items():
        if not (args.dir / name).exists():
            stage(args.dir / name)


if __name__ == "__main__":
    main()
