"""--check believes nothing: every deliverable is looked into, and what is missing or was changed is named."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner

from minilm.capstone import checklist as checks
from minilm.capstone.checklist import checklist
from minilm.capstone.folder import Folder, sha256
from minilm.cli import cli
from minilm.errors import UserError
from minilm.quiz.progress import record
from minilm.studies.trials import Study
from minilm.training import checkpoint

ITEMS = [
    "trained checkpoint", "training curves", "generated samples", "ablation report", "naive against fused",
    "scaling curve", "quiz", "the page",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """A person who has not answered the quiz."""
    monkeypatch.setenv("MINILM_DATA", str(tmp_path / "person"))


@pytest.fixture
def made(capstone_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(capstone_folder, tmp_path / "made")


def said(path, *more):
    result = CliRunner().invoke(cli, ["capstone", "--check", str(path), *more])
    return result.exit_code, result.output.splitlines()


def only_missing(path, name):
    """The line of the one item that is missing besides the quiz."""
    code, lines = said(path)
    lost = [line for line in lines if line.startswith("MISSING") and not line.startswith("MISSING  quiz")]
    assert code == 1 and [line.split(":")[0] for line in lost] == [f"MISSING  {name}"]
    return lost[0]


def test_all_but_the_quiz_is_there_with_evidence(capstone_folder):
    code, lines = said(capstone_folder)
    assert code == 1
    assert [re.split(r"  +|:", line)[1] for line in lines[:-1]] == ITEMS
    assert [line.split()[0] for line in lines[:-1]] == ["ok"] * 6 + ["MISSING", "ok"]
    best = sha256(capstone_folder / "capstone_best.pt")[:12]
    assert re.search(rf"step 8, validation loss \d\.\d{{4}} .*\[capstone_best\.pt, sha256 {best}\]", lines[0])
    assert re.search(r"8 steps without a gap: loss .*, learning rate .*, gradient norm .*metrics\.jsonl", lines[1])
    assert "temperatures 0.3, 0.7, 1" in lines[2]
    assert "axes norm, norm_type, position; 3 arms and A/A, 3 seeds" in lines[3]
    assert re.search(r"torch (equivalent|different|not shown equivalent|inconclusive) by [+-]\d", lines[4])
    assert "2 sizes, an exponent is refused: 2 sizes; an exponent needs 5 or more." in lines[5]
    assert lines[6].endswith("To make it: minilm quiz")
    assert lines[-1] == "1 of 8 is missing."


def test_the_quiz_is_there_when_all_eight_were_answered_and_its_weak_spots_are_told(capstone_folder):
    for question in "1234567":
        record(f"{question}a", f"topic {question}", 1.0)
    code, lines = said(capstone_folder)
    assert code == 1 and "of the eight questions 8 is not answered yet" in lines[6]
    record("8a", "attention in code", 0.5)
    code, lines = said(capstone_folder)
    assert code == 0 and lines[-1] == "Everything is there."
    assert "7 of 8 parts right; weak: 8a attention in code (50%)" in lines[6]


def test_a_folder_that_is_nothing_of_ours_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is no capstone, for it has no capstone.json"):
            checks.check(path)


def spoil(name, item, words, change):
    return pytest.param(name, item, words, change, id=f"{item}: {words}")


def cut(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "item", "words", "change"),
    [
        spoil("capstone_best.pt", "trained checkpoint", "has changed since it was written", cut),
        spoil(
            "train/metrics.jsonl",
            "training curves",
            "has changed since it was written",
            lambda c: c.replace(b"1", b"2"),
        ),
        spoil("figures/training_report.png", "training curves", "has changed since it was written", cut),
        spoil("train/samples/watch.json", "generated samples", "has changed", lambda c: b'{"checkpoints": []}'),
        spoil(
            "ablation/result.json", "ablation report", "has changed", lambda c: c.replace(b"better", b"worse") + b" "
        ),
        spoil("ablation/report.html", "ablation report", "has changed", lambda c: b"<html>See me</html>"),
        spoil("kernels/result.json", "naive against fused", "has changed", cut),
        spoil("scaling/scaling.json", "scaling curve", "has changed", cut),
        spoil("scaling/capstone_scaling_curve.png", "scaling curve", "has changed", lambda c: b""),
        spoil("report.html", "the page", "has changed", cut),
    ],
)
def test_a_file_that_was_cut_planted_or_edited_is_named(made, name, item, words, change):
    path = made / name
    path.write_bytes(change(path.read_bytes()))
    if name == "train/metrics.jsonl":  # from which the checkpoint is judged too
        assert words in next(line for line in said(made)[1] if line.startswith(f"MISSING  {item}"))
        return
    line = only_missing(made, item)
    assert words in line and path.name in line and f"minilm capstone --out {made}" in line


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("capstone_best.pt", "trained checkpoint"),
        ("train/samples/watch.json", "generated samples"),
        ("ablation/report.html", "ablation report"),
        ("ablation/figures/forest.png", "ablation report"),
        ("kernels/study.json", "naive against fused"),
        ("scaling/capstone_scaling_curve.png", "scaling curve"),
        ("report.html", "the page"),
    ],
)
def test_a_file_that_is_gone_is_named(made, name, item):
    (made / name).unlink()
    assert name.rsplit("/", 1)[-1] in only_missing(made, item)


def forge(made, name, change):
    """Change a file and the record of what it was, as a careful hand would."""
    path, record_path = made / name, made / "capstone.json"
    path.write_bytes(change(path.read_bytes()))
    kept = json.loads(record_path.read_text())
    kept["files"][name] = sha256(path)
    record_path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("name", "item", "words", "change"),
    [
        spoil("capstone_best.pt", "trained checkpoint", "no checkpoint that can be read", cut),
        spoil(
            "train/samples/watch.json",
            "generated samples",
            "0 checkpoints and 0 temper",
            lambda c: b'{"checkpoints": []}',
        ),
        spoil(
            "train/metrics.jsonl",
            "training curves",
            "7 of 8 steps",
            lambda c: re.sub(rb'\{"step": 3, .*\n', b"", c, count=1),
        ),
        spoil("ablation/figures/forest.png", "ablation report", "is no whole PNG", cut),
        spoil(
            "ablation/result.json",
            "ablation report",
            "is not what its trials give",
            lambda c: c.replace(b'"n": 3', b'"n": 30'),
        ),
        spoil(
            "scaling/scaling.json",
            "scaling curve",
            "is not what its trials give",
            lambda c: c.replace(b'"seed": 3', b'"seed": 4'),
        ),
        spoil("report.html", "the page", "is cut off", cut),
        spoil(
            "report.html",
            "the page",
            "5,000,000 are allowed",
            lambda c: c.replace(b"<main>", b"<main>" + b"x" * 5_000_000),
        ),
    ],
)
def test_even_where_the_record_was_forged_what_a_file_holds_is_looked_at(made, name, item, words, change):
    forge(made, name, change)
    assert words in only_missing(made, item)


def test_weights_of_another_training_are_not_taken_for_its_own(made):
    forge(made, "capstone_best.pt", lambda _: (made / "train" / "checkpoints" / "step_000004.pt").read_bytes())
    assert "cannot be understood" in only_missing(made, "trained checkpoint")  # weights without a loss
    journal = (made / "train" / "metrics.jsonl").read_bytes()
    shutil.copy(made / "train" / "checkpoints" / "best.pt", made / "capstone_best.pt")
    forge(made, "capstone_best.pt", lambda c: c)
    assert b'"val_loss"' in journal
    forge(made, "train/metrics.jsonl", lambda c: re.sub(rb'"val_loss": \d', b'"val_loss": 0', c))
    assert "and the best of the journal is" in only_missing(made, "trained checkpoint")


def test_a_trial_whose_result_is_not_that_of_its_journal_is_named(made):
    study = Study(made / "ablation")
    row = study.rows[1]
    result = made / "ablation" / "trials" / f"{row['id']}.json"
    told = json.loads(result.read_text())
    result.write_text(json.dumps({**told, "val_loss": 0.001}))
    line = only_missing(made, "ablation report")
    assert f"trial {row['id']} ({row['arm']}, seed {row['seed']}) says val_loss 0.001 and its journal" in line
    result.unlink()
    assert f"trial {row['id']} ({row['arm']}, seed {row['seed']}) has not ended" in only_missing(
        made, "ablation report"
    )


def test_what_a_course_asks_for_is_counted(made, monkeypatch):
    monkeypatch.setattr(checks, "MIN_AXES", 4)
    assert "3 axes (norm, norm_type, position); 4 are asked for" in only_missing(made, "ablation report")
    monkeypatch.undo()
    monkeypatch.setattr(checks, "MIN_TEMPERATURES", 4)
    monkeypatch.setenv("MINILM_DATA", str(made.parent / "person"))
    assert "3 checkpoints and 3 temperatures; 2 and 4 are asked for" in only_missing(made, "generated samples")


def test_the_page_is_small_whole_and_asks_for_nothing(capstone_folder):
    page = (capstone_folder / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 1_000_000  # of a miniature; 5 MB is the limit of any
    assert not re.search(r"""(?:src|href)=["'](?!#|data:|[\w./-]+\.html["'])""", page)
    assert "<script" not in page and "@import" not in page and "url(" not in page.split("</style>")[0]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))  # figures of several pages stand in one
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    parts = re.findall(r'<h2 id="(\w+)"', page)
    assert parts == ["curves", "watch", "quality", "ablation", "kernels", "scaling", "checklist", "settings"]


