"""Stop strings against a search in the decoded text, and the least number of tokens against written-out formulas."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmix.functional import without_tokens
from lmix.model.token_bytes import token_bytes
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.engine import Engine
from lmix.rollout.limits import limits_of, stop_strings
from lmix.rollout.types import Draw, flatten
from tests.conftest import MIXED, PROBS, VOCABULARY, make_policy, prompts, tokens
from tests.model.tokenizers import MARKS, byte_level, write_tokenizer

PROMPTS = prompts(*(tokens(n, seed=n).tolist() for n in (9, 2, 5, 14, 3)))
TAGS = ["so </answer>", "it is 4 </answer>\n\nUser: </answer></answer>", "<b></b> > </ answer 答案。答え 😀😃"] * 6


def byte_level_tokenizer(merges: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that has merged stop strings with what is before and after, the more the more merges."""
    tokenizer = byte_level()
    whole_lines = pre_tokenizers.Split("\x00", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
        [whole_lines, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(MARKS) + merges, initial_alphabet=alphabet, special_tokens=MARKS, show_progress=False
    )
    tokenizer.train_from_iterator([*TAGS, "er>\n", "></", "wer> ", "</answer>", "r>."] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=MARKS[0])


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with spaces as `▁` and byte fallback, as Llama 2's."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "</s>", *pieces, "▁", "▁</", "<", "/", ">", *"answer4"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # pyright: ignore
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


TOKENIZERS = {
    "bytes": lambda: byte_level_tokenizer(0),
    "some merges": lambda: byte_level_tokenizer(12),
    "all merges": lambda: byte_level_tokenizer(400),
    "sentencepiece": sentencepiece_tokenizer,
    "words": lambda: load_tokenizer("lmix:tiny-arithmetic"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def test_tokens_joined_as_bytes_are_the_decoded_text(tokenizer):
    """Also where a token is half a character."""
    texts, random_ids = token_bytes(tokenizer), random.Random(0)
    assert len(texts) == len(tokenizer)
    for _ in range(200):
        ids = [random_ids.randrange(len(tokenizer)) for _ in range(12)]
        start = tokenizer("a", add_special_tokens=False)["input_ids"]  # a text's first space may be trimmed
        joined = b"".join(texts[token] for token in [*start, *ids])
        if b"\xef\xbf\xbd" not in joined.decode(errors="replace").encode():
            assert joined.decode() == tokenizer.decode([*start, *ids])
    for text in ("it is 4 </answer>\n", "答え😀"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(texts[token] for token in ids).decode().strip() == tokenizer.decode(ids).strip()


def slow_end(tokenizer, ids, strings, ends=(), least=0, longest=10**9) -> int | None:
    """The slow twin of `Limits.end_of`: search the text of all tokens so far, after each of them."""
    texts, before = dict(enumerate(token_bytes(tokenizer))), 0
    for count, token in enumerate(ids, start=1):
        text = b"".join(texts.get(token, b"") for token in ids[:count])
        found = max(text.rfind(s.encode()) + len(s.encode()) if s.encode() in text else 0 for s in strings)
        if (found > before or token in ends) and least <= count <= longest:
            return count
        before = len(text)
    return None


@pytest.mark.parametrize("strings", [["</answer>"], ["r>", "</answer>\n", "r>\n\nU"], ["答案。"], ["😃", "aa"]])
def test_a_stop_string_is_found_however_it_is_cut(tokenizer, strings):
    texts = [t for s in strings for t in (s, f"x{s}y", f"{s[:-1]}{s}\n", f"4 {s[:2]} {s}{s} ", s[:-1], f"{s[0]}{s}")]
    limits = limits_of(tokenizer, [1], 100, strings)
    found = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert limits.end_of(ids) == slow_end(tokenizer, ids, strings, [1])
        found += limits.end_of(ids) is not None
    random_ids, pieces = random.Random(1), tokenizer("".join(texts), add_special_tokens=False)["input_ids"]
    for _ in range(300):
        ids = [random_ids.choice(pieces) for _ in range(20)]
        assert limits.end_of(ids) == slow_end(tokenizer, ids, strings, [1])
    assert found > 0 or tokenizer.unk_token_id == 2  # the embedded tokenizer knows no such characters


def test_a_string_that_ends_inside_a_token():
    """Such as `>` and line ends in one: the token stays whole."""
    tokenizer, stop = byte_level_tokenizer(400), b"</answer>"
    texts = token_bytes(tokenizer)
    limits = limits_of(tokenizer, [], 100, [stop.decode()])
    tails = [(i, t[: t.index(b">") + 1]) for i, t in enumerate(texts) if b">" in t[:-1]]
    tails = [(i, tail) for i, tail in tails if stop.endswith(tail)]
    assert len(tails) > 3
    for token, tail in tails:
        head = [texts.index(bytes([byte])) for byte in b"4 " + stop.removesuffix(tail)]
        ids = [*head, token, *head]
        assert limits.end_of(ids) == len(head) + 1
        assert limits.end_of(head) is None
        kept = tokenizer.decode(ids[: limits.end_of(ids)])
        assert kept.startswith("4 </answer>")
        assert not kept.endswith("</answer>")


def test_the_least_and_the_largest_number_of_tokens():
    tokenizer = byte_level_tokenizer(0)
    ids = tokenizer("ab ab ab", add_special_tokens=False)["input_ids"]
    ends = {(0, 8): 2, (2, 8): 2, (3, 8): 5, (6, 8): 8, (6, 7): None, (0, 1): None}
    for (least, longest), end in ends.items():
        assert limits_of(tokenizer, [], longest, ["ab"], least).end_of(ids) == end
    space = tokenizer(" ")["input_ids"]
    assert limits_of(tokenizer, space, 8).end_of(ids) == 3
    assert limits_of(tokenizer, space, 8, min_new_tokens=4).end_of(ids) == 6


def three_letters() -> PreTrainedTokenizerFast:
    """Words of one to three letters, as many as the tiny models have, so that any string is drawn soon and often."""
    words = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab>", repeat=n)]
    vocabulary = {word: i for i, word in enumerate([*MARKS, *words, *map(str, range(VOCABULARY - len(words) - 8))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=MARKS[3]))
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=MARKS[0])


@pytest.mark.parametrize("slots", [4, 20])
@pytest.mark.parametrize("check_every", [1, 5])
@pytest.mark.parametrize("least", [0, 6])
def test_the_engine_ends_where_a_search_in_the_text_does(folders, slots, check_every, least):
    """The same tokens and log-probabilities as without stop strings, cut. The model's head is wider than the
    vocabulary."""
    policy, tokenizer, strings = make_policy("qwen2", folders), three_letters(), ["b>", "aab"]
    engine = Engine(policy, slots, check_every=check_every)
    draw, ends = Draw(seed=0), [1, 2]
    free = flatten(engine.generate(PROMPTS, limits_of(tokenizer, ends, 24, (), least), draw, MIXED, 4, True))
    cut = flatten(engine.generate(PROMPTS, limits_of(tokenizer, ends, 24, strings, least), draw, MIXED, 4, True))
    ended = 0
    for before, rollout in zip(free, cut, strict=True):
        end = slow_end(tokenizer, before.completion_ids, strings, ends, least)
        assert rollout.ended == (end is not None)
        assert rollout.completion_ids == before.completion_ids[:end]
        assert torch.allclose(rollout.log_probs, before.log_probs[:end], atol=1e-5)
        assert rollout.frozen_hidden is not None
        assert len(rollout.frozen_hidden["reference"]) == len(rollout.completion_ids)
        ended += rollout.ended and rollout.completion_ids[-1] not in ends
    assert ended > 5
    assert len({len(r.completion_ids) for r in cut}) > 3


@pytest.mark.parametrize("mixture", [MIXED, PROBS], ids=["logits", "probs"])
def test_no_end_token_is_drawn_before_the_least_number_of_tokens(folders, mixture):
    policy = make_policy("qwen2", folders)
    ends = list(range(4, 60))  # half of the vocabulary
    limits = limits_of(three_letters(), ends, 12, (), 3)
    for greedy in (False, True):
        rollouts = flatten(Engine(policy, 8).generate(PROMPTS, limits, Draw(seed=0, greedy=greedy), mixture, 4))
        assert not any(token in ends for r in rollouts for token in r.completion_ids[:3])
        assert min(len(r.completion_ids) for r in rollouts) == 4
    other = replace(limits, min_new_tokens=0)
    rollouts = flatten(Engine(policy, 8).generate(PROMPTS, other, Draw(seed=0), mixture, 4))
    assert any(token in ends for r in rollouts for token in r.completion_ids[:3])


def test_without_tokens_is_the_renormalised_distribution():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends, rows = torch.tensor([2, 7]), torch.tensor([True, False, True, False])
    found = without_tokens(logits, ends, rows).log_softmax(-1)
    plain = logits.log_softmax(-1)
    expected = plain - torch.log1p(-plain[:, ends].exp().sum(-1, keepdim=True))
    expected[:, ends] = -torch.inf
    assert torch.allclose(found[rows], expected[rows])
    assert torch.equal(found[~rows], plain[~rows])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": [""]}, r"sampling.stop must be a list of non-empty strings, not \[''\]"),
        ({"stop": "</answer>"}, "sampling.stop must be a list of non-empty strings"),
        ({"min_new_tokens": -1}, "sampling.min_new_tokens must lie between 0 and sampling.max_new_tokens 512, not -1"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "must lie between 0 and sampling.max_new_tokens 4, not 5"),
    ],
)
def test_settings_that_are_no_limits(settings, message):
    from lmix.training.config import SamplingConfig

    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


def test_the_automaton_is_made_once(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level()))
    assert stop_strings(tokenizer, ("a",)) is stop_strings(tokenizer, ("a",))
