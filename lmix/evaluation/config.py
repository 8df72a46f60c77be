"""Settings common to all evaluation commands: model, problems and decoding. Checked before anything is loaded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmix
from lmix.data.module import RLDataModule
from lmix.data.splits import HELD_OUT, shuffled
from lmix.model.adapters import CONFIG, WEIGHTS, AdapterConfig, read_adapter
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import POLICY, REFERENCE, Mixture, MixtureKind, check_alpha, mixture_of
from lmix.model.placement import field_of, is_model, model_paths
from lmix.model.source_digest import weights_digest
from lmix.model.sources import check_places, hub_arguments, load_config, resolve, room_after
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.limits import check_limits
from lmix.rollout.samplers import LmixEngine, SamplerChoice
from lmix.rollout.types import Prompt, Who
from lmix.tasks.task import Split, Task

MOST_NEW_TOKENS = 1024
"""Maximum tokens of a completion if `max_new_tokens` is null and the model's context would allow more."""


@dataclass(frozen=True)
class EvaluationConfig:
    """A model, a task's problems, and how completions are decoded.

    Raises:
        ValueError: a count is out of range.
    """

    task: Task
    """The task, with its problems, prompt, answer template and verifier. Use the same as in training."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen model."""
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    """The streams: policy is the trained adapter (a folder checkpoints/step=N), reference the SFT adapter or model."""
    weights: list[float] | None = None
    """Weights of the policy, the reference and each of adapters.experts, instead of alpha, for an ensemble."""
    plausibility: float = 0.0
    """Exclude tokens whose probability under the policy is below this fraction of the most probable token's (as in
    contrastive decoding, which uses 0.1). For evaluation and generation only: in training the ratio would be wrong."""
    problems: int | None = None
    """Number of problems of the split, chosen by `seed` as training chooses data.eval_size problems by data.seed. null
    takes those that training holds out by default, and of the training problems 500. If you set data.eval_size in
    training, give the same number here: otherwise problems may be among them that the model was trained on."""
    split: Split = "test"
    """The task's split."""
    max_prompt_tokens: int = 1024
    """Problems with longer prompts are dropped, with a warning that says how many."""
    max_new_tokens: int | None = None
    """Length limit in tokens. A completion that has not ended by then is cut. null: 1024, or the rest of the model's
    context after the longest prompt if that is less."""
    slots: int = 64
    """Rows decoded at once. More slots need more memory for keys and values. Results change by rounding only."""
    seed: int = 0
    """Seed for choosing problems and for sampling completions."""
    shuffle: bool = True
    """Choose problems by `seed`, as training does by data.seed; false takes the first ones in file order."""
    min_new_tokens: int = 0
    """Completions have at least this many tokens, as in training."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion, in addition to the end-of-sequence tokens, as in training. They stay in it."""

    sampler: SamplerChoice | None = None
    """The sampler: lmix.rollout.VLLM or VLLMServers (docs/serve.md); null is lmix's own engine."""

    def __post_init__(self) -> None:
        for name in ("problems", "max_prompt_tokens", "max_new_tokens", "slots"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.split == "validation" and self.problems is None:
            raise ValueError("split validation needs problems: the number that training has as data.validation_size")
        check_limits("", self.max_new_tokens, self.stop, self.min_new_tokens)

    @property
    def sampler_choice(self) -> SamplerChoice:
        return self.sampler or LmixEngine()

    def mixtures(self, alpha: float, kind: MixtureKind) -> dict[Who, Mixture]:
        """The mixture of each name: `mixed` at alpha (or with `weights`), and `policy` and `reference` alone.

        Raises:
            ValueError: alpha is outside [0, 1], or the weights do not match the adapters.
        """
        mixed = mixture_of(check_alpha(alpha), kind, self.weights, self.adapters.streams)
        mixed = replace(mixed, plausibility=self.plausibility)
        return {"mixed": mixed, "policy": Mixture.alone(POLICY, kind), "reference": Mixture.alone(REFERENCE, kind)}

    def prompts(self) -> list[Prompt]:
        """The chosen problems, tokenised. Raises ValueError, in one line, if data or tokenizer can't be read."""
        data = RLDataModule(
            self.task,
            eval_size=self.problems if self.split == "test" else None,
            validation_size=(self.problems or 0) if self.split == "validation" else 0,
            max_prompt_tokens=self.max_prompt_tokens,
            long_prompts="drop",
            seed=self.seed,
            shuffle=self.shuffle,
            tokenizer=load_tokenizer(self.backbone.path),
        )
        self.sampler_choice.check(self.backbone, self.adapters)
        prompts = data.read([self.split])[self.split]
        for path in model_paths(self.backbone, self.adapters):
            check_places(path, max(len(prompt.ids) for prompt in prompts), self.max_new_tokens or 1)
        self.new_tokens(prompts)
        wanted = self.problems or HELD_OUT
        if len(prompts) <= wanted:
            return prompts
        # the data module limits the size of held-out splits only
        order = shuffled(range(len(prompts)), self.seed if self.shuffle else None)
        return [prompts[i] for i in sorted(order[:wanted])]

    def new_tokens(self, prompts: Sequence[Prompt]) -> int:
        """The length limit of completions of these prompts. Raises ValueError if it is below `min_new_tokens`."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        configs = map(load_config, model_paths(self.backbone, self.adapters))
        limit = room_after(max(len(prompt.ids) for prompt in prompts), configs, MOST_NEW_TOKENS)
        check_limits("", limit, self.stop, self.min_new_tokens)
        return limit

    def settings(self, prompts: list[Prompt]) -> dict[str, Any]:
        """Everything that results depend on, for JSON; problems and adapters as checksums of their contents.

        Raises:
            ValueError: an adapter can't be read.
        """
        asked = [(p.problem.id, p.ids, p.problem.answer) for p in prompts]
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "task"}
        kind = type(self.task)
        return {
            **fields,
            "problems": self.problems or len(prompts),
            "max_new_tokens": self.new_tokens(prompts),
            "task": f"{kind.__module__}.{kind.__qualname__}",
            "template": self.task.template.name,
            "backbone": asdict(self.backbone),
            "adapters": asdict(self.adapters),
            "sampler": self.sampler_choice.settings(),
            "contents": {name: stream_checksum(name, path) for name, path in self.adapters.paths().items()},
            "versions": versions(),
            "prompts": checksum(json.dumps(asked).encode()),
        }


def check_count(name: str, value: int) -> None:
    """Raise ValueError if a count is below 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def stream_checksum(stream: str, path: str | None) -> str | None:
    """Checksum of an adapter's files or a model's weights; None for the base. Raises ValueError if unreadable."""
    if path is None:
        return None
    if is_model(field_of(stream), path):
        where, arguments = hub_arguments(path)
        return weights_digest(where, arguments.get("gguf_file"))
    read_adapter(path)
    folder = Path(resolve(path)).expanduser()
    return checksum((folder / WEIGHTS).read_bytes() + (folder / CONFIG).read_bytes())


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that affect evaluation results."""
    return {"lmix": lmix.__version__, **{name: version(name) for name in ("torch", "transformers", "math-verify")}}
