"""A weighted mixture of streams (eq. 1-3; section 5 for probabilities): what is sampled, scored and trained.

Legend: B rows, K streams of the mixture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

MixtureKind = Literal["logits", "probs"]
POLICY, REFERENCE = "policy", "reference"


def stream_names(count: int) -> tuple[str, ...]:
    """The names of a model's streams in order: the policy, the reference, and then each expert."""
    return (POLICY, REFERENCE, *(f"expert_{k}" for k in range(1, count - 1)))[:count]


@dataclass(frozen=True)
class Mixture:
    """Weights of a model's streams, and how the streams are averaged. Immutable.

    Args:
        weights: of the policy, the reference and each expert. Weights of logits may be any finite numbers (DExperts,
            contrastive decoding); weights of probabilities are at least 0 and sum to 1.
        kind: `logits` averages logits (eq. 1), `probs` averages probabilities (section 5).
        temperature: divides the mixture's logits after averaging: `softmax(z_mix / temperature)`; positive.
        plausibility: tokens whose probability under the policy alone is below this fraction of the largest one are
            never drawn (contrastive decoding, Li et al., arXiv 2210.15097, which uses 0.1); 0 keeps all tokens.

    Raises:
        ValueError: an unknown kind; weights that are not finite, are all 0, or do not fit the kind; a temperature that
            is not positive; a plausibility outside [0, 1], or above 0 if the policy has weight 0.
    """

    weights: tuple[float, ...]
    kind: MixtureKind = "logits"
    temperature: float = 1.0
    plausibility: float = 0.0

    def __post_init__(self) -> None:
        weights = tuple(map(float, self.weights))
        object.__setattr__(self, "weights", weights)
        if self.kind not in ("logits", "probs"):
            raise ValueError(f"mixture must be logits or probs, not {self.kind!r}")
        if not all(map(math.isfinite, weights)) or not any(weights):
            raise ValueError(f"weights must be finite and not all 0, not {list(weights)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if not 0.0 <= self.plausibility <= 1.0:
            raise ValueError(f"plausibility must lie in [0, 1], not {self.plausibility}: 0.1 is usual, 0 turns it off")
        if self.plausibility and not weights[0]:
            raise ValueError(
                f"plausibility {self.plausibility} requires a nonzero policy weight, not {weights[0]:g}: set "
                "plausibility to 0"
            )
        if self.kind == "probs" and (min(weights) < 0 or abs(sum(weights) - 1.0) > 1e-6):
            raise ValueError(f"weights of probabilities must be at least 0 and sum to 1, not {list(weights)}")

    @classmethod
    def at(cls, alpha: float, kind: MixtureKind = "logits") -> "Mixture":
        """Policy and reference, the reference weighted by alpha (eq. 1). ValueError if alpha is outside [0, 1]."""
        alpha = check_alpha(alpha)
        return cls((1.0 - alpha, alpha), kind)

    @classmethod
    def alone(cls, stream: str, kind: MixtureKind = "logits") -> "Mixture":
        """The policy alone or the reference alone."""
        return cls.at({POLICY: 0.0, REFERENCE: 1.0}[stream], kind)

    @property
    def alpha(self) -> float:
        """Weight of the reference."""
        return self.weights[1]

    def only(self, stream: str) -> "Mixture":
        """The policy alone or the reference alone, at this mixture's temperature."""
        return replace(Mixture.alone(stream), temperature=self.temperature)

    def with_alpha(self, alpha: float) -> "Mixture":
        """A copy with weights 1 - alpha for the policy and alpha for the reference. Errors as in `at`."""
        return replace(self, weights=Mixture.at(alpha).weights)

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that are run, in the order in which they are stacked. Streams of weight 0 are left out, unless
        weights depend on the token."""
        names = stream_names(len(self.weights))
        return tuple(n for n, w in zip(names, self.weights, strict=True) if w != 0.0 or self.depends_on_token)

    @property
    def stream_weights(self) -> tuple[float, ...]:
        """The weight of each of `streams`."""
        return tuple(weight for weight in self.weights if weight != 0.0 or self.depends_on_token)

    @property
    def tempered_weights(self) -> tuple[float, ...]:
        """`stream_weights` divided by the temperature: the factors of the streams' logits."""
        return tuple(weight / self.temperature for weight in self.stream_weights)

    @property
    def depends_on_token(self) -> bool:
        """Whether a subclass makes weights depend on the token's position."""
        return type(self).of_tokens is not Mixture.of_tokens

    @property
    def sums_to_one(self) -> bool:
        """Whether the weights sum to 1, so that a shared bias is added exactly once."""
        return math.isclose(sum(self.weights), 1.0)

    def of_tokens(self, positions_N: Tensor) -> "Mixture | RowMixtures":
        """The mixture for tokens at these positions of their completions, `[N]` from 0: here always this mixture.

        A subclass may return `RowMixtures` of the same streams, with one row for each token.
        """
        return self

    def by_name(self) -> dict[str, float]:
        """Weights by stream name, including zeros."""
        return dict(zip(stream_names(len(self.weights)), self.weights, strict=True))


@dataclass(frozen=True)
class RowMixtures:
    """A mixture for each row of a batch, all of one kind and over the same streams. Made by `row_mixtures`."""

    kind: MixtureKind
    streams: tuple[str, ...]
    weights_BK: Tensor
    """`[B, K]`, float32."""
    sums_to_one: bool
    temperature: float = 1.0
    plausibility: float = 0.0

    @property
    def stream_weights(self) -> tuple[Tensor, ...]:
        """Weights `[B, 1]` of each stream, which broadcast over its logits `[B, V]`."""
        return self.weights_BK[..., None].unbind(-2)

    @property
    def tempered_weights(self) -> tuple[Tensor, ...]:
        """See `Mixture.tempered_weights`."""
        return tuple(weight / self.temperature for weight in self.stream_weights)

    def rows(self, rows: Tensor) -> "RowMixtures":
        """The mixtures of these rows `[b]` only."""
        return replace(self, weights_BK=self.weights_BK[rows])


def row_mixtures(mixtures: Sequence[Mixture], device: torch.device | str = "cpu") -> RowMixtures:
    """Combine one mixture per row. Every row runs all streams that any row needs.

    Raises:
        ValueError: mixtures that differ in more than their weights, or one whose weights depend on the token.
    """
    if any(mixture.depends_on_token for mixture in mixtures):
        raise ValueError("a mixture whose weights depend on the token can't be drawn together with other mixtures")
    kinds = {(mixture.kind, mixture.temperature, mixture.plausibility) for mixture in mixtures}
    if len(kinds) != 1:
        raise ValueError(f"mixtures drawn together must agree in kind, temperature and plausibility, but got {kinds}")
    kind, temperature, plausibility = mixtures[0].kind, mixtures[0].temperature, mixtures[0].plausibility
    needed = {name for mixture in mixtures for name in mixture.streams}
    streams = tuple(name for name in stream_names(max(len(m.weights) for m in mixtures)) if name in needed)
    weights = [[mixture.by_name().get(name, 0.0) for name in streams] for mixture in mixtures]
    weights_BK = torch.tensor(weights, dtype=torch.float32, device=device)
    sums = all(mixture.sums_to_one for mixture in mixtures)
    return RowMixtures(kind, streams, weights_BK, sums, temperature, plausibility)


def mixture_of(
    alpha: float, kind: MixtureKind, weights: Sequence[float] | None, streams: int, temperature: float = 1.0
) -> Mixture:
    """The mixture from settings: alpha for policy and reference, or a weight for each stream of an ensemble.

    Args:
        alpha: weight of the reference, used if `weights` is None.
        kind: what is averaged, logits or probabilities.
        weights: of the policy, the reference and each expert; or None.
        streams: number of streams.
        temperature: see `Mixture`.

    Raises:
        ValueError: a wrong number of weights, a policy of weight 0, or as in `Mixture`.
    """
    if weights is None:
        if streams > 2:
            raise ValueError("adapters.experts needs weights: of the policy, the reference and each expert")
        return replace(Mixture.at(alpha, kind), temperature=temperature)
    if len(weights) != streams:
        raise ValueError(
            f"weights must be {streams} numbers, not {list(weights)}: of the policy, the reference and each expert"
        )
    if weights[0] == 0:
        raise ValueError(f"weights must be finite, and the policy's (the first) must not be 0, not {list(weights)}")
    return Mixture(tuple(weights), kind, temperature)


def check_alpha(alpha: float) -> float:
    """Return alpha as a float. Raises ValueError unless it lies in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:  # also rejects NaN
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}: 0 is the policy alone, 1 the reference alone")
    return float(alpha)
