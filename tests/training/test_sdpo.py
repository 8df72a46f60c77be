"""SDPO: its loss by hand, the teacher of eq. 11, what the teacher is told, and a short run."""

import math

import lightning as L
import pytest
import torch

from lmix import cli
from lmix.functional import Divergence, divergences
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import Mixture
from lmix.rollout.packing import pack
from lmix.rollout.types import Group, flatten
from lmix.tasks.task import Judgement
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.distillation import DistillationUpdate
from lmix.training.feedback import FeedbackConfig, contexts, feedback_texts
from lmix.training.objectives import Distillation
from lmix.training.sdpo import SDPOModule
from tests.functional.test_divergences import written_out
from tests.training.helpers import SFT, Canned, data, texts, trainer


def sdpo(**parts) -> SDPOModule:
    return SDPOModule(
        BackboneConfig(quantization="none", dtype="float32"),
        **{
            "adapters": AdapterConfig(policy=SFT),
            "sampling": SamplingConfig(samples_per_prompt=4, max_new_tokens=48, slots=16, seed=0),
            "optimizer": OptimizerConfig(lr=1e-3),
            **parts,
        },
    )


@pytest.fixture(scope="module")
def judged():
    """A module whose policy has moved from its start, and two judged groups: right, blank, right, blank; all wrong."""
    m = sdpo(teacher_rate=0.25)
    m.sampler = Canned()
    m.configure_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in m.policy.named_parameters():
            if ".policy." in name:
                p.add_(0.02 * torch.randn_like(p))
    source = data()
    source.tokenizer = m.tokenizer
    source.setup("fit")
    m.manual_backward = lambda loss: loss.backward()
    m.__dict__["_fabric"] = None
    m.__dict__["_trainer"] = None
    type(m).task = property(lambda self: source.task)  # pyright: ignore
    groups = m.sample(source.sets["train"][:2])
    m.reward(groups)
    for rollout in groups[1].rollouts:
        rollout.judgement, rollout.ended = Judgement("3", False), True
    yield m, groups
    del type(m).task


def test_what_the_teacher_is_told(judged):
    m, (mixed, wrong) = judged
    task = m.task
    solution = mixed.rollouts[0].text
    both = feedback_texts(mixed, task, FeedbackConfig(solution=" S:{solution}", verdict=" V:{verdict}", closing=" C"))
    assert both[0] == f" S:{mixed.rollouts[2].text} C"  # a right one is told of another one
    assert both[1] == f" S:{solution} V:it gave no answer in the form that is asked for. {task.instruction} C"
    only = feedback_texts(mixed, task, FeedbackConfig("solution", solution="{solution}", closing=""))
    assert only == [mixed.rollouts[2].text, solution, solution, solution]
    verdicts = feedback_texts(mixed, task, FeedbackConfig("verdict"))
    assert [text is None for text in verdicts] == [True, False, True, False]
    assert feedback_texts(wrong, task, FeedbackConfig("solution")) == [None] * 4
    bare = FeedbackConfig(verdict="{verdict}", closing="")
    assert feedback_texts(wrong, task, bare) == ["its answer 3 is wrong."] * 4
    one = Group(mixed.prompt, mixed.rollouts[:2])
    assert feedback_texts(one, task, FeedbackConfig())[0] is None  # the only right one
    cut = Group(mixed.prompt, [mixed.rollouts[0]])
    cut.rollouts[0].ended = False
    assert "it was cut after" in str(feedback_texts(cut, task, FeedbackConfig())[0])
    cut.rollouts[0].ended = True


def test_a_context_is_the_same_completion_after_a_longer_prompt(judged):
    m, (mixed, _) = judged
    found = contexts(mixed, m.task, m.tokenizer, FeedbackConfig(), 512)
    for rollout, context in zip(mixed.rollouts, found, strict=True):
        assert context is not None
        assert context.completion_ids == rollout.completion_ids
        assert len(context.prompt.ids) > len(rollout.prompt.ids)
        assert m.tokenizer.decode(context.prompt.ids).startswith(mixed.problem.problem)
    longest = max(len(context) for context in found if context)
    short = contexts(mixed, m.task, m.tokenizer, FeedbackConfig(), longest - 1)
    assert None in short


