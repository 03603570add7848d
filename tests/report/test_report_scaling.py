"""A scaling report says what the fit says: an exponent with its interval, or none and why."""

import dataclasses
import io
import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from minilm.errors import UserError
from minilm.report import scaling_panels
from minilm.report.canvas import sheet
from minilm.report.scaling import print_scaling, write_scaling
from minilm.report.scaling_figures import curve_plate, isoflop_plate, law_plate
from minilm.studies.budget import ChinchillaLaw, fit_chinchilla, fit_isoflop
from minilm.studies.notebook import scaling_analysis
from minilm.studies.power_law import profile
from minilm.studies.scaling import Point, fit_scaling
from tests.report.pages_read import Page

undrawn = pytest.mark.usefixtures("undrawn_figures")

RECORD = {
    "tokens": 3.7e6, "epochs": 0.4, "lr": 1e-3, "lr_tried": (5e-4, 1e-3, 2e-3), "best_step": 300, "last_step": 300,
    "tokenizer": "char of 69", "schedule": "cosine, adamw",
}  # fmt: skip
TRUTH = ChinchillaLaw(0.81, 30.0, 150.0, 0.4, 0.35)
HOSTILE = '<script>alert("x")</script>| a `b` \x1b[31m'


def counts(n):
    return {"total": n + 4000, "non_embedding": n, "matrices_and_head": n + 2000, "embedding": 4000}


def ladder(alpha=0.3, E=0.81, sizes=6, decades=1.6, seeds=3, draw=4, **record):
    rng = np.random.default_rng(draw)
    return [
        Point(counts(n), float(E + (1.6 - E) * (n / 7e4) ** -alpha + rng.normal(0, 0.002)), seed, **RECORD | record)
        for n in (int(v) for v in np.geomspace(12e3, 12e3 * 10**decades, sizes))
        for seed in range(seeds)
    ]


def grid(budgets=(1e6, 3e6, 1e7), compute=None, reach=1.0):
    """L(N, D) of TRUTH: sizes at every token budget, or around the best size of every compute budget."""
    rng, pairs = np.random.default_rng(5), []
    if compute:
        for c in compute:
            sizes = [int(TRUTH.split(c)[0] * f * reach) for f in np.geomspace(0.2, 5, 5)]
            pairs += [(n, c / 6 / n) for n in sizes]
    else:
        pairs = [(int(n), d) for n in np.geomspace(12e3, 48e4, 5) for d in budgets]
    return [
        Point(
            counts(n),
            float(TRUTH.loss(n, d) + rng.normal(0, 0.002)),
            s,
            **RECORD | {"tokens": d, "flops": 6.0 * n * d},
        )
        for n, d in pairs
        for s in range(2)
    ]


def analysed(points, count="non_embedding", floor=0.81, isoflop=False, source="fables"):
    """What minilm.studies.ladder.analyse() returns of these runs."""
    several = len({p.tokens for p in points}) > 1
    trials = [
        {
            "id": f"{i:08x}",
            "arm": f"{p.n_params[count]}",
            "seed": p.seed,
            "status": "finished" if p.loss else "diverged",
        }
        for i, p in enumerate(points)
    ]
    result = {
        "format": 1, "count": count, "fit": asdict(fit_scaling(points, count, floor)), "floor": floor,
        "law": asdict(fit_chinchilla(points, count)) if several else None,
        "isoflop": asdict(fit_isoflop(points, count)) if isoflop else None,
        "points": [asdict(p) for p in points], "trials": trials, "source": source,
    }  # fmt: skip
    return json.loads(json.dumps(result))


def told(result, folder):
    return Page.at(write_scaling(result, folder)).text


def printed(result):
    stream = io.StringIO()
    print_scaling(result, Console(file=stream, width=200))
    return stream.getvalue()


def panels_of(plate):
    """Drawn axes by the panel's title."""
    from matplotlib.figure import Figure

    drawn = {}
    with sheet():
        for panel in plate.panels:
            drawn[panel.title] = Figure(figsize=(5, 4)).add_axes((0.2, 0.2, 0.6, 0.6))
            panel.draw(drawn[panel.title])
    return drawn


