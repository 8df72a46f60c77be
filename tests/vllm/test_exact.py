"""vLLM against lmix's engine: greedy tokens alike, and log-probabilities of them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2

from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixture import Mixture
from lmix.rollout.engine import Engine
from lmix.rollout.limits import Limits
from lmix.rollout.types import Draw, Prompt, flatten
from lmix.rollout.vllm_local import LocalVLLM
from lmix.rollout.vllm_sampler import VLLMSampler
from tests.conftest import prompts, tokens
from tests.vllm.conftest import EAGER
from tests.vllm.models import ARCHITECTURES, PROMPTS, backbone_folder, exported, mixed_model, next_policy

pytestmark = pytest.mark.vllm
LIMITS = Limits(24, ())
ALPHAS = (0.0, 0.3, 0.5, 1.0)


def gap(
    model: MixedPolicyForCausalLM,
    sampler: VLLMSampler,
    mixture: Mixture | Sequence[Mixture],
    asked: Sequence[Prompt] = PROMPTS,
    limits: Limits = LIMITS,
) -> float:
    """The largest difference of log-probabilities over greedy completions; infinite where tokens differ."""
    samples = 1 if isinstance(mixture, Mixture) else len(mixture)
    draw = Draw(greedy=True)
    expected = flatten(Engine(model.policy).generate(asked, limits, draw, mixture, samples))
    found = flatten(sampler.generate(asked, limits, draw, mixture, samples))
    if [rollout.completion_ids for rollout in found] != [rollout.completion_ids for rollout in expected]:
        return float("inf")
    assert [rollout.ended for rollout in found] == [rollout.ended for rollout in expected]
    pairs = zip(found, expected, strict=True)
    return max(float((own.log_probs - other.log_probs).abs().max()) for own, other in pairs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_completions_are_those_of_lmix_s_engine(start, architecture):
    """Prompts of 1 to 300 tokens; the second alpha finds the prompts' keys and values in the cache."""
    model, vllm = start(architecture)
    sampler = VLLMSampler(vllm, model.mixture)
    for alpha in ALPHAS:
        assert gap(model, sampler, Mixture.at(alpha)) < 1e-4, alpha
    # several alphas in one batch
    assert gap(model, sampler, [Mixture.at(alpha) for alpha in ALPHAS], PROMPTS[:4]) < 1e-4


@pytest.mark.parametrize(
    ("architecture", "mixture"),
    [
        ("qwen2", Mixture.at(0.3, "probs")),
        ("gemma2", Mixture.at(0.3, "probs")),
        ("qwen2", Mixture((0.5, 0.8, -0.3))),
        ("gemma2", Mixture((0.5, 0.2, 0.3))),
        ("llama", Mixture((0.5, 0.2, 0.1, 0.2), "probs")),
        ("qwen2", replace(Mixture.at(0.4), temperature=0.7)),
        ("qwen2", replace(Mixture((2.0, -1.0)), plausibility=0.1)),
    ],
    ids=str,
)
def test_other_mixtures(start, architecture, mixture):
    model, vllm = start(architecture, mixture=replace(mixture, temperature=1.0))
    sampler = VLLMSampler(vllm, model.mixture)
    assert gap(model, sampler, mixture) < 1e-4
    # another kind, live
    other = Mixture.at(0.6, "logits" if mixture.kind == "probs" else "probs")
    assert gap(model, sampler, other, PROMPTS[:4]) < 1e-4


@pytest.mark.parametrize("architecture", ["qwen2", "mistral"])
def test_prompts_in_chunks(start, architecture):
    model, vllm = start(architecture, options={"enable_chunked_prefill": True, "max_num_batched_tokens": 64})
    assert gap(model, VLLMSampler(vllm, model.mixture), Mixture.at(0.5)) < 1e-4


