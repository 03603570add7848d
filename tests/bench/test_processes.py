"""The commands of a run on a GPU: what is cut or told to stop takes what it started with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from bench import processes
from bench.processes import Command

PYTHON = sys.executable


def gone(pid: int, seconds: float = 3) -> bool:
    """Whether a process is no more, or soon: an orphan is a zombie until it is collected."""
    end = time.time() + seconds
    while time.time() < end:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def wait_for(path: Path) -> str:
    end = time.time() + 5
    while time.time() < end and not (path.exists() and path.read_text()):
        time.sleep(0.02)
    return path.read_text()


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def parent_of_a_sleeper(pid_file: Path) -> list[str]:
    """A program that starts another, as pytest its workers, and waits for it."""
    code = "import subprocess, sys\np = subprocess.Popen(['sleep', '60'])\n"
    code += "open(sys.argv[1], 'w').write(str(p.pid)); p.wait()"
    return [PYTHON, "-c", code, str(pid_file)]


@linux
def test_a_command_that_is_cut_takes_what_it_started_with_it(tmp_path):
    begun = time.time()
    (result,) = processes.run([Command(parent_of_a_sleeper(tmp_path / "pid"), tmp_path / "log")], time.time() + 1)
    assert result == (None, "") and time.time() - begun < 4
    assert gone(int((tmp_path / "pid").read_text()))


@linux
def test_a_command_is_asked_to_end_before_it_is_killed_with_all_that_ignores_it(tmp_path, monkeypatch):
    polite = Command(["sh", "-c", "trap 'echo saved; exit' TERM; sleep 60 & wait"], tmp_path / "polite")
    assert processes.run([polite], 0) == [(None, "saved\n")]
    monkeypatch.setattr(processes, "GRACE", 0.2)
    deaf = Command(["sh", "-c", "trap '' TERM; sleep 60 & echo $!; sleep 60; sleep 60"], tmp_path / "deaf")
    begun = time.time()
    ((code, text),) = processes.run([deaf], 0)
    assert code is None and gone(int(text)) and time.time() - begun < 3


def test_commands_run_side_by_side_and_tell_what_they_wrote_this_time(tmp_path):
    commands = [
        Command([PYTHON, "-c", "import os; print(os.environ['N']); exit(int(os.environ['N']))"], tmp_path / n, {"N": n})
        for n in "03"
    ]
    for _ in range(2):
        assert processes.run(commands, time.time() + 20) == [(0, "0\n"), (3, "3\n")]
    assert (tmp_path / "3").read_text() == "3\n3\n"


def test_told_to_stop_it_ends_what_runs_and_begins_nothing_more(tmp_path):
    sleep, before = [Command(["sleep", "60"], tmp_path / "log")], signal.getsignal(signal.SIGTERM)
    with processes.stopped_by_signals():
        Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        begun = time.time()
        assert processes.run(sleep, begun + 60) == [(None, "")]
        assert processes.stopping() and time.time() - begun < 3
        (tmp_path / "log").unlink()
        assert processes.run(sleep, begun + 60) == [(None, "")] and not (tmp_path / "log").exists()
    assert not processes.stopping() and signal.getsignal(signal.SIGTERM) is before


@linux
def test_a_command_does_not_outlive_one_that_is_killed_outright(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from bench.processes import Command, run\n"
        "pid, log = sys.argv[1:]\n"
        "run([Command(['sh', '-c', f'echo $$ > {pid}; exec sleep 60'], Path(log))], time.time() + 60)"
    )
    command = [PYTHON, "-c", code, str(tmp_path / "pid"), str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=processes.ROOT) as process:
        pid = int(wait_for(tmp_path / "pid"))
        process.kill()
    assert gone(pid)
