"""Progress is one small file: it grows answer by answer, survives damage, and is written whole or not at all."""

import json
import os

import pytest

from minilm import files
from minilm.errors import UserError
from minilm.quiz.progress import progress_path, read_progress, record

GOOD = {"topic": "t", "asked": 1, "right": 1, "last": 1.0, "when": "2026-01-01T00:00:00+00:00"}


def test_answers_add_up_and_the_weak_come_first(data_folder):
    for part, score in (("1a", 1), ("2b", 0.5), ("3c", 0), ("2b", 0.75), ("1a", 1)):
        record(part, f"about {part}", score)
    kept = read_progress()
    assert (kept.entries["1a"].asked, kept.entries["1a"].right, kept.entries["1a"].last) == (2, 2, 1)
    assert (kept.entries["2b"].asked, kept.entries["2b"].right, kept.entries["2b"].last) == (2, 0, 0.75)
    assert [part for part, _ in kept.weak()] == ["3c", "2b"]
    assert [p.name for p in data_folder.iterdir()] == ["quiz.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b'{"format": 2, "parts": {}}',
        b'{"format": 1, "parts": []}',
        b'{"format": 1, "parts": {"1a": {}}}',
        json.dumps({"format": 1, "parts": {"1a": GOOD | {"last": 7}}}).encode(),
        json.dumps({"format": 1, "parts": {"1a": GOOD | {"asked": "many"}}}).encode(),
        json.dumps({"format": 1, "parts": {"elephant": GOOD}}).encode(),
        b'{"format": 1, "parts": {"1a": {"topic": "t", "asked": 1, "right": 1, "last": NaN, "when": ""}}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_set_aside_and_answers_are_kept_again(data_folder, damage):
    data_folder.mkdir()
    progress_path().write_bytes(damage)
    kept = read_progress()
    assert kept.entries == {} and "damaged" in kept.note
    assert (data_folder / "quiz.damaged.json").read_bytes() == damage
    record("1a", "t", 1)
    assert read_progress().entries["1a"].asked == 1 and not read_progress().note


def test_a_kill_while_writing_leaves_the_old_file(monkeypatch):
    record("1a", "t", 1)
    before = progress_path().read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("minilm.files.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        record("1b", "t", 0)
    assert progress_path().read_bytes() == before


def test_two_quizzes_at_once_keep_both_answers():
    record("1a", "t", 1)
    read_progress()  # by the first, before the second writes
    record("2a", "t", 0)
    record("1b", "t", 0)
    assert sorted(read_progress().entries) == ["1a", "1b", "2a"]


def test_a_place_that_cannot_be_written_is_one_sentence(data_folder):
    data_folder.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="set MINILM_DATA"):
        record("1a", "t", 1)


def test_the_place_is_the_platforms(monkeypatch, tmp_path):
    monkeypatch.delenv("MINILM_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(files.sys, "platform", "linux")
    assert progress_path() == tmp_path / "minilm" / "quiz.json"
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", os.fspath(tmp_path / "local"))
    assert progress_path() == tmp_path / "local" / "minilm" / "quiz.json"