@pytest.fixture(scope="module")
def clean():
    return analysed(ladder())


@pytest.fixture(scope="module")
def clean_page(clean, tmp_path_factory):
    return told(clean, tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def refused():
    return analysed(ladder(sizes=2, seeds=1), floor=None)


@pytest.fixture(scope="module")
def varied():
    """A ladder at several token budgets."""
    return analysed(grid())


# The answer


def test_a_clean_ladder_is_answered_by_its_exponent_with_the_interval(clean, clean_page):
    law = clean["fit"]["offset"]
    answer = (
        f"towards {law['E']:.3f} nats a token as N^-{law['alpha']:.3f} (95% interval of the exponent "
        f"{law['alpha_low']:.3f} to {law['alpha_high']:.3f}), with N non-embedding parameters."
    )
    page, terminal = clean_page, printed(clean)
    assert answer in page and answer in terminal
    assert "No exponent" not in page + terminal and "Descriptive slope" not in page + terminal


@undrawn
def test_a_refused_ladder_says_every_reason_and_names_its_slope_as_descriptive(refused, tmp_path):
    page, terminal = told(refused, tmp_path), printed(refused)
    for said in (page, terminal):
        assert "No exponent is reported, because this ladder breaks 2 rules" in said
        assert len(refused["fit"]["refusals"]) == 2 and all(reason in said for reason in refused["fit"]["refusals"])
        assert f"Descriptive slope only: over these sizes log L falls by {refused['fit']['slope']:.3f}" in said
        assert "95% interval of the exponent" not in said


@undrawn
def test_without_a_floor_the_pure_form_is_reported_with_the_most_that_E_may_be(tmp_path):
    result = analysed(ladder(alpha=0.12, E=0.0, draw=2), floor=None)
    assert result["fit"]["form"] == "pure" and result["fit"]["exponent"]
    page = told(result, tmp_path)
    assert f"no floor is found: E is at most {result['fit']['offset']['E_high']:.3f} nats a token." in page
    assert "E is estimated at zero, so the two are one curve" in page


@undrawn
def test_one_seed_a_size_gets_no_interval_anywhere(refused, tmp_path):
    page = told(refused, tmp_path)
    assert "so there is no interval" in page and "95% ±" not in page and "Intervals are profile" not in page
    assert f"{refused['fit']['pure']['alpha_low']:.3f} to" not in page


# What stands beside it


def test_the_table_of_sizes_holds_all_counts_and_the_exponent_without_each(clean, clean_page):
    for size in clean["fit"]["sizes"]:
        row = f"{size['n']:,} {size['seeds']} {size['loss']:.4f}"
        rest = f"{size['slope']:.3f} {size['without']:.3f} {scaling_panels.amount(size['tokens_per_parameter'])} "
        others = f"{size['n'] + 4000:,} {size['n'] + 2000:,} 4,000"
        assert re.search(re.escape(row) + r" 0\.\d{4} " + re.escape(rest + others), clean_page)


def test_the_mean_s_interval_is_that_of_the_pooled_spread(clean):
    from scipy import stats

    losses = np.array([p["loss"] for p in clean["points"]]).reshape(6, 3)
    spread = math.sqrt(np.log(losses).var(1, ddof=1).mean())
    half = scaling_panels.half_width(clean["fit"], clean["fit"]["sizes"][2])
    assert half == pytest.approx(stats.t.ppf(0.975, 12) * spread / math.sqrt(3) * losses[2].mean(), rel=1e-3)


@undrawn
@pytest.mark.parametrize(("floor", "where"), [(0.81, "inside"), (0.7, "outside"), (1.0, "outside")])
def test_the_known_floor_is_set_beside_E_and_its_interval(floor, where, tmp_path):
    page = told(analysed(ladder(), floor=floor), tmp_path)
    assert f"The source's own entropy is {floor:.3f} nats a token; the fitted E is 0.8" in page
    assert f"so the source's entropy is {where} E's interval" in page
    assert ("what the missing data cost" in page) == (floor == 0.7)
    assert ("No model can reach such an E" in page) == (floor == 1.0)


@undrawn
def test_a_fit_that_is_not_reported_checks_no_floor(tmp_path):
    page = told(analysed(ladder(sizes=4)), tmp_path)
    assert "this checks neither" in page and "E's interval" not in page


@undrawn
def test_without_a_known_floor_nothing_is_said_of_one(refused, tmp_path):
    assert not re.search("known floor|own entropy", told(refused, tmp_path) + printed(refused))


@undrawn
def test_kaplan_s_ratio_is_given_on_his_own_count_alone(clean, clean_page, tmp_path):
    ratio = f"{clean['fit']['slope'] / 0.076:.2f} times Kaplan's 0.076"
    assert ratio in clean_page and ratio in printed(clean)
    total = analysed(ladder(), count="total")
    for said in (told(total, tmp_path), printed(total)):
        assert "times Kaplan's" not in said and "so they do not compare" in said


def test_the_page_says_why_a_small_exponent_differs_from_kaplan_s(clean_page):
    assert "Fables are written by a grammar of known entropy, 0.810 nats a token" in clean_page
    assert "these have 12k to 478k by the count named here" in clean_page
    assert "These runs read 3.7M tokens, 7.74 to 308 a parameter" in clean_page
    assert "0.238 at 1M, 0.172 at 10M, 0.106 at 100M parameters" in clean_page  # Besiroglu et al. 2024


@undrawn
def test_diverged_runs_are_left_out_of_the_curve_and_said(tmp_path):
    points = ladder(seeds=4)
    points[1] = dataclasses.replace(points[1], loss=None)
    points[8] = dataclasses.replace(points[8], loss=math.nan)
    result = analysed(points)
    page = told(result, tmp_path)
    assert "2 diverged of 24 runs are left out." in page and page.count("diverged") >= 3
    (dots,) = [line for line in panels_of(curve_plate(result))["Loss by size"].lines if line.get_marker() == "."]
    assert len(dots.get_xdata()) == 22


def test_runs_that_all_diverged_still_make_a_page(tmp_path):
    page = told(analysed([dataclasses.replace(p, loss=None) for p in ladder(sizes=2)]), tmp_path)
    assert "No exponent is reported" in page and "no run ended with a finite loss" in page


# The figures


def test_the_loss_of_a_law_with_a_floor_is_never_drawn_on_two_logarithmic_axes(clean):
    drawn = panels_of(curve_plate(clean))
    assert (drawn["Loss by size"].get_xscale(), drawn["Loss by size"].get_yscale()) == ("log", "linear")
    above = drawn["Loss above the floor"]
    assert (above.get_xscale(), above.get_yscale()) == ("log", "log")
    pure = panels_of(curve_plate(analysed(ladder(alpha=0.12, E=0.0, draw=2), floor=None)))
    assert pure["Loss by size"].get_yscale() == "log" and "Loss above the floor" not in pure


def test_the_curve_is_drawn_over_the_sizes_tried_and_its_shade_reaches_both_ends_of_the_interval(clean):
    fit = clean["fit"]
    n, losses = scaling_panels.runs_of(clean["points"], fit["count"])
    at, low, high = scaling_panels.band_of(fit, n, losses)
    assert at.min() > n.min() / 1.2 and at.max() < n.max() * 1.2
    curve, centre = scaling_panels.law_of(fit).loss(at), np.log(n).mean()
    ends = np.array([fit["offset"]["alpha_low"], fit["offset"]["alpha_high"]])
    _, E, a = profile(np.log(n) - centre, np.log(losses), ends)
    for edge in (E[:, None] + a[:, None] * np.exp(-ends[:, None] * (np.log(at) - centre)), curve):
        assert (low <= edge + 1e-6).all() and (edge <= high + 1e-6).all()
    line = panels_of(curve_plate(clean))["Loss by size"].lines[0]
    assert line.get_ydata() == pytest.approx(curve, abs=0)


def test_a_floor_far_below_leaves_the_axis_to_the_losses_and_is_named_at_its_edge():
    points = ladder(alpha=0.05)  # losses from 1.68 to 1.53
    near, far = (panels_of(curve_plate(analysed(points, floor=f)))["Loss by size"] for f in (1.4, 0.81))
    assert near.get_ylim()[0] < 1.4 and "entropy 1.400" in [text.get_text() for text in near.texts]
    assert far.get_ylim()[0] > 1.0 and "↓ entropy 0.810" in [text.get_text() for text in far.texts]


def test_what_is_above_the_floor_is_drawn_for_the_fitted_and_the_known_one(clean):
    above = panels_of(curve_plate(clean))["Loss above the floor"]
    known = next(line for line in above.lines if line.get_marker() == "o")
    assert known.get_ydata() == pytest.approx([size["loss"] - 0.81 for size in clean["fit"]["sizes"]])
    law = scaling_panels.law_of(clean["fit"])
    assert above.lines[0].get_ydata() == pytest.approx(law.loss(above.lines[0].get_xdata()) - law.E)


def test_every_exponent_without_a_size_has_its_row(clean):
    axes = panels_of(curve_plate(clean))["Exponent without each size"]
    rows = [f"{clean['fit']['offset']['alpha']:.3f}", *(f"{s['without']:.3f}" for s in clean["fit"]["sizes"])]
    assert [text.get_text() for text in axes.texts] == rows
    assert [t.get_text() for t in axes.get_yticklabels()][:2] == ["all sizes", "without 12k"]


# Size and data


def test_a_ladder_of_several_token_budgets_is_told_by_its_law_and_by_no_curve_of_size(varied, tmp_path):
    page = told(varied, tmp_path)
    law = varied["law"]["law"]
    assert f"this ladder {law['E']:.4g} {law['A']:.4g} {law['B']:.4g} {law['alpha']:.4g} {law['beta']:.4g}" in page
    assert f"E of this law is {law['E']:.3f}" in page and f"E of this law is {law['E']:.3f}" in printed(varied)
    assert "Descriptive slope" not in page and "times Kaplan's" not in page and "Both forms E" not in page
    assert [*panels_of(curve_plate(varied))] == ["Loss by size"]
    assert (tmp_path / "figures" / "scaling_size_and_data.png").stat().st_size > 10_000


def test_the_fitted_law_is_drawn_through_the_runs_of_each_budget(varied):
    lines = [line for line in panels_of(law_plate(varied))["Loss by size"].lines if line.get_marker() == "None"]
    law = ChinchillaLaw(**varied["law"]["law"])
    assert len(lines) == 3
    for line, tokens in zip(lines, (1e6, 3e6, 1e7), strict=True):
        assert line.get_ydata() == pytest.approx(law.loss(line.get_xdata(), tokens))


def test_a_refused_law_of_size_and_data_says_why_and_draws_none(tmp_path):
    result = analysed(grid(budgets=(1e6, 1e7)))
    assert "No law is reported: 2 token budgets; a power of them needs 3 or more." in told(result, tmp_path)
    assert not panels_of(law_plate(result))["Size and data"].collections  # no contours


def test_isoflop_minima_are_tabled_drawn_and_refused(tmp_path):
    result = analysed(grid(compute=(1e12, 1e13, 1e14)), isoflop=True)
    fit = result["isoflop"]
    exponent = f"compute to the power {fit['n_exponent']:.3f} (95% interval {fit['n_low']:.3f} to {fit['n_high']:.3f})"
    assert exponent in told(result, tmp_path) and exponent in printed(result)
    rings = [line for line in panels_of(isoflop_plate(result))["Loss by size"].lines if line.get_marker() == "o"]
    assert [ring.get_xdata()[0] for ring in rings] == [curve["n"] for curve in fit["curves"]]
    away = analysed(grid(compute=(1e12, 1e13), reach=20), isoflop=True)
    page = told(away, tmp_path)
    assert len(away["isoflop"]["refusals"]) == 3 and all(reason in page for reason in away["isoflop"]["refusals"])


# The files


def test_the_same_result_gives_the_same_bytes_and_leaves_an_ablation_s_report_alone(varied, tmp_path):
    (tmp_path / "report.html").write_text("the ablation's")

    def written():
        write_scaling(varied, tmp_path)
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    first = written()
    figures = {"capstone_scaling_curve.png", "figures/scaling_size_and_data.png"}
    assert set(first) == {"report.html", "scaling.html", "scaling.md", "scaling.json", *figures}
    assert first["report.html"] == b"the ablation's" and written() == first
    assert json.loads(first["scaling.json"]) == varied


@undrawn
def test_a_figure_that_the_report_no_longer_has_is_removed(varied, clean, tmp_path):
    write_scaling(varied, tmp_path)
    (tmp_path / "figures" / "forest.png").write_bytes(b"of another report")
    write_scaling(clean, tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["forest.png"]


def test_the_page_asks_for_nothing_outside_and_takes_nothing_for_markup(tmp_path):
    result = analysed(ladder(sizes=3), source=HOSTILE)
    result["trials"][0].update(arm=HOSTILE, id=HOSTILE)
    result["fit"]["warnings"].append(HOSTILE)
    text = write_scaling(result, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert not {"script", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert len(page.ids) == len(set(page.ids)) > 20 and "\x1b" not in text
    assert page.text.count('<script>alert("x")</script>') >= 4


@undrawn
def test_a_folder_that_cannot_be_written_is_a_sentence(clean, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .* name another folder"):
        write_scaling(clean, tmp_path / "file")


# In a notebook


def results_of(points):
    return [{"n_params": p.n_params["non_embedding"], "final_val_loss": p.loss, "arm": "x"} for p in points]


def test_a_notebook_gets_the_pure_exponent_beside_kaplan_s_and_a_figure(tmp_path, capsys):
    fit = fit_scaling(ladder())
    found = scaling_analysis(results_of(ladder()), tmp_path / "deep" / "curve.png")
    said = capsys.readouterr().out
    assert found["alpha"] == pytest.approx(fit.pure.alpha, rel=1e-12) and found["ratio"] == found["alpha"] / 0.076
    assert f"{found['alpha']:.4f} (95% interval {fit.pure.alpha_low:.3f} to" in said
    assert f"{found['ratio']:.2f}" in said and "0.076" in said and "non-embedding" in said
    assert f"The exponent reported is {fit.offset.alpha:.4f}" in said and found["exponent"] == fit.offset.alpha
    assert (tmp_path / "deep" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(found)) == found


def test_a_notebook_is_told_which_rules_forbid_an_exponent(tmp_path, capsys):
    found = scaling_analysis(results_of(ladder(sizes=3, seeds=1)), tmp_path / "curve.png")
    said = capsys.readouterr().out
    assert (
        found["exponent"] is None and found["refusals"] and all(f"- {reason}" in said for reason in found["refusals"])
    )
    assert "describes these runs only" in said and found["alpha_low"] is None and "95% interval 0" not in said
    assert "Coincidence" in said and "Not recorded in every run" in said


GOOD = [{"n_params": 10_000, "final_val_loss": 2.0}, {"n_params": 90_000, "final_val_loss": 1.6}]


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ([*GOOD, {"n_params": 5}], "Entry 2 of ablation_results has no 'final_val_loss'"),
        ([{"final_val_loss": 2.0}, *GOOD], "Entry 0 of ablation_results has no 'n_params'"),
        ([*GOOD, {"n_params": 0, "final_val_loss": 2.0}], "n_params of entry 2 is 0"),
        ([*GOOD, {"n_params": 5, "final_val_loss": -1.0}], "final_val_loss of entry 2 is -1.0"),
        ([*GOOD, {"n_params": 5, "final_val_loss": "2"}], "final_val_loss of entry 2 is '2'"),
        ([GOOD[0], GOOD[0]], "hold 1 different n_params"),
        ([GOOD[0], {"n_params": 5, "final_val_loss": None}], "hold 1 different n_params"),
        ([GOOD[0], 7], "Entry 1 of ablation_results is a int"),
        (GOOD[0], "is a dict; give a list of dicts"),
    ],
)
def test_results_that_cannot_be_fitted_are_a_sentence(results, sentence, tmp_path):
    with pytest.raises(UserError, match=re.escape(sentence)):
        scaling_analysis(results, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
