"""The whole suite on a chip in one command: right first, then tuned, then timed.

    python -m bench.gpu --out results                       everything, on the GPU that is here
    python -m bench.gpu --stage ops --minutes 8 --out results
    python -m bench.gpu --stage race --shakespeare input.txt --nanogpt nanoGPT --out results
    python -m bench.gpu --device cpu --out results          the same on a CPU: reference against torch, a rehearsal

Stages: tests (all kernel tests natively, then every kernel under compute-sanitizer's memcheck and racecheck), tune
(the tables of this chip, read by the stages after it), ops (every operation against its peers), train (whole training
steps, where their time goes, and their memory; on a CPU `minilm train` beside a plain loop as well), race (time to a
loss: nanoGPT, its recipe by minilm, and ours, three seeds each; with --shakespeare only). What matters most comes first
within each, every result is on disk as soon as it is there, and the same command again goes on where the time ran out.
OUT/<device>.json holds everything, with chip, driver, versions, revision and the clocks seen; `python -m bench.report`
makes figures and tables of it, and of OUT/race/ours/race.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console

from bench.rows import Rows, entries

STAGES = ("tests", "tune", "ops", "train", "race")
SHARES = {"tests": 0.3, "tune": 0.2, "ops": 0.2, "train": 0.3, "race": 0.6}  # of --minutes, in proportion
SEEDS = 3  # of a race
RESTARTS = 20
KINDS = ("ops", "train", "breakdown", "memory", "contexts", "contexts tried", "tune")  # of rows
MACHINE = "machine"  # the key of the line that says whose results a folder holds
SIDE_BY_SIDE = "side_by_side.json"
ROOT = Path(__file__).resolve().parents[1]
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def run_tests(out: Path, device: str, until: float) -> dict[str, Any]:
    """Kernel tests natively, then the sanitizer. On a CPU a part of the tests, to see that the command works."""
    chosen = ["tests/kernels"] if device == "cuda" else ["tests/kernels/test_swiglu.py"]
    arguments = [sys.executable, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider"]
    arguments += ["-n", "8", "--maxprocesses", "8"] if device == "cuda" and _has("xdist") else []
    budget = until - time.time()
    code, text = _run(arguments, out / "tests.log", time.time() + 0.6 * budget)
    found: dict[str, Any] = {"pytest": _last(text, r"\d+ (passed|failed|error).*"), "exit_code": code}
    for tool in ("memcheck", "racecheck"):
        if not (sanitizer := shutil.which("compute-sanitizer")) or device != "cuda":
            found[tool] = "not run: there is no compute-sanitizer here"
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-name-exclude", "kns=at::"]
        worker = [sys.executable, "-m", "bench.worker", "exercise", "--device", device]
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor its own allocation, with its own bounds
        code, text = _run([*command, *worker], out / f"{tool}.log", time.time() + 0.2 * budget, environment)
        found[tool] = (
            f"{_last(text, r'ERROR SUMMARY.*|RACECHECK SUMMARY.*')} ({_last(text, r'[0-9]+ calls')}), exit {code}"
        )
    return found


def run_stage(stage: str, out: Path, device: str, until: float, nanogpt: Path | None) -> None:
    """A stage's worker; started again after a crash, which the rows then name. What earlier runs compiled is not there;
    what an entry compiled serves those after it."""
    compiled = out / "compiled"
    shutil.rmtree(compiled, ignore_errors=True)
    environment = {"MINILM_DATA": str(out / "data")} | _caches(compiled)
    for _ in range(RESTARTS):
        command = [sys.executable, "-m", "bench.worker", stage, "--rows", str(out / "rows.jsonl")]
        command += ["--device", device, "--until", str(until), *(["--nanogpt", str(nanogpt)] if nanogpt else [])]
        code, _ = _run(command, out / f"{stage}.log", until + 60, environment)
        if code is None or code == 0:  # out of time, or done
            break
        Rows(out / "rows.jsonl").crash()
        if time.time() > until:
            break
        console.print(f"{stage}: the worker ended with {code}, see {stage}.log; it goes on with what is next")
    shutil.rmtree(compiled, ignore_errors=True)


def _caches(folder: Path) -> dict[str, str]:
    """Where compilers keep what they made."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def run_race(out: Path, device: str, until: float, nanogpt: Path | None, text: Path) -> None:
    """OUT/race/ours/race.json, for `python -m bench.report`. What is there already is not run again. Nobody finds
    anything compiled: what torch.compile takes is part of the time of who uses it."""
    folder, beside = out / "race", []
    for seed in range(1, SEEDS + 1):
        theirs = folder / f"nanogpt-{seed}"
        if nanogpt is None or time.time() > until:
            break
        if not (theirs / "done").exists():
            shutil.rmtree(theirs, ignore_errors=True)
            command = [sys.executable, "-m", "bench.nanogpt", str(nanogpt), "--device", device]
            command += ["--preset", "shakespeare-char" if device == "cuda" else "shakespeare-char-cpu"]
            command += ["--data", str(text), "--seed", str(seed), "--out", str(theirs)]
            shutil.rmtree(folder / "compiled", ignore_errors=True)
            code, _ = _run(command, out / "race.log", until, _caches(folder / "compiled"))
            if code != 0:
                console.print(f"race: nanoGPT, seed {seed}, ended with {code}, see race.log; it goes on without")
                break
            (theirs / "done").touch()
        beside += ["--beside", str(theirs)]
    race = folder / "ours"
    command = [sys.executable, "-m", "minilm", "race", "--data", str(text), "--device", device]
    command += ["--out", str(race), *(["--resume"] if race.exists() else []), *beside]
    shutil.rmtree(folder / "compiled", ignore_errors=True)
    if (code := _run(command, out / "race.log", until + 60, _caches(folder / "compiled"))[0]) != 0:
        console.print(f"race: ended with {code}, see race.log; the same command goes on with it")


