"""A LoRA from the difference of two full checkpoints."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmix import cli
from lmix.functional import low_rank_factors
from lmix.inspection.delta import delta
from lmix.model.adapters import AdapterConfig, read_adapter
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from tests.conftest import close, tiny_model, tokens


def linears(model) -> dict[str, torch.nn.Linear]:
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}


def changed(folder, rank: int | None, others: bool = False) -> str:
    """The tiny qwen2 with a random difference of a rank (None: full) in each linear layer, and perhaps in a norm."""
    model = tiny_model("qwen2")
    torch.manual_seed(9)
    with torch.no_grad():
        for layer in linears(model).values():
            rows, columns = layer.weight.shape
            full = torch.randn(rows, columns) if rank is None else torch.randn(rows, rank) @ torch.randn(rank, columns)
            layer.weight += 0.02 * full
        if others:
            model.model.norm.weight += 0.1
    model.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_a_difference_of_low_rank_is_recovered_to_rounding(folders, tmp_path):
    full, base, out = changed(tmp_path / "full", 3), str(folders["qwen2"]), tmp_path / "lora"
    found = delta(full, base, str(out), rank=3)
    assert found["error"] < 1e-5
    assert found["others"] == 0.0
    policy = MixedPolicy.from_pretrained(BackboneConfig(base, "none", dtype="float32"), AdapterConfig(str(out)))
    expected = AutoModelForCausalLM.from_pretrained(full, dtype=torch.float32)(tokens(2, 9)).logits
    assert close(policy(tokens(2, 9), Mixture.at(1.0)), expected, 1e-4)
    assert delta(full, base, str(out), rank=2)["error"] > 0.1  # written over, with one rank too few
    assert read_adapter(str(out))[0].r == 2


def test_the_error_is_that_of_the_singular_values_left_out(folders, tmp_path, capsys):
    """Eckart and Young: the squares of the rest; layers are summed."""
    full = changed(tmp_path / "full", None, others=True)
    found = delta(full, str(folders["qwen2"]), str(tmp_path / "lora"), rank=5)
    left = whole = 0.0
    base, tuned = tiny_model("qwen2"), AutoModelForCausalLM.from_pretrained(full, dtype=torch.float32)
    for name, layer in linears(base).items():
        values = torch.linalg.svdvals((linears(tuned)[name].weight - layer.weight).detach().double())
        left, whole = left + float(values[5:].square().sum()), whole + float(values.square().sum())
    assert found["error"] == pytest.approx((left / whole) ** 0.5, rel=1e-4)
    norm = float((tuned.model.norm.weight - base.model.norm.weight).double().square().sum())
    assert found["others"] == pytest.approx((norm / (whole + norm)) ** 0.5, rel=1e-4)
    assert f"rank 5: relative error {found['error']:.3g} on the linear layers" in capsys.readouterr().out


def test_factors_of_more_rank_than_the_matrix_has():
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    b, a = low_rank_factors(matrix, 8)
    assert b.shape == (3, 8)
    assert a.shape == (8, 5)
    assert close(b @ a, matrix)


def test_mistakes_are_one_line(folders, tmp_path, capsys):
    qwen2, llama = str(folders["qwen2"]), str(folders["llama"])
    taken = tmp_path / "taken"
    taken.mkdir()
    for full, base, out, rank, message in (
        (qwen2, qwen2, tmp_path / "x", 4, "the models do not differ"),
        (qwen2, llama, tmp_path / "x", 4, "model_type is qwen2, but llama in the base"),
        (qwen2, qwen2, tmp_path / "x", 0, "rank must be at least 1, not 0"),
        (qwen2, qwen2, taken, 4, "exists and is not an adapter folder"),
    ):
        assert cli.main(["delta", f"--full={full}", f"--base={base}", f"--out={out}", f"--rank={rank}"]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
