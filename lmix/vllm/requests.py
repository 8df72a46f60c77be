# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Weights of the mixture per request: `alpha` or `weights` among a request's extra arguments."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from lmix.model.mixture import Mixture, RowMixtures, stream_names

OF_INSTANCE: "dict[str, RequestMixtures]" = {}
"""Instance id of vLLM -> its `RequestMixtures`, from which the model reads the weights of the current batch."""


class RequestMixtures(LogitsProcessor):
    """Keeps each request's weights for the model, in the order of the batch's rows.

    It is a logits processor because vLLM tells these, before each pass, which request is in which row. It changes no
    logits itself.
    """

    NAME = "lmix.vllm.requests:RequestMixtures"
    default: ClassVar[Mixture | None] = None
    """The exported mixture, which requests are checked against in the process that receives them."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        OF_INSTANCE[vllm_config.instance_id] = self
        self.device = device
        self.weights_of_row: dict[int, tuple[float, ...]] = {}
        self.is_due = False
        self._key: tuple[list[tuple[float, ...]], Mixture] | None = None
        self._rows: RowMixtures | None = None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ValueError for invalid weights; vLLM's server then answers with status 400."""
        if cls.default is not None:
            requested(sampling_params.extra_args, cls.default)
        if sampling_params.prompt_logprobs is not None and weights_of(sampling_params.extra_args) is not None:
            raise ValueError(
                "prompt log-probabilities always use the served mixture: omit alpha and weights, and set the mixture "
                "with lmix_set_alpha"
            )

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        self.is_due = True
        process_dict_updates(self.weights_of_row, batch_update, lambda params, *_: weights_of(params.extra_args))

    def rows(self, count: int, default: Mixture) -> Mixture | RowMixtures:
        """The mixtures of the batch's rows; `default` if no request has weights of its own.

        Only the first call after an update is for rows that tokens are drawn for. Further calls, such as those for a
        prompt's log-probabilities, get the default.
        """
        is_due, self.is_due = self.is_due, False
        if not is_due or not self.weights_of_row:
            return default
        weights = [self.weights_of_row.get(row, default.weights) for row in range(count)]
        if self._rows is None or self._key != (
            weights,
            default,
        ):  # usually they are the same as at the last token
            sums = all(replace(default, weights=row).sums_to_one for row in set(weights))
            tensor = torch.tensor(weights, dtype=torch.float32, device=self.device)
            tempered = default.temperature, default.plausibility
            self._key = weights, default
            self._rows = RowMixtures(default.kind, stream_names(len(default.weights)), tensor, sums, *tempered)
        return self._rows


def weights_of(extra: Mapping[str, Any] | None) -> tuple[float, ...] | None:
    """A request's weights, which `requested` has checked; None if it names none."""
    if extra and "alpha" in extra:
        return 1.0 - float(extra["alpha"]), float(extra["alpha"])
    return tuple(map(float, extra["weights"])) if extra and "weights" in extra else None


def requested(extra: Mapping[str, Any] | None, default: Mixture) -> Mixture:
    """The mixture that a request asks for. Raises a one-line ValueError if it is invalid."""
    if not extra or not {"alpha", "weights"} & set(extra):
        return default
    if {"alpha", "weights"} <= set(extra):
        raise ValueError("alpha and weights are both given: give only one of them")
    streams = len(default.weights)
    numbers = [extra["alpha"]] if "alpha" in extra else extra["weights"]
    if not isinstance(numbers, list | tuple) or not all(type(n) in (int, float) for n in numbers):
        raise ValueError(f"alpha must be a number and weights a list of {streams} numbers, not {numbers!r}")
    if "alpha" in extra:
        if streams != 2:
            raise ValueError(f"alpha is for two streams, and this model has {streams}: give weights, one per stream")
        return default.with_alpha(extra["alpha"])
    if len(numbers) != streams:
        raise ValueError(f"weights must be {streams} numbers, one per stream, not {list(numbers)}")
    return replace(default, weights=tuple(map(float, numbers)))
