"""`VLLMSampler`: where completions end, what they depend on, and a training run that draws by it."""

import math
from typing import Any

import lightning as L
import pytest
import torch

from lmix import cli
from lmix.model.end_tokens import end_tokens
from lmix.model.mixture import Mixture
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.engine import Engine
from lmix.rollout.limits import limits_of
from lmix.rollout.sampler import SamplerLost
from lmix.rollout.samplers import VLLM
from lmix.rollout.types import Draw, flatten
from lmix.rollout.vllm_sampler import VLLMSampler
from lmix.training.objectives import GRPO
from tests.training.helpers import data, module, trainer
from tests.vllm.models import PROMPTS
from tests.vllm.test_exact import gap

pytestmark = pytest.mark.vllm
CHOICE = VLLM(memory=0.1, options={"enforce_eager": True})


def test_completions_end_as_in_lmix_s_engine(start):
    model, vllm = start("qwen2")
    sampler = VLLMSampler(vllm, model.mixture)
    tokenizer = load_tokenizer(model.config.backbone["path"])
    mixture, draw = Mixture.at(0.3), Draw(greedy=True)
    plain = limits_of(tokenizer, [], 40)
    drawn = flatten(Engine(model.policy).generate(PROMPTS[:5], plain, draw, mixture))
    texts = [str(tokenizer.decode(rollout.completion_ids)) for rollout in drawn]
    # with the model's own, which vLLM keeps from the first tokens too
    ends = sorted({*end_tokens(model.policy.backbone, tokenizer), *(rollout.completion_ids[9] for rollout in drawn)})
    stop = [text[6:9] for text in texts[:2]] + [texts[2][20:22]]
    for least in (0, 12, 40):
        limits = limits_of(tokenizer, ends, 40, stop, least)
        assert gap(model, sampler, mixture, PROMPTS[:5], limits) < 1e-4
        assert gap(model, sampler, mixture, PROMPTS[:5], limits_of(tokenizer, ends, 40, (), least)) < 1e-4
    assert gap(model, sampler, mixture, PROMPTS[:5], limits_of(tokenizer, [], 40, stop)) < 1e-4


def test_a_completion_depends_on_its_seed_alone(start):
    model, vllm = start("qwen2")
    sampler = VLLMSampler(vllm, model.mixture)
    limits = limits_of(load_tokenizer(model.config.backbone["path"]), [], 16)
    counts: list[tuple[int, ...]] = []

    def told(*numbers: int) -> None:
        counts.append(numbers)

    together = sampler.generate(PROMPTS[:4], limits, Draw(seed=1), Mixture.at(0.3), 3, progress=told)
    assert counts[-1] == (12, 12, 12 * 16)
    alone = sampler.generate(PROMPTS[2:3], limits, Draw(seed=1), Mixture.at(0.3), 3)
    other = sampler.generate(PROMPTS[2:3], limits, Draw(seed=2), Mixture.at(0.3), 3)
    ids = [[rollout.completion_ids for rollout in group.rollouts] for group in (together[2], alone[0], other[0])]
    assert ids[0] == ids[1] != ids[2]
    assert len({tuple(row) for row in ids[0]}) == 3
    for rollout in together[2].rollouts:  # what the trainer makes of them
        whole = torch.tensor([rollout.prompt.ids + rollout.completion_ids])
        with torch.no_grad():
            logits = model.policy(whole, Mixture.at(0.3))[0, len(rollout.prompt.ids) - 1 : -1]
        scored = logits.log_softmax(-1).gather(1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
        assert float((scored - rollout.log_probs).abs().max()) < 1e-4


def test_training_draws_by_vllm(tmp_path):
    """Some steps, with held-out problems between: the gap to the trainer stays at rounding, so each step's weights have
    reached vLLM."""
    m, gaps = module(sampler=CHOICE), Gaps()
    run = trainer(tmp_path, 4, val_check_interval=2, callbacks=[gaps])
    run.fit(m, data(prompts=8))
    assert isinstance(m.sampler, VLLMSampler)
    assert not m.sampling.keep_frozen
    assert all(rollout.frozen_hidden is None for rollout in flatten(m.groups))
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert len(gaps.found) == 4
    assert max(gaps.found) < 1e-3
    live = [gap for gap in gaps.found if gap > 0]  # others had dead groups only
    assert len(live) >= 2
    assert math.isfinite(metrics["val/solve_rate"])


class Gaps(L.Callback):
    """The largest gap of log-probabilities of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.found.append(float(trainer.callback_metrics["train/sampler_gap_max"]))


def test_the_same_completions_give_the_same_adapters(tmp_path):
    """Two steps from the engine's completions, once with log-probabilities and hidden states of the engine, once with
    vLLM's log-probabilities and without kept hidden states."""
    states = []
    for by_vllm in (False, True):
        torch.manual_seed(0)
        # with importance weights, so that the sampler's log-probabilities count
        m = module(objective=GRPO(sampler_weight_cap=2.0), **({"sampler": CHOICE} if by_vllm else {}))
        if by_vllm:
            forced = m.configure_model

            def configure(m=m, forced=forced) -> None:
                forced()
                m.sampler = SameTokens(m.sampler, Engine(m.policy))

            m.configure_model = configure
        trainer(tmp_path, 2).fit(m, data())
        states.append({name: value.clone() for name, value in m.policy.adapter_state().items()})
    largest = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])
    assert largest < 1e-5


