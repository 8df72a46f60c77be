"""The notebook of the docs, cell by cell, as it stands."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

NOTEBOOK = Path(__file__).parent.parent / "docs" / "two_streams.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


CODE = [source(cell) for cell in CELLS if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*non-interactive.*")
def test_what_the_notebook_says_is_so(capsys):
    mpl.use("Agg")
    assert len(CODE) > 6
    names: dict = {"__name__": "notebook"}
    for code in CODE:
        exec(compile(code, NOTEBOOK.name, "exec"), names)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "True"  # the mixed logits are the mixture of the streams' logits
    assert "step  10/10" in out
    assert names["before"][0.0][0] == 0.0  # the base never boxes, the reference always does
    assert names["before"][1.0][0] == 1.0
    assert names["after"][1] > names["before"][0.5][1] + 0.2
    plt.close("all")


def test_the_first_cell_installs_lmix_only_where_it_is_missing(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    names: dict = {}
    exec(CODE[0], names)
    assert not ran
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(NOTEBOOK.parent)
    exec(CODE[0], {})
    monkeypatch.chdir(tmp_path)
    exec(CODE[0], {})
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    assert ran == [[*pip, ".."], [*pip, f"git+{names['REPOSITORY']}"]]


def test_the_colab_badge_opens_this_notebook_of_the_same_repository():
    (address,) = re.findall(r"colab\.research\.google\.com/github/([^)]+)\)", source(CELLS[0]))
    (repository,) = re.findall(r"https://github\.com/([\w.-]+/[\w.-]+)", CODE[0])
    assert address == f"{repository}/blob/main/docs/{NOTEBOOK.name}"


def test_the_notebook_is_stored_without_outputs():
    for cell in CELLS:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
