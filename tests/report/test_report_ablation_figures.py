"""The figures of an ablation report: what is drawn is what was found."""

import re

import numpy as np
import pytest

from minilm.report.canvas import LIGHT
from minilm.report.runs import read_run
from minilm.studies.design import BASELINE, KERNELS
from tests.report.ablation_lab import drawn, panels_named


def of_colour(axes, role):
    return [line for line in axes.get_lines() if line.get_color() == LIGHT[role]]


def test_the_forest_plot_holds_every_difference_with_its_interval_its_seeds_and_the_detectable_band(study):
    lab, result, _, _ = study
    (panel,) = panels_named(result, lab.runs, "forest")
    axes = drawn(panel)
    compared = [row for row in result["table"] if row["verdict"]]
    colours = {"better": "s3", "worse": "s2", "inconclusive": "muted"}
    trials = {trial["id"]: trial for trial in result["trials"]}
    base = {trials[i]["seed"]: trials[i]["val_loss"] for i in result["table"][0]["trials"]}
    lines = [(line.get_color(), list(line.get_xdata()), line.get_marker()) for line in axes.get_lines()]
    for row in compared:
        colour = LIGHT[colours[row["verdict"]]]
        assert (colour, [row["difference_low"], row["difference_high"]], "None") in lines
        assert (colour, [row["difference"]], "o") in lines
        own = {trials[i]["seed"]: trials[i]["val_loss"] for i in row["trials"]}
        assert (LIGHT["muted"], [own[s] - base[s] for s in own if own[s]], ".") in lines
    control = result["comparison"]["control"]
    assert (LIGHT["ink"], [control["difference"]], "D") in lines
    assert (LIGHT["ink"], [0, 0], "None") in lines
    bands = [(patch.get_x(), patch.get_width()) for patch in axes.patches]
    assert bands == [(-row["detectable"], 2 * row["detectable"]) for row in compared]
    said = [text.get_text() for text in axes.texts]
    assert all(f"{row['difference']:+.4f}" in said for row in compared)


def test_a_difference_far_out_leaves_the_axis_to_the_others_and_points_from_its_edge(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    for n in range(5):
        lab.arm(f"arm {n}", "activation", 2.7 + 0.01 * n, model__d_ff=64 * (n + 1))
    lab.arm("broken", "activation", 4.7, model__d_ff=8)
    (panel,) = panels_named(lab.result(), lab.runs, "forest")
    axes = drawn(panel)
    high = axes.get_xlim()[1]
    assert high < 0.2
    (arrow,) = (line for line in axes.get_lines() if line.get_marker() == ">")
    assert 0.9 * high < arrow.get_xdata()[0] <= high
    assert any(re.fullmatch(r"\+[12]\.\d+", text.get_text()) for text in axes.texts)


def test_a_curve_is_the_mean_over_seeds_and_its_band_reaches_from_the_lowest_to_the_highest(study):
    lab, result, _, _ = study
    ids = next(row["trials"] for row in result["table"] if row["arm"] == "2 layers")
    losses = np.array([read_run(lab.runs[i]).column("val_loss")[1] for i in ids])
    (panel,) = (p for p in panels_named(result, lab.runs, "loss_curves") if p.title == "Depth")
    axes = drawn(panel)
    assert [name for _, _, name in panel.legend] == ["baseline", "2 layers", "6 layers"]
    line = of_colour(axes, "s1")[0]
    assert line.get_xdata().tolist() == [0, 20, 40, 60, 80, 100]
    assert line.get_ydata() == pytest.approx(losses.mean(axis=0), rel=1e-12)
    edge = axes.collections[0].get_paths()[0].vertices
    assert (edge[:, 1].min(), edge[:, 1].max()) == pytest.approx((losses.min(), losses.max()), rel=1e-12)
    assert axes.get_ylim()[1] < 3.0 < losses.max()  # the fall at the beginning is cut


def test_curves_by_time_stand_at_the_mean_wall_time_of_the_seeds(study):
    lab, result, _, _ = study
    (panel,) = (p for p in panels_named(result, lab.runs, "loss_against_time") if p.title == "Depth")
    axes = drawn(panel)
    assert of_colour(axes, "s1")[0].get_xdata() == pytest.approx([0, 2.8, 5.6, 8.4, 11.2, 14.0])
    assert axes.get_xlabel() == "seconds of training"


def test_seeds_that_diverged_are_left_out_of_a_curve_and_counted_in_its_name(study):
    lab, result, _, _ = study
    (panel,) = (p for p in panels_named(result, lab.runs, "loss_curves") if p.title == "Norm")
    assert panel.legend[1][2] == "post-norm (1 of 3 seeds diverged)"
    assert of_colour(drawn(panel), "s1")[0].get_ydata()[-1] < 2.8


def test_evaluations_that_one_seed_lacks_are_left_out_of_the_mean(lab):
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.8, (1, 2), model__activation="relu")
    path = list(lab.runs.values())[-1] / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines() if not re.match(r'\{"step": 60,.*val_loss', line)]
    path.write_text("\n".join(kept) + "\n")
    (panel,) = panels_named(lab.result(), lab.runs, "loss_curves")
    assert of_colour(drawn(panel), "s1")[0].get_xdata().tolist() == [0, 20, 40, 80, 100]


def test_depth_and_width_show_seeds_and_intervals_where_those_axes_exist_and_only_there(study, lab):
    made, result, _, _ = study
    depth, width = panels_named(result, made.runs, "depth_width")
    axes = drawn(depth)
    rows = {row["arm"]: row for row in result["table"]}
    bars = [list(line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert bars == [[rows[a]["low"], rows[a]["high"]] for a in ("2 layers", BASELINE, "6 layers")]
    dots = [line for line in axes.get_lines() if line.get_marker() == "."]
    assert [set(line.get_xdata()) for line in dots] == [{2}, {4}, {6}] and all(len(d.get_xdata()) == 3 for d in dots)
    assert drawn(width).get_xlabel() == "d_model" and drawn(width).get_ylim() == axes.get_ylim()
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.8, model__activation="relu")
    assert panels_named(lab.result(), lab.runs, "depth_width") == []


def test_the_deviation_of_kernels_is_drawn_on_a_log_axis_with_the_noise_floor(study):
    lab, result, _, _ = study
    speed, memory, deviation = panels_named(result, lab.runs, "kernels")
    axes = drawn(deviation)
    row = next(row for row in result["kernels"]["rows"] if row["kernels"] == "torch")
    assert axes.get_yscale() == "log"
    assert np.nanmax(of_colour(axes, "s2")[0].get_ydata()) == pytest.approx(row["largest_deviation"], rel=1e-9)
    assert np.nanmax(of_colour(axes, "muted")[0].get_ydata()) == pytest.approx(row["noise"], rel=1e-9)
    assert list(of_colour(axes, "ink")[0].get_ydata()) == [row["noise"]] * 2
    assert of_colour(axes, "s2")[0].get_xdata().tolist() == list(range(1, 101))
    assert drawn(speed).get_ylabel() == "tokens/s" and drawn(memory).get_ylim()[0] == 0


def test_losses_that_never_differ_are_said_to_be_the_same(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    for seed, loss in [(o.seed, o.val_loss) for o in lab.outcomes]:
        lab.trial("torch kernels", KERNELS, seed, loss, train__kernels="torch")
    (panel,) = panels_named(lab.result(), lab.runs, "kernels")
    assert [text.get_text() for text in drawn(panel).texts] == ["the same to the last digit"]
