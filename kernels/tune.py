"""Finds the fastest launch configurations on the GPU at hand and writes them into a tuning table: `minilm tune`.

A problem is one entry of the table (kernels.tune_problems). Its candidates are compiled in other processes
(kernels.tune_compiling); those whose machine code spills or does not fit are refused, and of those that differ in
stages only and are the same machine code one is kept. The rest are timed on the problem's first shape: the kernel that
is configured with those that run before or after it because of it, with a cold L2 cache. The fastest few must then
give right results by the error rule, the same bits twice, and are timed on all shapes, in turn with the present
configuration, which stays unless it is beaten by more than the noise.

In training a kernel finds part of what it reads in the L2 cache, where the one before left it. That depends on the
model; a cold cache does not.

    python -m kernels.tune --arch 90 --minutes 5

only compiles, for a GPU that is not there, in the order of tuning, until the time is over. With the same kernels and
the same Triton, and $TRITON_CACHE_DIR at the same path, tuning then finds everything compiled.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from kernels import fused, machine_code, reference
from kernels.backend import interpreted
from kernels.device_clock import Held, device_clock
from kernels.error_rule import Judge
from kernels.fused import tuning
from kernels.tune_compiling import Compiled, Compiling, OutOfTime, result
from kernels.tune_problems import KERNELS, Call, Config, Problem, problems

NOISE = 1.02  # a configuration must be faster than the present one by this factor
FINALISTS = 4
SCREENING, FINAL, ROUNDS = 7, 20, 3  # calls timed of a candidate, of a finalist in each round, and rounds

Timer = Callable[[Callable[[], None], int], float]  # milliseconds of a call, the median of so many


class TuneError(RuntimeError):
    """Nothing can be tuned here; the message is one sentence for the person."""


@dataclass
class Outcome:
    """What became of a problem: milliseconds, one a timing shape; what was refused, and why; how many were timed."""

    problem: Problem
    before: Config
    chosen: Config
    before_ms: list[float] = field(default_factory=list)
    chosen_ms: list[float] = field(default_factory=list)
    refused: list[tuple[Config, str]] = field(default_factory=list)
    timed: int = 0

    @property
    def speedup(self) -> float:
        """Geometric mean over the shapes; 1 where the present configuration stays."""
        ratios = [b / c for b, c in zip(self.before_ms, self.chosen_ms, strict=True)]
        return statistics.geometric_mean(ratios) if ratios else 1.0


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass
class Screened:
    """The candidates that were timed on the first shape, the fastest first."""

    outcome: Outcome
    ranked: list[Config]


def screen(
    problem: Problem,
    device: torch.device,
    candidates: Iterable[tuple[Config, Compiled]],
    timer: Timer,
    until: float = math.inf,
) -> Screened:
    """Time each candidate that may be launched, a few times, whether its results are right or not.

    Raises OutOfTime after `until`, by time.monotonic.
    """
    before = problem.present(device)
    outcome = Outcome(problem, before, before)
    times: list[tuple[float, Config]] = []
    seen = set()
    for config, compiled in candidates:
        _check_time(until)
        if compiled.refused:
            outcome.refused.append((config, compiled.refused))
            continue
        if compiled.code:
            same = (compiled.code, *(value for name, value in config.items() if name != "num_stages"))
            if same in seen:  # no loop that more stages would change
                continue
            seen.add(same)
        try:
            with tuning.override(problem.op, config):
                (replay,) = _replays(problem, device, problem.timings[:1])
                times.append((timer(replay, SCREENING), config))
        except OutOfResources as error:
            outcome.refused.append((config, f"does not fit: {error}"))
    outcome.timed = len(times)
    return Screened(outcome, [config for _, config in sorted(times, key=lambda t: t[0])])


def decide(
    screened: Screened,
    device: torch.device,
    timer: Timer,
    until: float = math.inf,
    compiled: Callable[[Config], Compiled] = lambda config: Compiled(),
) -> Outcome:
    """Choose among the fastest that are right and the present configuration. Raises OutOfTime after `until`."""
    outcome = screened.outcome
    problem = outcome.problem
    judges = []
    for call in problem.checks:
        exact = problem.run(reference, call, device, torch.float64)
        judges.append((call, Judge(partial(problem.run, reference, call, device), exact)))
    finalists = [outcome.before]
    for config in screened.ranked:
        if len(finalists) > FINALISTS:
            break
        if config == outcome.before:
            continue
        _check_time(until)
        if not (reason := compiled(config).refused):
            with tuning.override(problem.op, config):
                reason = _fault(problem, device, judges)
        if reason:
            outcome.refused.append((config, reason))
        else:
            finalists.append(config)
    finals = _time_in_turn(problem, device, finalists, timer, until)
    best = min(range(len(finals)), key=lambda i: math.prod(finals[i]))
    outcome.before_ms = outcome.chosen_ms = finals[0]
    if statistics.geometric_mean([b / c for b, c in zip(finals[0], finals[best], strict=True)]) > NOISE:
        outcome.chosen, outcome.chosen_ms = finalists[best], finals[best]
    return outcome


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise OutOfTime


def _fault(problem: Problem, device: torch.device, judges: Sequence[tuple[Call, Judge]]) -> str:
    """Why the configuration in force cannot be used, or nothing."""
    for call, judge in judges:
        try:
            first, second = problem.run(fused, call, device), problem.run(fused, call, device)
        except OutOfResources as error:
            return f"does not fit: {error}"
        for fault in (judgement.fault for judgement in judge(first)):
            if fault:
                return f"wrong: {fault}"
        if not all(map(torch.equal, first, second)):
            return "wrong: other bits at the second run"
    return ""


def _replays(problem: Problem, device: torch.device, calls: Sequence[Call]) -> list[Callable[[], None]]:
    """One function a call, that launches the kernels to be timed again, as the operation launched them."""
    launches: list[Callable[[], None]] = []
    kernel_type = type(vars(fused.attention)["_forward_kernel"])  # interpreted kernels are of another
    run = kernel_type.run

    def record(self, *args, **kwargs):
        if self.__name__ in KERNELS[problem.op]:
            launches.append(partial(run, self, *args, **kwargs))
        return run(self, *args, **kwargs)

    found: list[Callable[[], None]] = []
    kernel_type.run = record
    try:
        for call in calls:
            launches = []
            problem.run(fused, call, device)
            found.append(partial(_launch_all, launches))
    finally:
        kernel_type.run = run
    return found


def _launch_all(launches: Sequence[Callable[[], None]]) -> None:
    for launch in launches:
        launch()


def _time_in_turn(
    problem: Problem, device: torch.device, configs: Sequence[Config], timer: Timer, until: float
) -> list[list[float]]:
    """Milliseconds by configuration and timing shape: the median of some rounds, each in another order."""
    rounds: list[list[list[float]]] = [[] for _ in configs]
    for turn in range(ROUNDS):
        for i in range(len(configs)):
            _check_time(until)
            at, times = (turn + i) % len(configs), []
            with tuning.override(problem.op, configs[at]):
                for call in problem.timings:  # one at a time: the tensors of all might not fit into memory
                    (replay,) = _replays(problem, device, [call])
                    times.append(timer(replay, FINAL))
            rounds[at].append(times)
    return [[statistics.median(column) for column in zip(*of_config, strict=True)] for of_config in rounds]


# --- timing ----------------------------------------------------------------------------------------------------------

HOST_SECONDS = 75e-6  # at first: what most hosts take for a launch


def milliseconds(call: Callable[[], None], repeats: int) -> float:
    """The median time on the device of `repeats` calls, each with a cold L2 cache; one more goes before them."""
    call()
    torch.cuda.synchronize()
    held = Held(device_clock(torch.device("cuda", torch.cuda.current_device())), {"call": HOST_SECONDS})
    return 1e3 * statistics.median(held.once("call", call)[0] for _ in range(repeats))


# --- tuning ----------------------------------------------------------------------------------------------------------


def tune(
    path: Path | None = None,
    ops: Sequence[str] = (),
    minutes: float | None = None,
    say: Callable[[Outcome], None] = lambda _: None,
    begin: Callable[[str], None] = lambda _: None,
    skip: Collection[str] = (),
) -> tuple[Path, list[Outcome]]:
    """Tune the ops whose names begin with one of `ops` (all where none is given); returns the table and the outcomes.

    path: the table to write, by default the user's own of this chip. It is written after every problem, whole and
    valid, so that stopping early loses nothing. After `minutes` it stops within seconds, and what was not finished
    keeps its present configuration. `say` is told each outcome; `begin`, before candidates are launched, the problem as
    str, and before its finalists are, that and FINALS. Problems whose str is in `skip` are left out. Raises TuneError
    where there is no GPU to measure on and for an unknown op, and tuning.TuningError for a table that cannot be used.
    """
    until = time.monotonic() + 60 * (minutes or math.inf)
    _choose(ops, problems())
    if interpreted() or not torch.cuda.is_available() or torch.version.cuda is None:
        why = "TRITON_INTERPRET is set" if interpreted() else "there is none here"
        raise TuneError(f"Tuning measures on an NVIDIA GPU and {why}; run it on the machine that is to be tuned.")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    path = path or tuning.user_folder() / f"sm_{properties.major}{properties.minor}.json"
    found = problems(properties.multi_processor_count, properties.major >= 9)
    chosen = [p for p in _choose(ops, found) if str(p) not in skip]
    if not chosen:
        return path, []
    compiling = Compiling(10 * properties.major + properties.minor)
    outcomes: list[Outcome] = []
    screened: list[Screened] = []

    def finish() -> None:
        one = screened.pop(0)
        problem = one.outcome.problem
        begin(f"{problem}{FINALS}")
        compiled = partial(compiling.finalist, problem, until)
        outcomes.append(decide(one, device, milliseconds, until, compiled))
        write(path, path.stem, device, outcomes)
        say(outcomes[-1])

    try:
        compiling.candidates(chosen)
        for problem in chosen:
            begin(str(problem))
            compiling.present(problem, device)
            screened.append(screen(problem, device, compiling.awaited(problem, until), milliseconds, until))
            # while the finalists of the problem before are measured; one more, for the present may be among the fastest
            compiling.finalists(problem, screened[-1].ranked[: FINALISTS + 1])
            if len(screened) > 1:
                finish()
        while screened:
            finish()
    except OutOfTime:
        pass
    finally:
        compiling.close()
    return path, outcomes


FINALS = ": finalists"


def _choose(ops: Sequence[str], found: list[Problem]) -> list[Problem]:
    if unknown := [op for op in ops if not any(p.op.startswith(op) for p in found)]:
        raise TuneError(f"No operation to tune is called {unknown[0]!r}; there are {', '.join(KERNELS)}.")
    return [p for p in found if not ops or p.op.startswith(tuple(ops))]


def write(path: Path, chip: str, device: torch.device, outcomes: Sequence[Outcome]) -> None:
    """Write what was found, and for the other entries of the same ops what the tables have now: whole lists."""
    found = {str(o.problem): o.chosen for o in outcomes}
    ops: dict[str, list[dict[str, Any]]] = {}
    for problem in sorted(problems(), key=lambda p: (p.max_width or math.inf, p.max_length or math.inf)):
        if any(o.problem.op == problem.op for o in outcomes):
            config = found.get(str(problem)) or problem.present(device)
            ops.setdefault(problem.op, []).append(problem.entry(config))
    measured = {"triton": triton.__version__, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    if device.type == "cuda":
        measured = {"device": torch.cuda.get_device_name(device), **measured}
    tuning.write_table(path, chip, {op: _needed(entries) for op, entries in ops.items()}, measured)
    tuning.forget()


def _needed(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those whose calls would find the same configuration in an entry behind them."""

    def redundant(entry: dict[str, Any], behind: Sequence[dict[str, Any]]) -> bool:
        for other in (o for o in behind if o["dtypes"] == entry["dtypes"]):
            if other["config"] != entry["config"]:
                return False
            if all(other[b] is None or (entry[b] or math.inf) <= other[b] for b in ("max_width", "max_length")):
                return True
        return False

    return [entry for i, entry in enumerate(entries) if not redundant(entry, entries[i + 1 :])]


def main(arguments: list[str] | None = None) -> int:
    """Compile candidates beforehand, for a GPU that is not there."""
    description = "Compile candidates of tuning into $TRITON_CACHE_DIR; `minilm tune` measures them."
    parser = argparse.ArgumentParser(prog="python -m kernels.tune", description=description)
    parser.add_argument("--arch", type=int, required=True, choices=machine_code.CHIPS, help="compute capability, as 90")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    parser.add_argument("--op", action="append", default=[], help="operation, or the beginning of its name")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, with which nothing is compiled; unset it")
    until = time.monotonic() + 60 * options.minutes
    try:
        chosen = _choose(options.op, problems(tma=options.arch >= 90))
    except TuneError as error:
        parser.error(str(error))
    compiling = Compiling(options.arch)
    futures = compiling.candidates(chosen)
    done: list[Compiled] = []
    try:
        for future in futures:
            done.append(result(future, until))
    except OutOfTime:
        pass
    finally:
        compiling.close()
    print(f"{len(done)} of {len(futures)} compiled, {sum(bool(c.refused) for c in done)} of them refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
