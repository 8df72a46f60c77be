"""What a run logs of its compute, against the same sum written out."""

import json

import pytest
import torch

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.training.alpha import AdaptiveAlpha
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.completion_log import CompletionLog
from lmix.training.compute import ComputeBudget
from lmix.training.config import SamplingConfig
from lmix.training.distill import DistillModule
from lmix.training.objectives import GRPO
from lmix.training.sdpo import SDPOModule
from lmix.training.sft import SFTModule
from tests.training.helpers import SFT, data, module, trainer

BACKBONE = BackboneConfig(quantization="none", dtype="float32")


def sizes(m):
    """Weights of the linear layers, of the head and of each adapter, from the loaded model."""
    linear = sum(
        p.numel() for n, p in m.policy.named_parameters() if "_proj" in n and "lora" not in n and n.endswith("weight")
    )
    head = m.policy.backbone.get_output_embeddings().weight.numel()
    lora = {
        s: sum(p.numel() for n, p in m.policy.named_parameters() if f".{s}." in n and "lora" in n)
        for s in ("policy", "reference")
    }
    return linear, head, lora


def rows_of(folder):
    return [json.loads(line) for line in (folder / "completions" / "train.jsonl").read_text().splitlines()]


def test_a_step_of_grpo_written_out(tmp_path):
    t = trainer(tmp_path, 1, callbacks=[CompletionLog()], limit_val_batches=0)
    m, source = module(), data()
    t.fit(m, source)
    linear, head, lora = sizes(m)
    rows = rows_of(tmp_path)
    prompts = {p.problem.id: len(p.ids) for p in source.sets["train"]}
    drawn = sum(r["tokens"] for r in rows)
    flops = 2 * (sum(prompts[i] for i in {r["problem_id"] for r in rows}) * 2 * linear)
    flops += 2 * drawn * (2 * linear + lora["policy"] + lora["reference"] + head)
    rewards = {i: {r["reward"] for r in rows if r["problem_id"] == i} for i in prompts}
    live = [r for r in rows if len(rewards[r["problem_id"]]) > 1]
    assert live
    completions = sum(r["tokens"] for r in live)
    read = {
        True: sum(prompts[i] for i in {r["problem_id"] for r in live}),
        False: sum(prompts[r["problem_id"]] for r in live),
    }
    spent = []
    for shared in (True, False):
        tokens = completions + read[shared]
        spent.append(flops + 2 * (tokens * (2 * linear + 3 * lora["policy"]) + completions * head * 2))
    assert any(m.compute.totals["flops"] == pytest.approx(flops) for flops in spent)
    assert m.compute.totals["drawn_tokens"] == drawn
    assert m.compute.totals["trained_tokens"] in (completions + read[True], completions + read[False])
    assert float(t.callback_metrics["compute/flops"]) == pytest.approx(m.compute.totals["flops"])


def test_a_step_of_sft_written_out(tmp_path):
    m = SFTModule(BACKBONE, AdapterConfig(rank=4), sampling=SamplingConfig(max_new_tokens=48))
    t, source = trainer(tmp_path, 2, limit_val_batches=0), data(prompts=16)
    t.fit(m, source)
    linear, head, lora = sizes(m)
    ids = [
        m.tokenizer(source.task.demonstration(p.problem), add_special_tokens=False)["input_ids"]
        for p in source.sets["train"]
    ]
    completions = 2 * sum(len(i) + 1 for i in ids)  # with the end of each, over two steps of all 16 problems
    tokens = completions + 2 * sum(len(p.ids) for p in source.sets["train"])
    assert m.compute.totals == {
        "flops": pytest.approx(2 * (tokens * (2 * linear + 3 * lora["policy"]) + completions * head * 2)),
        "drawn_tokens": 0,
        "trained_tokens": tokens,
    }


def test_a_step_of_distillation_written_out(tmp_path):
    """Every row is read by the student, with its gradient, and by the teacher's two streams, without one."""
    m = DistillModule(
        BACKBONE,
        AdapterConfig(policy=SFT, reference=SFT),
        sampling=SamplingConfig(samples_per_prompt=4, max_new_tokens=48, slots=16, seed=0),
    )
    t, source = trainer(tmp_path, 1, callbacks=[CompletionLog()], limit_val_batches=0), data()
    t.fit(m, source)
    linear, head, lora = sizes(m)
    rows = rows_of(tmp_path)
    prompts = {p.problem.id: len(p.ids) for p in source.sets["train"]}
    drawn = sum(r["tokens"] for r in rows)
    once = sum(prompts[i] for i in {r["problem_id"] for r in rows})
    flops = 2 * (once * linear + drawn * (linear + lora["policy"] + head))
    expected = []
    for read in (once, sum(prompts[r["problem_id"]] for r in rows)):  # prompts shared by a group's rows, or not
        student = 2 * ((drawn + read) * (2 * linear + 3 * lora["policy"]) + drawn * head * 2)
        teacher = 2 * (read * 2 * linear + drawn * (2 * linear + 2 * lora["policy"] + head))
        expected.append(flops + student + teacher)
    assert any(m.compute.totals["flops"] == pytest.approx(flops) for flops in expected)


