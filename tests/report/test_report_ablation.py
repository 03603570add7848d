"""The report of an ablation says what its study found, no more, and is drawn of whatever has finished."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from minilm.config import build
from minilm.errors import UserError
from minilm.report import ablation_panels
from minilm.report.ablation import print_ablation, write_ablation
from minilm.report.ablation_figures import plates_of
from minilm.report.ablation_views import row_view
from minilm.report.ablation_words import summary
from minilm.report.canvas import LIGHT
from minilm.report.runs import read_run
from minilm.studies.ablation import analyse
from minilm.studies.design import BASELINE, CONTROL, KERNELS, REORDERED, SPEED
from minilm.studies.trials import DIVERGED, FAILED, FINISHED, MISSING, Outcome

STEPS = 100


class Lab:
    """Makes outcomes of trials, and their run folders, from a formula."""

    def __init__(self, folder):
        self.folder, self.outcomes, self.runs = folder, [], {}
        self.rng = np.random.default_rng(0)
        self.of_seed = {}

    def trial(
        self, arm, axis, seed, loss=None, status=FINISHED, total=100_000, factor=1.0, apart=0.0, run=True, **changes
    ):
        overrides = {"model": {"vocab_size": 75}, "train": {"steps": STEPS, "seed": seed, "kernels": "reference"}}
        for name, value in changes.items():
            section, key = name.split("__")
            overrides[section][key] = value
        config = build("quick", overrides).to_dict()
        config["train"]["lr"] *= factor
        name = f"{len(self.outcomes):04d}{arm[:4].encode().hex()}"
        wall = 12.0 + seed % 10
        done = {"wall": wall, "tokens": STEPS * 512, "tokens_per_s": STEPS * 512 / wall, "flops_per_token": 6 * total}
        counts = {"total": total, "non_embedding": total - 4800, "matrices_and_head": total - 1800, "embedding": 4800}
        self.outcomes.append(
            Outcome(
                name, arm, axis, seed, factor, config, status,
                reason="" if status in (FINISHED, DIVERGED) else "it was not to be",
                val_loss=loss if status == FINISHED else None,
                **(done if status == FINISHED else {}),
                peak_bytes=500_000_000 + total if status == FINISHED else None,
                parameters=None if status == MISSING else counts,
                device="a quiet machine",
            )
        )  # fmt: skip
        if status in (FINISHED, DIVERGED) and run:
            self.runs[name] = self._run(name, config, loss if status == FINISHED else math.nan, wall, apart)
        return self

    def arm(self, name, axis, mean, seeds=(1, 2, 3), spread=0.003, **how):
        for seed in seeds:
            of_seed = self.of_seed.setdefault(seed, 0.02 * self.rng.standard_normal())
            self.trial(name, axis, seed, mean + of_seed + spread * self.rng.standard_normal(), **how)
        return self

    def _run(self, name, config, last, wall, apart):
        path = self.folder / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"format": 1, "name": name} | config), encoding="utf-8")
        rows = []
        for step in range(STEPS + 1):
            fall = 1.5 * math.exp(-step / 15)
            at = {"step": step, "tokens": 512 * step, "wall": wall * step / STEPS}
            if step:
                rows.append(at | {"loss": 2.5 + fall + apart * math.sin(step) * step, "lr": 1e-3, "grad_norm": 1.0})
            if step % 20 == 0:
                lost = math.isnan(last) and step > 40
                rows.append(at | {"val_loss": None if lost else (2.9 if math.isnan(last) else last) + fall})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def result(self):
        return analyse(self.outcomes, self.runs)

    def write(self, out=None):
        return write_ablation(self.result(), out or self.folder / "out", self.runs)


def whole(lab, seeds=(1, 2, 3)):
    """A study of many kinds of arm: matched and not, better and worse and neither, diverged, and kernels."""
    lab.arm(BASELINE, BASELINE, 2.700, seeds)
    lab.arm("2 layers", "depth", 2.760, seeds, total=60_000, model__n_layers=2)
    lab.arm("6 layers", "depth", 2.690, seeds, total=140_000, model__n_layers=6)
    lab.arm("width 64", "width", 2.800, seeds, total=40_000, model__d_model=64, model__n_heads=2, model__d_ff=256)
    lab.arm("ReLU", "activation", 2.701, seeds, model__activation="relu")
    lab.arm("SwiGLU", "activation", 2.660, seeds, total=99_500, model__activation="swiglu")
    lab.arm("post-norm", "norm", 2.750, seeds[:-1], model__norm="post")
    lab.trial("post-norm", "norm", seeds[-1], status=DIVERGED, model__norm="post")
    kernel_arms(lab, seeds)
    lab.arm(CONTROL, CONTROL, 2.700, [10_000 + seed for seed in seeds])
    return lab


def kernel_arms(lab, seeds=(1, 2, 3)):
    naive = {o.seed: o.val_loss for o in lab.outcomes if o.arm == BASELINE}
    for seed in seeds:
        torch = naive[seed] + 1e-4 * (seed - 2)
        lab.trial("torch kernels", KERNELS, seed, torch, apart=1e-6, train__kernels="torch")
        lab.trial(REORDERED, KERNELS, seed, naive[seed] + 5e-5 * seed, apart=1.5e-6, train__grad_accumulation=2)
    for name in ("reference", "torch"):
        for length in (64, 128, 256):
            how = {"train__kernels": name, "model__context_length": length, "run": False}
            lab.trial(f"{name} at {length}", SPEED, 1, 3.0, **how)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The whole study, reported once: (lab, result, page, folder of the report)."""
    lab = whole(Lab(tmp_path_factory.mktemp("study")))
    return lab, lab.result(), Page(lab.write()), lab.folder / "out"


