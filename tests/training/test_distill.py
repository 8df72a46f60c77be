"""Distillation of a mixture: its gradient on all architectures, its students and teachers, and what it refuses."""

import json
import shutil
from dataclasses import dataclass

import lightning as L
import pytest
import torch

from lmix import cli
from lmix.functional import Divergence
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture, RowMixtures
from lmix.rollout.packing import pack
from lmix.rollout.types import Group, Rollout, flatten
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.distill import DistillModule
from lmix.training.distillation import DistillationUpdate
from lmix.training.objectives import Distillation
from tests.conftest import ALL, make_policy, prompts, randomise_adapters, tokens
from tests.functional.test_divergences import KINDS, written_out
from tests.training.helpers import SFT, data, module, trainer, without_trainer

STUDENT = Mixture((1.0, 0.0))


def rollouts(*lengths: int) -> list[Rollout]:
    """Random completions of two prompts of different lengths."""
    shared = prompts(tokens(5, seed=1).tolist(), tokens(3, seed=2).tolist())
    made = [tokens(length, seed=10 + i).tolist() for i, length in enumerate(lengths)]
    return [Rollout(shared[i % 2], i, ids, torch.zeros(len(ids)), ended=True) for i, ids in enumerate(made)]


class Holder:
    """What an update asks of a module."""

    device, ranks, global_step = torch.device("cpu"), 1, 0

    def __init__(self, policy):
        self.policy = policy

    def idle_passes(self, passes):
        return 0

    def sum_over_ranks(self, values):
        return list(values)

    def backward_and_note(self, losses_b, rollouts_b):
        losses_b.sum().backward()

    def name_nonfinite(self):
        pass


def update(policy, made, teacher, objective) -> DistillationUpdate:
    groups = [Group(rollout.prompt, [rollout]) for rollout in made]
    holder, ones = Holder(policy), torch.ones(len(made), 1)
    return DistillationUpdate(holder, STUDENT, objective, groups, ones, SamplingConfig(), teacher)  # pyright: ignore


