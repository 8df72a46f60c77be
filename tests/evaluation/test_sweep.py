"""The sweep's ends, its files, and that it goes on where it stopped."""

import json
import shutil

import pytest

from lmix.evaluation import sweep as sweep_module
from lmix.evaluation.evaluate import evaluate
from lmix.evaluation.rows import read_rows
from lmix.evaluation.session import Session
from lmix.evaluation.sweep import sweep, trained_alpha
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.training.grpo import GRPOModule
from tests.evaluation.conftest import N, common, correct, load

SFT = "lmix:tiny-arithmetic-sft"
CELLS = [(mixture, alpha) for mixture in ("logits", "probs") for alpha in (0.0, 0.4, 1.0)]


@pytest.fixture
def decoded(monkeypatch) -> list[float]:
    """The alphas that are decoded."""
    alphas, measure, measure_together = [], Session.measure, Session.measure_together

    def counted(self, who, mixture, samples=0):
        alphas.append(mixture.alpha)
        return measure(self, who, mixture, samples)

    def counted_together(self, mixtures, prompts):
        alphas.extend(mixture.alpha for mixture in mixtures)
        return measure_together(self, mixtures, prompts)

    monkeypatch.setattr(Session, "measure", counted)
    monkeypatch.setattr(Session, "measure_together", counted_together)
    return alphas


def test_files_are_complete(swept):
    content, rows = load(swept / "sweep.json"), read_rows(swept)
    assert (content["task"], content["problems"]) == ("arithmetic", N)
    assert [(row["mixture"], row["alpha"]) for row in content["rows"]] == CELLS
    assert len(rows) == len({(r.mixture, r.alpha, r.problem_id) for r in rows}) == N * len(CELLS)
    for cell in content["rows"]:
        found = [r for r in rows if (r.mixture, r.alpha) == (cell["mixture"], cell["alpha"])]
        assert cell["n"] == len(found) == N
        assert cell["format"] == sum(r.answer is not None for r in found) >= cell["solved"]
        assert cell["solved"] == sum(r.answer_correct and r.ended for r in found)
        assert {r.who for r in found} == {{0.0: "policy", 1.0: "reference"}.get(cell["alpha"], "mixed")}
    assert sorted(path.name for path in swept.iterdir()) == ["rows.jsonl", "sweep.json"]


def test_the_ends_are_the_streams_alone(swept, tmp_path):
    alone = common(adapters=AdapterConfig(policy="lmix:tiny-arithmetic-sft"))  # the streams change places
    evaluate(who=("policy", "reference"), out=str(tmp_path), **alone)
    for mixture in ("logits", "probs"):
        assert correct(swept, mixture=mixture, alpha=0.0) == correct(tmp_path, who="reference")
        assert correct(swept, mixture=mixture, alpha=1.0) == correct(tmp_path, who="policy")
    assert correct(swept, alpha=0.0) != correct(swept, alpha=1.0)


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
def test_a_stopped_sweep_goes_on_to_the_same_files(swept, tmp_path, monkeypatch, decoded, stop_at):
    """Stopped after the first end, after both, within the first mixture, and between the two; chunks of 10 problems."""
    monkeypatch.setattr(sweep_module, "CHUNK", 10)
    steps = []
    write = sweep_module.write

    def stop(*arguments):
        write(*arguments)
        steps.append(0)
        if len(steps) == stop_at + 2:  # the first is before any work
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep(alphas=(0, 0.4, 1), out=str(tmp_path), **common())
    monkeypatch.setattr(sweep_module, "write", write)
    first = list(decoded)
    sweep(alphas=(0, 0.4, 1), out=str(tmp_path), **common())
    assert first == [0.0, 1.0, 0.4, 0.4][: stop_at + 1]
    assert decoded == [0.0, 1.0, 0.4, 0.4, 0.4, 0.4]  # both ends once, two chunks of each mixture; nothing twice
    for name in ("sweep.json", "rows.jsonl"):
        assert (tmp_path / name).read_bytes() == (swept / name).read_bytes()


def test_alphas_together_give_what_each_gives_alone(tmp_path):
    """The slow twin: one alpha, one pass of its own."""
    sweep(alphas=(0.2, 0.7), out=str(tmp_path / "together"), **common())
    for mixture in ("logits", "probs"):
        for alpha in (0.2, 0.7):
            out = str(tmp_path / f"{mixture}{alpha}")
            evaluate(alpha=alpha, mixture=mixture, out=out, **common())
            assert correct(tmp_path / "together", mixture=mixture, alpha=alpha) == correct(
                tmp_path / f"{mixture}{alpha}"
            )


def test_a_whole_sweep_loads_no_model(swept, decoded, monkeypatch, capsys):
    monkeypatch.setattr(Session, "__init__", lambda *_: pytest.fail("loaded"))
    assert sweep(alphas=(0.4,), out=str(swept), **common(slots=8))["rows"] == load(swept / "sweep.json")["rows"]
    assert not decoded
    assert "2 of 2 results are already in" in capsys.readouterr().out


def test_only_missing_rows_are_done_again(swept, tmp_path, decoded):
    lines = (swept / "rows.jsonl").read_text().splitlines(keepends=True)
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[: 2 * N + 3] + lines[3 * N :]))
    sweep(alphas=(0, 0.4, 1), out=str(tmp_path), **common())
    assert not decoded  # the other mixture has them
    assert (tmp_path / "rows.jsonl").read_text() == "".join(lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 47}, "max_new_tokens 48, not 47"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"adapters": AdapterConfig(rank=4)}, "adapters.reference 'lmix:tiny-arithmetic-sft', not None"),
    ],
)
def test_other_settings_are_refused(swept, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        sweep(out=str(swept), **common(**changes))
    assert "\n" not in str(caught.value)


def test_an_adapter_that_changed_is_refused(swept, tmp_path):
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    content = load(tmp_path / "sweep.json")
    content["settings"]["contents"]["reference"] = "0"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"contents\.reference"):
        sweep(out=str(tmp_path), **common())


@pytest.mark.parametrize("name", ["sweep.json", "rows.jsonl"])
def test_damaged_files(swept, tmp_path, name):
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text('{"half":')
    with pytest.raises(ValueError, match=f"{name} is damaged: remove the folder"):
        sweep(out=str(tmp_path), **common())


def test_a_policy_says_what_it_was_trained_at_and_decodes_at_any_alpha(tmp_path):
    """The folder beside a checkpoint has the mixture; `evaluate` and `sweep` take another alpha than that."""
    module = GRPOModule(BackboneConfig(quantization="none", dtype="float32"), AdapterConfig(reference=SFT), alpha=0.3)
    module.configure_model()
    module.policy.save_policy(tmp_path / "policy", module.origin)
    adapters = AdapterConfig(policy=str(tmp_path / "policy"), reference=SFT)
    settings = common(adapters=adapters)
    content = sweep(alphas=[0.3, 0.8], mixtures=["logits"], out=str(tmp_path / "sweep"), **settings)
    assert content["trained_alpha"] == 0.3
    assert load(tmp_path / "sweep" / "sweep.json")["trained_alpha"] == 0.3
    evaluate(alpha=0.8, out=str(tmp_path / "at"), **settings)
    assert correct(tmp_path / "at", who="mixed") == correct(tmp_path / "sweep", alpha=0.8)
    assert trained_alpha(SFT) is None  # nothing says it
    assert trained_alpha("base-model/hub-id") is None
