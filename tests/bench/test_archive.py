"""The archive of a run: what is needed to go on elsewhere, no more, kept up to date, and safe to unpack."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from bench import archive
from tests.waiting import wait_for


def results(out: Path) -> Path:
    """A folder as a run leaves it."""
    for name, text in {
        "rows.jsonl": '{"kind": "ops", "key": "a", "rows": []}\n{"cut',
        "chip.json": "{}",
        "data/tuned/sm_90.json": '{"table": 1}',
        "race/nanogpt-1/metrics.jsonl": "{}",
        "race/nanogpt-1/done": "",
        "race/ours/runs/a/checkpoints/last.pt": "weights",
        "race/compiled/inductor/x.json": "{}",
        "triton_cache/x.json": "{}",
        "ops.log": "short",
    }.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    (out / "memcheck.log").write_text("first" + "x" * 2**20 + "last")
    return out


def test_an_archive_holds_what_is_needed_to_go_on_and_no_more(tmp_path):
    out = results(tmp_path / "out")
    assert archive.pack(out, tmp_path / "sent" / "a.tar.gz") == []
    archive.unpack(tmp_path / "sent" / "a.tar.gz", tmp_path / "new" / "out")
    new = tmp_path / "new" / "out"
    there = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    assert there == {
        "rows.jsonl", "chip.json", "data/tuned/sm_90.json", "race/nanogpt-1/metrics.jsonl", "race/nanogpt-1/done",
        "ops.log", "memcheck.log",
    }  # fmt: skip
    for name in there - {"memcheck.log"}:
        assert (new / name).read_bytes() == (out / name).read_bytes()
    text = (new / "memcheck.log").read_text()
    assert text.startswith("first") and text.endswith("last") and len(text) < 2**19 and "bytes left out" in text


def test_an_archive_that_would_be_too_large_leaves_out_what_can_be_spared(tmp_path, monkeypatch):
    out = results(tmp_path / "out")
    (out / "race" / "noise").write_bytes(os.urandom(2**16))
    monkeypatch.setattr(archive, "LIMIT", 2**15)
    left = archive.pack(out, tmp_path / "a.tar.gz")
    assert "race/noise" in left and "ops.log" in left
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert tar.getnames() == ["rows.jsonl", "chip.json", "data/tuned/sm_90.json"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/../../outside", "link"])
def test_an_archive_that_reaches_outside_is_refused_and_nothing_is_written(name, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("rows.jsonl"))
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(tarfile.TarError):
        archive.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "outside").exists()


def rows_in(file):
    with tarfile.open(file) as tar:
        return tar.extractfile("rows.jsonl").read()


def test_an_archive_is_there_from_the_beginning_and_kept_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "EVERY", 0.05)
    out, file = results(tmp_path / "out"), tmp_path / "a.tar.gz"
    with archive.kept_up_to_date(out, file):
        (out / "rows.jsonl").write_text("later")
        wait_for(lambda: file.exists() and rows_in(file) == b"later", "the archive is written again")
    with archive.kept_up_to_date(out, None):
        pass
