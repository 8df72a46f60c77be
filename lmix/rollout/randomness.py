"""One uniform number a token, as a function of (seed, step, prompt, sample, position) and of nothing else.

A counter-based generator: no state to save or to keep in step, so batch layout, ranks and resuming change no token, and
any rollout can be drawn again alone. The mixing function is SplitMix64's finaliser (Steele et al., OOPSLA 2014).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lmix.rollout.types import Draw, Rollout

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def row_keys(seed: int, step: int, prompts: Tensor, samples: Tensor) -> Tensor:
    """A 64-bit key for each row: `[B]`, `[B]` (int64) -> `[B]` int64."""
    key = _mix(torch.full_like(prompts, _signed(seed)))
    for field in (torch.full_like(prompts, step), prompts, samples):
        key = _mix(key ^ field)  # not symmetric: seed 1, step 0 is not seed 0, step 1
    return key


def rollout_keys(rollouts: Sequence[Rollout], draw: Draw, device: torch.device | None = None) -> Tensor:
    """The keys of rollouts, `[B]` int64: functions of (seed, step, problem, sample)."""
    prompts = torch.tensor([rollout.prompt.problem.id for rollout in rollouts], device=device)
    samples = torch.tensor([rollout.sample for rollout in rollouts], device=device)
    return row_keys(draw.seed, draw.step, prompts, samples)


def uniforms(keys: Tensor, positions: Tensor) -> Tensor:
    """The number in [0, 1) that decides the token at each row's position: `[B]`, `[B]` int64 -> `[B]` float64."""
    bits = _mix(keys ^ positions)
    return _shift(bits, 12).double() * 2.0**-52


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(_GOLDEN)  # int64 arithmetic wraps, on every device
    x = (x ^ _shift(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ _shift(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >= 1 << 63 else x
