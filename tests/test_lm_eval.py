"""lm-eval's `hf` model class on the mixed policy, against `python -m lmix evaluate`. Needs `pip install lm-eval`."""

import json

import pytest

from lmix import cli
from lmix.inspection.config import MixedPolicyChoice
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.tokenizer import load_tokenizer
from lmix.tasks import ArithmeticTask

PROBLEMS, NEW_TOKENS = 50, 64
TASK = """
task: lmix_arithmetic
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: [], max_gen_toks: {tokens}, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.mark.slow
def test_greedy_completions_are_the_same(tmp_path):
    evaluator = pytest.importorskip("lm_eval.evaluator")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    arguments = [
        "--backbone.quantization=none",
        "--backbone.dtype=float32",
        "--adapters.reference=lmix:tiny-arithmetic-sft",
    ]
    sizes = [f"--problems={PROBLEMS}", f"--max_new_tokens={NEW_TOKENS}", "--slots=16"]
    assert cli.main(["evaluate", "--task=lmix.tasks.ArithmeticTask", *sizes, *arguments, f"--out={tmp_path}/ours"]) == 0
    ours = [json.loads(line) for line in (tmp_path / "ours" / "rows.jsonl").open()]

    task = ArithmeticTask()
    problems = {p.id: p for p in task.problems("test")}
    with (tmp_path / "problems.jsonl").open("w") as file:
        for row in ours:
            problem = problems[row["problem_id"]]
            file.write(json.dumps({"prompt": task.prompt_text(problem), "answer": problem.answer}) + "\n")
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "problems.jsonl", tokens=NEW_TOKENS))
    model = MixedPolicyChoice(
        backbone=BackboneConfig(quantization="none", dtype="float32"),
        adapters=AdapterConfig(reference="lmix:tiny-arithmetic-sft"),
    ).load()
    lm = HFLM(pretrained=model, tokenizer=load_tokenizer("lmix:tiny-arithmetic"), batch_size=8)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = evaluator.simple_evaluate(
        lm, tasks=["lmix_arithmetic"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    samples = sorted(found["samples"]["lmix_arithmetic"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(ours) == PROBLEMS
    assert [sample["resps"][0][0] for sample in samples] == [row["completion"] for row in ours]
