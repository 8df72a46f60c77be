"""Training beside frozen whole models."""

import lightning as L
import pytest
import torch

from lmix import cli
from lmix.evaluation.compare import compare
from lmix.evaluation.evaluate import evaluate
from lmix.evaluation.sweep import sweep
from lmix.model.adapters import AdapterConfig, read_adapter
from lmix.model.mixture import Mixture
from lmix.rollout.packing import pack
from lmix.rollout.types import flatten
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.objectives import GRPO
from tests.evaluation.conftest import common
from tests.test_cli import DEMO
from tests.training.helpers import (
    SFT,
    changed,
    data,
    gradient,
    module,
    texts,
    trainer,
    update_of,
    watch_updates,
    written_out_log_probs,
)


def whole(path: str, **others) -> AdapterConfig:
    return AdapterConfig(**{"reference": path, "rank": 4, "frozen_quantization": "none", **others})


class SameStart(L.Callback):
    """LoRA's first A: else it depends on how many adapters were looked at before."""

    def on_fit_start(self, trainer, pl_module):
        generator = torch.Generator().manual_seed(0)
        for name, p in pl_module.policy.named_parameters():
            if ".lora_A.policy." in name:
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.05)


def step_of(tmp_path, steps=1, ckpt=None, callbacks=(), **parts):
    L.seed_everything(0)
    m, keep = module(**parts), PolicyCheckpoint(every_n_steps=1, keep=-1)
    trainer(tmp_path, steps, callbacks=[*callbacks, keep]).fit(m, data(), ckpt_path=ckpt)
    return m, keep


def test_a_step_beside_the_merged_sft_is_that_beside_the_adapter(tmp_path, merged):
    """The same tokens, and the same adapter after them, with the reference's states kept and with passes of its own."""
    adapter, _ = step_of(tmp_path / "adapter", callbacks=[SameStart()])
    model, _ = step_of(tmp_path / "model", callbacks=[SameStart()], adapters=whole(merged))
    assert texts(model.groups) == texts(adapter.groups)
    found, expected = model.state_dict(), adapter.state_dict()
    policy = [name for name in expected if ".policy." in name]
    assert set(found) == set(policy)
    for name in policy:  # Adam's first step is lr times the gradient's sign
        assert (found[name] - expected[name]).norm() <= 1e-3 * expected[name].norm() + 1e-4, name


