"""Rates, pass@k, comparisons, and that mistakes are found before a model is loaded."""

import io
import json
from dataclasses import replace

import pytest
from jsonargparse import auto_cli
from rich.console import Console

from lmix.data.module import RLDataModule
from lmix.evaluation.compare import compare
from lmix.evaluation.config import EvaluationConfig
from lmix.evaluation.decoder import Decoder
from lmix.evaluation.evaluate import evaluate, print_rates, summary
from lmix.evaluation.rows import EvaluationRow, read_rows
from lmix.evaluation.scores import sampled_summary
from lmix.evaluation.session import Measured
from lmix.evaluation.statistics import mean_interval, wilson_interval
from lmix.evaluation.sweep import print_sweep, sweep
from lmix.model.adapters import AdapterConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.types import Group, Prompt, Rollout
from lmix.tasks import ArithmeticTask, DatasetTask, Problem
from tests.evaluation.conftest import N, common, correct, load


def test_evaluate_gives_what_the_sweep_gives(swept, tmp_path, capsys):
    content = evaluate(alpha=0.4, who=("mixed", "reference"), out=str(tmp_path), **common())
    assert content == load(tmp_path / "evaluation.json")
    for who, alpha in (("mixed", 0.4), ("reference", 1.0)):
        rates, rows = content["policies"][who], correct(tmp_path, who=who)
        assert rows == correct(swept, mixture="logits", alpha=alpha)
        assert (rates["n"], rates["solved"]) == (N, sum(row[3] for row in rows))
        assert rates["solve_rate"] == rates["solved"] / N
        assert rates["solved"] <= rates["answered"] <= rates["anywhere"]
        assert rates["anywhere"] == sum(row.right_anywhere for row in read_rows(tmp_path) if row.who == who)
        assert rates["solve_interval"] == list(wilson_interval(rates["solved"], N))
        assert rates["format_interval"] == list(wilson_interval(rates["format"], N))
    assert {"lmix", "torch", "transformers", "math-verify"} == set(content["settings"]["versions"])
    assert "reference" in capsys.readouterr().out


def test_evaluate_ends_completions_at_stop_strings(swept, tmp_path):
    """As a search in the texts of whole completions does: no token of the embedded tokenizer goes on after these."""
    settings = {"stop": [" =", "how m"], "min_new_tokens": 3}
    content = evaluate(alpha=0.4, out=str(tmp_path), **common(**settings))
    stopped = 0
    for whole, row in zip(correct(swept, mixture="logits", alpha=0.4), correct(tmp_path), strict=True):
        end = whole[1].find(" =") + 2
        assert row[1] == (whole[1] if end < 2 else whole[1][:end])
        stopped += end >= 2
    assert stopped > 4
    assert content["policies"]["mixed"]["ended"] >= stopped
    assert settings.items() <= content["settings"].items()


def test_an_ensemble_of_two_is_the_mixture_at_alpha(swept, tmp_path):
    content = evaluate(weights=[0.6, 0.4], who=("mixed", "reference"), out=str(tmp_path), **common())
    assert correct(tmp_path, who="mixed") == correct(swept, mixture="logits", alpha=0.4)
    assert correct(tmp_path, who="reference") == correct(swept, mixture="logits", alpha=1.0)
    assert content["settings"]["weights"] == [0.6, 0.4]
    assert content["settings"]["alpha"] is None  # it is not used