def test_a_teacher_that_reads_longer_prompts_counts_them(tmp_path):
    """SDPO's teacher reads feedback: it costs more than a teacher of the same streams that reads the student's."""
    spent = {}
    for rate in (0.0, 0.5):  # one stream, or two
        m = SDPOModule(
            BACKBONE,
            AdapterConfig(policy=SFT),
            teacher_rate=rate,
            sampling=SamplingConfig(samples_per_prompt=4, max_new_tokens=48, slots=16, seed=0),
        )
        trainer(tmp_path / str(rate), 1, limit_val_batches=0).fit(m, data())
        spent[rate] = m.compute.totals
    linear, _, lora = sizes(m)
    extra = spent[0.5]["flops"] - spent[0.0]["flops"] - 2 * spent[0.0]["drawn_tokens"] * lora["policy"]
    read = sum(len(g.prompt.ids) + len(r.completion_ids) for g in m.groups for r in g.rollouts)
    assert extra / (2 * linear) > 1.2 * read  # what the second stream read, against the student's rows


def spend(tmp_path, steps, **parts):
    torch.manual_seed(0)  # the adapter's start, so that two runs draw the same tokens
    m = module(**parts.pop("module", {}))
    t = trainer(tmp_path, steps, limit_val_batches=0, **parts.pop("trainer", {}))
    t.fit(m, data(**parts))
    return m, t


def test_what_costs_more_counts_more(tmp_path):
    plain, _ = spend(tmp_path / "plain", 1)
    twice, _ = spend(tmp_path / "twice", 1, module={"objective": GRPO(inner_updates=2)})
    again, _ = spend(
        tmp_path / "again",
        1,
        module={
            "sampling": SamplingConfig(samples_per_prompt=4, max_new_tokens=48, slots=16, seed=0, keep_frozen=False)
        },
    )
    adaptive, _ = spend(tmp_path / "adaptive", 1, validation_size=4, trainer={"callbacks": [AdaptiveAlpha()]})
    flops = [m.compute.totals["flops"] for m in (plain, twice, again, adaptive)]
    assert flops[0] < min(flops[1:])
    assert twice.compute.totals["trained_tokens"] == 2 * plain.compute.totals["trained_tokens"]
    assert again.compute.totals["trained_tokens"] == plain.compute.totals["trained_tokens"]
    assert adaptive.compute.totals["drawn_tokens"] > plain.compute.totals["drawn_tokens"]
    kl = {"alpha": 0.0, "adapters": AdapterConfig(policy=SFT, reference=SFT)}
    without, _ = spend(tmp_path / "without", 1, module=kl)
    with_kl, _ = spend(tmp_path / "kl", 1, module={**kl, "objective": GRPO(beta=0.01)})
    assert with_kl.compute.totals["drawn_tokens"] == without.compute.totals["drawn_tokens"]
    assert with_kl.compute.totals["flops"] > without.compute.totals["flops"]


def test_totals_go_on_after_a_resume(tmp_path):
    whole, _ = spend(tmp_path / "whole", 3)
    checkpoint = {"callbacks": [PolicyCheckpoint(every_n_steps=1)]}
    spend(tmp_path / "run", 2, trainer=checkpoint)
    m = module()
    t = trainer(tmp_path / "run", 3, limit_val_batches=0, **checkpoint)
    t.fit(m, data(), ckpt_path=str(tmp_path / "run" / "checkpoints" / "step=0002.ckpt"))
    assert m.compute.totals == pytest.approx(whole.compute.totals)


def test_a_budget_ends_a_run(tmp_path):
    one, _ = spend(tmp_path / "one", 1)
    budget = ComputeBudget(1.5 * one.compute.totals["flops"])
    m, t = module(), trainer(tmp_path / "run", 10, callbacks=[budget])  # evaluations are 1000 steps apart
    t.fit(m, data())
    assert t.global_step == 2
    assert "val/solve_rate" in t.callback_metrics
    assert m.compute.totals["flops"] >= budget.flops
    with pytest.raises(ValueError, match=r"ComputeBudget\.flops must be positive, not 0"):
        ComputeBudget(0)
