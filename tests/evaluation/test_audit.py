"""The partial-prompt audit."""

import pytest

from lmix.evaluation.audit import audit, cut, same_words
from lmix.model.adapters import AdapterConfig
from tests.evaluation.conftest import N, common, load


@pytest.mark.parametrize(
    ("problem", "fraction", "parts"),
    [
        ("a b c d e", 0.6, ("a b c", "d e")),
        ("a  b\nc d", 0.5, ("a  b", "c d")),
        ("aa a aa a", 0.75, ("aa a aa", "a")),  # each word at its own place
        ("a b", 0.01, ("a", "b")),
        ("a b", 0.99, ("a", "b")),
    ],
)
def test_cut(problem, fraction, parts):
    assert cut(problem, fraction) == parts


def test_same_words():
    assert same_words("d  e and more", "d e") == 1.0
    assert same_words("d f", "d e") == 0.5
    assert same_words("", "d e") == 0.0


def test_audit(tmp_path, capsys):
    content = audit(out=str(tmp_path), **common(adapters=AdapterConfig(rank=4)))
    assert content == load(tmp_path / "audit.json")
    assert content["problems"] == N
    assert content["rates"]["exact"]["rate"] <= content["rates"]["words"]["rate"] < 0.5  # the task is made on the spot
    rows = [line for line in (tmp_path / "rows.jsonl").read_text().splitlines() if line]
    assert len(rows) == N
    assert "word for word" in capsys.readouterr().out


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_fraction_outside_its_range(fraction, tmp_path):
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        audit(fraction=fraction, out=str(tmp_path), **common())
    with pytest.raises(ValueError, match="at least two words"):
        cut("one", 0.5)