def test_samples_beside_the_greedy_completion(swept, tmp_path, capsys):
    content = evaluate(alpha=0.4, samples=4, temperature=0.7, out=str(tmp_path), **common(problems=6))
    rates, rows = content["policies"]["mixed"], read_rows(tmp_path)
    greedy, drawn = rows[:6], rows[6:]
    of_sweep = {(row[0], row[1]) for row in correct(swept, mixture="logits", alpha=0.4)}
    assert {(row.problem_id, row.completion) for row in greedy} <= of_sweep
    assert {row.temperature for row in greedy} == {None}
    assert {row.temperature for row in drawn} == {0.7}
    assert [(row.problem_id, row.sample) for row in drawn[:4]] == [(drawn[0].problem_id, g) for g in range(4)]
    assert (rates["n"], len(drawn)) == (6, 24)
    assert len({row.completion for row in drawn}) > 6  # samples differ
    solved = [[row.answer_correct and row.ended for row in drawn[i : i + 4]] for i in range(0, 24, 4)]
    shares = [sum(of_problem) / 4 for of_problem in solved]
    found = rates["sampled"]
    assert found["avg_at_k"]["rate"] == pytest.approx(sum(shares) / 6)
    assert found["avg_at_k"]["interval"] == list(mean_interval(shares, 4))
    assert found["pass_at_k"]["1"]["rate"] == found["maj_at_k"]["1"]["rate"] == found["avg_at_k"]["rate"]
    assert found["pass_at_k"]["4"]["rate"] == pytest.approx(sum(map(any, solved)) / 6)
    assert found["pass_at_k"]["4"]["interval"] == list(wilson_interval(sum(map(any, solved)), 6))
    assert list(found["maj_at_k"]) == ["1", "2", "4"]
    assert "pass@4" in capsys.readouterr().out