def test_the_teacher_is_eq_11_which_is_the_mixture_with_the_roles_exchanged(judged):
    """q ~ pi_start^(1 - rate) pi_now^rate, renormalised: the written-out geometric mean, against `Mixture`."""
    m, (mixed, _) = judged
    ids = torch.tensor([mixed.prompt.ids + mixed.rollouts[0].completion_ids])
    assert m.teacher == Mixture((0.25, 0.75))
    with torch.no_grad():
        now, start = (m.policy(ids, Mixture.at(alpha)).log_softmax(-1) for alpha in (0.0, 1.0))
        product = start.exp() ** 0.75 * now.exp() ** 0.25
        expected = product / product.sum(-1, keepdim=True)
        assert torch.allclose(m.policy(ids, m.teacher).softmax(-1), expected, atol=1e-6)
    assert (now - start).abs().max() > 0.1


def test_the_loss_on_a_case_by_hand():
    """Two tokens' vocabulary: start (1/2, 1/2), now (4/5, 1/5), rate 1/2: the teacher is (2/3, 1/3)."""
    student = torch.tensor([[0.75, 0.25]]).log()
    teacher = 0.5 * torch.tensor([[0.5, 0.5]]).log() + 0.5 * torch.tensor([[0.8, 0.2]]).log()
    assert torch.allclose(teacher.softmax(-1), torch.tensor([[2 / 3, 1 / 3]]))
    found = divergences(student, teacher, Divergence())
    expected = 0.75 * math.log(0.75 / (2 / 3)) + 0.25 * math.log(0.25 / (1 / 3))
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen"])
def test_loss_and_gradient_against_autograd_of_the_written_out_sum(judged, divergence):
    """Student at the plain prompt, teacher at the prompt with feedback; completions without any do not count."""
    m, groups = judged
    m.objective, m.feedback = Distillation(divergence, micro_batch_tokens=200), FeedbackConfig("solution")
    m.policy.zero_grad()
    update = m.update(groups, m.objective.advantages(torch.zeros(2, 4)))
    assert isinstance(update, DistillationUpdate)
    assert sum(map(len, update.passes)) == 4  # the second group has no right completion
    stats = update.accumulate_gradient()
    found = [p.grad.clone() for p in m.policy.policy_parameters()]

    m.policy.zero_grad()
    told = contexts(groups[0], m.task, m.tokenizer, m.feedback, 512)
    plain, context = pack(flatten(groups[:1])), pack(told)  # pyright: ignore
    with torch.no_grad():
        target = m.policy(context.input_ids, m.teacher).flatten(0, 1)[context.predicts]
    student = m.policy(plain.input_ids, Mixture.at(0.0)).flatten(0, 1)[plain.predicts]
    loss = written_out(student, target, Divergence(divergence)).mean()
    expected = torch.autograd.grad(loss, m.policy.policy_parameters())
    assert stats.loss == pytest.approx(loss.item(), rel=1e-4)
    assert stats.tokens == len(plain.targets)
    scale = max(float(b.norm()) for b in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 2e-4 * max(float(b.norm()), 1e-2 * scale)


def test_a_short_run_moves_the_policy_and_not_its_start(tmp_path):
    L.seed_everything(0)
    m = sdpo()
    m.sampler = Canned()
    m.configure_model()
    before = {name: value.clone() for name, value in m.policy.adapter_state().items()}
    trainer(tmp_path, 2).fit(m, data(prompts=2))
    assert texts(m.groups)
    for name, value in m.policy.adapter_state().items():
        if ".reference." in name:
            assert torch.equal(value, before[name])
    assert any(not torch.equal(v, before[n]) for n, v in m.policy.adapter_state().items())


def test_mistakes_are_one_line(capsys, tmp_path):
    flags = ["fit", "--config=lmix:demo", "--config=lmix:methods/sdpo", f"--trainer.default_root_dir={tmp_path}"]
    for given, message in (
        (["--model.teacher_rate=2"], "teacher_rate must lie in [0, 1], not 2"),
        ([f"--model.adapters.reference={SFT}"], "adapters.reference and adapters.experts must be null for SDPO"),
        (["--model.feedback.verdict=x"], "feedback.verdict must contain {verdict}"),
        (["--model.sampling.resample_dead=1"], "resample_dead must be 0"),
    ):
        assert cli.main([*flags, *given]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
