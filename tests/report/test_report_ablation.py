"""The report of an ablation says what its study found, no more, and is drawn of whatever has finished."""

import csv
import json
import re
from io import StringIO

import pytest
from rich.console import Console

from minilm.errors import UserError
from minilm.report import ablation_panels
from minilm.report.ablation import print_ablation, write_ablation
from minilm.report.ablation_views import row_view
from minilm.report.ablation_words import summary
from minilm.studies.ablation import analyse
from minilm.studies.design import BASELINE, CONTROL, KERNELS, REORDERED
from minilm.studies.trials import DIVERGED, FAILED, MISSING
from tests.report.ablation_lab import drawn, kernel_arms, panels_named, whole
from tests.report.pages_read import Page

undrawn = pytest.mark.usefixtures("undrawn_figures")

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
    text = Page.at(lab.write()).text
    assert "Inconclusive does not mean" not in text and "an arm is unmatched" not in text


@pytest.mark.parametrize(
    ("half", "places"), [(0.0295, 3), (0.0576, 3), (0.00031, 5), (0.25, 2), (3.0, 1), (40.0, 0), (1e-9, 6)]
)
def test_a_number_has_no_more_digits_than_its_interval_bears(half, places):
    assert ablation_panels.decimals(2.7 - half, 2.7 + half) == places


@undrawn
def test_a_learning_rate_chosen_among_three_is_shown_and_the_edge_is_marked(lab):
    for factor, worse in ((0.5, 0.03), (1.0, 0.0), (2.0, -0.04)):
        lab.arm(BASELINE, BASELINE, 2.7 + abs(worse), factor=factor)
        lab.arm("ReLU", "activation", 2.7 + worse, factor=factor, model__activation="relu")
    page = Page.at(lab.write())
    table = {row[0].strip(): row for row in page.rows if (row and "at the edge" in row[-1]) or len(row) == 6}
    result = lab.result()
    tried = [f"{v:.4f}" for v in result["rates"]["ReLU"]["tried"].values()]
    assert [c.strip() for c in table["ReLU"][1:]] == ["0.02", *tried, "at the edge of those tried"]
    assert table["baseline"][-1].strip() == "" and table["baseline"][1].strip() == "0.01"
    assert page.row("ReLU")[0] == "ReLU activation relu, lr 0.02"
    assert "The best learning rate of ReLU (0.02) is at the edge" in page.text
    assert "One learning rate served all arms" not in page.text


# Whatever has finished, a report is written


@undrawn
def test_one_seed_gives_no_interval_and_the_page_says_so(lab):
    page = Page.at(whole(lab, (1,)).write())
    assert "There is no spread to judge by, hence no interval, and all is inconclusive" in page.text
    assert "too few seeds for an interval" in page.text
    cells = page.row("2 layers")
    assert re.fullmatch(r"\d\.\d{4}", cells[1]) and re.fullmatch(r"[+-]\d\.\d{4}", cells[3])
    assert cells[4:6] == ["n/a", "inconclusive unmatched"]


@undrawn
def test_kernels_that_end_elsewhere_are_called_different_beyond_the_margin(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    for seed, loss in [(o.seed, o.val_loss) for o in lab.outcomes]:
        lab.trial("torch kernels", KERNELS, seed, loss + 0.1 + 1e-4 * seed, train__kernels="torch")
    assert summary(lab.result()) == "Against naive kernels, torch is different beyond ±0.01 nats."


@undrawn
def test_a_study_that_has_not_finished_anything_is_reported(lab):
    for arm, axis in ((BASELINE, BASELINE), ("ReLU", "activation"), (CONTROL, CONTROL)):
        lab.trial(arm, axis, 1, status=MISSING)
    page = Page.at(lab.write())
    assert "3 trials: 3 missing" in page.text and "None yet: nothing has finished that could be drawn." in page.text
    assert "seed 1 not finished" in page.text
    print_ablation(lab.result(), Console(file=StringIO(), width=80))


@undrawn
def test_failed_diverged_and_missing_trials_leave_a_report_of_the_others(lab):
    lab.arm(BASELINE, BASELINE, 2.7).arm("ReLU", "activation", 2.8, model__activation="relu")
    lab.trial("SwiGLU", "activation", 1, status=FAILED, model__activation="swiglu")
    for seed in (1, 2, 3):
        lab.trial("12 layers", "depth", seed, status=DIVERGED, model__n_layers=12)
    page = Page.at(lab.write())
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
    page = Page.at(write_ablation(result, lab.folder / "out", lab.runs))
    assert f"The curves leave out 2 trials whose run folder is not at hand: {first}, {second}." in page.text
    assert third not in page.text.partition("not at hand")[2].partition("Differences")[0]
    assert (lab.folder / "out" / "figures" / "loss_curves.png").exists()


def test_a_study_of_kernels_alone_has_their_table_and_figure(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    kernel_arms(lab)
    page = Page.at(lab.write())
    assert "Against naive kernels, torch is equivalent within ±0.01 nats." in page.text
    names = {path.stem for path in (lab.folder / "out" / "figures").iterdir()}
    assert names == {"kernels", "loss_against_time"}
    assert "adjusted p below" not in page.text


@undrawn
def test_kernels_that_naive_did_not_join_stay_in_the_main_table(lab):
    lab.arm(BASELINE, BASELINE, 2.7, train__kernels="torch")
    lab.arm("triton kernels", KERNELS, 2.7, train__kernels="triton")
    result = lab.result()
    assert result["kernels"] is None
    page = Page.at(lab.write())
    assert page.row("triton kernels")[5] == "not judged"


def test_twenty_five_arms_with_long_names_fit(lab):
    lab.arm(BASELINE, BASELINE, 2.7)
    names = [f"post-norm, no warm-up, {n} layers, rotary positions, width {64 * n}" for n in range(1, 25)]
    for n, name in enumerate(names):
        lab.arm(name, "norm x warmup x depth", 2.7 + 0.002 * n, (1, 2, 3), model__n_layers=n + 1, run=n < 5)
    page = Page.at(lab.write())
    assert all(name in page.text for name in names)
    assert len(page.source) < 2_000_000
    result = lab.result()
    (forest,) = panels_named(result, lab.runs, "forest")
    assert max(len(text.get_text()) for text in drawn(forest).texts) <= ablation_panels.LABEL_SHOWN
    curves = panels_named(result, lab.runs, "loss_curves")
    assert [len(panel.legend) for panel in curves] == [5, 2]  # the baseline in each
    assert [panel.title for panel in curves] == ["Norm x warmup x depth, 1 of 2", "Norm x warmup x depth, 2 of 2"]


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


@undrawn
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
    page = Page.at(lab.write())
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


@undrawn
def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(lab):
    (lab.folder / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as refused:
        lab.trial(BASELINE, BASELINE, 1, status=MISSING).write(lab.folder / "file")
    assert str(refused.value).endswith(".")
