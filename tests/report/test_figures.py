# ruff: noqa: RUF001 - the alpha is meant

from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from lmix.report import figures
from lmix.report.results import read_sweep
from lmix.report.runs import read_run, tell_apart
from lmix.report.style import LOOKS, save
from lmix.report.write import write_report
from tests.report.conftest import config, solving


@pytest.fixture
def runs(make_run):
    adaptive = [{"class_path": "lmix.AdaptiveAlpha"}]
    folders = [
        make_run("fixed-0", solving(0.25, 0.75), config(0)),
        make_run("fixed-1", solving(0.25, 0.5), config(1)),
        make_run("fixed-quarter", solving(0.25, 0.5), config(0, alpha=0.25)),
        make_run("base", solving(0.25, 0.5), config(0, adapters={"reference": None})),
        make_run("adaptive", solving(0.25, 1.0), config(0, callbacks=adaptive)),
    ]
    return [read_run(folder) for folder in folders]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def colours(figure: Figure, marker: str) -> set[str]:
    return {to_hex(line.get_color()) for a in figure.axes for line in a.get_lines() if line.get_marker() == marker}


def test_every_figure_has_labelled_axes_and_no_legend_box(runs, sweep_folder):
    made = [
        figures.accuracy_against_step(runs),
        figures.adaptive_against_fixed(runs),
        figures.anchor_ablation(figures.anchor_pairs(runs)),
        figures.training_curves(runs),
        figures.alpha_sweep(read_sweep(sweep_folder).rows),
    ]
    assert [len(figure.axes) for figure in made] == [1, 2, 1, 5, 2]
    for figure in made:
        assert not figure.legends
        assert figure.axes[-1].get_xlabel()
        for axis in figure.axes:
            assert axis.get_ylabel()
            assert axis.get_legend() is None
            assert axis.texts


def test_many_methods_have_a_panel_each(make_run):
    """Their own lines in colour and with the settings that they differ in, and the means of all others in grey."""
    settings = [config(0, alpha=0.5, slots=8), config(0, alpha=0.5, slots=16), config(0, alpha=0.0, slots=8)]
    folders = [make_run(f"run{i}", solving(0.25, 0.2 * i), one) for i, one in enumerate(settings)]
    figure = figures.accuracy_by_method(tell_apart([read_run(folder) for folder in folders]))
    grpo, fixed = figure.axes
    assert (grpo.get_title(loc="left"), fixed.get_title(loc="left")) == ("grpo", "fixed, α=0.5")
    assert [text.get_text() for text in fixed.texts] == ["slots=16", "slots=8"]
    assert not grpo.texts
    assert [to_hex(line.get_color()) for line in grpo.get_lines()] == ["#dddddd", "#dddddd", "#000000"]
    other, *own = fixed.get_lines()
    assert to_hex(other.get_color()) == "#dddddd"
    assert {to_hex(line.get_color()) for line in own} == {LOOKS["fixed"].colour.lower()}
    ends = [list(line.get_ydata())[-1] for line in own]  # pyright: ignore[reportArgumentType]
    assert ends == [pytest.approx(0.2), 0.0]


def test_a_report_of_many_methods_has_panels(make_run, tmp_path):
    alphas = [0.1 * i for i in range(1, figures.MOST_LINES + 2)]
    folders = [make_run(f"run{i}", solving(0.25, a), config(0, alpha=a)) for i, a in enumerate(alphas)]
    write_report(folders, tmp_path / "many")
    write_report(folders[:-1], tmp_path / "few")
    widths = [
        int.from_bytes(next((tmp_path / n).glob("accuracy*.png")).read_bytes()[16:20], "big") for n in ("few", "many")
    ]
    assert widths[1] > widths[0]


def test_a_method_has_its_colour_in_every_figure(runs):
    for figure in (figures.accuracy_against_step(runs), figures.training_curves(runs)):
        assert colours(figure, LOOKS["fixed"].marker) == {LOOKS["fixed"].colour.lower()}
        assert colours(figure, LOOKS["adaptive"].marker) == {LOOKS["adaptive"].colour.lower()}


def test_alphas_of_one_method_differ_in_line_style(runs):
    [axis] = figures.accuracy_against_step(runs).axes
    styles = [line.get_linestyle() for line in axis.get_lines() if line.get_marker() == LOOKS["fixed"].marker]
    assert styles == ["-", "--"]


def test_lines_are_means_and_say_their_seeds(runs):
    figure = figures.accuracy_against_step(runs, {"SFT alone": 0.125})
    [axis] = figure.axes
    line = next(line for line in axis.get_lines() if line.get_linestyle() == "--")
    assert list(line.get_ydata()) == [0.25, 0.625]  # pyright: ignore[reportArgumentType]
    assert "fixed, α=0.5\n(2 seeds)" in labels(figure)
    assert "adaptive\n(1 seed)" in labels(figure)
    assert "SFT alone" in labels(figure)


def test_anchors_are_compared_at_the_same_alpha(runs):
    pairs = figures.anchor_pairs(runs)
    assert [run.folder.name for run in pairs] == ["fixed-0", "fixed-1", "base"]
    assert labels(figures.anchor_ablation(pairs)) == ["SFT anchor, α=0.5\n(2 seeds)", "base anchor, α=0.5\n(1 seed)"]
    assert figures.anchor_pairs(runs[:3]) == []


def test_anchors_are_compared_where_nothing_else_differs(make_run):
    base, slow = {"reference": "base"}, {"optimizer": {"lr": 1e-5}}
    folders = [
        make_run("sft", solving(0.25, 0.5), config()),
        make_run("sft-slow", solving(0.25, 0.5), config(**slow)),
        make_run("base-slow", solving(0.25, 0.5), config(adapters=base, **slow)),
    ]
    pairs = figures.anchor_pairs([read_run(folder) for folder in folders])
    assert [run.folder.name for run in pairs] == ["sft-slow", "base-slow"]


def test_labels_do_not_overlap(runs):
    figure = figures.accuracy_against_step(runs)
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 4
    for lower, upper in pairwise(boxes):
        assert lower.y1 <= upper.y0


def test_saving_twice_gives_the_same_bytes(runs, tmp_path):
    first = save(figures.accuracy_against_step(runs), tmp_path / "first")
    second = save(figures.accuracy_against_step(runs), tmp_path / "second")
    assert [path.name for path in first] == ["first.png", "first.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_method_with_many_settings_leaves_the_axes_most_of_the_width(make_run, recwarn):
    # ends beyond the last step: matplotlib gives up, with a warning, where a label takes all of the width
    name = "fixed, normaliser=response, advantage_std=sample, mini_batches=8, betas=[0.9, 0.95], schedule=constant"
    run = read_run(make_run("run", solving(0.25, 0.5), config(0)))
    figure = figures.accuracy_against_step([run], {name: 0.5})
    figure.draw_without_rendering()
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]
    assert figure.axes[0].get_position().width > 0.5
    assert any(text.replace("\n", " ") == name for text in labels(figure))
