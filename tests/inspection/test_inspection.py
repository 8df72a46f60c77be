"""What is shown of a mixed policy, against the policy itself."""

import io
import json
import re
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from lmix import cli
from lmix.inspection.completer import Completer
from lmix.inspection.config import MixedPolicyChoice
from lmix.inspection.generate import complete_file, read_prompts
from lmix.inspection.page import write_page
from lmix.inspection.side_by_side import show
from lmix.inspection.trace import MIXTURE, TokenTrace, trace
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixture import Mixture
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.types import Prompt

TINY = ["--backbone.quantization=none", "--backbone.dtype=float32", "--adapters.reference=lmix:tiny-arithmetic-sft"]
QUESTION = "Tom has 3 apples and buys 4 more. How many apples does he have now?\n"


@pytest.fixture(scope="module")
def model() -> MixedPolicyForCausalLM:
    return MixedPolicyChoice(
        backbone=BackboneConfig(quantization="none", dtype="float32"),
        adapters=AdapterConfig(reference="lmix:tiny-arithmetic-sft"),
    ).load()


def test_a_trace_is_what_the_streams_say(model):
    tokenizer = load_tokenizer("lmix:tiny-arithmetic")
    completer = Completer(model, greedy=True, max_new_tokens=40)
    prompt = completer.prompt([{"role": "user", "content": QUESTION}])
    (rollout,) = completer.complete([prompt])
    ids = prompt.ids
    found = trace(model.policy, model.mixture, tokenizer, ids, rollout.completion_ids, top=3)
    assert "".join(t.token for t in found) == tokenizer.decode(rollout.completion_ids)
    chosen = torch.tensor([t.probabilities[MIXTURE] for t in found])
    assert torch.allclose(chosen.log(), rollout.log_probs, atol=1e-4)
    whole = torch.tensor([[*ids, *rollout.completion_ids]])
    for stream in model.mixture.streams:
        with torch.no_grad():
            probabilities = model.policy(whole, Mixture.alone(stream))[0, len(ids) - 1 : -1].softmax(-1)
        for place, t in enumerate(found):
            assert t.probabilities[stream] == pytest.approx(
                float(probabilities[place, rollout.completion_ids[place]]), abs=1e-5
            )
            best = probabilities[place].topk(3)
            assert [text for text, _ in t.tops[stream]] == [tokenizer.decode([i]) for i in best.indices.tolist()]
    assert all(t.tops[MIXTURE][0][0] == t.token for t in found)  # decoded greedily
    assert trace(model.policy, model.mixture, tokenizer, ids, []) == []


def test_a_page_holds_its_data_and_nothing_gets_out_of_it(tmp_path):
    nasty = '</script><script>alert(1)</script><!-- "&@@DATA@@'
    traces = [TokenTrace(nasty, {"policy": 0.5, "reference": 0.25, MIXTURE: 0.4}, {MIXTURE: [(nasty, 0.4)]})]
    write_page(tmp_path / "x.html", nasty, traces, {"alpha": nasty})
    text = (tmp_path / "x.html").read_text()
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])[0]["token"] == nasty
    assert text.count("<script>") == 1
    assert "http" not in re.sub(r'charset="utf-8"', "", text)  # nothing is loaded from elsewhere


def test_generate_ends_at_a_stop_string(capsys):
    flags = ["--greedy=true", "--max_new_tokens=40", "--stop=[' =']", *TINY]
    assert cli.main(["generate", f"--prompt={QUESTION}", *flags]) == 0
    assert capsys.readouterr().out.strip().endswith(" =")
    assert cli.main(["generate", f"--prompt={QUESTION}", "--stop=['']", *TINY]) == 1
    assert "stop must be a list of non-empty strings" in capsys.readouterr().err


def test_generate_one_prompt_with_its_page(tmp_path, capsys):
    page = tmp_path / "page.html"
    shown = [f"--page={page}", f"--figure={tmp_path}/disputed"]
    assert cli.main(["generate", f"--prompt={QUESTION}", "--greedy=true", "--max_new_tokens=40", *shown, *TINY]) == 0
    out = capsys.readouterr().out
    assert "\\boxed{" in out
    assert page.is_file()
    assert (tmp_path / "disputed.png").stat().st_size > 5000


def test_generate_side_by_side(capsys):
    arguments = ["--greedy=true", "--max_new_tokens=24", "--side_by_side=true"]
    assert cli.main(["generate", f"--prompt={QUESTION}", *arguments, *TINY]) == 0
    out = capsys.readouterr().out
    for word in ("policy", "reference", MIXTURE, "differ most"):
        assert word in out
    (title,) = [line for line in out.splitlines() if "differ most" in line]
    assert title.strip().startswith("tokens on which")


