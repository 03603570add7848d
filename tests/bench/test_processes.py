"""The commands of a run on a GPU: what is cut or told to stop takes what it started with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest

from bench import processes
from bench.processes import Command
from tests.waiting import LONG, PATIENCE, wait_until_gone, written

PYTHON = sys.executable
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def parent_of_a_sleeper(pid_file: Path) -> list[str]:
    """A program that starts another, as pytest its workers, and waits for it."""
    code = f"import subprocess, sys\np = subprocess.Popen(['sleep', '{LONG}'])\n"
    code += "print(p.pid, file=open(sys.argv[1], 'w'), flush=True); p.wait()"
    return [PYTHON, "-c", code, str(pid_file)]


@linux
def test_a_command_that_is_cut_takes_what_it_started_with_it(tmp_path, monkeypatch):
    """Its time is over when it has started another."""
    file = tmp_path / "pid"
    now = lambda: time.time() + LONG * (file.exists() and file.read_text().endswith("\n"))  # noqa: E731
    monkeypatch.setattr(processes, "time", SimpleNamespace(time=now, sleep=time.sleep))
    (result,) = processes.run([Command(parent_of_a_sleeper(file), tmp_path / "log")], time.time() + LONG / 2)
    assert result == (None, "")
    wait_until_gone(int(file.read_text()))


@linux
def test_a_command_is_asked_to_end_before_it_is_killed_with_all_that_ignores_it(tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    now = lambda: time.time() + LONG * ready.exists()  # noqa: E731
    monkeypatch.setattr(processes, "time", SimpleNamespace(time=now, sleep=time.sleep))
    monkeypatch.setattr(processes, "GRACE", PATIENCE)
    script = f"trap 'echo saved; exit' TERM; sleep {LONG} & touch {ready}; wait"
    assert processes.run([Command(["sh", "-c", script], tmp_path / "polite")], time.time() + LONG / 2) == [
        (None, "saved\n")
    ]
    ready.unlink()
    monkeypatch.setattr(processes, "GRACE", 0.2)
    script = f"trap '' TERM; sleep {LONG} & echo $!; touch {ready}; sleep {LONG}; sleep {LONG}"
    ((code, text),) = processes.run([Command(["sh", "-c", script], tmp_path / "deaf")], time.time() + LONG / 2)
    assert code is None
    wait_until_gone(int(text))


def test_commands_run_side_by_side_and_tell_what_they_wrote_this_time(tmp_path):
    commands = [
        Command([PYTHON, "-c", "import os; print(os.environ['N']); exit(int(os.environ['N']))"], tmp_path / n, {"N": n})
        for n in "03"
    ]
    for _ in range(2):
        assert processes.run(commands, time.time() + PATIENCE) == [(0, "0\n"), (3, "3\n")]
    assert (tmp_path / "3").read_text() == "3\n3\n"


def test_told_to_stop_it_ends_what_runs_and_begins_nothing_more(tmp_path):
    sleep, before = [Command(["sleep", str(LONG)], tmp_path / "log")], signal.getsignal(signal.SIGTERM)
    with processes.stopped_by_signals():
        Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert processes.run(sleep, time.time() + LONG) == [(None, "")]
        assert processes.stopping()
        (tmp_path / "log").unlink()
        assert processes.run(sleep, time.time() + LONG) == [(None, "")] and not (tmp_path / "log").exists()
    assert not processes.stopping() and signal.getsignal(signal.SIGTERM) is before


@linux
def test_a_command_does_not_outlive_one_that_is_killed_outright(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from bench.processes import Command, run\n"
        "pid, log = sys.argv[1:]\n"
        "run([Command(['sh', '-c', f'echo $$ > {pid}; exec sleep 86400'], Path(log))], time.time() + 86400)"
    )
    command = [PYTHON, "-c", code, str(tmp_path / "pid"), str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=processes.ROOT) as process:
        pid = int(written(tmp_path / "pid"))
        process.kill()
    wait_until_gone(pid)