@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_the_update_s_gradient_is_autograd_s_of_the_written_out_mixture(tmp_path, small, kind, monkeypatch):
    updates = watch_updates(monkeypatch)
    m, _ = step_of(tmp_path, adapters=whole(small), mixture=kind)
    ((groups, _),) = updates
    m.manual_backward = lambda loss: loss.backward()
    advantages = torch.linspace(-1, 1, 16).view(4, 4)
    passed, _ = gradient(m, update_of(m, changed(groups, frozen_hidden=None), advantages, micro_batch_tokens=300))
    packed = pack(flatten(groups))
    log_probs = written_out_log_probs(m, packed, Mixture.at(0.5, kind))
    rows = packed.mask.nonzero()[:, 0]
    counts = packed.mask.view(4, -1).sum(dim=1)
    terms = log_probs * advantages.flatten()[rows] / counts[rows // 4] / 4
    expected = torch.autograd.grad(-terms.sum(), m.policy.policy_parameters())
    for a, b in zip(passed, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    assert sum(float(g.abs().sum()) for g in expected) > 0


def test_resuming_beside_another_model_is_bit_for_bit_and_only_with_that_model(tmp_path, small, merged):
    straight, _ = step_of(tmp_path / "straight", 3, adapters=whole(small, experts=[merged]), weights=[0.6, 0.2, 0.2])
    _, keep = step_of(tmp_path / "half", 2, adapters=whole(small, experts=[merged]), weights=[0.6, 0.2, 0.2])
    saved = torch.load(keep.saved[-1], weights_only=True)
    assert set(saved["lmix"]["others"]) == {"reference", "expert_1"}
    assert all(".lora_" in name for name in saved["state_dict"])
    resumed, _ = step_of(
        tmp_path / "resumed",
        3,
        str(keep.saved[-1]),
        adapters=whole(small, experts=[merged]),
        weights=[0.6, 0.2, 0.2],
    )
    assert texts(straight.groups) == texts(resumed.groups)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for adapters, message in (
        (whole(merged, experts=[merged]), "was trained with a different model as adapters.reference"),
        (whole(small, experts=["base"]), r"was trained with a different model as adapters.experts\[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            step_of(tmp_path / "other", 3, str(keep.saved[-1]), adapters=adapters, weights=[0.6, 0.2, 0.2])


def test_kl_grpo_takes_a_whole_model_as_its_reference(tmp_path, merged):
    def run(folder, adapters):
        m, _ = step_of(tmp_path / folder, alpha=0.0, adapters=adapters, objective=GRPO(beta=0.5))
        return m, float(m.trainer.callback_metrics["train/kl"])

    adapter, expected = run("adapter", AdapterConfig(SFT, rank=4))
    model, found = run("model", whole(merged))
    assert texts(model.groups) == texts(adapter.groups)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 0


def test_a_policy_that_starts_at_a_whole_model_is_saved_as_an_adapter_of_it(tmp_path, merged):
    m, keep = step_of(tmp_path, adapters=whole(SFT, policy=merged))
    assert torch.load(keep.saved[-1], weights_only=True)["lmix"]["backbone"] == merged
    assert read_adapter(str(keep.saved[-1].with_suffix("")))[0].r == 4
    assert set(m.policy.other_fingerprints) == {"reference"}


def test_evaluation_commands_take_whole_models(tmp_path, merged, small):
    settings = common(adapters=whole(merged), problems=8)
    by_adapter = evaluate(out=str(tmp_path / "a"), who=("mixed", "reference"), **common(problems=8))
    by_model = evaluate(out=str(tmp_path / "m"), who=("mixed", "reference"), **settings)
    for name in ("mixed", "reference"):
        counts = [[content["policies"][name][field] for field in ("n", "format", "solved", "tokens")]
                  for content in (by_adapter, by_model)]  # fmt: skip
        assert counts[0] == counts[1]
    contents = by_model["settings"]["contents"]
    assert contents["reference"] is not None
    assert contents["reference"] != by_adapter["settings"]["contents"]["reference"]
    swept = sweep(alphas=(0.0, 0.5, 1.0), mixtures=("logits",), out=str(tmp_path / "s"), **settings)
    middle = next(row for row in swept["rows"] if row["alpha"] == 0.5)
    assert [middle["format"], middle["solved"]] == [by_model["policies"]["mixed"][n] for n in ("format", "solved")]
    with pytest.raises(ValueError, match=r"plausibility 0.1 needs the policy, which is not used at alpha 1"):
        sweep(out=str(tmp_path / "p"), **settings, plausibility=0.1)
    contrastive = compare(
        a="mixed",
        b="policy",
        out=str(tmp_path / "c"),
        **common(adapters=whole(small), problems=8),
        weights=[1.5, -0.5],
        plausibility=1.0,
    )
    # at threshold 1 only the policy's own first choice is left
    assert contrastive["disagreement"] == 0
    assert contrastive["policies"]["mixed"] == contrastive["policies"]["policy"]


def test_flags_of_the_command_line(small, capsys):
    plan = ["plan", *DEMO, "--device_gb=16"]
    assert cli.main(plan) == 0
    alone = capsys.readouterr().out
    assert cli.main([*plan, f"--model.adapters.reference={small}"]) == 0
    both = capsys.readouterr().out
    assert f"{small}: 0.00 billion weights, frozen (nf4), for reference" in both
    assert "| frozen models | 0.00 |" in both
    assert "frozen models" not in alone
    big = "--model.adapters.reference=Qwen/Qwen2.5-7B-Instruct"
    assert cli.main(["plan", *DEMO, "--device_gb=4", big, "--model.adapters.frozen_quantization=none"]) == 0
    assert "DOES NOT FIT in 4 GB" in capsys.readouterr().out
    assert cli.main(["fit", *DEMO, "--model.plausibility=0.1"]) == 1
    error = capsys.readouterr().err
    assert "plausibility" in error
    assert len(error.strip().splitlines()) == 1
