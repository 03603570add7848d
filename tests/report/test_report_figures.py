"""The four panels hold what they promise, whatever a run recorded."""

import math
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from minilm.errors import UserError
from minilm.report import panels
from minilm.report.canvas import DARK, LIGHT, SERIES, _inline, sheet, svg
from minilm.report.figures import curves_from_metrics, four_panels, plot_training_report
from minilm.report.page import TEMPLATES
from minilm.report.panels import Reference, moving_average, rolling_mean, spread

NAN, INF = math.nan, math.inf
METRICS = {
    "train_losses": [4.0 - 0.01 * step for step in range(200)],
    "val_losses": [4.1, 2.9, 2.4, 2.6],
    "lrs": [1e-3 * min(1.0, (step + 1) / 50) for step in range(200)],
    "grad_norms": [2.0 / (1 + step) + 0.3 for step in range(200)],
    "eval_interval": 50,
}


def drawn(metrics=METRICS, **reference):
    """The four axes: training loss, validation loss, learning rate, gradient norm."""
    with sheet():
        figure = four_panels(curves_from_metrics(metrics), Reference(**reference), "a run")
        figure.canvas.draw()
    return figure.axes


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts(axes):
    return [text.get_text() for text in axes.texts]


# What the panels show


def test_the_training_panel_holds_every_loss_and_their_moving_average_with_its_factor():
    shown = lines(drawn()[0])
    assert shown["raw"].get_xdata().tolist() == list(range(1, 201))
    assert shown["raw"].get_ydata().tolist() == METRICS["train_losses"]
    average = shown["moving average, factor 0.01"]
    assert average.get_ydata() == pytest.approx(moving_average(np.array(METRICS["train_losses"]), 0.01), abs=0)
    assert average.get_linewidth() > shown["raw"].get_linewidth()
    assert (shown["raw"].get_color(), average.get_color()) == (LIGHT["faint1"], LIGHT["s1"])


def test_the_validation_panel_marks_the_lowest_loss_at_its_step():
    shown = lines(drawn()[1])
    assert shown["validation"].get_xdata().tolist() == [0, 50, 100, 150]
    best = shown["best 2.400 at step 100"]
    assert (best.get_xdata().tolist(), best.get_ydata().tolist()) == ([100], [2.4])


def test_val_steps_say_where_the_evaluations_were():
    shown = lines(drawn(METRICS | {"val_steps": [10, 20, 70, 90]})[1])
    assert "best 2.400 at step 70" in shown


def test_evaluations_are_250_steps_apart_unless_the_metrics_say_otherwise():
    curves = curves_from_metrics({"val_losses": [3.0, 2.0, 1.0]})
    assert curves.val[0].tolist() == [0, 250, 500]


def test_the_rate_panel_holds_every_learning_rate():
    (line,) = drawn()[2].get_lines()
    assert line.get_ydata().tolist() == METRICS["lrs"] and line.get_label() == "peak 0.001 at step 50"


def test_the_norm_panel_is_logarithmic_and_holds_the_norms_their_rolling_mean_and_the_clip_line():
    axes = drawn(grad_clip=0.5)[3]
    shown = lines(axes)
    assert axes.get_yscale() == "log"
    assert shown["raw"].get_ydata().tolist() == METRICS["grad_norms"]
    expected = rolling_mean(np.array(METRICS["grad_norms"]), 100)
    assert shown["rolling mean over 100"].get_ydata() == pytest.approx(expected, abs=0)
    assert list(shown["_clip 0.5"].get_ydata()) == [0.5, 0.5] and "clip 0.5" in texts(axes)
    assert axes.get_ylim()[0] < 0.3 and axes.get_ylim()[1] > 2.3


def test_the_floor_is_drawn_on_both_loss_panels_when_it_is_known_and_only_then():
    for axes in drawn(floor=0.8)[:2]:
        assert list(lines(axes)["_floor"].get_ydata()) == [0.8, 0.8] and "floor 0.800" in texts(axes)
        assert axes.get_ylim()[0] < 0.8
    for axes in [*drawn(floor=None), *drawn(floor=NAN)]:
        assert "_floor" not in lines(axes)


def test_every_ngram_model_within_the_axis_has_a_labelled_line_and_the_best_is_always_within():
    axes = drawn(baselines=[("1-gram", 3.1), ("2-gram", 1.2), ("3-gram", NAN), ("0-gram", 99.0)])[1]
    assert list(lines(axes)["_1-gram"].get_ydata()) == [3.1, 3.1]
    assert [text for text in texts(axes) if "gram" in text] == ["1-gram", "2-gram"]


def test_a_lone_spike_leaves_the_axis_to_the_curve_and_is_marked_on_its_edge():
    losses = list(METRICS["train_losses"])
    losses[120] = 500.0
    axes = drawn(METRICS | {"train_losses": losses})[0]
    assert axes.get_ylim()[1] < 20
    assert lines(axes)["above the axis"].get_xdata().tolist() == [121]


