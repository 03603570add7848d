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

Where a command may last only so long, or a machine is lent for a while, run the stages one by one, each in --minutes of
its own; a stage may take a minute more than it was given, to finish what it is at. What is needed to go on elsewhere
travels in one file:

    python -m bench.gpu --stage tests --minutes 8.5 --out results --archive sent/results.tar.gz
    python -m bench.gpu --stage ops --minutes 8.5 --out results --from results.tar.gz --archive sent/results.tar.gz
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console

from bench import archive, processes
from bench.checking import run_tests
from bench.processes import ROOT, Command
from bench.rows import Rows, entries

STAGES = ("tests", "tune", "ops", "train", "race")
SHARES = {"tests": 0.3, "tune": 0.2, "ops": 0.2, "train": 0.3, "race": 0.6}  # of --minutes, in proportion
SEEDS = 3  # of a race
RESTARTS = 20
KINDS = ("ops", "train", "breakdown", "memory", "contexts", "contexts tried", "tune")  # of rows
MACHINE = "machine"  # the key of the line that says whose results a folder holds
SIDE_BY_SIDE = "side_by_side.json"
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def run_stage(stage: str, out: Path, device: str, until: float, nanogpt: Path | None) -> None:
    """A stage's worker; started again after a crash, which the rows then name. Training steps, whose compiling is
    measured, begin with nothing compiled by earlier runs; what an entry compiled serves those after it."""
    compiled = out / "compiled"
    if stage == "train":
        shutil.rmtree(compiled, ignore_errors=True)
    environment = {"MINILM_DATA": str(out / "data")} | _caches(compiled)
    for _ in range(RESTARTS):
        command = [sys.executable, "-m", "bench.worker", stage, "--rows", str(out / "rows.jsonl")]
        command += ["--device", device, "--until", str(until), *(["--nanogpt", str(nanogpt)] if nanogpt else [])]
        code = _run(command, out / f"{stage}.log", until + 60, environment)
        if code is None or code == 0:  # out of time, or done
            break
        Rows(out / "rows.jsonl").crash()
        if time.time() > until:
            break
        console.print(f"{stage}: the worker ended with {code}, see {stage}.log; it goes on with what is next")


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
            code = _run(command, out / "race.log", until, _caches(folder / "compiled"))
            if code is None:
                return  # out of time
            if code != 0:
                console.print(f"race: nanoGPT, seed {seed}, ended with {code}, see race.log; it goes on without")
                break
            (theirs / "done").touch()
        beside += ["--beside", str(theirs)]
    race = folder / "ours"
    command = [sys.executable, "-m", "minilm", "race", "--data", str(text), "--device", device]
    command += ["--out", str(race), *(["--resume"] if race.exists() else []), *beside]
    shutil.rmtree(folder / "compiled", ignore_errors=True)
    if (code := _run(command, out / "race.log", until + 60, _caches(folder / "compiled"))) != 0:
        how = "was cut by the clock" if code is None else f"ended with {code}, see race.log"
        console.print(f"race: {how}; the same command goes on with it")


def _run(command: list[str], log: Path, until: float, environment: dict[str, str] | None = None) -> int | None:
    """The exit code of one command, or None where the time ended first."""
    ((code, _),) = processes.run([Command(command, log, environment or {})], until)
    return code


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
        latest = {entry["key"]: entry for entry in entries(out / "rows.jsonl") if entry["kind"] in rows}
        for entry in latest.values():  # a key's last line is what counts
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
        words = {name: ", ".join(value) if isinstance(value, list) else value for name, value in found.items()}
        # the name of a test has square brackets, which are no markup
        console.print(f"{stage}: " + "; ".join(f"{name} {value}" for name, value in words.items()), markup=False)
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
    parser.add_argument(
        "--revision", help="of this code, where it is a copy whose .git cannot tell (or set MINILM_REVISION)"
    )
    parser.add_argument(
        "--archive", type=Path, metavar="FILE.tar.gz",
        help="what is needed to go on elsewhere, below 16 MiB: written while it runs, at the end, and when it is ended",
    )  # fmt: skip
    parser.add_argument(
        "--from", type=Path, metavar="FILE.tar.gz", dest="archived", help="an --archive to go on from, in a new --out"
    )
    options = parser.parse_args(arguments)
    with processes.stopped_by_signals():
        return _measure(parser, options)


def _measure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}; it must be above 0")
    if options.nanogpt and not (options.nanogpt / "model.py").is_file():
        parser.error(f"{options.nanogpt} holds no model.py; --nanogpt takes a checkout of nanoGPT")
    out = options.out.resolve()
    if options.archived:
        if (out / "rows.jsonl").exists():
            parser.error(f"{out} holds results already; leave --from out, or name another folder by --out")
        try:
            archive.unpack(options.archived, out)
        except (OSError, tarfile.TarError) as error:
            parser.error(f"--from {options.archived} cannot be unpacked ({error}); it takes what --archive has written")
    out.mkdir(parents=True, exist_ok=True)
    if options.archive:
        try:
            options.archive.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--archive {options.archive} cannot be written ({error})")
    if options.revision:
        os.environ["MINILM_REVISION"] = options.revision  # which every process of this run reads
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
                there, here = (each[what] or "that is not known" for each in (before, machine))
                parser.error(
                    f"{out} holds results of the {what} {there}, and this is the {what} {here}; results of two are not "
                    "mixed: name another folder by --out"
                )
    if MACHINE not in rows.finished:
        rows.write(MACHINE, MACHINE, [{what: machine[what] for what in ("device", "revision")}])
    machine |= {"driver": driver() if options.device == "cuda" else None}
    machine |= {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    path = assemble(out, machine, {})
    console.print(f"{machine['device']}: {', '.join(chosen)} in {options.minutes:g} minutes, into {path}")

    with archive.kept_up_to_date(out, options.archive), clocks() as seen:
        _run_stages(chosen, options, out, machine, end)
    path = assemble(out, {**machine, "clocks": seen or None}, {})
    show(path)
    if options.archive:
        left = archive.pack(out, options.archive)
        console.print(f"Archive: {options.archive}" + (f", for its size without {', '.join(left)}" if left else ""))
    if processes.stopping():
        console.print("Stopped when it was told to; the same command goes on where it was.")
        return 128 + signal.SIGTERM
    return 0


def _run_stages(
    chosen: Sequence[str], options: argparse.Namespace, out: Path, machine: dict[str, Any], end: float
) -> None:
    left = sum(SHARES[stage] for stage in chosen)
    for stage in chosen:
        if processes.stopping():
            return
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
        assemble(out, machine, stages)
        console.print(f"{stage}: {time.time() - begun:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