def test_a_conversation(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}/new\n{QUESTION}\n"))
    assert cli.main(["generate", "--greedy=true", "--max_new_tokens=24", *TINY]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3
    assert lines[1] == lines[2] != ""


def test_without_a_limit_a_completion_has_what_the_model_has_room_for(tmp_path, capsys):
    """The tiny model has 512 places, so 512 new tokens never fit after a prompt."""
    (tmp_path / "in.txt").write_text(f"{QUESTION}{QUESTION.strip() * 3}\n")
    assert cli.main(["generate", f"--prompt={QUESTION}", "--greedy=true", *TINY]) == 0
    assert capsys.readouterr().out.strip()
    files = [f"--file={tmp_path}/in.txt", f"--out={tmp_path}/out.jsonl"]
    assert cli.main(["generate", *files, "--greedy=true", *TINY]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("places", "asked", "prompt", "most"),
    [(512, None, 19, 493), (32768, None, 19, 512), (None, None, 19, 512), (512, 7, 19, 7)],
)
def test_the_limit_of_new_tokens(places, asked, prompt, most):
    config = SimpleNamespace(**({"max_position_embeddings": places} if places else {}))
    completer = SimpleNamespace(max_new_tokens=asked, policy=SimpleNamespace(models=[SimpleNamespace(config=config)]))
    assert Completer.new_tokens(completer, prompt) == most  # pyright: ignore[reportArgumentType]


def test_a_conversation_that_outgrows_the_model_goes_on_after_new(monkeypatch, capsys):
    long = "apples " * 600
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{long}\n/new\n{QUESTION}\n"))
    assert cli.main(["generate", "--greedy=true", "--max_new_tokens=24", *TINY]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[1].endswith("/new starts a new conversation")
    assert lines[2]


def test_a_file_of_prompts_and_an_exported_folder(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"problem": QUESTION}) + "\n" for _ in range(3)))
    files = [f"--file={tmp_path}/in.jsonl", "--greedy=true", "--max_new_tokens=40"]
    assert cli.main(["generate", *files, f"--out={tmp_path}/a.jsonl", "--alpha=0.25", *TINY]) == 0
    assert cli.main(["export", f"--out={tmp_path}/model", "--alpha=0.25", *TINY]) == 0
    assert cli.main(["generate", *files, f"--out={tmp_path}/b.jsonl", f"--folder={tmp_path}/model"]) == 0
    first, second = ((tmp_path / name).read_text() for name in ("a.jsonl", "b.jsonl"))
    assert first == second
    assert len(first.splitlines()) == 3
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert {"config.json", "reference", "policy", "tokenizer.json"} <= names


OTHERS = ["Ann has 5 pens and loses 2. How many pens are left?\n", "What is 12 + 9?\n"]


CONSOLE = Console(file=io.StringIO())


def completer_of(model, seed: int = 0, greedy: bool = False) -> Completer:
    return Completer(model, greedy=greedy, max_new_tokens=24, seed=seed)


def asked(completer: Completer, prompt: str) -> Prompt:
    return completer.prompt([{"role": "user", "content": prompt}])


def drawn_alone(model, prompt: str, seed: int = 0, greedy: bool = False, mixture: Mixture | None = None) -> list[int]:
    """The tokens that are shown for one prompt."""
    completer = completer_of(model, seed, greedy)
    completer.mixture = mixture or model.mixture
    return show(completer, CONSOLE, asked(completer, prompt), side_by_side=False)


def drawn_from_a_file(model, tmp_path, prompts: list[str], seed: int = 0, greedy: bool = False) -> list[str]:
    complete_file(completer_of(model, seed, greedy), CONSOLE, prompts, tmp_path / "out.jsonl")
    return [json.loads(line)["completion"] for line in (tmp_path / "out.jsonl").open()]


@pytest.mark.parametrize(("seed", "greedy"), [(0, False), (7, False), (2**40, False), (0, True)])
def test_a_prompt_draws_the_same_alone_and_from_a_file(model, tmp_path, seed, greedy):
    completer = completer_of(model, seed, greedy)
    alone = [completer.text(drawn_alone(model, prompt, seed, greedy)) for prompt in (QUESTION, *OTHERS)]
    assert drawn_from_a_file(model, tmp_path, [QUESTION, *OTHERS], seed, greedy) == alone
    assert drawn_from_a_file(model, tmp_path, [OTHERS[1], QUESTION], seed, greedy) == [alone[2], alone[0]]
    assert all(alone)


def test_the_command_draws_the_same_for_prompt_and_file(tmp_path, capsys):
    arguments = ["--max_new_tokens=24", "--seed=3", *TINY]
    assert cli.main(["generate", f"--prompt={QUESTION}", *arguments]) == 0
    alone = capsys.readouterr().out.strip()
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in (OTHERS[0], QUESTION))
    )
    files = [f"--file={tmp_path}/in.jsonl", f"--out={tmp_path}/out.jsonl"]
    assert cli.main(["generate", *files, *arguments]) == 0
    _, row = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert row["completion"].strip() == alone != ""


