"""What is shown of a mixed policy, against the policy itself."""

import io
import json
import re
from types import SimpleNamespace

import pytest
import torch

from lmix import cli
from lmix.inspection.generate import Speaker
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
    speaker = SimpleNamespace(max_new_tokens=asked, policy=SimpleNamespace(backbone=SimpleNamespace(config=config)))
    assert Speaker.new_tokens(speaker, prompt) == most  # pyright: ignore[reportArgumentType]


def test_a_conversation_that_outgrows_the_model_goes_on_after_new(monkeypatch, capsys):
    long = "apples " * 600
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{long}\n/new\n{QUESTION}\n"))
    assert cli.main(["generate", "--greedy=true", "--max_new_tokens=24", *TINY]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[1].endswith("/new starts anew")
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