def test_steps_whose_loss_is_not_finite_are_marked():
    losses = list(METRICS["train_losses"])
    losses[10], losses[11], losses[12] = NAN, None, INF
    assert lines(drawn(METRICS | {"train_losses": losses})[0])["not finite"].get_xdata().tolist() == [11, 12, 13]


def test_labels_beside_a_panel_do_not_overlap():
    places = spread([0.5, 0.51, 0.505, 0.9, 0.1], 0.05)
    assert np.diff(sorted(places)).min() > 0.05 - 1e-12
    assert np.argsort(places).tolist() == [4, 0, 2, 1, 3]
    assert (places[3], places[4]) == (0.9, 0.1)


def test_what_is_left_above_the_floor_is_the_loss_less_the_floor_on_two_log_axes():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    panels.draw_above_floor(axes, curves_from_metrics(METRICS), 2.5)
    validation = lines(axes)["validation"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert validation.get_xdata().tolist() == [50, 150]  # step 0 has no logarithm, 2.4 is below the floor
    assert validation.get_ydata() == pytest.approx([0.4, 0.1], abs=1e-12)


def test_each_run_of_a_comparison_has_a_look_of_its_own_which_its_table_row_shares():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    series = [(np.array([0.0, 1.0]), np.array([3.0, 2.0]))] * 12
    panels.draw_comparison(axes, series, "tokens", "nats", Reference())
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
    assert len(set(looks)) == 12
    names = {"solid": "-", "dashed": "--", "dotted": ":"}
    shared = [panels.run_style(index) for index in range(12)]
    assert looks == [(LIGHT[role], names[dashes]) for role, dashes in shared]


# Averages


def test_the_moving_average_is_the_bias_corrected_recursion():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    raw, expected = 0.0, []
    for n, value in enumerate(values, 1):
        raw = 0.99 * raw + 0.01 * value
        expected.append(raw / (1 - 0.99**n))
    assert moving_average(values, 0.01) == pytest.approx(expected, rel=1e-12)
    assert moving_average(values, 0.01)[0] == pytest.approx(values[0], rel=1e-15)


def test_a_value_that_is_not_finite_leaves_the_moving_average_as_it_was():
    averages = moving_average(np.array([NAN, 2.0, NAN, INF, 4.0]), 0.5)
    assert np.isnan(averages[0]) and averages[1:4].tolist() == [2.0, 2.0, 2.0]
    assert averages[4] == pytest.approx((0.5 * 4 + 0.25 * 2) / 0.75)


def test_the_rolling_mean_is_over_the_last_hundred_finite_values():
    values = np.random.default_rng(1).normal(size=350)
    values[[5, 200]] = NAN
    expected = [np.nanmean(values[max(0, i - 99) : i + 1]) for i in range(350)]
    assert rolling_mean(values, 100) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# Whatever was recorded, a figure is drawn


@pytest.mark.parametrize(
    "metrics",
    [
        {"train_losses": [4.2], "val_losses": [], "lrs": [1e-3], "grad_norms": [1.0]},
        {"train_losses": [4.2, 4.1], "val_losses": [4.2], "lrs": [1e-3, 1e-3], "grad_norms": [1.0, 0.0]},
        {"train_losses": [NAN] * 5, "val_losses": [NAN, None], "lrs": [NAN] * 5, "grad_norms": [NAN] * 5},
        {"train_losses": [INF, 3.0], "val_losses": [-INF], "lrs": [0.0, 0.0], "grad_norms": [INF, INF]},
        {"train_losses": [], "val_losses": [], "lrs": [], "grad_norms": []},
        {"train_losses": np.float32([3.0, 2.0]), "val_losses": (2.5, 2.4, 2.3), "lrs": None, "grad_norms": [0.0] * 9},
        {"val_losses": [2.0]},
    ],
    ids=["one step", "two steps", "all NaN", "infinite", "empty", "ragged arrays", "only validation"],
)
@pytest.mark.filterwarnings("error")
def test_a_figure_is_drawn_of(metrics, tmp_path):
    for reference in ({}, {"floor": 0.8, "grad_clip": 1.0, "baselines": [("2-gram", 2.0)]}):
        path = plot_training_report(metrics, "odd", tmp_path, **reference)
        assert path == tmp_path / "training_report_odd.png" and path.read_bytes().startswith(b"\x89PNG")


def test_a_lone_value_is_drawn_as_a_point():
    axes = drawn({"train_losses": [4.2], "val_losses": [], "lrs": [1e-3], "grad_norms": [1.0]})
    assert lines(axes[0])["raw"].get_marker() == "o"
    assert "no evaluation yet" in texts(axes[1])


# The file


def test_the_default_name_and_resolution_are_those_of_the_course(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = plot_training_report(METRICS)
    assert path.name == "training_report_capstone.png" and (tmp_path / path.name).exists()
    header = path.read_bytes()
    assert b"pHYs" in header
    per_metre = int.from_bytes(header[header.index(b"pHYs") + 4 :][:4], "big")
    assert round(per_metre * 0.0254) == 150
    assert capfd.readouterr() == ("", "")


def test_the_same_metrics_give_the_same_bytes_whatever_the_users_settings(tmp_path):
    first = plot_training_report(METRICS, "a", tmp_path, floor=0.8).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        settings = dict(matplotlib.rcParams)
        second = plot_training_report(METRICS, "a", tmp_path / "deeper" / "still", floor=0.8).read_bytes()
        assert dict(matplotlib.rcParams) == settings
    assert first == second
    assert b"Software" not in first and b"matplotlib" not in first


def test_drawing_neither_loads_pyplot_nor_chooses_a_backend(tmp_path):
    code = (
        "import sys, matplotlib; from minilm.report.figures import plot_training_report as plot\n"
        "before = dict.__getitem__(matplotlib.rcParams, 'backend')\n"
        f"plot({{'train_losses': [2.0, 1.0]}}, out_dir={str(tmp_path)!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict.__getitem__(matplotlib.rcParams, 'backend') is before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_title_is_written_as_it_stands(tmp_path):
    assert plot_training_report(METRICS, "cost $x_$ 日本", tmp_path).exists()


@pytest.mark.parametrize(
    ("metrics", "name", "said"),
    [
        ({"loss": [1.0]}, "a", "train_losses"),
        ([1.0, 2.0], "a", "train_losses"),
        ({"train_losses": ["low"]}, "a", "train_losses"),
        ({"train_losses": 3.0}, "a", "train_losses"),
        ({"val_losses": [1.0, 2.0], "val_steps": [0]}, "a", "val_steps"),
        ({"val_losses": [1.0], "eval_interval": 0}, "a", "eval_interval"),
        ({"train_losses": [1.0]}, "../a", "config_name"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence_that_names_it(metrics, name, said, tmp_path):
    with pytest.raises(UserError, match=said) as refused:
        plot_training_report(metrics, name, tmp_path)
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        plot_training_report(METRICS, "a", tmp_path / "file")


# On the page


def test_a_panel_on_the_page_has_no_colour_of_its_own_and_no_foreign_address():
    text = svg(
        lambda axes: panels.draw_training_loss(axes, curves_from_metrics(METRICS).train, Reference(0.8)), "p", "x"
    )
    assert not re.findall(r"#[0-9a-fA-F]{6}", text)
    assert {"--ink", "--muted", "--grid", "--s1", "--s3"} <= set(re.findall(r"--\w+", text))
    assert "http" not in text and "font-family" not in text
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', text)) <= set(re.findall(r'id="([^"]*)"', text))
    assert all(name.startswith("p-") for name in re.findall(r'id="([^"]*)"', text))
    assert "moving average, factor 0.01" in text and "floor 0.800" in text


@pytest.mark.parametrize(
    "style",
    ["font: 10px 'DejaVu Sans', Arial; fill: #20242a", "font-size: 10px; font-family: 'DejaVu Sans'; fill: #20242a"],
)
def test_text_on_the_page_takes_the_pages_typeface_whichever_matplotlib_wrote_it(style):
    document = f'<svg viewBox="0 0 10 20"><g id="a"><text style="{style}">1.2345</text></g></svg>'
    assert '<text style="font-size: 10px; fill: var(--ink)">1.2345</text>' in _inline(document, "p", "x")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("palette", "number"), [(LIGHT, 0), (DARK, 1)], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_card_they_are_on(palette, number):
    """Contrast of 4.5 for text and 3 for lines: WCAG 2.1, success criteria 1.4.3 and 1.4.11."""
    card = re.findall(r"--card: (#\w{6})", (TEMPLATES / "style.css").read_text())[number]

    def contrast(role):
        low, high = sorted((luminance(card), luminance(palette[role])))
        return (high + 0.05) / (low + 0.05)

    assert [role for role in ("ink", "muted", "s1", "s3") if contrast(role) < 4.5] == []
    assert [role for role in SERIES if contrast(role) < 3] == []
    assert set(LIGHT) == set(DARK) and len(set(LIGHT.values())) == len(LIGHT)


@pytest.mark.parametrize("lost", [0, 90_000], ids=["finite", "mostly not finite"])
def test_a_panel_of_a_long_run_is_no_larger_than_a_screen_needs(lost):
    losses = np.random.default_rng(3).normal(3.0, 0.1, 100_000)
    losses[len(losses) - lost :] = NAN
    series = (np.arange(100_000.0), losses)
    assert len(svg(lambda axes: panels.draw_training_loss(axes, series, Reference()), "p", "x")) < 250_000