class SameTokens:
    """The engine's completions with the log-probabilities that vLLM gives them, token by token."""

    def __init__(self, vllm: VLLMSampler, engine: Engine) -> None:
        self.vllm, self.engine = vllm, engine

    def sync(self, policy) -> None:
        self.vllm.sync(policy)

    def generate(self, prompts, limits, draw, mixture, samples=1, keep_frozen=False, progress=None):
        assert not keep_frozen
        groups = self.engine.generate(prompts, limits, draw, mixture, samples, keep_frozen=False)
        for rollout in flatten(groups):
            rollout.log_probs = forced_log_probs(self.vllm, rollout, mixture)
        return groups


def forced_log_probs(sampler: VLLMSampler, rollout, mixture) -> torch.Tensor:
    """vLLM's, of given tokens: those of a prompt."""
    from vllm import SamplingParams

    sampler.vllm.set_mixture(mixture)
    parameters = SamplingParams(max_tokens=1, prompt_logprobs=0)
    ids = rollout.prompt.ids + rollout.completion_ids
    (output,) = sampler.vllm.llm.generate([{"prompt_token_ids": ids}], parameters, use_tqdm=False)
    places = output.prompt_logprobs[len(rollout.prompt.ids) :]
    return torch.tensor([place[token].logprob for place, token in zip(places, rollout.completion_ids, strict=True)])


def test_evaluation_and_generate_draw_by_vllm(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # each in a process of its own
    flags = ["--sampler=lmix.rollout.VLLM", "--sampler.memory=0.1", "--sampler.options={enforce_eager: true}"]
    model = [
        "--backbone.quantization=none",
        "--backbone.dtype=float32",
        "--adapters.reference=lmix:tiny-arithmetic-sft",
    ]
    size = ["--problems=24", "--max_new_tokens=48"]
    rates = []
    for sampler in ([], flags):
        out = tmp_path / f"out{len(rates)}"
        task = ["--task=lmix.tasks.ArithmeticTask", f"--out={out}"]
        assert cli.main(["evaluate", *task, *model, *size, "--who=[mixed,policy,reference]", *sampler]) == 0
        rows = (out / "rows.jsonl").read_text()
        rates.append(rows)
    assert rates[0] == rates[1]
    sweep = ["--task=lmix.tasks.ArithmeticTask", f"--out={tmp_path / 'sweep'}", "--alphas=[0,0.5]"]
    assert cli.main(["sweep", *sweep, *model, *size, *flags]) == 0
    asked = ["--prompt=Tom has 13 apples. Tom buys 4 more. How many apples does Tom have now?", "--greedy=true"]
    capsys.readouterr()
    assert cli.main(["generate", *asked, *model, *flags]) == 0
    assert "17" in capsys.readouterr().out


def test_an_engine_that_dies_is_a_lost_sampler(start, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    model, vllm = start("qwen2")
    sampler = VLLMSampler(vllm, model.mixture)
    assert gap(model, sampler, Mixture.at(0.5), PROMPTS[:3]) < 1e-4
    for process in vllm.llm.llm_engine.engine_core.resources.engine_manager.processes:
        process.kill()
        process.join()
    with pytest.raises(SamplerLost, match=r"^vLLM's process has ended[^\n]*$"):
        gap(model, sampler, Mixture.at(0.5), PROMPTS[:3])
    with pytest.raises(SamplerLost):
        sampler.sync(model.policy)
