"""The notebook of the docs, cell by cell, as it stands."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

NOTEBOOK = Path(__file__).parent.parent / "docs" / "two_streams.ipynb"


def run(small: dict[str, str]) -> dict:
    """Run the cells with parts of their code replaced, each of which must be there; gives their names."""
    mpl.use("Agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    code = ["".join(cell["source"]) for cell in cells]
    assert len(code) > 5
    for old, new in small.items():
        assert sum(old in cell for cell in code) == 1
        code = [cell.replace(old, new) for cell in code]
    names: dict = {"__name__": "notebook"}
    for cell in code:
        exec(compile(cell, NOTEBOOK.name, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:.*non-interactive.*")
def test_the_notebook_runs(capsys):
    small = {"max_steps=10": "max_steps=1", "prompts_per_step=32": "prompts_per_step=4", "test_size=50": "test_size=6"}
    names = run(small)
    assert capsys.readouterr().out.splitlines()[0] == "True"
    assert names["before"][1.0][0] == 1.0
    plt.close("all")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*non-interactive.*")
def test_what_the_notebook_says_is_so(capsys):
    names = run({})
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "True"  # the mixed logits are the mixture of the streams' logits
    assert names["before"][0.0][0] == 0.0  # the base never boxes, the reference always does
    assert names["before"][1.0][0] == 1.0
    assert names["after"][1] > names["before"][0.5][1] + 0.2
    plt.close("all")
