"""What all evaluation commands share: which model, which problems, how they are decoded. Checked before any loading."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmix
from lmix.data.module import RLDataModule
from lmix.data.splits import shuffled
from lmix.model.adapters import CONFIG, WEIGHTS, AdapterConfig, read_adapter
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import POLICY, REFERENCE, Mixture, MixtureKind, check_alpha, mixture_of
from lmix.model.placement import field_of, is_model, model_paths
from lmix.model.source_digest import weights_digest
from lmix.model.sources import check_places, hub_arguments, resolve
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.limits import check_limits
from lmix.rollout.samplers import LmixEngine, SamplerChoice
from lmix.rollout.types import Prompt, Who
from lmix.tasks.task import Split, Task


@dataclass(frozen=True)
class EvaluationConfig:
    """A model, a task's problems, and how completions are drawn.

    Raises:
        ValueError: a count below 1.
    """

    task: Task
    """Where problems come from, how they are asked and judged: the same as in training."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen model."""
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    """The streams: policy is what was trained (a folder checkpoints/step=N), reference the SFT adapter or model."""
    weights: list[float] | None = None
    """Of the policy, the reference and each of adapters.experts, in place of alpha: an ensemble."""
    plausibility: float = 0.0
    """Leave out tokens whose probability under the policy is less than this part of the most probable one's
    (contrastive decoding; 0.1 there). For evaluation and generation only: in training it would make the ratio wrong."""
    problems: int = 500
    """How many of the split's problems; they are chosen by `seed`, as training chooses data.eval_size by data.seed."""
    split: Split = "test"
    """Which of the task's splits."""
    max_prompt_tokens: int = 1024
    """Problems with a longer prompt are dropped, and a warning says how many."""
    max_new_tokens: int = 1024
    """A completion that has not ended by then is cut."""
    slots: int = 64
    """Rows that are decoded at once; more need more memory for keys and values. Changes results by rounding only."""
    seed: int = 0
    """Of the choice of problems, and of sampled completions."""
    shuffle: bool = True
    """Choose problems by `seed`, as training does by data.seed; false takes the first ones in file order."""
    min_new_tokens: int = 0
    """No end-of-sequence token is drawn as one of the first so many tokens, as in training."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion, beside the end-of-sequence tokens, as in training; they stay in its text."""

    sampler: SamplerChoice | None = None
    """What draws completions: lmix.rollout.VLLM or VLLMServers (docs/serve.md); null is lmix's engine."""

    def __post_init__(self) -> None:
        for name in ("problems", "max_prompt_tokens", "max_new_tokens", "slots"):
            check_count(name, getattr(self, name))
        check_limits("", self.max_new_tokens, self.stop, self.min_new_tokens)

    @property
    def sampler_choice(self) -> SamplerChoice:
        return self.sampler or LmixEngine()

    def mixtures(self, alpha: float, kind: MixtureKind) -> dict[Who, Mixture]:
        """What each name stands for: the mixture at alpha (or of `weights`), and each of the two streams alone.

        Raises:
            ValueError: alpha outside [0, 1], or weights that do not fit the adapters.
        """
        mixed = mixture_of(check_alpha(alpha), kind, self.weights, self.adapters.streams)
        mixed = replace(mixed, plausibility=self.plausibility)
        return {"mixed": mixed, "policy": Mixture.alone(POLICY, kind), "reference": Mixture.alone(REFERENCE, kind)}

    def prompts(self) -> list[Prompt]:
        """The chosen problems, tokenised. Raises ValueError, in one line, where data or tokenizer can't be read."""
        data = RLDataModule(
            self.task,
            eval_size=self.problems,
            validation_size=self.problems if self.split == "validation" else 0,
            max_prompt_tokens=self.max_prompt_tokens,
            long_prompts="drop",
            seed=self.seed,
            shuffle=self.shuffle,
            tokenizer=load_tokenizer(self.backbone.path),
        )
        self.sampler_choice.check(self.backbone, self.adapters)
        prompts = data.read([self.split])[self.split]
        for path in model_paths(self.backbone, self.adapters):
            check_places(path, max(len(prompt.ids) for prompt in prompts), self.max_new_tokens)
        if len(prompts) <= self.problems:
            return prompts
        # the data module cuts held-out splits only
        order = shuffled(range(len(prompts)), self.seed if self.shuffle else None)
        return [prompts[i] for i in sorted(order[: self.problems])]

    def settings(self, prompts: list[Prompt]) -> dict[str, Any]:
        """All that the numbers depend on, as JSON takes it; problems and adapters as checksums of their contents.

        Raises:
            ValueError: an adapter that can't be read.
        """
        asked = [(p.problem.id, p.ids, p.problem.answer) for p in prompts]
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "task"}
        kind = type(self.task)
        return {
            **fields,
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
    """Raise ValueError where a count is below 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def stream_checksum(stream: str, path: str | None) -> str | None:
    """Of an adapter's files or a model's weights, None for the base. Raises ValueError where it can't be read."""
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
    """Of what moves evaluation numbers."""
    return {"lmix": lmix.__version__, **{name: version(name) for name in ("torch", "transformers", "math-verify")}}
