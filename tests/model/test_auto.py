"""transformers' Auto classes load what `lmix export` writes, whichever of the two is imported first."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import sys
assert "peft" not in sys.modules
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
assert type(config).__name__ == "MixedPolicyConfig"
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model).__name__, model.mixture.weights)
"""


def run(script: str, *args: str) -> str:
    line = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}", *args]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    backbone = BackboneConfig("lmix:tiny-arithmetic", quantization="none", dtype="float32")
    policy = MixedPolicy.from_pretrained(backbone, AdapterConfig(reference="lmix:tiny-arithmetic-sft"))
    out = tmp_path_factory.mktemp("exported")
    MixedPolicyForCausalLM.from_policy(policy, Mixture.at(0.25), backbone).save_pretrained(out)
    return str(out)


@pytest.mark.parametrize(
    "imports",
    [
        "import transformers\nimport lmix",
        "import lmix.model\nimport transformers",
        "import lmix\nimport transformers",
        "import lmix\nimport importlib.util\nimportlib.util.find_spec('transformers')\nimport transformers",
    ],
)
def test_a_folder_is_loaded_by_the_auto_classes(folder, imports):
    assert run(imports + LOAD, folder) == "MixedPolicyForCausalLM (0.75, 0.25)\n"


def test_import_lmix_waits_for_nothing_heavy():
    heavy = "{'torch', 'transformers', 'lightning', 'rich', 'lmix.model'} & set(sys.modules)"
    assert run(f"import lmix; print({heavy})") == "set()\n"
