"""What is shown of a mixed policy, against the policy itself."""

import io
import json
import re

import pytest
import torch

from lmix import cli
from lmix.inspection.generate import read_prompts
from lmix.inspection.page import write_page
from lmix.inspection.trace import MIXTURE, TokenTrace, trace
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.tokenizer import end_tokens, load_tokenizer
from lmix.rollout.engine import Draw, RolloutEngine

TINY = ["--backbone.quantization=none", "--backbone.dtype=float32", "--adapters.reference=lmix:tiny-arithmetic-sft"]
QUESTION = "Tom has 3 apples and buys 4 more. How many apples does he have now?\n"


@pytest.fixture(scope="module")
def model() -> MixedPolicyForCausalLM:
    from lmix.inspection.config import MixedPolicyChoice
    from lmix.model.adapters import AdapterConfig
    from lmix.model.backbone import BackboneConfig

    return MixedPolicyChoice(
        backbone=BackboneConfig(quantization="none", dtype="float32"),
        adapters=AdapterConfig(reference="lmix:tiny-arithmetic-sft"),
    ).load()


def test_a_trace_is_what_the_streams_say(model):
    tokenizer = load_tokenizer("lmix:tiny-arithmetic")
    ids = tokenizer(QUESTION)["input_ids"]
    (rollout,) = RolloutEngine(model.policy, end_tokens(model.policy, tokenizer)).generate([ids], 40, Draw(greedy=True))
    found = trace(model.policy, tokenizer, ids, rollout.completion_ids, top=3)
    assert "".join(t.token for t in found) == tokenizer.decode(rollout.completion_ids)
    chosen = torch.tensor([t.probabilities[MIXTURE] for t in found])
    assert torch.allclose(chosen.log(), rollout.log_probs, atol=1e-4)
    whole = torch.tensor([[*ids, *rollout.completion_ids]])
    weights = model.policy.weights
    for stream in weights:
        model.policy.weights = {stream: 1.0}
        with torch.no_grad():
            probabilities = model.policy(whole)[0, len(ids) - 1 : -1].softmax(-1)
        model.policy.weights = weights
        for place, t in enumerate(found):
            assert t.probabilities[stream] == pytest.approx(
                float(probabilities[place, rollout.completion_ids[place]]), abs=1e-5
            )
            best = probabilities[place].topk(3)
            assert [text for text, _ in t.tops[stream]] == [tokenizer.decode([i]) for i in best.indices.tolist()]
    assert all(t.tops[MIXTURE][0][0] == t.token for t in found)  # decoded greedily
    assert trace(model.policy, tokenizer, ids, []) == []


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
    for word in ("policy", "reference", MIXTURE, "dispute"):
        assert word in out


def test_a_conversation(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}/new\n{QUESTION}\n"))
    assert cli.main(["generate", "--greedy=true", "--max_new_tokens=24", *TINY]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3
    assert lines[1] == lines[2] != ""


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
        ("a.txt", b"\xef\xbb\xbf\n \n", "holds no prompt"),
        ("a.jsonl", b'{"prompt": ["a", "b"]}', "row 0, column 'prompt': ['a', 'b'] is a list of 2, not one text"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": null}', "it needs `prompt` or `problem` in each row"),
        ("a.jsonl", b'{"question": "a"}', "it needs `prompt` or `problem` in each row"),
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
        (["--file=y"], "file and out go together"),
        (["--file=/nowhere.txt", "--out=z"], "file '/nowhere.txt' does not exist"),
        (["--file=pyproject.toml", "--out=z", "--page=x"], "page and figure show one completion"),
        (["--page=x.html"], "page and figure show one completion"),
        (["--prompt=", *TINY], "the prompt is empty"),
        (["--prompt=x", "--max_new_tokens=0"], "max_new_tokens must be at least 1"),
        (["--prompt=x", "--alpha=2"], "alpha must lie in [0, 1]"),
        (["--prompt=x", "--folder=/nowhere"], "folder '/nowhere' does not exist"),
        (["--prompt=x", "--backbone.path=/nowhere"], "is no folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert cli.main(["generate", *arguments]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmix: error:")]
    assert message in error