def _run(
    command: list[str], log: Path, until: float, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """The exit code (None: out of time) and output of a command; both streams go to `log` as they come."""
    with log.open("a") as file:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=max(until - time.time(), 1),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
    return code, log.read_text(errors="replace")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _last(text: str, pattern: str) -> str:
    found = [match.group(0) for match in re.finditer(pattern, text)]
    return found[-1].strip("= ") if found else "nothing printed"


@contextlib.contextmanager
def clocks() -> Iterator[dict[str, Any]]:
    """Clocks, temperature and power, read every two seconds: {"sm_mhz": [least, median, most], ...}."""
    seen: dict[str, Any] = {}
    if not (tool := shutil.which("nvidia-smi")):
        yield seen
        return
    names = {"clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "temperature.gpu": "celsius", "power.draw": "watts"}
    query = [tool, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    readings: list[list[float]] = []
    done = Event()

    def watch() -> None:
        while not done.wait(2):
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                text = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
                readings.append([float(word) for word in text.splitlines()[0].split(",")])

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join(timeout=15)
        for name, column in zip(names.values(), zip(*readings, strict=True), strict=False):
            seen[name] = [min(column), statistics.median(column), max(column)]


def driver() -> str | None:
    if not (tool := shutil.which("nvidia-smi")):
        return None
    done = subprocess.run([tool, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def assemble(out: Path, machine: dict[str, Any], stages: dict[str, Any]) -> Path:
    """OUT/<device>.json from everything measured so far, in this and earlier calls; returns its path."""
    path = out / f"{re.sub(r'[^a-z0-9]+', '-', machine['device'].lower()).strip('-')}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    if (out / "rows.jsonl").exists():
        for entry in entries(out / "rows.jsonl"):
            if entry["kind"] in rows:
                rows[entry["kind"]] += entry["rows"]
    record = {"format": 1, "machine": machine, "stages": {**before.get("stages", {}), **stages}, **rows}
    if (out / SIDE_BY_SIDE).exists():
        record["side_by_side"] = json.loads((out / SIDE_BY_SIDE).read_text())
    temporary = path.with_suffix(".tmp")
    temporary.write_text(_one_row_a_line(record))
    temporary.replace(path)
    return path


def _one_row_a_line(record: dict[str, Any]) -> str:
    parts = []
    for name, value in record.items():
        if isinstance(value, list):
            lines = ",\n".join("  " + json.dumps(row) for row in value)
            parts.append(f" {json.dumps(name)}: [\n{lines}\n ]" if value else f" {json.dumps(name)}: []")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def show(path: Path) -> None:
    """The short table, last."""
    from bench import contest, inside, steps, tables

    record = json.loads(path.read_text())
    device = record["machine"]["device"]
    for stage, found in record["stages"].items():
        console.print(f"{stage}: " + "; ".join(f"{name} {value}" for name, value in found.items()))
    if record["tune"]:
        gains = [row["speedup"] for row in record["tune"] if "speedup" in row]
        console.print(
            f"tune: {len(gains)} entries, {sum(g > 1 for g in gains)} changed, best {max(gains, default=1):.2f}x"
        )
    if found := [contest.Row(**row) for row in record["ops"]]:
        console.print(tables.ops_table(found, f"Operations on {device}"))
    if found := [steps.StepRow(**{k: v for k, v in row.items() if k != "preset"}) for row in record["train"]]:
        console.print(tables.steps_table(found, f"Training steps on {device}"))
    found = list(inside.time_tables(record["breakdown"]))
    found += [inside.memory_table(record["memory"])] if record["memory"] else []
    tried = record["contexts tried"]
    found += [inside.contexts_table(record["memory"], record["contexts"], tried)] if record["contexts"] else []
    found += [inside.tried_table(tried)] if tried else []
    for table in found:
        console.print(tables.plain_table(*table))
    console.print(f"Results: {path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--minutes", type=float, default=30.0, help="for everything asked for (default 30)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to measure beside")
    parser.add_argument("--shakespeare", type=Path, help="Tiny Shakespeare, or another text, for the stage race")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}; it must be above 0")
    if options.nanogpt and not (options.nanogpt / "model.py").is_file():
        parser.error(f"{options.nanogpt} holds no model.py; --nanogpt takes a checkout of nanoGPT")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    options.nanogpt = options.nanogpt and options.nanogpt.resolve()
    options.shakespeare = options.shakespeare and options.shakespeare.resolve()
    if options.shakespeare and not options.shakespeare.is_file():
        parser.error(f"--shakespeare {options.shakespeare} is no file")
    if options.stage == "race" and not options.shakespeare:
        parser.error("--stage race needs --shakespeare FILE, for there may be no network where it runs")
    chosen = STAGES if options.stage == "all" else (options.stage,)
    if not options.shakespeare:
        chosen = tuple(stage for stage in chosen if stage != "race")
    end = time.time() + 60 * options.minutes

    command = [sys.executable, "-m", "bench.worker", "facts", "--device", options.device]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1]
        parser.error(f"this machine cannot run on {options.device} ({why}); use --device cpu")
    machine = json.loads(asked.stdout.splitlines()[-1])
    rows = Rows(out / "rows.jsonl")
    for before in rows.finished.get(MACHINE, []):
        for what in ("device", "revision"):
            if before[what] != machine[what]:
                parser.error(f"{out} holds results of {what} {before[what]}, and this is {machine[what]}; name another")
    if MACHINE not in rows.finished:
        rows.write(MACHINE, MACHINE, [{what: machine[what] for what in ("device", "revision")}])
    machine |= {"driver": driver() if options.device == "cuda" else None}
    machine |= {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    path = assemble(out, machine, {})
    console.print(f"{machine['device']}: {', '.join(chosen)} in {options.minutes:g} minutes, into {path}")

    left = sum(SHARES[stage] for stage in chosen)
    with clocks() as seen:
        for stage in chosen:
            until = time.time() + (end - time.time()) * SHARES[stage] / left  # what one leaves over, the next ones get
            left -= SHARES[stage]
            begun = time.time()
            stages = {}
            if stage == "tests":
                stages["tests"] = run_tests(out, options.device, until)
            elif stage == "race":
                run_race(out, options.device, until, options.nanogpt, options.shakespeare)
            else:
                run_stage(stage, out, options.device, until, options.nanogpt)
            if stage == "train" and options.device == "cpu":
                command = [sys.executable, "-m", "bench.side_by_side", "--out", str(out / SIDE_BY_SIDE)]
                _run(command, out / "side_by_side.log", end + 120)
            path = assemble(out, machine, stages)
            console.print(f"{stage}: {time.time() - begun:.0f} s")
    path = assemble(out, {**machine, "clocks": seen or None}, {})
    show(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