class Page(HTMLParser):
    """Tags with their attributes, ids, text, and the cells of each table's rows by the first; fails on a tag that is
    not closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.words, self.rows, self.open = [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in {"meta", "link", "br"} else self.open

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += f" {data.strip()}"

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def row(self, first):
        """The cells of the first row that begins with this one."""
        return next([c.strip() for c in row] for row in self.rows if row and row[0].strip().startswith(first))


def panels_named(result, runs, plate):
    found = {p.name: p for p in plates_of(result, {i: read_run(path) for i, path in runs.items()})}
    return found[plate].panels if plate in found else []


def drawn(panel):
    axes = Figure(figsize=(5, 4)).subplots()
    panel.draw(axes)
    return axes


def of_colour(axes, role):
    return [line for line in axes.get_lines() if line.get_color() == LIGHT[role]]


# What the page says


def test_the_report_opens_with_the_baseline_and_then_what_was_found(study):
    _, _, page, _ = study
    headings = [
        "The baseline",
        "Key findings",
        "Results",
        "Naive against fused",
        "Figures",
        "How it was judged",
        "Trials",
    ]
    places = [page.source.index(f"<h2>{name}</h2>") for name in [*headings, "Trials"]]
    assert places == sorted(places)
    opening = page.source[: places[1]]
    for fact in ("4", "512", "100,000", "95,200 non-embedding", "75", "char tokenizer", "100", "8", "of 128 tokens"):
        assert f">{fact}</dd>" in opening
    for fact in ("cosine", "0.01 to 0.0005", "50 steps", "muon", "fables", "reference", "auto", "a quiet machine"):
        assert fact in opening


def test_every_finding_stands_there_with_its_trials_and_every_warning_openly(study):
    _, result, page, out = study
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert len(result["findings"]) >= 8 and len(result["warnings"]) >= 3
    lists = re.findall(r"<li>(.*?)</details></li>", page.source, re.DOTALL)
    assert len(lists) == len(result["findings"])
    for finding, shown in zip(result["findings"], lists, strict=True):
        assert finding["text"] in page.text
        assert set(re.findall(r"\b\d{4}[0-9a-f]{4,}\b", shown)) == set(finding["trials"])
        assert all(i in markdown for i in finding["trials"])
    hidden = "".join(re.findall(r"<details.*?</details>", page.source, re.DOTALL))
    for warning in result["warnings"]:
        assert warning in page.text and warning not in hidden


def test_an_arm_has_its_whole_row(study):
    _, result, page, _ = study
    row = next(row for row in result["table"] if row["arm"] == "2 layers")
    cells = page.row("2 layers")
    assert cells[0] == "2 layers n_layers 2"
    assert cells[1] == f"{row['mean']:.3f} {row['low']:.3f} to {row['high']:.3f}"
    assert cells[2] == "3"
    assert cells[3] == (f"{row['difference']:+.4f} {row['difference_low']:+.4f} to {row['difference_high']:+.4f}")
    assert cells[4:6] == ["< 0.0001", "worse unmatched"] and cells[6] == f"{row['detectable']:.2g}"
    assert cells[7:] == ["60,000 55,200", "1.84e10 51.2k", "14 s 3.7k", "500 MB"]


def test_unmatched_stands_beside_the_verdict_and_only_where_parameters_differ_by_more_than_a_hundredth(study):
    _, _, page, _ = study
    verdicts = {arm: page.row(arm)[5] for arm in ("2 layers", "6 layers", "ReLU", "SwiGLU", "post-norm")}
    assert verdicts == {
        "2 layers": "worse unmatched", "6 layers": "better unmatched", "ReLU": "inconclusive", "SwiGLU": "better",
        "post-norm": "worse",
    }  # fmt: skip


def test_the_a_a_row_is_marked_and_has_its_own_comparison(study):
    _, result, page, _ = study
    control, cells = result["comparison"]["control"], page.row("A/A")
    assert cells[0] == "A/A nothing but the seeds" and cells[5] == "within chance"
    assert cells[3].startswith(f"{control['difference']:+.3f} ") and cells[4] == f"{control['p']:.2g} alone"
    assert "control" in [dict(attrs).get("class") for tag, attrs in page.tags if tag == "tr"]


def test_seeds_without_a_loss_are_named(study, lab):
    assert study[2].row("post-norm")[2] == "2 seed 3 diverged"
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.7, (1,), model__activation="relu")
    lab.trial("ReLU", "activation", 2, status=FAILED, model__activation="relu")
    lab.trial("ReLU", "activation", 3, status=MISSING, model__activation="relu")
    result = lab.result()
    assert row_view(result["table"][1], result)["lost"] == "seed 2 failed; seed 3 not finished"


def test_kernels_stand_in_a_table_of_their_own(study):
    _, result, page, _ = study
    (row,) = (row for row in result["kernels"]["rows"] if row["kernels"] == "torch")
    test = row["equivalence"]
    cells = page.row("torch")
    assert cells[1] == "equivalent The 90% interval lies within ±0.01."
    assert cells[4] == f"{test['difference']:+.5f} {test['low']:+.5f} to {test['high']:+.5f}"
    assert cells[6] == f"{row['largest_deviation']:.2g} within twice the noise"
    assert cells[7].endswith("1.00×") and cells[8].endswith("1.00×")
    assert page.row(REORDERED)[6] == f"{row['noise']:.2g} the noise floor"
    assert not [row for row in page.rows if row and row[0].strip().startswith("torch kernels")]
    assert page.row("256")[1:] == ["3.9k", "500 MB", "3.9k 1.00×", "500 MB 1.00×"]


def test_how_it_was_judged_is_said_with_its_numbers(study):
    _, result, page, _ = study
    of = result["comparison"]
    assert page.row("design")[1].startswith("blocked")
    assert page.row("spread that differences")[1] == f"{of['spread']:.2g} nats"
    assert page.row("its degrees of freedom")[1] == str(of["df"])
    assert page.row("critical value")[1] == f"{of['critical']:.2f}"
    assert page.row("minimum detectable")[1] == "0.0069 to 0.0078 nats"
    assert page.row("seeds an arm")[1] == "2 to 3 seeds" and page.row("comparisons")[1] == "6"
    assert "adjusted p below 0.05 by Dunnett" in page.text


def test_what_is_not_claimed_follows_the_study(study, lab):
    assert "Inconclusive does not mean equal" in study[2].text and "an arm is unmatched" in study[2].text
    assert "One learning rate served all arms" in study[2].text
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.9, model__activation="relu")
    text = Page(lab.write()).text
    assert "Inconclusive does not mean" not in text and "an arm is unmatched" not in text


@pytest.mark.parametrize(
    ("half", "places"), [(0.0295, 3), (0.0576, 3), (0.00031, 5), (0.25, 2), (3.0, 1), (40.0, 0), (1e-9, 6)]
)
def test_a_number_has_no_more_digits_than_its_interval_bears(half, places):
    assert ablation_panels.decimals(2.7 - half, 2.7 + half) == places


def test_a_learning_rate_chosen_among_three_is_shown_and_the_edge_is_marked(lab):
    for factor, worse in ((0.5, 0.03), (1.0, 0.0), (2.0, -0.04)):
        lab.arm(BASELINE, BASELINE, 2.7 + abs(worse), factor=factor)
        lab.arm("ReLU", "activation", 2.7 + worse, factor=factor, model__activation="relu")
    page = Page(lab.write())
    table = {row[0].strip(): row for row in page.rows if (row and "at the edge" in row[-1]) or len(row) == 6}
    result = lab.result()
    tried = [f"{v:.4f}" for v in result["rates"]["ReLU"]["tried"].values()]
    assert [c.strip() for c in table["ReLU"][1:]] == ["0.02", *tried, "at the edge of those tried"]
    assert table["baseline"][-1].strip() == "" and table["baseline"][1].strip() == "0.01"
    assert page.row("ReLU")[0] == "ReLU activation relu, lr 0.02"
    assert "The best learning rate of ReLU (0.02) is at the edge" in page.text
    assert "One learning rate served all arms" not in page.text


# Whatever has finished, a report is written


def test_one_seed_gives_no_interval_and_the_page_says_so(lab):
    page = Page(whole(lab, (1,)).write())
    assert "There is no spread to judge by, hence no interval, and all is inconclusive" in page.text
    assert "too few seeds for an interval" in page.text
    cells = page.row("2 layers")
    assert re.fullmatch(r"\d\.\d{4}", cells[1]) and re.fullmatch(r"[+-]\d\.\d{4}", cells[3])
    assert cells[4:6] == ["n/a", "inconclusive unmatched"]


def test_kernels_that_end_elsewhere_are_called_different_beyond_the_margin(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    for seed, loss in [(o.seed, o.val_loss) for o in lab.outcomes]:
        lab.trial("torch kernels", KERNELS, seed, loss + 0.1 + 1e-4 * seed, train__kernels="torch")
    assert summary(lab.result()) == "Against naive kernels, torch is different beyond ±0.01 nats."


def test_a_study_that_has_not_finished_anything_is_reported(lab):
    for arm, axis in ((BASELINE, BASELINE), ("ReLU", "activation"), (CONTROL, CONTROL)):
        lab.trial(arm, axis, 1, status=MISSING)
    page = Page(lab.write())
    assert "3 trials: 3 missing" in page.text and "None yet: nothing has finished that could be drawn." in page.text
    assert "seed 1 not finished" in page.text
    print_ablation(lab.result(), Console(file=StringIO(), width=80))


def test_failed_diverged_and_missing_trials_leave_a_report_of_the_others(lab):
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.8, model__activation="relu")
    lab.trial("SwiGLU", "activation", 1, status=FAILED, model__activation="swiglu")
    for seed in (1, 2, 3):
        lab.trial("12 layers", "depth", seed, status=DIVERGED, model__n_layers=12)
    page = Page(lab.write())
    assert page.row("ReLU")[5] == "worse" and page.row("12 layers")[2] == "0 seeds 1, 2, 3 diverged"
    assert "10 trials: 6 finished, 3 diverged, 1 failed." in page.text
    (panel,) = panels_named(lab.result(), lab.runs, "forest")
    said = [text.get_text() for text in drawn(panel).texts]
    assert said[said.index("12 layers") + 1] == "diverged" and said[said.index("SwiGLU") + 1] == "no loss yet"


def test_run_folders_that_are_gone_are_named_and_the_rest_is_drawn(lab):
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.8, model__activation="relu")
    first, second, third, *_ = lab.runs
    del lab.runs[first]
    lab.runs[second] = lab.folder / "nowhere"
    result = analyse(lab.outcomes, lab.runs)
    page = Page(write_ablation(result, lab.folder / "out", lab.runs))
    assert f"The curves leave out 2 trials whose run folder is not at hand: {first}, {second}." in page.text
    assert third not in page.text.partition("not at hand")[2].partition("Differences")[0]
    assert (lab.folder / "out" / "figures" / "loss_curves.png").exists()


def test_a_study_of_kernels_alone_has_their_table_and_figure(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    kernel_arms(lab)
    page = Page(lab.write())
    assert "Against naive kernels, torch is equivalent within ±0.01 nats." in page.text
    names = {path.stem for path in (lab.folder / "out" / "figures").iterdir()}
    assert names == {"kernels", "loss_against_time"}
    assert "adjusted p below" not in page.text


def test_kernels_that_naive_did_not_join_stay_in_the_main_table(lab):
    lab.arm(BASELINE, BASELINE, 2.7, train__kernels="torch")
    lab.arm("triton kernels", KERNELS, 2.7, train__kernels="triton")
    result = lab.result()
    assert result["kernels"] is None
    page = Page(lab.write())
    assert page.row("triton kernels")[5] == "not judged"


def test_twenty_five_arms_with_long_names_fit(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    names = [f"post-norm, no warm-up, {n} layers, rotary positions, width {64 * n}" for n in range(1, 25)]
    for n, name in enumerate(names):
        lab.arm(name, "norm x warmup x depth", 2.7 + 0.002 * n, (1, 2, 3), model__n_layers=n + 1, run=n < 5)
    page = Page(lab.write())
    assert all(name in page.text for name in names)
    assert len(page.source) < 2_000_000
    result = lab.result()
    (forest,) = panels_named(result, lab.runs, "forest")
    assert max(len(text.get_text()) for text in drawn(forest).texts) <= ablation_panels.LABEL_SHOWN
    curves = panels_named(result, lab.runs, "loss_curves")
    assert [len(panel.legend) for panel in curves] == [5, 2]  # the baseline in each
    assert [panel.title for panel in curves] == ["Norm x warmup x depth, 1 of 2", "Norm x warmup x depth, 2 of 2"]


# Figures


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


# Files


def test_everything_is_written_and_the_same_inputs_give_the_same_bytes(lab):
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.8, model__activation="relu")
    kernel_arms(lab)

    def written(folder):
        lab.write(folder)
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    first = written(lab.folder / "a")
    figures = {f"figures/{name}.png" for name in ("forest", "loss_curves", "loss_against_time", "kernels")}
    assert set(first) == {"report.html", "report.md", "table.csv", "result.json"} | figures
    assert written(lab.folder / "a") == first == written(lab.folder / "b")
    assert not any(b"Software" in content or b"Date" in content for name, content in first.items() if "png" in name)


def test_a_figure_of_an_earlier_report_goes_and_other_files_stay(lab):
    figures = lab.folder / "out" / "figures"
    figures.mkdir(parents=True)
    (figures / "depth_width.png").write_bytes(b"old")
    (figures / "mine.png").write_bytes(b"mine")
    lab.trial(BASELINE, BASELINE, 1, status=MISSING).write()
    assert {path.name for path in figures.iterdir()} == {"mine.png"}


def test_the_json_is_the_result_and_the_csv_has_a_row_an_arm_in_full(study):
    _, result, _, out = study
    assert json.loads((out / "result.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    rows = list(csv.DictReader(StringIO((out / "table.csv").read_text(encoding="utf-8"))))
    assert [row["arm"] for row in rows] == [row["arm"] for row in result["table"]]
    by_arm = {row["arm"]: row for row in rows}
    for row in result["table"]:
        line = by_arm[row["arm"]]
        assert float(line["val_loss"]) == row["mean"] and int(line["parameters_total"]) == row["parameters"]["total"]
        if row["verdict"]:
            assert float(line["p_adjusted"]) == row["p"] and line["verdict"] == row["verdict"]
            assert float(line["difference_low"]) == row["difference_low"]
        else:
            assert line["p_adjusted"] == "" and line["verdict"] == "" and line["minimum_detectable"] == ""
    assert float(by_arm[CONTROL]["difference"]) == result["comparison"]["control"]["difference"]
    assert float(by_arm["torch kernels"]["equivalence_p"]) == result["kernels"]["rows"][0]["equivalence"]["p"]
    assert by_arm["baseline"]["equivalence"] == "" and by_arm["post-norm"]["seeds_diverged"] == "3"


def test_the_page_is_one_file_that_asks_for_nothing_else(study):
    _, _, page, _ = study
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.source)
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert links and all(link == "data:," or link[1:] in page.ids for link in links)
    assert not {"script", "iframe", "img"} & {tag for tag, _ in page.tags}
    assert len(page.ids) == len(set(page.ids)) > 100
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}", drawings)


def test_nothing_that_a_study_holds_is_taken_for_markup(lab):
    hostile = '<img src=x onerror=alert(1)> | `b` $x_$ " onload=x \x1b[31m'
    lab.arm(BASELINE, BASELINE, 2.7).arm(hostile, hostile, 2.8, model__activation="relu")
    page = Page(lab.write())
    assert "img" not in {tag for tag, _ in page.tags} and "\x1b" not in page.source
    assert page.row('<img src=x onerror=alert(1)> | `b` $x_$ " onload=x ␛[31m')[5] == "worse"
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    markdown = (lab.folder / "out" / "report.md").read_text(encoding="utf-8")
    assert "\\<img src=x onerror=alert(1)\\> \\| \\`b\\`" in markdown
    lab.arm("[red]low", "activation", 2.9, model__activation="swiglu")
    terminal = StringIO()
    print_ablation(lab.result(), Console(file=terminal, width=120))
    assert "\x1b" not in terminal.getvalue()
    assert [line for line in terminal.getvalue().splitlines() if line.startswith("[red]low")]


def test_the_terminal_shows_verdicts_findings_and_warnings_in_eighty_columns(study):
    _, result, _, _ = study
    written = StringIO()
    print_ablation(result, Console(file=written, width=80))
    lines = written.getvalue().splitlines()
    for arm, verdict in (("2 layers", "worse (unmatched)"), ("ReLU", "inconclusive"), ("A/A", "within chance")):
        (line,) = (line for line in lines if line.startswith(arm))
        assert line.rstrip().endswith(verdict)
    for finding in result["findings"]:
        assert f"- {finding['text']}" in lines
    assert all(f"! {warning}" in lines for warning in result["warnings"])
    assert all(len(line) <= 80 for line in lines if not line.startswith(("-", "!")))


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(lab):
    (lab.folder / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as refused:
        lab.trial(BASELINE, BASELINE, 1, status=MISSING).write(lab.folder / "file")
    assert str(refused.value).endswith(".")
