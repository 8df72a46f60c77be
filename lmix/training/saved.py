"""The state of a mixed policy's training in checkpoints, beyond Lightning's own, and how a run resumes from it."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture
from lmix.model.origin import Origin
from lmix.model.placement import model_paths
from lmix.training.held_out import HeldOut
from lmix.training.optimisation import OptimisedModule
from lmix.training.state import check_adapter_state, check_origin

log = logging.getLogger(__name__)


class SavedModule(OptimisedModule):
    """A mixed policy whose checkpoints contain its adapters and never a backbone.

    Attributes:
        policy: created by `configure_model`.
        mixture: the mixture that is sampled, scored and evaluated. Callbacks may replace it between steps.
    """

    policy: MixedPolicy

    def __init__(
        self, backbone: BackboneConfig, adapters: AdapterConfig, mixture: Mixture, weights: Sequence[float] | None
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints contain adapters only; load_state_dict checks the names
        self.backbone, self.adapters, self.weights = backbone, adapters, weights
        self.mixture = self.initial_mixture = mixture
        self.held_out = HeldOut()

    @property
    def model_path(self) -> str:
        """The policy's model: `backbone.path`, or the whole model that `adapters.policy` names."""
        return model_paths(self.backbone, self.adapters)[0]

    @property
    def origin(self) -> Origin | None:
        """The mixture that the saved adapter is the policy of, for the peft folder; None for a single stream."""
        if len(self.mixture.streams) < 2:
            return None
        streams = self.adapters.paths() | {POLICY: "."}
        return Origin("mixture", self.model_path, streams, self.mixture.by_name(), {"mixture": self.mixture.kind})

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """The adapters; never the backbone."""
        return {f"policy.{name}": tensor for name, tensor in self.policy.adapter_state().items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load adapters. Raises ValueError unless names and shapes match this model and all values are finite."""
        check_adapter_state(state_dict, self.state_dict())
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lmix"] = {
            "alpha": self.mixture.alpha,
            "initial_alpha": self.initial_mixture.alpha,
            "weights": None if self.weights is None else list(self.weights),
            "compute": self.compute.totals,
            "reference_evaluated": self.held_out.reference_done,
            "backbone": self.model_path,
            "fingerprint": self.policy.fingerprint,
            "others": self.policy.other_fingerprints,
            "scaling": self.policy.adapter_scaling(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model. Outside `fit`, also restore its alpha."""
        saved = checkpoint["lmix"]
        self.held_out.reference_done = saved.get("reference_evaluated", False)  # missing before 0.2.0
        policy = self.policy
        check_origin(saved, self.model_path, policy.fingerprint, policy.other_fingerprints, policy.adapter_scaling())
        self.compute.totals |= saved.get("compute", {})
        if self.trainer.state.fn != "fit":
            self.restore_alpha(saved)

    def restore_alpha(self, saved: dict[str, Any]) -> None:
        """Restore the alpha of a checkpoint, unless the initial alpha in the settings differs from the saved one."""
        both_move = self.weights is None and saved["weights"] is None
        if both_move and self.initial_mixture.alpha == saved["initial_alpha"]:
            self.mixture = self.mixture.with_alpha(saved["alpha"])
            log.info("alpha %g restored from the checkpoint", saved["alpha"])
