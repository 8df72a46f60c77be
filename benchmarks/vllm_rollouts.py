"""Compare rollouts by vLLM with lmix's engine and with a single stream: python -m benchmarks.vllm_rollouts MODEL.

Needs vLLM (scripts/test_vllm.sh creates an environment). Each contender runs in its own process. Times are medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, best_device
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.limits import Limits
from lmix.rollout.samplers import VLLM, LmixEngine
from lmix.rollout.types import Draw, Prompt, flatten
from lmix.rollout.vllm_local import LocalVLLM
from lmix.rollout.vllm_sampler import VLLMSampler
from lmix.tasks.task import Problem

CONTENDERS = {
    "engine": "lmix's engine, two streams with LoRA",
    "vllm": "vLLM, two streams with LoRA",
    "vllm_one": "vLLM, one stream with LoRA",
}
ROWS, PROMPT_TOKENS, NEW_TOKENS, RANK = 32, 64, 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one contender, in this process
    settings = parser.parse_args()
    if settings.alone:
        print(json.dumps(seconds(settings.model, settings.contenders[0], settings.repeats)))
        return
    for name in settings.contenders:
        command = [sys.executable, "-m", "benchmarks.vllm_rollouts", settings.model, "--alone", "--contenders", name]
        done = subprocess.run(
            [*command, "--repeats", str(settings.repeats)], stdout=subprocess.PIPE, text=True, check=True
        )
        times = json.loads(done.stdout.splitlines()[-1])
        middle = statistics.median(times)
        spread = f"{min(times):.1f} to {max(times):.1f}"
        rate = ROWS * NEW_TOKENS / middle
        print(f"| {CONTENDERS[name]} | {middle:.1f} | {spread} | {rate:.0f} |", flush=True)


def seconds(path: str, contender: str, repeats: int) -> list[float]:
    """Seconds of each repeat, for 32 completions of 64 tokens after prompts of 64 tokens."""
    backbone = BackboneConfig(path, "none", dtype="bfloat16")
    policy = MixedPolicy.from_pretrained(backbone, AdapterConfig(rank=RANK), best_device())
    mixture, places = Mixture.at(0.5), PROMPT_TOKENS + NEW_TOKENS
    if contender == "vllm_one":
        sampler, mixture = one_stream(policy, backbone, places), Mixture((1.0,))
    else:
        choice = LmixEngine() if contender == "engine" else VLLM(memory=0.3)
        sampler = choice.make(policy, backbone, mixture, ROWS, places)
    generator = torch.Generator().manual_seed(0)
    vocabulary = len(load_tokenizer(path))
    prompts = [
        Prompt(Problem(i, "", ""), torch.randint(vocabulary, (PROMPT_TOKENS,), generator=generator).tolist())
        for i in range(ROWS)
    ]
    sampler.generate(prompts, Limits(4, ()), Draw(seed=1), mixture)  # warm-up
    times = []
    for repeat in range(repeats):
        fresh = [Prompt(p.problem, [repeat + 5, *p.ids[1:]]) for p in prompts]  # so that no prefix is cached
        start = time.perf_counter()
        groups = sampler.generate(fresh, Limits(NEW_TOKENS, ()), Draw(seed=repeat), mixture)
        times.append(time.perf_counter() - start)
        assert sum(len(rollout.completion_ids) for rollout in flatten(groups)) == ROWS * NEW_TOKENS
    return times


def one_stream(policy: MixedPolicy, backbone: BackboneConfig, places: int) -> VLLMSampler:
    """A vLLM sampler for the policy alone, with the same code."""
    settings = {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.3,
        "max_model_len": places,
        "max_num_seqs": ROWS,
        "max_num_batched_tokens": 8192,
        **({} if policy.device.type == "cuda" else {"enable_chunked_prefill": False}),
    }
    with tempfile.TemporaryDirectory() as folder:
        MixedPolicyForCausalLM.from_policy(policy, Mixture.at(0.5), backbone).save_pretrained(folder)
        load_tokenizer(backbone.path).save_pretrained(folder)
        config = Path(folder) / "config.json"
        fields = json.loads(config.read_text())
        fields |= {"adapters": {"policy": "policy"}, "weights": {"policy": 1.0}}
        config.write_text(json.dumps(fields))
        return VLLMSampler(LocalVLLM(Path(folder), settings, policy.device), Mixture((1.0,)))


if __name__ == "__main__":
    main()
