"""A run that is killed: at every write, fsync, rename, link and removal, at random, and again while it is resumed.

`python -m tests.faults.victim FOLDER TEXT PLAN` forks one training after another, so that torch is imported once, and
prints a JSON line a life: what it differed in from the run that was never killed. minilm itself has no hooks.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from minilm.config import RunConfig, build
from minilm.training import checkpoint, evaluate, journal
from minilm.training.loop import train

SAID_ONCE = ("best", "spike", "non_finite", "finished")  # however often the run was killed
VARIANTS = {
    "plain": {},
    "muon": {"optimizer": "muon"},
    "accumulation": {"grad_accumulation": 4, "keep_last": 3},
}


def config_for(text: Path, variant: str = "plain", **changes) -> RunConfig:
    """12 steps of 2 layers of width 16, with dropout, best, kept and earlier checkpoints."""
    model = {"n_layers": 2, "n_heads": 2, "d_model": 16, "context_length": 16, "dropout": 0.2}
    settings = {"steps": 12, "batch_size": 8, "warmup_steps": 2, "log_interval": 2, "kernels": "torch", "device": "cpu"}
    when = {"eval_interval": 4, "checkpoint_interval": 3, "save_at": "5", "eval_tokens": 200}
    overrides = {"model": model, "train": settings | when | VARIANTS[variant] | changes, "data": {"source": str(text)}}
    return build("tiny", overrides)


def run(config: RunConfig, out: Path) -> None:
    """Start, or go on where there is something to go on with, as `minilm train [--resume]`."""
    train(config, out, (out / journal.CONFIG).exists(), Console(file=io.StringIO()))


class Hooks:
    """Counts the moments before and after every write, fsync, rename, link and removal, and within every write of a
    checkpoint or of the journal; at the moment of this number, kill -9."""

    def __init__(self, kill_at: int = -1):
        self.kill_at, self.moments = kill_at, 0
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "link"), (Path, "unlink"), (Path, "write_text")):
            setattr(owner, name, self.around(getattr(owner, name)))
        save = torch.save

        def torn(state, file):
            save(state, file)
            if self.moments == self.kill_at:
                file.truncate(file.tell() // 2)
            self.moment()

        torch.save = self.around(torn)
        append = journal._append

        def torn_rows(path, rows):
            if self.moments == self.kill_at and rows:
                half = json.dumps(rows)[1 : 1 + len(json.dumps(rows)) // 2].replace("}, {", "}\n{")
                with open(path, "a", encoding="utf-8") as file:
                    file.write(half)
            self.moment()
            append(path, rows)

        journal._append = self.around(torn_rows)

    def during(self, config: RunConfig, out: Path) -> None:
        run(config, out)

    def moment(self) -> None:
        if self.moments == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.moments += 1

    def around(self, function: Callable) -> Callable:
        def hooked(*arguments, **options):
            self.moment()
            result = function(*arguments, **options)
            self.moment()
            return result

        return hooked


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run `work` in a forked process, killed after so many seconds if it lives so long; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def same(a, b) -> bool:
    """Equal to the last bit; NaN is equal to itself."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def differences(whole: Path, other: Path) -> list[str]:
    """What a run has otherwise than another: weights, optimizer, generators, journal. Times apart."""
    found = []
    for name in ("last.pt", "best.pt", "step_000005.pt"):
        a, b = (checkpoint.load(folder / checkpoint.FOLDER / name) for folder in (whole, other))
        for state in (a, b):
            state.get("state", {}).pop("wall", None)
        found += [f"{name}: {key}" for key in a.keys() | b.keys() if not same(a.get(key), b.get(key))]
    rows = [[_untimed(row) for row in journal.read_rows(folder / journal.METRICS)] for folder in (whole, other)]
    found += [journal.METRICS] if rows[0] != rows[1] else []
    told = [
        [(e["step"], e["event"], e.get("val_loss")) for e in journal.read_rows(folder / journal.EVENTS)
         if e["event"] in SAID_ONCE] for folder in (whole, other)
    ]  # fmt: skip
    found += [f"{journal.EVENTS}: {told}"] if told[0] != told[1] else []
    names = [sorted(p.name for p in folder.rglob("*") if p.name[0] != ".") for folder in (whole, other)]
    found += [f"files: {names}"] if names[0] != names[1] else []
    return found + [f"left behind: {p.name}" for p in other.rglob(".*.part")]


def _untimed(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in ("wall", "tokens_per_s")}


def life(config: RunConfig, whole: Path, out: Path, deaths: list) -> dict:
    """One run that dies as `deaths` say, at a moment (whole numbers) or after seconds, then resumed to its end."""
    found, killed = [], 0
    for death in deaths:
        if isinstance(death, int):
            status = forked(lambda death=death: Hooks(death).during(config, out))
        else:
            status = forked(lambda: run(config, out), death)
        killed += os.WIFSIGNALED(status)
        found += [] if os.WIFSIGNALED(status) or status == 0 else [f"exit status {status}"]
        found += checkpoint.newest(out)[1] if out.exists() else []  # raises where none is sound
    status = forked(lambda: run(config, out))
    found += [f"resume ended with {status}"] if status else differences(whole, out)
    return {"killed": killed, "differences": found}


def main(folder: Path, text: Path, plan: dict) -> None:
    torch.set_num_threads(1)
    evaluate.SAMPLE_TOKENS = 40  # as tests/conftest.py has it
    drawn = random.Random(plan["seed"])
    for variant in plan["variants"]:
        config, whole = config_for(text, variant), folder / f"{variant}-whole"
        run(config, whole)  # in this process: what a training imports late, its forks have already
        start = time.perf_counter()
        forked(lambda config=config, variant=variant: run(config, folder / f"{variant}-timed"))
        seconds = time.perf_counter() - start
        read, write = os.pipe()

        def count(config=config, variant=variant, write=write):
            hooks = Hooks()
            hooks.during(config, folder / f"{variant}-counted")
            os.write(write, str(hooks.moments).encode())

        forked(count)
        moments = int(os.read(read, 20))
        # the last save is always among them, whose predecessors are pruned by nothing that comes later
        at = sorted({*drawn.sample(range(moments), min(plan["hooked"], moments)), *range(moments - 12, moments, 4)})
        deaths = [[moment] for moment in at] + [[drawn.uniform(0, seconds)] for _ in range(plan["random"])]
        deaths += [[drawn.uniform(0, seconds / 2) for _ in range(4)] for _ in range(plan["repeated"])]
        for number, death in enumerate(deaths):
            result = life(config, whole, folder / f"{variant}-{number}", death)
            print(json.dumps({"variant": variant, "deaths": death, "moments": moments, **result}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
