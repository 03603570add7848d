"""How long a person waits: for the help, for an import, for `minilm doctor`, and for a training's first step."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minilm.config import build
from minilm.corpus.dataset import prepared
from minilm.training import journal

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "python": ["-c", "pass"],  # what the others cannot be faster than
    "import": ["-c", "import minilm"],
    "help": ["-m", "minilm", "--help"],
    "doctor": ["-m", "minilm", "doctor"],
}
TINY = [sys.executable, "-m", "minilm", "train", "--preset", "tiny", "--steps", "1", "--no-baselines", "--no-report"]
GIVE_UP = 120  # seconds


@pytest.mark.parametrize("command", COMMANDS)
def bench_startup(benchmark, command):
    benchmark.group = "startup: a process from start to end"
    arguments = [sys.executable, *COMMANDS[command]]
    run = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "check": True}
    benchmark.pedantic(subprocess.run, (arguments,), run, rounds=3 if command == "doctor" else 10, warmup_rounds=1)


@pytest.mark.parametrize("data", ["prepared", "unprepared"])
def bench_first_step(benchmark, tmp_path, monkeypatch, data):
    """From the start of `minilm train --preset tiny` until its journal holds the first optimizer step, which comes
    after an evaluation; its data are in the cache already, or are written and prepared first."""
    benchmark.group = "startup: to the first step of minilm train --preset tiny"
    # as bench.conftest has it here: a second thread would wait for whoever else uses the second core
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "cache"))
    if data == "prepared":
        prepared(build("tiny").data)
    started: list[subprocess.Popen] = []

    def first_step():
        if data == "unprepared":
            monkeypatch.setenv("MINILM_CACHE", str(tmp_path / f"cache-{len(started)}"))
        out = tmp_path / f"run-{len(started)}"
        started.append(subprocess.Popen([*TINY, "--out", str(out)], cwd=ROOT, stdout=subprocess.DEVNULL))
        end = time.monotonic() + GIVE_UP
        while not _has_step(out / journal.METRICS):
            assert started[-1].poll() is None and time.monotonic() < end, f"no first step in {out}"
            time.sleep(0.002)

    try:
        benchmark.pedantic(first_step, teardown=lambda: started[-1].wait(GIVE_UP), rounds=2)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _has_step(metrics: Path) -> bool:
    return metrics.exists() and any("loss" in row for row in journal.read_rows(metrics))