def test_a_prompt_that_is_asked_again_is_drawn_anew_and_so_is_another_seed(model, tmp_path):
    first, second = drawn_from_a_file(model, tmp_path, [QUESTION, QUESTION])
    assert first != second
    assert drawn_from_a_file(model, tmp_path, [QUESTION], seed=1) not in ([first], [second])


def drawn_side_by_side(model, monkeypatch, prompt: str, seed: int) -> list[list[int]]:
    """The tokens of the three columns."""
    completer = completer_of(model, seed)
    drawn = []
    complete = completer.complete
    monkeypatch.setattr(
        completer, "complete", lambda *arguments: (drawn.append(complete(*arguments)[0]), [drawn[-1]])[1]
    )
    show(completer, CONSOLE, asked(completer, prompt), side_by_side=True)
    return [rollout.completion_ids for rollout in drawn]


@pytest.mark.parametrize(("prompt", "seed"), [(QUESTION, 0), (QUESTION, 3), (OTHERS[0], 0), (OTHERS[1], 5)])
def test_each_column_draws_as_it_would_alone(model, monkeypatch, prompt, seed):
    mixtures = [Mixture.alone("policy"), Mixture.alone("reference"), model.mixture]
    columns = drawn_side_by_side(model, monkeypatch, prompt, seed)
    assert columns == [drawn_alone(model, prompt, seed, mixture=mixture) for mixture in mixtures]
    assert columns[0] != columns[1]


@pytest.mark.gpu
def test_each_column_draws_as_it_would_alone_on_a_gpu(monkeypatch):
    on_gpu = MixedPolicyChoice(
        backbone=BackboneConfig(quantization="none", dtype="float32"),
        adapters=AdapterConfig(reference="lmix:tiny-arithmetic-sft"),
    ).load()
    assert on_gpu.policy.device.type == "cuda"
    test_each_column_draws_as_it_would_alone(on_gpu, monkeypatch, QUESTION, 0)


def test_a_completion_is_shown_token_by_token_and_nothing_past_its_end(model):
    shown: list[int] = []

    def put(tokens):
        assert tokens.shape == (1,)
        shown.extend(tokens.tolist())

    completer = Completer(model, greedy=True, max_new_tokens=60)
    (rollout,) = completer.complete([completer.prompt([{"role": "user", "content": QUESTION}])], on_tokens=put)
    assert rollout.ended
    assert shown == rollout.completion_ids


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", "\ufeffFirst\n\n second \n", ["First", " second "]),
        ("a.txt", "\ufeffFirst\r\nsecond", ["First", "second"]),
        ("a", "\ufeff\nFirst", ["First"]),
        ("a.jsonl", '\ufeff{"prompt": "First"}\r\n{"prompt": 12345678901234567890}', ["First", "12345678901234567890"]),
        ("a.JSON", '[{"problem": ["First"]}, {"problem": 1e-5}]', ["First", "1e-5"]),
        ("a.csv", '\ufeffprompt,x\n"First, ""this""",1\n007,2\n', ['First, "this"', "007"]),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": "First"}]}', ["First"]),
    ],
)  # fmt: skip
def test_prompts_are_what_the_file_says(name, content, prompts, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(str(tmp_path / name)) == prompts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfeF\x00", "can't be read: 'utf-8' codec can't decode"),
        ("a.txt", b"\xef\xbb\xbf\n \n", "contains no prompts"),
        (
            "a.jsonl",
            b'{"prompt": ["a", "b"]}',
            "row 0, column 'prompt': ['a', 'b'] is a list of 2 elements, not one text",
        ),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": null}', "each row needs a column `prompt` or `problem`"),
        ("a.jsonl", b'{"question": "a"}', "each row needs a column `prompt` or `problem`"),
        ("a.tsv", b"prompt\tx\na\n", "line 2 has 1 cells, but the header has 2"),
    ],
)
def test_prompts_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r".") as error:
        read_prompts(str(tmp_path / name))
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=x", "--file=y", "--out=z"], "prompt and file are both given"),
        (["--file=y"], "file and out must be given together"),
        (["--file=/nowhere.txt", "--out=z"], "file '/nowhere.txt' does not exist"),
        (["--file=pyproject.toml", "--out=z", "--page=x"], "page and figure show one completion"),
        (["--page=x.html"], "page and figure show one completion"),
        (["--prompt=", *TINY], "the prompt is empty"),
        (["--prompt=x", "--max_new_tokens=0"], "max_new_tokens must be at least 1"),
        (["--prompt=x", "--alpha=2"], "alpha must lie in [0, 1]"),
        (["--prompt=x", "--folder=/nowhere"], "folder '/nowhere' does not exist"),
        (["--prompt=x", "--backbone.path=/nowhere"], "is not a folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert cli.main(["generate", *arguments]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmix: error:")]
    assert message in error
