"""The page is one safe, quiet file, and says what the run recorded."""

import json
import math
import re

import pytest

from minilm.errors import UserError
from minilm.report.page import write_report
from minilm.report.runs import read_run
from minilm.report.views import _settings
from tests.report.pages_read import Page

undrawn = pytest.mark.usefixtures("undrawn_figures")
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>\n| a `b` ````c```` \x00\x1b[31m'


def edit(path, change):
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def page_of(folder, **options):
    return Page.at(write_report([folder], **options))


@pytest.fixture(scope="module")
def quick(tmp_path_factory, request):
    """A page of a run of 2,000 steps: (folder, parsed page, Markdown)."""
    folder = request.getfixturevalue("build")(tmp_path_factory.mktemp("runs") / "quick-001")
    page = page_of(folder)
    return folder, page, (folder / "report.md").read_text(encoding="utf-8")


# One file, safe anywhere


def test_a_run_is_reported_into_its_own_folder(quick):
    folder, _, markdown = quick
    written = {"report.html", "report.md", "training_report_quick-001.png"}
    assert written <= {path.name for path in folder.iterdir()}
    assert "](training_report_quick-001.png)" in markdown


def test_the_page_asks_for_nothing_outside_itself(quick):
    folder, page, _ = quick
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "xlink:href")]
    assert links and all(link == "data:," or link.startswith("#") for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(page.ids)
    assert not {"script", "iframe", "object", "embed", "img"} & {tag for tag, _ in page.tags}


def test_no_id_is_given_twice_on_a_page_of_several_runs(make_run, tmp_path):
    page = Page.at(write_report([make_run("a", steps=30), make_run("b", steps=30)]))
    assert len(page.ids) == len(set(page.ids)) > 100


def test_the_same_folder_gives_the_same_bytes(make_run):
    folder = make_run(steps=60)

    def written():
        write_report([folder])
        return {path.name: path.read_bytes() for path in folder.glob("*report*")}

    first = written()
    assert len(first) == 3 and written() == first


def test_nothing_that_a_run_holds_is_taken_for_markup(make_run, lines):
    folder = make_run(steps=30)
    edit(folder / "config.json", lambda c: c.update(name=HOSTILE) or c["facts"].update(command=HOSTILE, device=HOSTILE))
    edit(folder / "config.json", lambda c: c["model"].update({HOSTILE: HOSTILE}))
    edit(folder / "data.json", lambda d: d.update(source=HOSTILE))
    edit(folder / "baselines.json", lambda b: b.update(smoothing=HOSTILE))
    for path in (folder / "samples").iterdir():
        edit(path, lambda s: s["samples"][0].update(prompt=HOSTILE, text=HOSTILE + "more"))
    lines(folder / "events.jsonl", [{"step": 1, "time": HOSTILE, "event": HOSTILE, "message": HOSTILE}])
    text = write_report([folder]).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert "\0" not in text and "\x1b" not in text and "␀␛[31m" in page.text
    assert page.text.count('<script>alert("x")</script>') >= 8


@undrawn
def test_markdown_keeps_samples_in_their_fence_and_cells_in_their_table(make_run):
    folder = make_run(steps=30)
    for path in (folder / "samples").iterdir():
        edit(path, lambda s: s["samples"][0].update(prompt="", text="a ```` b\n```\n# not a title"))
    edit(folder / "config.json", lambda c: c["train"].update(note="one | two\nthree <b>"))
    write_report([folder])
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "`````text\na ```` b\n```\n# not a title\n`````\n" in markdown
    assert "| note | one \\| two three \\<b\\> |" in markdown


@undrawn
def test_text_that_utf8_cannot_hold_is_shown_as_replaced(make_run):
    folder = make_run(steps=30)
    edit(folder / "samples" / "step_000030.json", lambda s: s["samples"][0].update(prompt="", text="half \ud83d pair"))
    assert "half \ufffd pair" in page_of(folder).text


@pytest.mark.parametrize("steps", [2000, 20_000])
def test_a_page_stays_under_two_megabytes(make_run, lines, steps):
    folder = make_run(steps=steps)
    sample = {"prompt": "", "text": "x" * 50_000}
    (folder / "samples" / "step_999999.json").write_text(json.dumps({"step": 999_999, "samples": [sample] * 200}))
    lines(folder / "events.jsonl", [{"step": i, "event": "spike", "message": "up" * 500} for i in range(5000)])
    assert write_report([folder]).stat().st_size < 2_000_000


@undrawn
def test_long_samples_and_many_are_cut_and_said_to_be(make_run):
    folder = make_run(steps=30)
    sample = {"prompt": "", "text": "x" * 3000 + "y"}
    (folder / "samples" / "step_999999.json").write_text(json.dumps({"step": 999_999, "samples": [sample] * 20}))
    text = page_of(folder).text
    assert text.count("x" * 3000 + " …") == 12 and "xy" not in text
    assert "8 more in the run folder." in text


# What it says


def test_the_verdict_is_made_from_the_run(quick):
    folder, page, markdown = quick
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    nats = min(row["val_loss"] for row in rows if "val_loss" in row)
    verdict = (
        f"A 4-layer, 0.84M-parameter GPT reached {nats:.3f} nats a character ({nats / math.log(2):.2f} bits a byte) on "
        "held-out fables after 2,000 steps in 2 min 31 s on cpu; the best possible is 0.81."
    )
    assert verdict in page.text and verdict in markdown


@undrawn
def test_a_best_before_the_end_is_named_with_its_step(make_run):
    text = page_of(make_run(last_rise=3.0)).text
    assert re.search(r"reached 1\.\d{3} nats .* at step 1,250, its best over 2,000 steps in 2 min", text)
    assert "the mark of overfitting" in text


@undrawn
def test_a_run_that_goes_on_is_said_to_and_can_be_resumed(make_run):
    folder = make_run(steps_done=420)
    text = page_of(folder).text
    assert "has reached" in text and "after 420 of 2,000 steps" in text
    assert f"minilm train --out {folder} --resume" in text


def test_a_finished_run_is_not_offered_a_resume(quick):
    assert "--resume" not in quick[1].text


def test_a_run_without_evaluation_or_optional_files_has_a_page(make_run):
    folder = make_run(steps=1, evaluate=False, baselines=False, floor=None)
    for path in [*folder.glob("samples/*"), folder / "events.jsonl", folder / "data.json"]:
        path.unlink()
    text = page_of(folder).text
    assert "has trained for 1 step in 0.1 s on cpu; it has not been evaluated yet." in text
    assert "no evaluation yet" in text and "What the loss is worth" not in text and "nan" not in text.lower().split()


def test_the_model_stands_among_the_ngram_models_and_the_floor(quick):
    _, page, markdown = quick
    rows = re.findall(r"^\| \**([\w -]+?)\** \| (\d\.\d{3}) \| (\d\.\d{3}) \|", markdown, re.MULTILINE)
    names = [name for name, _, _ in rows]
    assert names[:2] == ["even guessing", "1-gram"] and names[-2:] == ["this model", "the floor"]
    assert [float(nats) for _, nats, _ in rows] == sorted((float(nats) for _, nats, _ in rows), reverse=True)
    assert rows[-1][1:] == ("0.810", "1.169")
    assert "It beats every n-gram model fitted on the same text: the best of them, the 5-gram, gives 1.365" in page.text


@undrawn
def test_a_model_behind_the_ngram_models_is_said_to_be(make_run):
    assert "does not yet beat every n-gram model" in page_of(make_run(level=0.9)).text


def test_samples_are_shown_as_the_model_learns(quick):
    page = quick[1].text
    assert [step for step in re.findall(r"step ([\d,]+) validation", page)] == ["0", "250", "500", "1,000", "2,000"]
    assert "temperature 0.8 · top-p 0.95 · seed 1" in page


@undrawn
def test_a_sample_without_a_prompt_begins_with_its_first_line(make_run):
    folder = make_run(steps=30)
    for path in (folder / "samples").iterdir():
        edit(path, lambda s: s["samples"][0].update(prompt="\n", text="\n\nA crow sat."))
    path = write_report([folder])
    assert '<p class="sample"><b></b>A crow sat.</p>' in path.read_text(encoding="utf-8")
    assert "The beginning of a new text" in path.read_text(encoding="utf-8")


@undrawn
def test_spikes_and_resumes_are_listed_and_checkpoints_only_counted(make_run, lines):
    folder = make_run(steps=30)
    events = [
        ("started", 0),
        ("saved", 10),
        ("saved", 20),
        ("best", 20),
        ("spike", 21),
        ("non_finite", 22),
        ("resume", 22),
    ]
    lines(
        folder / "events.jsonl",
        [{"step": s, "time": "2026-03-02T09:15:27Z", "event": e, "message": ""} for e, s in events],
    )
    text = page_of(folder).text
    assert re.search(r"0 started .*21 spike .*22 non-finite .*22 resume", text)
    assert "Besides: 1 new best and 2 checkpoints." in text and "saved" not in text
    assert "The loss jumped once" in text and "The run was taken up again once." in text


def test_settings_parameters_and_provenance_are_all_there(quick):
    folder, page, markdown = quick
    config = json.loads((folder / "config.json").read_text())
    for key in [*config["model"], *config["train"]]:
        assert f" {key} " in page.text and f"| {key} ".replace("_", "\\_") in markdown
    for count in ("838,144", "802,816", "809,472", "35,328"):
        assert count in page.text and count in markdown
    for fact in ("torch 2.13.0", "4f1c2d9", config["facts"]["data_sha256"], "best.pt (4.1 kB)", "118 MB"):
        assert fact in page.text and fact in markdown
    assert "triton" not in page.text  # not installed on the machine of this run
    assert "minilm train --preset quick --steps 2000" in page.text and f"minilm generate --run {folder}" in page.text


@undrawn
def test_an_unknown_peak_is_no_percentage(make_run):
    folder = make_run(steps=30)
    assert "of the peak" not in page_of(folder).text
    edit(folder / "config.json", lambda c: c["facts"].update(peak_flops=1.1e12))
    assert re.search(r"110 GFLOP/s, 10% of the peak", page_of(folder).text)


@undrawn
def test_remarks_say_what_a_careful_reader_would_notice(make_run, lines):
    folder = make_run(steps=40, evaluate=False, baselines=False)
    edit(folder / "data.json", lambda d: d["train"].update(tokens=40 * 1536 // 5))
    rows = [
        {
            "step": i,
            "tokens": 1536 * i,
            "loss": None if i == 7 else 1.0,
            "lr": 1e-3,
            "grad_norm": 2.0 if i <= 10 else 0.5,
        }
        for i in range(1, 41)
    ]
    lines(folder / "metrics.jsonl", [*rows, {"step": 40, "tokens": 40 * 1536, "val_loss": 1.5}])
    text = page_of(folder).text
    assert "It read its training text 5.0 times" in text
    assert "The training loss was not finite at 1 logged step." in text
    assert "At the end the validation loss was 0.500 above the averaged training loss." in text
    assert "Gradients were clipped to norm 1 at 25% of the logged steps." in text
    guessing = math.log(69)
    share = round(100 * (guessing - 1.5) / (guessing - 0.81))
    assert (
        f"It is 0.690 nats a character above the floor, the source's own entropy, and has come {share}% of the way"
        in text
    )


@undrawn
def test_a_loss_below_the_floor_is_called_into_question(make_run):
    assert "below the floor: either" in page_of(make_run(steps=2000, level=-0.4)).text


# Several runs


def test_runs_are_compared_where_they_share_a_folder(make_run, tmp_path):
    folders = [make_run("a", level=0.4), make_run("b", level=0.2), make_run("c", steps_done=40, evaluate=False)]
    path = write_report(folders)
    page = Page.at(path)
    assert path == tmp_path / "report" / "report.html"
    assert {p.name for p in path.parent.glob("*.png")} == {f"training_report_{name}.png" for name in "abc"}
    assert "3 runs compared" in page.text and "Against tokens" in page.text and "Against time" in page.text
    assert "nats per character" in page.text and "All runs read the same text" in page.text
    rows = re.findall(r'<tr class="own"><td class="nowrap">.*?<a href="#(\w)">', path.read_text(encoding="utf-8"))
    assert rows == ["b"]


def test_runs_with_other_tokenizers_are_compared_in_bits_a_byte(make_run):
    folders = [make_run("a"), make_run("b", tokenizer="bpe", bytes_per_token=2.7)]
    page = Page.at(write_report(folders))
    assert "bits per byte" in page.text and "The runs differ in text or tokenizer" in page.text


@pytest.mark.parametrize("hashes", [("aa", "bb"), (None, None)], ids=["other text", "unknown text"])
def test_runs_are_not_said_to_have_read_the_same_text_unless_they_did(make_run, hashes):
    folders = [make_run("a", steps=20), make_run("b", steps=20)]
    for folder, sha in zip(folders, hashes, strict=True):
        edit(folder / "config.json", lambda c, sha=sha: c["facts"].update(data_sha256=sha))
    text = Page.at(write_report(folders)).text
    assert "All runs read the same text" not in text and "bits per byte" in text


def test_runs_of_one_name_have_a_picture_each(make_run, tmp_path):
    folders = [make_run(f"{i}/quick", steps=20) for i in range(3)] + [make_run("quick-2", steps=20)]
    path = write_report(folders, tmp_path / "out")
    assert len(list(path.parent.glob("*.png"))) == 4


# Refusals


def test_no_run_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="No run was named"):
        write_report([])


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(make_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([make_run(steps=4)], tmp_path / "file")


@undrawn
def test_settings_without_effect_are_not_listed(make_run):
    folder = make_run()

    def listed(**data):
        edit(folder / "config.json", lambda c: c["data"].update(data))
        return dict(dict(_settings(read_run(folder)))["Data"]).keys()

    assert not {"vocab_size", "seed"} & listed(source="my.txt", tokenizer="char", vocab_size=4096, seed=7)
    assert {"vocab_size", "seed"} <= listed(source="fables", tokenizer="bpe")