@pytest.mark.parametrize("divergence", KINDS[:3], ids=str)
@pytest.mark.parametrize("kind", ["logits", "probs"])
@pytest.mark.parametrize("name", ALL)
def test_the_gradient_is_autograds_of_the_written_out_sum(name, kind, divergence, folders):
    """Of a student towards the mixture of itself, as it is, and another adapter, over all tokens; micro-batches."""
    policy = make_policy(name, folders)
    made, teacher = rollouts(4, 6, 1, 3), Mixture.at(0.4, kind)
    objective = Distillation(divergence.kind, divergence.blend, micro_batch_tokens=18)
    work = update(policy, made, teacher, objective)
    assert len(work.passes) > 1
    stats = work.accumulate_gradient()
    found = [p.grad.clone() for p in policy.policy_parameters()]

    packed = pack(made)
    places = packed.predicts
    with torch.no_grad():
        target = policy(packed.input_ids, teacher).flatten(0, 1)[places]
    policy.zero_grad()
    student = policy(packed.input_ids, STUDENT).flatten(0, 1)[places]
    slow = written_out(student, target, divergence).mean()
    expected = torch.autograd.grad(slow, policy.policy_parameters())
    assert stats.loss == pytest.approx(slow.item(), rel=1e-4, abs=1e-6)
    assert stats.sums["divergence"] / stats.tokens == pytest.approx(slow.item(), rel=1e-4, abs=1e-6)
    scale = max(float(b.norm()) for b in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 2e-4 * max(float(b.norm()), 1e-2 * scale)


def test_a_masked_token_does_not_count_and_prompts_may_be_shared(folders):
    policy = make_policy("qwen2", folders)
    made, teacher = rollouts(6, 6, 6, 6), Mixture.at(0.4)
    plain = update(policy, made, teacher, Distillation()).accumulate_gradient()
    first = [p.grad.clone() for p in policy.policy_parameters()]
    policy.zero_grad()
    whole = update(policy, made, teacher, Distillation())
    whole.share_prompts = not whole.share_prompts
    assert whole.accumulate_gradient().loss == pytest.approx(plain.loss, rel=1e-5)
    for p, a in zip(policy.policy_parameters(), first, strict=True):
        assert (p.grad - a).norm() <= 1e-4 * a.norm()
    policy.zero_grad()
    for rollout in made:
        rollout.mask = torch.arange(6) < 2
    masked = update(policy, made, teacher, Distillation()).accumulate_gradient()
    assert masked.tokens == 8
    assert masked.loss != pytest.approx(plain.loss, rel=1e-3)


def distiller(student="policy", adapters=None, **parts) -> DistillModule:
    return DistillModule(
        BackboneConfig(quantization="none", dtype="float32"),
        adapters or AdapterConfig(policy=SFT, rank=4),
        student=student,
        **{
            "sampling": SamplingConfig(samples_per_prompt=2, max_new_tokens=48, slots=16, seed=0),
            "optimizer": OptimizerConfig(lr=1e-3),
            **parts,
        },
    )


def same_logits(one: MixedPolicy, mixture: Mixture, other: MixedPolicy, its: Mixture) -> bool:
    ids = torch.arange(4, 24).view(2, 10)
    with torch.no_grad():
        return torch.allclose(one(ids, mixture), other(ids, its), atol=1e-5)


@pytest.mark.parametrize(("student", "alone"), [("policy", 0.0), ("reference", 1.0), ("base", None), (SFT, 0.0)])
def test_the_teacher_is_the_mixture_and_the_student_starts_where_it_is_told(student, alone, tmp_path):
    """The mixture of SFT (as the policy) and another adapter."""
    other = saved_adapter(tmp_path / "other")
    given = AdapterConfig(policy=SFT, reference=other, rank=4)
    m = distiller(student, given, alpha=0.3)
    m.configure_model()
    plain = MixedPolicy.from_pretrained(m.backbone, given)
    assert same_logits(m.policy, m.teacher, plain, Mixture.at(0.3))
    start = Mixture.at(alone) if alone is not None else None
    if start is not None:
        assert same_logits(m.policy, m.mixture, plain, start)
    else:
        bare = MixedPolicy.from_pretrained(m.backbone, AdapterConfig(rank=4))
        assert same_logits(m.policy, m.mixture, bare, Mixture.at(1.0))
    assert m.mixture.streams == ("policy",)
    assert "policy" not in m.teacher.streams


def saved_adapter(folder) -> str:
    m = module()
    without_trainer(m)
    m.policy.save_policy(folder)
    return str(folder)


def test_an_ensemble_and_averaged_probabilities_as_teachers(tmp_path):
    other = saved_adapter(tmp_path / "other")
    given = AdapterConfig(policy=SFT, reference="base", experts=[other], rank=4)
    for kind, weights in (("logits", [1.0, -0.5, 0.5]), ("probs", [0.5, 0.25, 0.25])):
        m = distiller("base", given, weights=weights, mixture=kind)
        m.configure_model()
        plain = MixedPolicy.from_pretrained(m.backbone, given)
        assert same_logits(m.policy, m.teacher, plain, Mixture(tuple(weights), kind))  # pyright: ignore


def test_whole_models_as_teacher(merged, small):
    """A policy that is a whole model of its own, and a reference of another size."""
    given = AdapterConfig(policy=merged, reference=small, rank=4, frozen_quantization="none")
    m = distiller("policy", given)
    m.configure_model()
    plain = MixedPolicy.from_pretrained(m.backbone, given)
    assert len(m.policy.models) == 2  # the student is an adapter on the policy's own model
    assert same_logits(m.policy, m.teacher, plain, Mixture.at(0.5))
    assert same_logits(m.policy, m.mixture, plain, Mixture.at(0.0))


def test_it_moves_towards_the_mixture_and_writes_what_it_is(tmp_path):
    L.seed_everything(0)
    given = AdapterConfig(policy=SFT, rank=4)  # half SFT, half the base
    m = distiller("reference", given, optimizer=OptimizerConfig(lr=5e-3))
    m.configure_model()
    seen = []
    m.log_over_ranks = lambda means, sums, same, largest=None: seen.append(means["train/divergence"])
    trainer(tmp_path, 8, callbacks=[PolicyCheckpoint()]).fit(m, data(prompts=8))
    values = [total / count for total, count in seen]
    assert values[-1] < 0.6 * values[0]
    folder = tmp_path / "checkpoints" / "step=0008"
    origin = json.loads((folder / "lmix.json").read_text())
    assert origin["way"] == "distilled"
    assert origin["weights"] == {"policy": 0.5, "reference": 0.5}
    assert origin["streams"] == {"policy": SFT, "reference": None}
    again = MixedPolicy.from_pretrained(m.backbone, AdapterConfig(policy=str(folder)))  # an adapter like any other
    assert same_logits(again, Mixture.at(0.0), m.policy, m.mixture)


def test_mistakes_are_one_line(tmp_path, capsys, small):
    words = other_tokens(tmp_path / "other", small)
    flags = ["fit", "--config=lmix:demo", "--config=lmix:methods/distill", f"--trainer.default_root_dir={tmp_path}"]
    policy = f"--model.adapters.policy={SFT}"
    for given, message in (
        ([policy, f"--model.adapters.reference={words}"], "adapters.reference"),
        ([f"--model.adapters.policy={words}"], "adapters.policy"),
        ([policy, f"--model.student={words}"], "student"),
    ):
        assert cli.main([*flags, *given]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"lmix: error: {message} {words!r} has another vocabulary than 'lmix:tiny-"), error
        assert len(error.strip().splitlines()) == 1
    for given, message in (
        ([policy, "--model.objective.blend=1"], "objective.blend must lie between 0 and 1, not 1"),
        ([policy, "--model.sampling.resample_dead=1"], "sampling.resample_dead must be 0 for distillation"),
        (
            [policy, "--trainer.callbacks=lmix.training.alpha.AlphaSchedule"],
            "AlphaSchedule changes the alpha of lmix.GRPO",
        ),
        ([policy, "--model.alpha=2"], "alpha must lie in [0, 1], not 2"),
        ([policy, "--model.weights=[1,2,3]"], "weights must be 2 numbers"),
        ([policy, "--model.student=nowhere"], "nowhere"),
    ):
        assert cli.main([*flags, *given]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert cli.main(["plan", *flags[1:], policy]) == 1
    assert "plan does not support DistillModule" in capsys.readouterr().err
    assert cli.main(["fit", "--config=lmix:demo", "--model.objective=Distillation"]) == 1
    assert "objective Distillation needs a teacher: give --model=lmix.DistillModule" in capsys.readouterr().err


def other_tokens(folder, like: str) -> str:
    """A whole model whose tokenizer has two tokens exchanged."""
    shutil.copytree(like, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second, *_ = sorted(vocabulary, key=vocabulary.get)[10:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    return str(folder)


def test_a_position_dependent_teacher(folders):
    """A subclass of Mixture as the teacher: each token's own weights."""

    @dataclass(frozen=True)
    class Fading(Mixture):
        def of_tokens(self, positions_N):
            alpha_N = 1.0 / (1.0 + positions_N)
            return RowMixtures(self.kind, self.streams, torch.stack([1 - alpha_N, alpha_N], dim=1), sums_to_one=True)

    policy = randomise_adapters(make_policy("qwen2", folders))
    made = rollouts(4, 3)
    stats = update(policy, made, Fading((0.5, 0.5)), Distillation()).accumulate_gradient()
    packed = pack(flatten([Group(r.prompt, [r]) for r in made]))
    with torch.no_grad():
        both = [policy(packed.input_ids, Mixture.at(a)).flatten(0, 1)[packed.predicts] for a in (0.0, 1.0)]
        alpha = (1.0 / (1.0 + packed.positions))[:, None]
        target = (1 - alpha) * both[0] + alpha * both[1]
        expected = written_out(both[0], target, Divergence()).mean()
    assert stats.loss == pytest.approx(expected.item(), rel=1e-4)