@pytest.mark.slow
def test_compiled(start):
    model, vllm = start("qwen2", options={"enforce_eager": False})
    sampler = VLLMSampler(vllm, model.mixture)
    assert gap(model, sampler, Mixture.at(0.5)) < 1e-4
    assert gap(model, sampler, Mixture.at(0.2)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_tensor_parallel(start, architecture, monkeypatch):
    """Two processes, each with half of every layer; LoRA's parts lie where the layers' do."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    model, vllm = start(architecture, options={"tensor_parallel_size": 2, "distributed_executor_backend": "mp"})
    sampler = VLLMSampler(vllm, model.mixture)
    assert gap(model, sampler, Mixture.at(0.5)) < 1e-4
    assert gap(model, sampler, Mixture.at(0.2)) < 1e-4


def test_nf4_values_are_those_that_the_policy_was_trained_on(start):
    model, vllm = start("qwen2", quantization="nf4")
    assert gap(model, VLLMSampler(vllm, model.mixture), Mixture.at(0.5)) < 1e-4


def test_a_changed_policy_needs_the_cache_to_be_reset(start, tmp_path):
    model, vllm = start("qwen2", options={"block_size": 32})
    sampler = VLLMSampler(vllm, model.mixture)
    assert gap(model, sampler, Mixture.at(0.3)) < 1e-4
    folder = next_policy(model, tmp_path / "next")
    assert vllm.llm.collective_rpc("lmix_set_adapter", args=("policy", str(folder)))[0]["rank"] == 4
    assert gap(model, sampler, Mixture.at(0.3)) > 1e-2  # keys and values of the former policy
    sampler.sync(model.policy)
    assert gap(model, sampler, Mixture.at(0.3)) < 1e-4


def test_frequencies_of_samples_are_the_mixture_s_probabilities(start):
    model, vllm = start("qwen2", options={"max_num_seqs": 256})
    sampler = VLLMSampler(vllm, model.mixture)
    (prompt,) = prompts(tokens(9, seed=5).tolist())
    mixture, count = Mixture.at(0.4), 4000
    (group,) = sampler.generate([prompt], Limits(1, ()), Draw(seed=3), mixture, count)
    counts = torch.zeros(96)
    for rollout in group.rollouts:
        counts[rollout.completion_ids[0]] += 1
    with torch.no_grad():
        probabilities = model.policy(torch.tensor([prompt.ids]), mixture)[0, -1].softmax(-1)
    for rollout in group.rollouts[:50]:
        assert float(rollout.log_probs[0]) == pytest.approx(
            float(probabilities[rollout.completion_ids[0]].log()), abs=1e-4
        )
    assert p_value(counts, probabilities * count) > 1e-3
    uniform = torch.full_like(probabilities, count / 96)
    assert p_value(counts, uniform) < 1e-6  # the test can fail


def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Of a chi-square test; what is expected fewer than 5 times is one cell."""
    rare = expected < 5
    cells = [(counts[~rare], expected[~rare]), (counts[rare].sum()[None], expected[rare].sum()[None])]
    statistic = sum(float(((c - e) ** 2 / e.clamp(min=1e-9)).sum()) for c, e in cells)
    return float(chi2.sf(statistic, int((~rare).sum())))


def test_a_request_s_own_alpha(start):
    """As the OpenAI server gives it: vllm_xargs."""
    model, vllm = start("qwen2")
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    def greedy(**extra) -> list[int]:
        parameters = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, extra_args=extra or None)
        (output,) = vllm.llm.generate([{"prompt_token_ids": PROMPTS[3].ids}], parameters, use_tqdm=False)
        return list(output.outputs[0].token_ids)

    def expected(alpha: float) -> list[int]:
        groups = Engine(model.policy).generate([PROMPTS[3]], Limits(12, ()), Draw(greedy=True), Mixture.at(alpha))
        return flatten(groups)[0].completion_ids

    assert expected(0.3) != expected(1.0)
    assert greedy() == expected(0.3)  # as exported
    assert greedy(alpha=1.0) == greedy(weights=[0, 1]) == expected(1.0)
    assert vllm.llm.collective_rpc("lmix_set_alpha", args=(1.0,))[0]["weights"] == [0.0, 1.0]
    assert greedy() == expected(1.0)
    assert greedy(alpha=0.3) == expected(0.3)
    for extra in (
        {"alpha": 1.5},
        {"alpha": "0.5"},
        {"weights": [1.0]},
        {"weights": "all"},
        {"alpha": 0.5, "weights": [1, 0]},
    ):
        with pytest.raises(VLLMValidationError, match=r"alpha|weights"):
            greedy(**extra)
    scored = SamplingParams(max_tokens=1, prompt_logprobs=0, extra_args={"alpha": 0.5})
    with pytest.raises(VLLMValidationError, match="prompt log-probabilities"):
        vllm.llm.generate([{"prompt_token_ids": PROMPTS[3].ids}], scored, use_tqdm=False)


def test_what_does_not_fit_changes_nothing(start, tmp_path):
    model, vllm = start("qwen2")
    sampler = VLLMSampler(vllm, model.mixture)

    def refused(method: str, *args) -> str:
        (answer,) = vllm.llm.collective_rpc(method, args=args)
        return answer["error"]

    larger = wrong_adapter(model, tmp_path / "larger", 64, ["q_proj"])
    assert "rank 64, above the largest of the served folder, 4" in refused("lmix_set_adapter", "policy", larger)
    assert "has no adapter_config.json" in refused("lmix_set_adapter", "policy", str(tmp_path))
    assert "no stream 'expert_1'" in refused("lmix_set_adapter", "expert_1", larger)
    assert "alpha must lie in [0, 1]" in refused("lmix_set_alpha", 2)
    assert "2 numbers" in refused("lmix_set_weights", [1, 2, 3])
    assert gap(model, sampler, Mixture.at(0.3), PROMPTS[:3]) < 1e-4


def wrong_adapter(model: MixedPolicyForCausalLM, folder, rank: int, layers: list[str]) -> str:
    from lmix.model.adapters import AdapterConfig
    from lmix.model.backbone import BackboneConfig
    from lmix.model.mixed_policy import MixedPolicy

    config = BackboneConfig(**model.config.backbone)
    MixedPolicy.from_pretrained(config, AdapterConfig(rank=rank, target_modules=layers)).save_policy(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"enable_lora": True}, "remove --enable-lora"),
        ({"quantization": "fp8"}, "served unquantised"),
    ],
)
def test_settings_of_vllm_that_a_mixed_policy_has_not(start, options, words):
    with pytest.raises(ValueError, match=rf"^vLLM does not start: a mixed policy [^\n]*{words}[^\n]*$"):
        start("qwen2", options=options)


def test_a_backbone_that_is_gone_is_one_line(models, tmp_path):
    model = mixed_model(backbone_folder("qwen2", models / "qwen2"), Mixture.at(0.3))
    folder = exported(model, tmp_path / "export")
    config = folder / "config.json"
    config.write_text(config.read_text().replace(str(models / "qwen2"), str(tmp_path / "gone")))
    with pytest.raises(ValueError, match=r"^vLLM does not start: backbone [^\n]*gone[^\n]*$"):
        LocalVLLM(folder, EAGER, torch.device("cpu"))
