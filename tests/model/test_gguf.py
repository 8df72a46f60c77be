"""A .gguf file is read once for each of its parts, and never its vocabulary by gguf's own reader."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM

from lmix.model import tokenizer as tokenizer_module
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, fingerprint, load_backbone
from lmix.model.gguf_reader import LONG, HeaderReader, without_vocabulary
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.nf4 import is_4bit
from lmix.model.sources import check_places, load_config
from lmix.model.tokenizer import load_tokenizer
from tests.model.tokenizers import CHATML, MARKS, byte_level

WIDTH, INNER, HEADS, PAIRS, LAYERS = 64, 96, 4, 2, 2
VOCABULARY = LONG + 100


def tokens_and_merges() -> tuple[list[str], list[str]]:
    """Those of a small tokenizer, filled up so that gguf's reader would be slow on them."""
    model = json.loads(byte_level().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - len(tokens))]
    return tokens, [" ".join(merge) for merge in model["merges"]]


def write_gguf(path: Path, seed: int = 0, vocabulary_key: bool = False) -> str:
    """A random Qwen2 model with its tokenizer."""
    writer = GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(PAIRS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    tokens, merges = tokens_and_merges()
    if vocabulary_key:
        writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in MARKS else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(3)
    writer.add_chat_template(CHATML)
    numbers = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        small = WIDTH // HEADS * PAIRS
        shapes |= {f"blk.{i}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {
            f"blk.{i}.attn_{name}.weight": (rows, WIDTH) for name, rows in (("q", WIDTH), ("k", small), ("v", small))
        }
        shapes |= {f"blk.{i}.attn_{name}.bias": (rows,) for name, rows in (("q", WIDTH), ("k", small), ("v", small))}
        shapes |= {f"blk.{i}.attn_output.weight": (WIDTH, WIDTH), f"blk.{i}.ffn_down.weight": (WIDTH, INNER)}
        shapes |= {f"blk.{i}.ffn_{name}.weight": (INNER, WIDTH) for name in ("gate", "up")}
    for name, shape in shapes.items():
        writer.add_tensor(name, numbers.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture(params=[False, True])
def path(request, tmp_path) -> str:
    return write_gguf(tmp_path / "model.gguf", vocabulary_key=request.param)


def test_the_header_is_gguf_s_own_but_for_the_vocabulary(path):
    ours, theirs = HeaderReader(path), GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        if len(field.data) <= LONG:
            assert ours.fields[name].contents() == field.contents(), name
    assert len(ours.fields["tokenizer.ggml.tokens"].data) == VOCABULARY
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(ours.tensors, theirs.tensors, strict=True))


def test_model_and_configuration_are_what_transformers_makes_of_the_file(path):
    where, name = str(Path(path).parent), Path(path).name
    expected = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    model = load_backbone(BackboneConfig(path, "none", dtype="float32"))
    assert load_config(path).to_dict() == AutoConfig.from_pretrained(where, gguf_file=name).to_dict()
    assert load_config(path).vocab_size == VOCABULARY
    for (key, a), b in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert sum(is_4bit(m) for m in load_backbone(BackboneConfig(path, "nf4", dtype="float32")).modules()) == LAYERS * 7
    assert gguf.GGUFReader is GGUFReader


def test_the_tokenizer_is_the_file_s(path):
    tokenizer, marks = load_tokenizer(path), set(range(len(MARKS)))
    for text in ("Tom has 47 eggs.\n\n", "\\boxed{2070} 中文", "<|im_start|>user\n42<|im_end|>"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert [MARKS[i] for i in ids if i in marks] == [mark for mark in MARKS if mark in text]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 3)
    assert tokenizer.chat_template == CHATML


def test_nothing_is_read_twice(path, monkeypatch):
    """As a run starts: the prompts, the places, the adapters, the weights."""
    reads: dict[str, int] = {}

    def count(name, function):
        def counted(*args, **kwargs):
            reads[name] = reads.get(name, 0) + 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(tokenizer_module, "read_tokenizer", count("tokenizer", tokenizer_module.read_tokenizer))
    monkeypatch.setattr(AutoConfig, "from_pretrained", count("config", AutoConfig.from_pretrained))
    monkeypatch.setattr(HeaderReader, "__init__", count("header", HeaderReader.__init__))
    monkeypatch.setattr(GGUFReader, "__init__", count("whole header", GGUFReader.__init__))
    load_tokenizer(path)
    check_places(path, 10, 20)
    policy = MixedPolicy.from_pretrained(BackboneConfig(path, dtype="float32"), AdapterConfig(rank=4))
    load_tokenizer(path)
    check_places(path, 10, 20)
    # one for the configuration and one for the weights; HeaderReader calls GGUFReader's
    assert reads == {"tokenizer": 1, "config": 1, "header": 2, "whole header": 2}
    assert policy.fingerprint.count("-") == 1


def test_a_file_that_has_changed_is_read_again_and_is_another_backbone(path):
    first = fingerprint(load_backbone(BackboneConfig(path, "none")))
    assert first == fingerprint(load_backbone(BackboneConfig(path, "nf4")))
    write_gguf(Path(path), seed=1)
    assert fingerprint(load_backbone(BackboneConfig(path, "none"))) != first


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no gguf at all", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40])
def test_damaged_files_are_one_line(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    for load in (load_config, load_tokenizer, lambda path: load_backbone(BackboneConfig(path))):
        with pytest.raises(ValueError, match=r"backbone '.*model.gguf' can't be") as error:
            load(str(tmp_path / "model.gguf"))
        assert "\n" not in str(error.value)


def test_the_reader_is_put_back_after_an_error():
    with pytest.raises(RuntimeError), without_vocabulary():  # noqa: PT012
        assert gguf.GGUFReader is HeaderReader
        raise RuntimeError
    assert gguf.GGUFReader is GGUFReader
