"""The notebook of the docs, cell by cell, as it stands."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

NOTEBOOK = Path(__file__).parent.parent / "docs" / "two_streams.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*non-interactive.*")
def test_what_the_notebook_says_is_so(capsys):
    mpl.use("Agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    names: dict = {"__name__": "notebook"}
    for cell in cells:
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "True"  # the mixed logits are the mixture of the streams' logits
    assert names["before"][0.0][0] == 0.0  # the base never boxes, the reference always does
    assert names["before"][1.0][0] == 1.0
    assert names["after"][1] > names["before"][0.5][1] + 0.2
    plt.close("all")
