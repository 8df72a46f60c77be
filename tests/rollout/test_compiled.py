"""The compiled decode step against its slow twin, eager; and what a CUDA graph needs of the buffers."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from lmix.model.mixture import Mixture
from lmix.rollout.compiled import CompiledStep, KeptSteps, check_can_compile
from lmix.rollout.engine import Engine
from lmix.rollout.limits import Limits
from lmix.rollout.scheduler import Scheduler
from lmix.rollout.types import Draw, flatten
from tests.conftest import MIXED, PROBS, make_policy, prompts, tokens

PROMPTS = prompts(*(tokens(n, seed=n).tolist() for n in (9, 2, 5, 14)))
ENDS = (1,)


def draw(engine: Engine, mixture: Mixture, step: int = 0, limit: int = 90, greedy: bool = False):
    draw = Draw(seed=0, step=step, greedy=greedy)
    return flatten(engine.generate(PROMPTS, Limits(limit, ENDS), draw, mixture, 4, keep_frozen=True))


@pytest.fixture
def compilations() -> Iterator[dict[str, int]]:
    """Counts what torch.compile does in a test."""
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def addresses(step) -> dict[str, int]:
    """Where everything lies that a recorded graph would read or write."""
    found = {name: whole.data_ptr() for name, whole in step._whole.items()}
    found |= {f"now {name}": getattr(step, name).data_ptr() for name in step._whole}
    found |= {f"hidden {name}": kept.data_ptr() for name, kept in step.frozen.items()}
    for c, cache in enumerate(step.caches):
        for i, pair in enumerate(cache.layers):
            found |= {f"{kind} {c}.{i}": tensor.data_ptr() for kind, tensor in zip(("k", "v"), pair, strict=True)}
    for part in step.parts:
        for i, kept in enumerate(part.model.router._kept.values()):
            found |= {f"lora {i} {j}": factor.data_ptr() for j, factor in enumerate(kept[:2])}
    found["weights"] = step.mixture.weights_BK.data_ptr()
    return found


@pytest.mark.parametrize(
    ("name", "mixture", "backend"),
    [
        ("qwen2", MIXED, "eager"),  # captured and guarded as by Inductor, without its C++ compiler
        *(
            pytest.param(*parameters, "inductor", marks=pytest.mark.slow)
            for parameters in (
                ("qwen2", MIXED),
                ("llama", PROBS),
                ("gemma3", MIXED),
                ("gemma2", MIXED),
                ("mistral", MIXED),
                ("qwen2-nf4", MIXED),
            )
        ),
    ],
)
def test_a_compiled_step_draws_what_the_eager_one_does_in_few_graphs(
    name, mixture, backend, folders, compilations, monkeypatch
):
    """Over several extents, sizes of the batch, phases and alphas. `fullgraph` makes any graph break an error."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    policy = make_policy(name, folders)
    eager, compiled = Engine(policy, 16), Engine(policy, 16, compiled=True)
    for step, alpha in enumerate((0.3, 0.6)[: 1 if backend == "eager" else 2]):
        expected, found = (draw(engine, mixture.with_alpha(alpha), step) for engine in (eager, compiled))
        assert [r.completion_ids for r in found] == [r.completion_ids for r in expected]
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a.log_probs, b.log_probs, atol=1e-4)
            assert torch.allclose(a.frozen_hidden["reference"], b.frozen_hidden["reference"], atol=1e-4)
    assert max(len(r.completion_ids) for r in expected) > 64 - 14, "several extents"
    assert not counters["graph_break"]
    assert 1 <= compilations["unique_graphs"] <= 4
    if backend == "eager":
        return
    # another kind of draw, and the first again: nothing of the first is compiled once more
    draw(compiled, mixture, greedy=True)
    after = compilations["unique_graphs"]
    draw(compiled, mixture, step=2)
    assert compilations["unique_graphs"] == after <= 8


def test_tensors_stay_where_they_are_from_token_to_token_and_from_phase_to_phase(folders, monkeypatch):
    """The pass itself runs eagerly here, and one that is recorded sees the same buffers."""
    seen = []
    monkeypatch.setattr(CompiledStep, "__init__", lambda self, step: setattr(self, "step", step))

    def decode(self, extent):
        seen.append(addresses(self.step))
        return self.step.decode(extent)

    monkeypatch.setattr(CompiledStep, "decode", decode)
    policy = make_policy("qwen2", folders, dtype="bfloat16")
    engine = Engine(policy, 16, compiled=True)
    for step, alpha in enumerate((0.3, 0.5)):
        draw(engine, Mixture.at(alpha), step)
        with torch.no_grad():
            for parameter in policy.policy_parameters():  # an update between phases
                parameter.add_(0.01)
    assert len(seen) > 100
    assert all(at == seen[0] for at in seen)


def test_a_longer_prompt_or_another_kind_of_draw_gets_new_buffers_and_a_shorter_one_does_not(folders):
    kept = KeptSteps(make_policy("qwen2", folders))
    first, _ = kept.get(MIXED, Limits(20, ENDS), False, 8, 40, True, 4)
    again, _ = kept.get(Mixture.at(0.9), Limits(20, ENDS), False, 8, 30, True, 4)
    assert again is first
    assert first.mixture.weights_BK[0].tolist() == pytest.approx([0.1, 0.9])
    longer, _ = kept.get(MIXED, Limits(20, ENDS), False, 8, first.length + 1, True, 4)
    assert longer.length > first.length
    greedy, _ = kept.get(MIXED, Limits(20, ENDS), True, 8, 40, True, 4)
    assert greedy is not longer


def test_what_can_t_be_compiled_is_refused_in_one_line(monkeypatch):
    check_can_compile(torch.device("cuda"), sharded=False)
    with pytest.raises(ValueError, match=r"sampling\.compile true needs an unsharded backbone.*strategy to ddp"):
        check_can_compile(torch.device("cpu"), sharded=True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"sampling\.compile true needs a C\+\+ compiler on a CPU: install g\+\+"):
        check_can_compile(torch.device("cpu"), sharded=False)


def test_halves_leave_few_sizes_and_lose_no_row():
    scheduler = Scheduler([3] * 4, 4, 16, 50, 100, halves=True)
    scheduler.admit()
    sizes = []
    for ended in range(16):
        ends = [50] * len(scheduler.row_of)
        ends[next(slot for slot, row in enumerate(scheduler.row_of) if row == ended)] = 1
        scheduler.retire(ends)
        scheduler.shrink()
        assert [row for row in scheduler.row_of if row is not None] == [*range(ended + 1, 16)]
        sizes.append(len(scheduler.row_of))
    assert sorted(set(sizes)) == [4, 8, 16]
