"""A capstone of a minute: `python -m tests.capstone.miniature DIR TEXT` makes it, its trials in its own process."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from minilm.capstone.folder import RECORD
from minilm.capstone.plan import Plan
from minilm.capstone.run import capstone
from minilm.studies import trial, trials
from tests.children import Python
from tests.waiting import PATIENCE

ALONE = threading.Lock()
ROOT = Path(__file__).parents[2]
MODEL = {"n_layers": 1, "n_heads": 2, "d_model": 16, "context_length": 16}
TRAIN = {"batch_size": 4, "warmup_steps": 1, "log_interval": 1, "checkpoint_interval": 2}
PLAN = Plan(
    preset="tiny",
    train={"model": MODEL, "train": {**TRAIN, "steps": 8, "eval_interval": 4, "save_at": "0,4"}},
    samples={"max_new_tokens": 60, "samples": 2, "temperatures": (0.3, 0.7, 1.0)},
    trial={
        "study": "quick",
        "baseline": "tiny",
        "steps": 5,
        "assignments": tuple(f"model.{k}={v}" for k, v in MODEL.items())
        + tuple(f"train.{k}={v}" for k, v in TRAIN.items()),
    },
    axes=("norm", "norm_type", "position"),
    sizes=("1x8", "1x16"),
    ladder_steps=5,
    seconds=dict.fromkeys(("train", "samples", "ablation", "kernels", "scaling", "report"), 5.0),
)


def run_here(study, row, threads, children, stopping):
    """As trials._run_one(), without the seconds that a new process takes to import PyTorch."""
    with ALONE:  # trials of one process share its random generators
        if stopping:
            return row, "stopped and saved"
        with contextlib.redirect_stdout(io.StringIO()):
            trial.main(str(study.path), row["id"])
    return row, study.result(row["id"])["status"]


def make(out: Path, text: Path, console: Console | None = None, run_one: Callable = run_here, **given) -> int | None:
    given = {"data": str(text), "kernels": "torch", "device": "cpu", **given}
    trials._run_one, before = run_one, trials._run_one
    try:
        return capstone(out, given, console or Console(file=io.StringIO(), width=120), PLAN)
    finally:
        trials._run_one = before


def kill_when(out: Path, text: Path, reached: Callable[[], bool]) -> None:
    """Make it in another process and kill that one as soon as it has `reached` something."""
    child = Python("-m", "tests.capstone.miniature", out, text, cwd=ROOT)
    while not reached():
        assert child.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait(PATIENCE)


def stop_at_a_trial(number: int) -> Callable:
    """run_here(), which tells its own process to stop before the trial of that number."""
    ran = []

    def run(*what):
        ran.append(what)
        if len(ran) == number:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # for the main thread to hear of it
        return run_here(*what)

    return run


def make_with_kills(out: Path, text: Path) -> Path:
    """A finished capstone that was killed within two stages and stopped within a third."""
    kill_when(out, text, lambda: (out / "train" / "metrics.jsonl").exists())
    assert not (out / "capstone_best.pt").exists()
    kill_when(out, text, lambda: len(list((out / "ablation" / "trials").glob("*.json"))) >= 2)
    assert not (out / "ablation" / "report.html").exists()
    assert make(out, text, run_one=stop_at_a_trial(4 * 3 + 3 + 1)) == signal.SIGTERM  # past the ablation, in kernels
    assert (out / "ablation" / "report.html").exists() and not (out / "kernels" / "report.html").exists()
    assert make(out, text) is None
    assert (out / RECORD).exists()
    return out


if __name__ == "__main__":
    sys.exit(make(Path(sys.argv[1]), Path(sys.argv[2])) or 0)
