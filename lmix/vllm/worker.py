"""Methods for vLLM's `collective_rpc`, in process or over HTTP: only names, numbers and paths are sent."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lmix.model.mixture import Mixture


class MixedPolicyWorker:
    """Mixed into each of vLLM's workers. Answers are JSON; `error` is there where nothing was changed."""

    model_runner: Any

    def lmix_state(self) -> dict[str, Any]:
        """What is served: the mixture of requests that name no weights, streams, and the largest rank of an adapter."""
        return self._answer(lambda model: None)

    def lmix_set_alpha(self, alpha: float) -> dict[str, Any]:
        """Weigh the reference by alpha, and the policy by 1 - alpha, from the next token on."""
        return self._answer(lambda model: model.set_mixture(model.mixture.with_alpha(float(alpha))))

    def lmix_set_weights(self, weights: Sequence[float]) -> dict[str, Any]:
        """A weight for each stream, from the next token on."""
        return self._answer(lambda model: model.set_mixture(replace(model.mixture, weights=tuple(weights))))

    def lmix_set_mixture(
        self, weights: Sequence[float], kind: str, temperature: float, plausibility: float
    ) -> dict[str, Any]:
        """All of `lmix.model.mixture.Mixture`."""
        return self._answer(lambda model: model.set_mixture(Mixture(tuple(weights), kind, temperature, plausibility)))  # pyright: ignore[reportArgumentType]

    def lmix_set_adapter(self, stream: str, folder: str) -> dict[str, Any]:
        """Read a stream's adapter anew, from a peft folder that this worker sees. Reset the prefix cache after it."""
        return self._answer(lambda model: model.set_adapter(stream, folder))

    def _answer(self, change: Callable[[Any], None]) -> dict[str, Any]:
        model = self.model_runner.get_model()
        try:
            change(model)
        except (ValueError, TypeError) as error:  # would end the server
            return {"error": str(error)}
        mixture: Mixture = model.mixture
        return {
            "streams": list(model.streams),
            "weights": list(mixture.weights),
            "kind": mixture.kind,
            "temperature": mixture.temperature,
            "plausibility": mixture.plausibility,
            "rank": model.lora.rank,
        }