def test_the_first_paragraph_says_what_was_reached_and_what_was_found(capstone_folder):
    page = (capstone_folder / "report.html").read_text(encoding="utf-8")
    first = re.search(r'<p class="verdict">(.*?)</p>', page, re.DOTALL)[1]
    best = checklist(Folder(capstone_folder), page=False)[0]
    loss = re.search(r"validation loss (\d\.\d{3})", best.text)[1]
    for words in (
        "a GPT of 1 layer and ", f"a loss of {loss} nats a character", "blind guessing has 3.43", "-gram model) ",
        "Which choices matter was asked of 3 variants", "kernels (torch) train the same model as the textbook ones",
        "no law of it is claimed: 2 sizes; an exponent needs 5 or more.",
    ):  # fmt: skip
        assert words in first


def test_the_journals_rounding_is_no_difference(made):
    """It keeps seven digits of a loss: here the seventh decides the sixth."""
    state = checkpoint.load(made / "capstone_best.pt")
    known = f"{state['val_loss']:.7g}".encode()
    checkpoint.save(made / "capstone_best.pt", state | {"val_loss": 2.12300496})
    forge(made, "capstone_best.pt", lambda c: c)
    forge(made, "train/metrics.jsonl", lambda c: c.replace(known, b"2.123005"))
    code, lines = said(made)
    assert code == 1 and [line.split(":")[0] for line in lines if line.startswith("MISSING")] == ["MISSING  quiz"]
