import io
import json

import pytest
from rich.console import Console

from lmix.evaluation.output import drawing, print_prompt, shortened, write_json
from lmix.files import write_lines
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.types import Prompt
from lmix.tasks import Problem


def test_files_are_whole_or_not_there(tmp_path):
    def lines():
        yield "one\n"
        raise RuntimeError

    write_json(tmp_path / "x", {"half a pair": "\ud800", "é": 1})
    assert json.loads((tmp_path / "x").read_text(encoding="utf-8")) == {"half a pair": "\ud800", "é": 1}
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(RuntimeError):
        write_lines(tmp_path / "x", lines())
    assert (tmp_path / "x").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("every", "count"), [(0.0, 2), (1000.0, 0)])
def test_lines_off_a_terminal(every, count):
    text = io.StringIO()
    with drawing(Console(file=text), "mixed", every) as progress:
        progress(1, 4, 50)
        progress(4, 4, 2000)
    assert text.getvalue().count("mixed: ") == count
    if count:
        assert "4/4 completions, 2,000 tokens" in text.getvalue()


def test_an_estimate_from_the_completions_that_have_ended():
    text, now = io.StringIO(), 0.0
    with drawing(Console(file=text), "mixed", 0.0, clock=lambda: now) as progress:
        progress(0, 4, 9)
        now = 60.0
        progress(1, 4, 50)
        progress(4, 4, 70)
    assert text.getvalue().splitlines() == [
        "mixed: 0/4 completions, 9 tokens",
        "mixed: 1/4 completions, 50 tokens, about 3 min left",
        "mixed: 4/4 completions, 70 tokens",
    ]


def test_a_bar_on_a_terminal():
    text = io.StringIO()
    with drawing(Console(file=text, force_terminal=True, width=100), "mixed") as progress:
        progress(3, 4, 2000)
    assert "3/4 completions, 2,000 tokens" in text.getvalue()


def test_a_prompt_is_shown_with_special_tokens_and_every_line_end():
    tokenizer = load_tokenizer("lmix:tiny-arithmetic")
    ids = [tokenizer.eos_token_id, *tokenizer("1 + 2?\n\n")["input_ids"]]  # pyright: ignore[reportIndexIssue]
    console = Console(file=(out := io.StringIO()), width=40, soft_wrap=True, highlight=False)
    print_prompt(console, Prompt(Problem(7, "1 + 2?", "[b]3"), ids), tokenizer)
    assert out.getvalue() == (
        f"prompt of problem 7 ({len(ids)} tokens, gold answer '[b]3'):\n  | {tokenizer.eos_token}1 + 2?\n  | \n  | \n"
    )


def test_only_the_ends_of_a_long_prompt_are_shown():
    assert shortened("x" * 4000) == "x" * 4000
    assert shortened("a" * 30 + "b" * 40, most=20) == f"{'a' * 10}\n[50 characters left out]\n{'b' * 10}"
