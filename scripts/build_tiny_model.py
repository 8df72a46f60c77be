"""Rebuild the embedded default from scratch: a tiny Qwen2 model, its tokenizer and an SFT adapter.

    python scripts/build_tiny_model.py DIR            # about 45 minutes on 2 cores

The result is a sandbox, constructed so that the paper's situation is real in it:

* the base is trained on many worked problems, nearly all of which close with a plain sentence, so that it reasons well
  but seldom uses the answer template;
* the SFT adapter is trained on a few demonstrations that close with the template, for many epochs, so that it nearly
  always formats but reasons worse.

Everything is seeded; another machine's rounding may still give slightly different weights.
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
BOXED_SHARE = 0.04  # of the pretraining documents; the rest close with a sentence


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word (with its leading space) and one a digit; decoding gives the text back exactly."""
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


def batch_of(tokenizer, documents: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Right-padded ids and labels; only the completion and its end-of-sequence token are labels."""
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


def train(model, batches, steps: int, learning_rate: float, minutes: float, name: str) -> None:
    """AdamW, a short warm-up and a cosine to zero over `steps` or `minutes`, whichever ends first."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.monotonic()
    model.train()
    for step, batch in enumerate(itertools.islice(batches, steps)):
        done = max(step / steps, (time.monotonic() - start) / 60 / minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done))
        loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"{name} step {step} loss {loss.item():.4f} {time.monotonic() - start:.0f}s", flush=True)
    model.eval()


def pretraining_batches(tokenizer, rows_in_batch: int, seed: int):
    rng = random.Random(seed)
    rows = arithmetic_rows("train", seed)
    while True:
        documents = []
        for row in itertools.islice(rows, rows_in_batch):
            ending = boxed_ending(row) if rng.random() < BOXED_SHARE else plain_ending(row)
            documents.append((row["problem"] + "\n", row["solution"] + ending))
        yield batch_of(tokenizer, documents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
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
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, pretraining_batches(tokenizer, args.batch, seed=1), args.steps, args.lr, args.minutes, "pretraining")
    base = args.dir / "tiny-arithmetic"
    model.to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model.float()


if __name__ == "__main__":
    main()
