"""lm-eval's `hf` model class on the mixed policy, against `python -m lmix evaluate`. Needs `pip install lm-eval`."""

import json

import pytest

from lmix import cli
from lmix.inspection.config import MixedPolicyChoice
from lmix.inspection.merge import merge
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.tokenizer import load_tokenizer
from lmix.tasks import ArithmeticTask

SFT = "lmix:tiny-arithmetic-sft"
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


BACKBONE = ["--backbone.quantization=none", "--backbone.dtype=float32"]


def evaluated(folder, *arguments: str) -> list[dict]:
    """Rows of `python -m lmix evaluate`."""
    sizes = [f"--problems={PROBLEMS}", f"--max_new_tokens={NEW_TOKENS}", "--slots=16"]
    flags = ["evaluate", "--task=lmix.tasks.ArithmeticTask", *sizes, *BACKBONE, *arguments, f"--out={folder}"]
    assert cli.main(flags) == 0
    return [json.loads(line) for line in (folder / "rows.jsonl").open()]


def lm_eval_completions(lm, ours: list[dict], folder) -> list[str]:
    """lm-eval's greedy completions of the same problems, in their order."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    task = ArithmeticTask()
    problems = {p.id: p for p in task.problems("test")}
    with (folder / "problems.jsonl").open("w") as file:
        for row in ours:
            problem = problems[row["problem_id"]]
            file.write(json.dumps({"prompt": task.prompt_text(problem), "answer": problem.answer}) + "\n")
    (folder / "task.yaml").write_text(TASK.format(file=folder / "problems.jsonl", tokens=NEW_TOKENS))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluator.simple_evaluate(
        lm, tasks=["lmix_arithmetic"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    samples = sorted(found["samples"]["lmix_arithmetic"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


@pytest.mark.slow
def test_greedy_completions_are_the_same(tmp_path):
    pytest.importorskip("lm_eval.evaluator")
    from lm_eval.models.huggingface import HFLM

    ours = evaluated(tmp_path / "ours", f"--adapters.reference={SFT}")
    model = MixedPolicyChoice(
        backbone=BackboneConfig(quantization="none", dtype="float32"), adapters=AdapterConfig(reference=SFT)
    ).load()
    lm = HFLM(pretrained=model, tokenizer=load_tokenizer("lmix:tiny-arithmetic"), batch_size=8)
    theirs = lm_eval_completions(lm, ours, tmp_path)
    assert len(theirs) == PROBLEMS
    assert theirs == [row["completion"] for row in ours]


@pytest.mark.slow
def test_a_merged_checkpoint_is_a_model_like_any_other(tmp_path):
    """lm-eval's `hf` loads it by its path; of the embedded tokenizer AutoTokenizer makes another, as of the base's."""
    pytest.importorskip("lm_eval.evaluator")
    from lm_eval.models.huggingface import HFLM

    merge("lmix:tiny-arithmetic", SFT, str(tmp_path / "lora"), reference="base", alpha=0.25)
    merge("lmix:tiny-arithmetic", SFT, str(tmp_path / "full"), reference="base", alpha=0.25, full=True, dtype="float32")
    ours = evaluated(tmp_path / "ours", f"--adapters.policy={tmp_path}/lora", "--who=[policy]")
    tokenizer = load_tokenizer(str(tmp_path / "full"))
    lm = HFLM(pretrained=str(tmp_path / "full"), tokenizer=tokenizer, batch_size=8, device="cpu")
    theirs = lm_eval_completions(lm, ours, tmp_path)
    assert theirs == [row["completion"] for row in ours]
    assert sum("boxed" in text for text in theirs) > PROBLEMS / 2
