"""Which tokens end a turn, and that supervised fine-tuning teaches the chat template's."""

from types import SimpleNamespace
from typing import Any

import pytest

from lmix.model.end_tokens import all_end_tokens, closing_token, end_tokens
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.types import Prompt
from lmix.tasks.task import Problem, Task
from lmix.training.demonstrations import demonstration
from tests.model.tokenizers import CHATML, MARKS, byte_level, write_tokenizer

EOS, START, END, PAD = range(4)
TEMPLATES = {
    "chatml": (CHATML, END),
    # Qwen 3's: thoughts of its own before the answer
    "thinking": (
        CHATML.replace("{{ m.content }}", "{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}"),
        END,
    ),
    # Zephyr's, Mistral's
    "eos_token": ("{% for m in messages %}{{ m.role }}: {{ m.content }} {{ eos_token }}\n{% endfor %}", EOS),
    # Gemma's: content trimmed, and a turn's end on a line of its own
    "newline": ("{% for m in messages %}{{ m.role }}\n{{ m.content | trim }}\n<|pad|>\n{% endfor %}", PAD),
    "plain text": ("{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n{% endfor %}", None),
    "raises": ("{% for m in messages %}{{ raise_exception('no') if m.role == 'assistant' }}{% endfor %}", None),
    "none": (None, None),
}


@pytest.fixture(params=TEMPLATES)
def case(request, tmp_path):
    template, closing = TEMPLATES[request.param]
    return load_tokenizer(write_tokenizer(tmp_path, byte_level(), chat_template=template)), closing


def test_the_token_that_the_template_closes_a_turn_with(case):
    tokenizer, closing = case
    assert closing_token(tokenizer) == closing


def test_all_of_them_end_a_completion(case):
    tokenizer, closing = case
    policy: Any = SimpleNamespace(backbone=SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 9])))
    assert end_tokens(policy.backbone, tokenizer) == sorted({EOS, 7, 9} | ({closing} - {None}))
    assert all_end_tokens(tokenizer, None) == sorted({EOS} | ({closing} - {None}))
    assert all_end_tokens(tokenizer, 7) == sorted({EOS, 7} | ({closing} - {None}))


@pytest.mark.parametrize("chat", [True, False])
def test_sft_teaches_the_template_s_token_where_prompts_are_in_it(case, chat):
    """As Qwen2.5's base models: <|endoftext|> is the tokenizer's, <|im_end|> the template's."""
    tokenizer, closing = case
    problem, task = Problem(0, "1 + 1", "2", "Two: \\boxed{2}"), Task(prompt="{problem}", chat=chat)
    ids = demonstration(Prompt(problem, []), task, tokenizer).completion_ids
    assert ids[-1] == (closing if chat and closing is not None else EOS)
    assert tokenizer.decode(ids[:-1]) == "Two: \\boxed{2}"
    assert MARKS[ids[-1]] == tokenizer.decode(ids[-1:])


def asked(task: Task, tokenizer: Any) -> str:
    return tokenizer.decode(task.prompt_ids(Problem(0, "1 + 1", "2"), tokenizer))


def test_variables_of_the_chat_template(tmp_path):
    template = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level(), chat_template=template))
    assert asked(Task(prompt="{problem}"), tokenizer).endswith("assistant\n")
    off = Task(prompt="{problem}", chat_template_args={"enable_thinking": False})
    assert asked(off, tokenizer).endswith("assistant\n<think></think>")
    on = Task(prompt="{problem}", chat_template_args={"enable_thinking": True})
    assert asked(on, tokenizer).endswith("assistant\n")
    for name in ("enable_thoughts", "messages", "add_generation_prompt"):
        with pytest.raises(ValueError, match=f"chat_template_args names '{name}', which is not a variable"):
            asked(Task(prompt="{problem}", chat_template_args={name: False}), tokenizer)
    with pytest.raises(ValueError, match=r"need the chat template: set task.chat to true"):
        Task(chat=False, chat_template_args={"enable_thinking": False})
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "plain", byte_level()))
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        asked(off, tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # Gemma's
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x",
            "System role not",
        ),
        ("{{ messages[0].content.nothing.more }}", "no attribute 'nothing'"),
        ("{% for m in messages %}{{ m.role }", "unexpected"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{# nothing #}", "gives no tokens"),
    ],
)
def test_templates_that_raise_are_one_line(tmp_path, template, message):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level(), chat_template=template))
    with pytest.raises(ValueError, match=rf"^the chat template .*{message}.*task\.") as error:
        asked(Task(prompt="{problem}", system="Be brief."), tokenizer)
    assert "\n" not in str(error.value)
    assert "system, user" in str(error.value)
