"""The machine's limit: the time that the matrix products of the rollouts take at the rate of a large matmul."""

import statistics
import time
from functools import cache

import torch

from benchmarks.work import Work
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import compute_dtype
from lmix.model.sources import load_config
from lmix.planning.shape import ModelShape, model_shape


def limit(work: Work) -> dict[str, float]:
    """Seconds that the matrix products of the rollouts take at the rate of a large matmul, which is measured now.

    The products are those of all linear layers for the prompts (once per stream) and the completions (token by token)
    of both streams, and of the head once per sampled token, on mixed hidden states.
    """
    torch.set_num_threads(work.threads)
    model = shape_of(work.model)
    passes = 2 * (work.prompts * work.prompt_tokens + work.rows * (work.tokens - 1))
    flops = 2.0 * (passes * model.linear + work.rows * work.tokens * model.head)
    dtype = compute_dtype(work.dtype, work.device)
    a = torch.randn(512, model.hidden, device=work.device, dtype=dtype)
    b = torch.randn(model.hidden, model.inner, device=work.device, dtype=dtype)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.matmul(a, b)
        if work.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rate = 2.0 * 512 * model.hidden * model.inner / statistics.median(times)
    return {"rollout": flops / rate, "gflops": rate / 1e9}


@cache
def shape_of(model: str) -> ModelShape:
    return model_shape(load_config(model), AdapterConfig())
