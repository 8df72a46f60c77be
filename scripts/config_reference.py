"""Write docs/reference.md from the code: every setting with its default and its docstring.

python scripts/config_reference.py          # writes the file; a test checks that it is up to date
"""

import ast
import inspect
import re
import sys
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from lmix.data.module import RLDataModule  # noqa: E402
from lmix.evaluation.config import EvaluationConfig  # noqa: E402
from lmix.files import write_lines  # noqa: E402
from lmix.inspection.config import MixedPolicyChoice  # noqa: E402
from lmix.model.adapters import AdapterConfig  # noqa: E402
from lmix.model.backbone import BackboneConfig  # noqa: E402
from lmix.rewards import RewardSum  # noqa: E402
from lmix.rollout.samplers import VLLM, VLLMServers  # noqa: E402
from lmix.tasks import ArithmeticTask, CnK12Task, DatasetTask, MathTask, MMLUTask, ReasoningGymTask  # noqa: E402
from lmix.tasks.task import Task  # noqa: E402
from lmix.training.alpha import AccuracyWeightedAlpha, AdaptiveAlpha, AlphaSchedule  # noqa: E402
from lmix.training.checkpoints import PolicyCheckpoint  # noqa: E402
from lmix.training.completion_log import CompletionLog  # noqa: E402
from lmix.training.compute import ComputeBudget  # noqa: E402
from lmix.training.config import OptimizerConfig, SamplingConfig  # noqa: E402
from lmix.training.distill import DistillModule  # noqa: E402
from lmix.training.feedback import FeedbackConfig  # noqa: E402
from lmix.training.grpo import GRPOModule  # noqa: E402
from lmix.training.objectives import (  # noqa: E402
    CHORD,
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    LUFFY,
    RLOO,
    Distillation,
    DrGRPO,
    LogitFusion,
    Objective,
)
from lmix.training.sdpo import SDPOModule  # noqa: E402
from lmix.training.sft import SFTModule  # noqa: E402
from lmix.training.strategies import ShardedStrategy  # noqa: E402

TARGET = ROOT / "docs" / "reference.md"
SECTIONS = {
    "Model: `--model`": (GRPOModule, DistillModule, SDPOModule, SFTModule),
    "Its parts: `--model.backbone` and so on": (
        BackboneConfig, AdapterConfig, SamplingConfig, OptimizerConfig, FeedbackConfig,
    ),
    "Rewards: `--model.rewards`": (RewardSum,),
    "Objective: `--model.objective`": (
        GRPO, DrGRPO, DAPO, RLOO, CISPO, GSPO, CHORD, LUFFY, LogitFusion, Distillation, Objective,
    ),
    "Sampler: `--model.sampler`, and `--sampler` of other commands": (VLLM, VLLMServers),
    "Data: `--data`": (RLDataModule,),
    "Tasks: `--data.task`": (Task, DatasetTask, MathTask, CnK12Task, MMLUTask, ArithmeticTask, ReasoningGymTask),
    "Callbacks: `--trainer.callbacks`": (
        AdaptiveAlpha, AccuracyWeightedAlpha, AlphaSchedule, PolicyCheckpoint, CompletionLog, ComputeBudget,
    ),
    "Strategy: `--trainer.strategy`": (ShardedStrategy,),
    "`evaluate`, `sweep`, `compare`": (EvaluationConfig,),
    "`generate`, `export`": (MixedPolicyChoice,),
}  # fmt: skip
INTRODUCTION = """# Settings

Made by `scripts/config_reference.py` from the code. `--trainer` takes Lightning's own settings; `--print_config` shows
what a run would use.
"""


def main() -> int:
    write_lines(TARGET, [reference()])
    print(TARGET)
    return 0


def reference() -> str:
    """The content of the page."""
    parts = [INTRODUCTION]
    for title, classes in SECTIONS.items():
        parts.append(f"## {title}\n")
        for kind in classes:
            parts += [f"### {import_path(kind)}\n", paragraph(kind) + "\n", table(kind) + "\n"]
    return "\n".join(parts)


def import_path(kind: type) -> str:
    """The shortest import path of a class, as used in configurations."""
    parts = kind.__module__.split(".")
    packages = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next(
        f"{name}.{kind.__name__}" for name in packages if getattr(import_module(name), kind.__name__, None) is kind
    )


def paragraph(kind: type) -> str:
    """A class's docstring up to its arguments."""
    text = inspect.getdoc(kind) or ""
    return re.split(r"\n(?:Args|Raises):\n", text)[0].strip()


def table(kind: type) -> str:
    rows = field_rows(kind) if is_dataclass(kind) else argument_rows(kind)
    lines = ["| setting | default | what it is |", "| --- | --- | --- |"]
    for name, default, text in rows:
        shown = "" if default is None else f"`{default}`"
        cell = " ".join(text.split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {shown} | {cell} |")
    return "\n".join(lines)


def field_rows(kind: Any) -> list[tuple[str, str | None, str]]:
    """Name, default and docstring of a dataclass's fields; each docstring follows its field."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[getattr(node.target, "id", "")] = str(after.value.value)
    rows = []
    for field in fields(kind):
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        rows.append((field.name, None if default is MISSING else shown(default), texts[field.name]))
    return rows


def argument_rows(kind: Any) -> list[tuple[str, str | None, str]]:
    """Name, default and description of a class's arguments, from the docstring of the class or of its constructor."""
    text = inspect.getdoc(kind) or ""
    if "Args:\n" not in text:
        text = inspect.getdoc(kind.__init__) or ""
    block = re.split(r"\n\w+:\n", text.partition("Args:\n")[2] + "\n")[0]
    parts = re.split(r"^    (\w[\w, ]*): ", block, flags=re.MULTILINE)[1:]
    given = inspect.signature(kind).parameters
    rows = []
    for names, what in zip(parts[::2], parts[1::2], strict=True):
        for name in names.split(", "):
            if name != "kwargs":
                default = given[name].default
                rows.append((name, None if default is inspect.Parameter.empty else shown(default), what))
    return rows


def shown(value: Any) -> str:
    """A default as it would be typed; an instance of a settings class is shown by the name of its class."""
    if is_dataclass(value):
        return f"{type(value).__name__}()"
    if isinstance(value, Objective):  # a lazy instance of jsonargparse, whose class is a subclass of the real one
        return f"{type(value).__bases__[-1].__name__}()"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
