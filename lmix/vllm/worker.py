"""Methods for vLLM's `collective_rpc`, in process or over HTTP: only names, numbers and paths are sent."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lmix.model.mixture import Mixture


class MixedPolicyWorker:
    """Mixin for vLLM's workers. Answers are JSON; an answer with `error` means that nothing was changed."""

    model_runner: Any

    def lmix_state(self) -> dict[str, Any]:
        """What is served: the mixture for requests without weights, the streams, and the largest adapter rank."""
        return self._answer(lambda model: None)

    def lmix_set_alpha(self, alpha: float) -> dict[str, Any]:
        """Set the weights of reference and policy to alpha and 1 - alpha, from the next token on."""
        return self._answer(lambda model: model.set_mixture(model.mixture.with_alpha(float(alpha))))

    def lmix_set_weights(self, weights: Sequence[float]) -> dict[str, Any]:
        """Set a weight for each stream, from the next token on."""
        return self._answer(lambda model: model.set_mixture(replace(model.mixture, weights=tuple(weights))))

    def lmix_set_mixture(
        self, weights: Sequence[float], kind: str, temperature: float, plausibility: float
    ) -> dict[str, Any]:
        """Set all fields of `lmix.model.mixture.Mixture`, from the next token on."""
        return self._answer(lambda model: model.set_mixture(Mixture(tuple(weights), kind, temperature, plausibility)))  # pyright: ignore[reportArgumentType]

    def lmix_set_adapter(self, stream: str, folder: str) -> dict[str, Any]:
        """Reload a stream's adapter from a peft folder that this worker can read. Reset the prefix cache afterwards."""
        return self._answer(lambda model: model.set_adapter(stream, folder))

    def _answer(self, change: Callable[[Any], None]) -> dict[str, Any]:
        model = self.model_runner.get_model()
        try:
            change(model)
        except (ValueError, TypeError) as error:  # an exception would end the server
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