def test_a_right_answer_that_the_limit_cut_is_answered_and_not_solved():
    """Two samples of three problems: right and ended; right and cut; wrong."""

    def row(problem, correct, ended):
        return EvaluationRow("mixed", "logits", 0.5, problem, 0, "", "4", "4", True, correct, ended, 3)

    flags = [(True, True), (True, True), (True, False), (True, True), (True, False), (False, True)]
    rows = [row(i // 2, *flag) for i, flag in enumerate(flags)]
    rates = summary(Measured(rows, 1.0))
    assert (rates["answered"], rates["solved"], rates["ended"], rates["format"]) == (5, 3, 4, 6)
    assert (rates["answer_rate"], rates["solve_rate"]) == (5 / 6, 0.5)
    found = sampled_summary(rows, 2)
    assert found["avg_at_k"]["rate"] == 0.5
    assert found["pass_at_k"]["2"]["rate"] == pytest.approx(2 / 3)  # the third problem is never solved
    assert found["maj_at_k"]["2"]["rate"] == pytest.approx(2 / 3)  # an answer that was cut casts no vote


def test_compare(swept, tmp_path):
    content = compare(a="mixed", b="reference", alpha=0.4, out=str(tmp_path), **common())
    assert content == load(tmp_path / "compare.json")
    mixed, reference = (correct(tmp_path, who=who) for who in ("mixed", "reference"))
    assert mixed == correct(swept, mixture="logits", alpha=0.4)
    assert reference == correct(swept, mixture="logits", alpha=1.0)
    table, policies = content["contingency"], content["policies"]
    assert table["names"] == ["mixed", "reference"]
    assert sum(table[name] for name in ("both", "only_a", "only_b", "neither")) == content["n"] == N
    assert table["both"] + table["only_a"] == policies["mixed"]["solved"] == sum(row[3] for row in mixed)
    assert table["both"] + table["only_b"] == policies["reference"]["solved"]
    assert content["disagreement"] == sum(x[3] != y[3] for x, y in zip(mixed, reference, strict=True))


def test_validation_is_what_training_decides_on_and_not_its_test_problems(tmp_path):
    """A task without held-out problems of its own: both are taken out of its training problems."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(60)))
    task = DatasetTask(str(path))
    data = RLDataModule(task, eval_size=20, validation_size=N, tokenizer=load_tokenizer("lmix:tiny-arithmetic"))
    sets = {split: [e.problem.id for e in data.read([split])[split]] for split in ("train", "validation", "test")}
    whole = {split: [e.problem.id for e in examples] for split, examples in data.read(list(sets)).items()}
    evaluated = [e.problem.id for e in EvaluationConfig(**common(task=task, split="validation")).prompts()]
    assert evaluated == whole["validation"] == sets["validation"]
    assert sets["test"] == whole["test"]
    assert not set(evaluated) & set(whole["test"])
    assert len({*whole["train"], *whole["validation"], *whole["test"]}) == 60


@pytest.mark.parametrize("count", [3, 60])
def test_by_default_an_evaluation_takes_what_training_holds_out_of_one_file(count, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(count)))
    task = DatasetTask(str(path))
    sets = RLDataModule(task, tokenizer=load_tokenizer("lmix:tiny-arithmetic")).read(["train", "test"])
    config = EvaluationConfig(**common(task=task, problems=None))
    assert config.prompts() == sets["test"]
    assert not {e.problem.id for e in config.prompts()} & {e.problem.id for e in sets["train"]}
    assert config.settings(config.prompts())["problems"] == len(sets["test"]) == max(1, count // 5)
    assert EvaluationConfig(**common(task=task, problems=None, split="train")).prompts() == sets["train"]


def test_each_pair_of_answer_and_gold_is_judged_once():
    asked = []

    class Counting(ArithmeticTask):
        def verify(self, answers, golds):
            asked.extend(zip(answers, golds, strict=True))
            return super().verify(answers, golds)

    texts = [r"\boxed{4}", r"so \boxed{4}", r"\boxed{5}", "none", r"\boxed{4}"]
    prompts = [Prompt(Problem(i, "", gold), [1]) for i, gold in enumerate("44445")]
    groups = [Group(p, [Rollout(p, 0, text=text)]) for p, text in zip(prompts, texts, strict=True)]
    Decoder(None, None, None, Counting()).judge(groups)  # pyright: ignore[reportArgumentType]
    judged = [group.rollouts[0].judgement for group in groups]
    assert [(j.answer, j.answer_correct) for j in judged] == [
        ("4", True), ("4", True), ("5", False), (None, False), ("4", False),
    ]  # fmt: skip
    assert len(asked) == len(set(asked)) == 4


def test_examples_of_each_split():
    def chosen(split, seed):
        return [e.problem.id for e in EvaluationConfig(**common(split=split, seed=seed)).prompts()]

    ids = {(split, seed): chosen(split, seed) for split in ("train", "test") for seed in (0, 1)}
    assert all(len(found) == N for found in ids.values())
    assert all(chosen(*key) == found for key, found in ids.items())
    assert ids["train", 0] != ids["train", 1]
    assert ids["test", 0] != ids["test", 1]


@pytest.mark.parametrize(("problems", "told"), [(None, True), (2, False)])
def test_how_many_problems_of_one_file_are_taken_is_said_before_the_model_is_loaded(
    problems, told, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(10)))
    monkeypatch.setattr(MixedPolicy, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        evaluate(out=str(tmp_path / "out"), **common(task=DatasetTask(str(path)), problems=problems))
    said = capsys.readouterr().out
    assert ("problems: 2 (those that training holds out by default; --problems=N takes more)\n" in said) == told
    assert "gold answer" in said
    assert "  | " in said


@pytest.mark.parametrize("longest", [40, 200])
def test_by_default_completions_may_fill_the_model_s_context(longest, tmp_path):
    """The embedded model has 512 positions."""
    config = EvaluationConfig(**common(max_new_tokens=None))
    assert config.new_tokens([Prompt(Problem(0, "", ""), [1] * length) for length in (20, longest)]) == 512 - longest
    assert replace(config, max_new_tokens=9).new_tokens([Prompt(Problem(0, "", ""), [1] * longest)]) == 9
    content = evaluate(alpha=0.4, out=str(tmp_path), **common(max_new_tokens=None, problems=2))
    prompts = EvaluationConfig(**common(problems=2)).prompts()
    assert content["settings"]["max_new_tokens"] == 512 - max(len(prompt.ids) for prompt in prompts)


def test_long_prompts_are_dropped():
    every = EvaluationConfig(**common()).prompts()
    limit = sorted(len(e.ids) for e in every)[N // 2]
    some = EvaluationConfig(**common(max_prompt_tokens=limit)).prompts()
    assert all(len(e.ids) <= limit for e in some)
    assert all(e in some for e in every if len(e.ids) <= limit)
    usable = [e for e in EvaluationConfig(**common(problems=20)).prompts() if len(e.ids) <= limit]
    assert len(some) == min(N, len(usable)) > N // 2 + 1  # others took the places of the long ones


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (evaluate, {"problems": 0}, "problems must be at least 1, not 0"),
        (compare, {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        (sweep, {"slots": -1}, "slots must be at least 1"),
        (evaluate, {"max_prompt_tokens": 0}, "max_prompt_tokens must be at least 1"),
        (evaluate, {"samples": -1}, "samples must be at least 0"),
        (evaluate, {"temperature": 0.0}, "temperature must be positive"),
        (evaluate, {"alpha": 1.5}, "alpha must lie in"),
        (compare, {"alpha": -0.1}, "alpha must lie in"),
        (sweep, {"alphas": (0.5, 2.0)}, "alpha must lie in"),
        (sweep, {"alphas": ()}, "alphas and mixtures must each have at least one"),
        (evaluate, {"who": ()}, "who must name"),
        (evaluate, {"weights": [1.0]}, "weights must be 2 numbers"),
        (sweep, {"weights": [0.5, 0.5]}, "sweep varies alpha, but an ensemble has none"),
        (evaluate, {"who": ("mixed", "mixed")}, "each once"),
        (compare, {"a": "mixed", "b": "mixed"}, "a and b are both mixed"),
        (evaluate, {"adapters": AdapterConfig(reference="nowhere")}, "adapter 'nowhere'"),
        (evaluate, {"out": __file__}, "can't be created as a folder"),
        (compare, {"max_new_tokens": 500}, "max_new_tokens 500 and a prompt of"),
        (
            evaluate,
            {"max_new_tokens": None, "min_new_tokens": 500},
            "min_new_tokens must lie between 0 and max_new_tok",
        ),
        (sweep, {"split": "validation", "problems": None}, "split validation needs problems: the number that training"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(command, changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(MixedPolicy, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message) as caught:
        command(**common(**{"out": str(tmp_path), **changes}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [evaluate, sweep, compare])
def test_a_folder_of_another_command_is_left_alone(command, tmp_path):
    for name in ("evaluation.json", "sweep.json", "compare.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="contains another command's"):
        command(out=str(tmp_path), **common())


@pytest.mark.parametrize("command", [evaluate, sweep, compare])
def test_the_command_line(command, tmp_path, capsys):
    (tmp_path / "task.yaml").write_text("class_path: lmix.tasks.ArithmeticTask\ninit_args:\n  test_size: 3\n")
    line = [f"--task={tmp_path}/task.yaml", "--backbone.quantization=none", f"--out={tmp_path}", "--problems=0"]
    with pytest.raises(ValueError, match="problems must be at least 1, not 0"):
        auto_cli(command, args=line, as_positional=False)
    with pytest.raises(SystemExit):
        auto_cli(command, args=["--help"], as_positional=False)
    assert "--max_new_tokens" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_into_the_terminal(width):
    """With all policies, samples, alphas and mixtures, and no cell is cut or folded."""
    interval = {"rate": 0.5, "interval": [0.4123, 0.5877]}
    greedy = {f"{kind}_{name}": value for kind in ("format", "solve", "anywhere") for name, value in interval.items()}
    sampled = {"avg_at_k": interval, "pass_at_k": {"16": interval}, "maj_at_k": {"16": interval}}
    policies = {name: greedy | {"sampled": sampled} for name in ("mixed", "policy", "reference")}
    content = {"task": "reasoning_gym", "problems": 500}
    console = Console(highlight=False, soft_wrap=True, width=width, file=io.StringIO())
    print_rates(console, content | {"policies": policies, "settings": {"samples": 16, "temperature": 0.7}})
    cells = [{"mixture": m, "alpha": a / 10, "n": 9} for m in ("logits", "probs") for a in range(11)]
    print_sweep(console, content | {"rows": [{**cell, "format": 9, "solved": 9, "anywhere": 9} for cell in cells]})
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(len, text.splitlines())) <= width
    assert text.count("0.500 [0.412, 0.588]") == 3 * 6
    assert text.count("1.000") == 11 * 6
    for name in ("right anywhere", "avg@16", "pass@16", "maj@16", "reference"):
        assert name in text
