# ruff: noqa: RUF001 - the alpha is meant

import json
import re

import pytest

from lmix.report import write_report
from lmix.report.figures import realignment
from lmix.report.results import read_sweep
from tests.report.conftest import config, solving


def test_report_of_everything(make_run, sweep_folder, compare_folder, tmp_path):
    folders = [
        make_run("fixed-0", solving(0.25, 0.75, 0.75), config(0)),
        make_run("fixed-1", solving(0.25, 0.5), config(1)),
        make_run("adaptive", solving(0.25, 1.0), config(0, callbacks=[{"class_path": "lmix.AdaptiveAlpha"}])),
        make_run("unevaluated", {"train/reward": {0: 0.5}}),
        sweep_folder,
        compare_folder,
    ]
    path = write_report(folders, tmp_path / "out" / "report", title="Trial")
    text = path.read_text()
    assert text.startswith("# Trial\n\nLeft out because they logged no val/solve_rate: ")
    assert "- adaptive: 1 seed (0), 2 evaluations, steps 0 to 10" in text
    assert (
        "- fixed, α=0.5: 2 seeds (0, 1), 2 evaluations, steps 0 to 10; runs end at steps 10, 20, "
        "and only steps that all have are shown" in text
    )
    links = re.findall(r"\]\((.+?)\)", text)
    assert {link.partition("-")[0] for link in links} == {
        "rates",
        "accuracy",
        "adaptive",
        "training",
        "sweep",
        "compare",
    }
    assert all((path.parent / link).stat().st_size > 0 for link in links)


def test_only_what_there_is_material_for(sweep_folder, tmp_path):
    path = write_report([sweep_folder], tmp_path / "out")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "report.md",
        "sweep-1.csv",
        "sweep-1.png",
        "sweep-1.svg",
    ]


def test_two_strengths_of_a_kl_are_two_methods(make_run, tmp_path):
    def kl(name: str, seed: int, beta: float, *rates: float):
        return make_run(name, solving(*rates), config(seed, alpha=0.0, objective={"beta": beta}))

    folders = [kl("a", 0, 0.01, 0.25, 0.5), kl("b", 1, 0.01, 0.25, 0.75), kl("c", 0, 0.1, 0.25, 0.25)]
    text = write_report(folders, tmp_path / "out").read_text()
    assert "| kl_grpo, beta=0.01 | 2 | 10 | 62.5 (50.0 to 75.0) |" in text
    assert "| kl_grpo, beta=0.1 | 1 | 10 | 25.0 |" in text
    assert "- kl_grpo, beta=0.01: 2 seeds (0, 1), 2 evaluations, steps 0 to 10" in text


def test_settings_are_not_mixed(make_run, tmp_path):
    other = config()
    other["model"]["init_args"]["backbone"] = {"path": "Qwen/Qwen2.5-1.5B-Instruct"}
    values = {"val/solve_rate": {0: 0.5}, "val/format_rate": {0: 1.0}}
    folders = [make_run("a", values), make_run("b", values, other)]
    text = write_report(folders, tmp_path / "out").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "arithmetic, tiny-arithmetic",
        "arithmetic, Qwen2.5-1.5B-Instruct",
    ]
    assert "2 seeds" not in text


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"contains no .*sweep\.json"):
        write_report([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="needs folders"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sweep_on_validation_problems_says_so(sweep_folder, tmp_path):
    path = sweep_folder / "sweep.json"
    assert "200 held-out problems, one" in write_report([sweep_folder], tmp_path / "out").read_text()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"split": "validation"}}))
    assert "200 validation problems, one" in write_report([sweep_folder], tmp_path / "out").read_text()


def test_sweeps_of_policies_trained_at_two_alphas_are_drawn_together(sweep_folder, tmp_path):
    """Two seeds of one alpha and one of another; a sweep that does not say its policy's alpha is left out."""
    content = json.loads((sweep_folder / "sweep.json").read_text())
    folders = [sweep_folder]
    for name, alpha in (("a", 0.5), ("b", 0.5), ("c", 0.0)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        (folders[-1] / "sweep.json").write_text(json.dumps({**content, "trained_alpha": alpha}))
    path = write_report(folders, tmp_path / "out")
    assert "## Trained at one alpha, decoded at another" in path.read_text()
    assert (path.parent / "realignment.svg").stat().st_size > 0
    sweeps = [read_sweep(folder) for folder in folders]
    assert [sweep.trained_alpha for sweep in sweeps] == [None, 0.5, 0.5, 0.0]
    figure = realignment(sweeps)
    assert [text.get_text() for text in figure.axes[1].texts] == ["trained at α=0", "trained at α=0.5"]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines if len(line.get_xdata()) > 1] == [[0.3, 0.6]] * 2
    only_one = write_report([sweep_folder, folders[1]], tmp_path / "other").read_text()
    assert "decoded at another" not in only_one
