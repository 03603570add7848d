"""python -m bench.gpu: what was found is kept and told, whatever ends a run, and the next one goes on with it."""

import json
import os
import signal
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import gpu, processes
from minilm import hardware


@pytest.fixture
def machine(monkeypatch):
    """What the machine says of itself, which a test may change; nothing is measured."""
    facts = {"device": "NVIDIA H100", "revision": "abc", "versions": {}}

    def say(command, **options):
        facts["revision"] = os.environ.get("MINILM_REVISION") or facts["revision"]
        return SimpleNamespace(returncode=0, stdout=json.dumps(facts), stderr="")

    monkeypatch.setattr(gpu.subprocess, "run", say)
    monkeypatch.setattr(gpu.shutil, "which", lambda *_: None)
    monkeypatch.setenv("MINILM_REVISION", "")
    return facts


@pytest.fixture
def tests_stage(monkeypatch):
    ran = []
    monkeypatch.setattr(gpu, "run_tests", lambda out, *_: ran.append(out) or {"pytest": "1 passed"})
    return ran


def main(out: Path, *arguments: str) -> int:
    return gpu.main(["--stage", "tests", "--minutes", "1", "--out", str(out), *map(str, arguments)])


def test_the_same_command_goes_on_from_an_archive(tmp_path, machine, tests_stage):
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "a.tar.gz"
    assert main(first, "--archive", file, "--revision", "r1") == 0
    assert main(second, "--from", file, "--archive", tmp_path / "b.tar.gz", "--revision", "r1") == 0
    assert (second / "rows.jsonl").read_text() == (first / "rows.jsonl").read_text()
    record = json.loads((second / "nvidia-h100.json").read_text())
    assert record["stages"] == {"tests": {"pytest": "1 passed"}} and record["machine"]["revision"] == "r1"
    with tarfile.open(tmp_path / "b.tar.gz") as tar:
        assert {"rows.jsonl", "nvidia-h100.json"} <= set(tar.getnames())
    assert tests_stage == [first, second]


def test_what_is_not_to_be_mixed_is_refused_in_a_sentence(tmp_path, machine, tests_stage, capsys):
    def refused(*arguments):
        with pytest.raises(SystemExit):
            main(tmp_path / "out", *arguments)
        return capsys.readouterr().err

    main(tmp_path / "out", "--archive", tmp_path / "a.tar.gz")
    machine["revision"] = "abc+"
    assert "holds results of the revision abc, and this is the revision abc+; results of two are not mixed" in refused()
    machine["revision"] = None
    assert "and this is the revision that is not known" in refused()
    machine["revision"], machine["device"] = "abc", "NVIDIA H200"
    assert "holds results of the device NVIDIA H100, and this is the device NVIDIA H200" in refused()
    assert "holds results already; leave --from out" in refused("--from", tmp_path / "a.tar.gz")
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(SystemExit):
        main(tmp_path / "new", "--from", tmp_path / "text")
    assert "it takes what --archive has written" in capsys.readouterr().err
    assert tests_stage == [tmp_path / "out"]


def test_a_run_that_is_told_to_stop_assembles_what_it_has_and_begins_no_other_stage(tmp_path, machine, monkeypatch):
    def stopped_in(out, *_):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"pytest": "not finished"}

    begun = []
    monkeypatch.setattr(gpu, "run_tests", stopped_in)
    monkeypatch.setattr(gpu, "run_stage", lambda *arguments: begun.append(arguments))
    file = tmp_path / "a.tar.gz"
    assert gpu.main(["--out", str(tmp_path / "out"), "--archive", str(file)]) == 128 + signal.SIGTERM
    record = json.loads((tmp_path / "out" / "nvidia-h100.json").read_text())
    assert record["stages"] == {"tests": {"pytest": "not finished"}} and begun == []
    with tarfile.open(file) as tar:
        assert json.load(tar.extractfile("nvidia-h100.json")) == record


def test_a_copy_without_git_has_the_revision_that_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "minilm" / "hardware.py"))
    monkeypatch.setenv("MINILM_REVISION", "abc")
    assert hardware.git_revision() == "abc"
    monkeypatch.delenv("MINILM_REVISION")
    assert hardware.git_revision() is None


@pytest.mark.skipif(not (processes.ROOT / ".git").exists(), reason="needs a checkout")
def test_a_copy_whose_git_is_of_another_day_has_the_revision_that_it_is_told(monkeypatch):
    """As the first results of a GPU had, whose machine was sent the files and an older .git."""
    monkeypatch.delenv("MINILM_REVISION", raising=False)
    of_git = hardware.git_revision()
    monkeypatch.setenv("MINILM_REVISION", "abc")
    assert of_git != "abc" and hardware.git_revision() == "abc"
