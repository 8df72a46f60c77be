"""A tokenizer is what its tokenizer.json says, and leaves prompts open."""

import json

import pytest
from tokenizers import Tokenizer, normalizers, processors
from transformers import PreTrainedTokenizerFast

from lmix.model.sources import count_places, load_config
from lmix.model.tokenizer import load_tokenizer
from lmix.model.tokenizer_file import SAMPLES, check_against_file
from lmix.tasks.task import Problem, Task
from tests.model.tokenizers import CHATML, byte_level, closing_with, copy_of_embedded, write_tokenizer

TEXTS = [*SAMPLES, "47 + 2023 = 2070", " <|im_start|>user\n8<|im_end|>", "\\boxed{650841823}"]


def test_a_copy_of_the_embedded_model_has_its_tokenizer(tmp_path):
    embedded, copy = load_tokenizer("lmix:tiny-arithmetic"), load_tokenizer(str(copy_of_embedded(tmp_path / "mine")))
    text = "Tom has 47 eggs. Tom buys 5 more.\n47 + 5 = 52. \\boxed{52}"
    ids = copy(text)["input_ids"]
    assert ids == embedded(text)["input_ids"]
    assert copy.decode(ids) == text


@pytest.mark.parametrize(
    ("model_type", "named", "digits"),
    [
        # classes that transformers 5.23 still rebuilds: digit by digit, in no groups, or with a vocabulary's own marks
        ("qwen2", "Qwen2TokenizerFast", 3),
        ("gpt_neox", "GPTNeoXTokenizer", 2),
        ("cohere", "CohereTokenizerFast", 3),
        ("gemma", "GemmaTokenizer", 1),
        # and some that earlier versions did (DeepSeek-R1-Distill-Llama, OLMo 2)
        ("llama", "LlamaTokenizer", 3),
        ("olmo2", "GPT2Tokenizer", 3),
        ("llama", None, 3),
    ],
)
def test_the_file_decides_and_not_the_class_that_is_named(tmp_path, model_type, named, digits):
    path = write_tokenizer(tmp_path, byte_level(digits), model_type, tokenizer_class=named)
    tokenizer, file = load_tokenizer(path), Tokenizer.from_file(f"{path}/tokenizer.json")
    for text in TEXTS:
        ids = file.encode(text).ids
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == file.decode(ids, skip_special_tokens=False) == text


def test_blanks_before_full_stops_stay(tmp_path):
    """Llama 3's tokenizer_config.json asks for a clean-up that is made for BERT."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level(), clean_up_tokenization_spaces=True))
    assert tokenizer.decode(tokenizer("x = 5 , y do n't .")["input_ids"]) == "x = 5 , y do n't ."


def test_a_tokenizer_that_differs_from_its_file_is_refused(tmp_path):
    path = write_tokenizer(tmp_path / "a", byte_level(1))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    other = byte_level(1)
    other.normalizer = normalizers.Lowercase()  # pyright: ignore
    other.save(str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match=r"^'Tom has .* is encoded as \[.*, but tokenizer.json gives \["):
        check_against_file(tokenizer, tmp_path / "other.json")
    # a mark of the chat template that the file has as plain text
    fields = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] != "<|im_start|>"]
    (tmp_path / "fewer.json").write_text(json.dumps(fields))
    check_against_file(tokenizer, tmp_path / "fewer.json")
    tokenizer.chat_template = CHATML
    with pytest.raises(ValueError, match="im_start"):
        check_against_file(tokenizer, tmp_path / "fewer.json")


def test_tokens_that_tokenizer_config_adds_with_other_rules_are_refused(tmp_path):
    rules = {"content": " eggs", "lstrip": True, "rstrip": True, "normalized": False, "special": False}
    path = write_tokenizer(tmp_path, byte_level(), added_tokens_decoder={"401": {**rules, "single_word": False}})
    with pytest.raises(ValueError, match=r"^tokenizer of backbone .* can't be used: 'Tom has 1234567 eggs") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_special_tokens_that_only_the_class_knows(tmp_path):
    path = write_tokenizer(tmp_path, byte_level(), "qwen2", tokenizer_class="Qwen2Tokenizer", eos_token=None)
    assert load_tokenizer(path).eos_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("processor", "begins"),
    [
        (closing_with("<|endoftext|>"), []),
        (closing_with("<|im_end|>", begin="<|im_start|>"), [1]),
        (processors.Sequence([processors.ByteLevel(trim_offsets=False), closing_with("<|endoftext|>")]), []),
    ],
)
def test_a_prompt_stays_open(tmp_path, processor, begins):
    tokenizer = byte_level()
    plain = tokenizer.encode("1 + 1 =").ids
    tokenizer.post_processor = processor
    loaded = load_tokenizer(write_tokenizer(tmp_path, tokenizer))
    assert loaded("1 + 1 =")["input_ids"] == [*begins, *plain]
    task = Task(prompt="{problem}")
    assert task.prompt_ids(Problem(0, "1 + 1 =", "2"), loaded) == [*begins, *plain]
    loaded.save_pretrained(tmp_path / "exported")  # as lmix export writes it
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "exported")("1 + 1 =")["input_ids"] == [*begins, *plain]


def test_a_prompt_stays_open_where_the_config_says_add_eos_token(tmp_path):
    loaded = load_tokenizer(write_tokenizer(tmp_path, byte_level(), add_eos_token=True))
    assert loaded.eos_token_id not in loaded("1 + 1 =")["input_ids"]
    loaded.save_pretrained(tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text()).get("add_eos_token") is not True


def test_a_post_processor_that_can_not_be_changed_is_refused(tmp_path):
    tokenizer = byte_level()
    tokenizer.post_processor = processors.BertProcessing(("<|endoftext|>", 0), ("<|im_start|>", 1))  # pyright: ignore
    with pytest.raises(ValueError, match="appends a special token to each prompt: remove that token from its post_"):
        load_tokenizer(write_tokenizer(tmp_path, tokenizer))


def test_a_changed_folder_is_read_again(tmp_path):
    path = write_tokenizer(tmp_path, byte_level(3))
    first = load_tokenizer(path)
    assert load_tokenizer(path) is first
    write_tokenizer(tmp_path, byte_level(1))
    assert load_tokenizer(path)("2023")["input_ids"] != first("2023")["input_ids"]


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ({}, 32768),
        ({"rope_type": "default"}, 32768),
        # Qwen's: max_position_embeddings is that of pretraining
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        # DeepSeek's and Llama 3.1's: it counts what scaling adds
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}, 32768),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 2048}, 32768),
        ({"rope_type": "linear", "factor": 4.0}, 32768),
    ],
)
def test_places_with_scaled_rotary_embeddings(tmp_path, fields, places):
    config = {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": fields or None}
    if fields.get("rope_type") == "llama3":
        fields |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert count_places(load_config(str(tmp_path))) == places
