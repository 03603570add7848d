"""The stage `tests`: the kernel tests natively, then every kernel under compute-sanitizer's memcheck and racecheck."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.processes import Command, run, stopping

TOOLS = ("memcheck", "racecheck")
# Of kernels, as the tuner has them; and those of the loss without the matrix products that it is made of, beside which
# racecheck came to an internal error on an H100.
FAMILIES = ("attention", "decode", "layer_norm", "swiglu", "cross_entropy", "loss_alone")
PYTEST_SHARE = 0.6  # of the stage's time, at most; the sanitizer has what is left
SECONDS_A_TEST = 300
# Substrings of kernels that are not ours: PyTorch's (the names are mangled) and those of the matrix libraries. What is
# not named here is watched: a filter of our own names would, if it matched nothing, report nothing and look clean.
NOT_OURS = ("_ZN2at", "nvjet", "cutlass", "cublas", "gemm", "gemv", "splitK")
DID_NOT_RUN = "did not run"
FAULT = re.compile(r"^=+ (?:Error: |Warning: )?(?:Invalid |Misaligned |Race reported|.*hazard detected)", re.M)


def run_tests(out: Path, device: str, until: float) -> dict[str, Any]:
    """What the tests and the sanitizer said, or had said when the time ended. On a CPU a part of the tests, to see that
    the command works. All of it shares one cache of compiled kernels, which stays in `out`."""
    cache = {"TRITON_CACHE_DIR": str(out / "triton_cache")}
    found = run_pytest(out, device, time.time() + PYTEST_SHARE * (until - time.time()), cache)
    if device != "cuda":
        return found | {tool: "not run: it watches a GPU" for tool in TOOLS}
    if not (sanitizer := find_sanitizer()):
        return found | {tool: "not run: there is no compute-sanitizer here" for tool in TOOLS}
    return found | run_sanitizer(sanitizer, out, until, cache)


# --- pytest -----------------------------------------------------------------------------------------------------------


def run_pytest(out: Path, device: str, until: float, cache: dict[str, str]) -> dict[str, Any]:
    log, failures = out / "tests.log", out / "failures.log"
    failures.unlink(missing_ok=True)
    environment = {**cache, "MINILM_FAILURES": str(failures)}
    ((code, text),) = run([Command(pytest_command(device), log, environment)], until)
    return pytest_result(text, code)


def pytest_command(device: str, has: Callable[[str], bool] | None = None) -> list[str]:
    has = has or (lambda module: importlib.util.find_spec(module) is not None)
    chosen = "tests/kernels" if device == "cuda" else "tests/kernels/test_swiglu.py"
    # a line a test, so that a run that is cut has said what it found
    command = [sys.executable, "-m", "pytest", chosen, "-v", "--show-capture=no", "-p", "no:cacheprovider"]
    command += ["-p", "bench.failures"]
    if has("xdist"):
        command += ["-n", str(os.cpu_count())]
    if has("pytest_timeout"):
        command += ["--timeout", str(SECONDS_A_TEST)]
        # a wait for the GPU can be ended only with its process; xdist then starts another
        command += ["--timeout-method", "thread"] if has("xdist") else []
    return command


OUTCOME = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
BY_A_WORKER = re.compile(rf"^\[gw\d+\] \[ *\d+%\] {OUTCOME} (\S+::.+?) *$", re.M)
ALONE = re.compile(rf"^(\S+::.+?) {OUTCOME}(?: \(.*\))? *(?:\[ *\d+%\])?$", re.M)


def pytest_result(text: str, code: int | None) -> dict[str, Any]:
    """Counts and the names of what failed, from the lines of pytest -v, by xdist's workers or without."""
    outcomes: dict[str, set[str]] = {}
    for outcome, name in BY_A_WORKER.findall(text):
        outcomes.setdefault(outcome, set()).add(name)
    if not outcomes:
        for name, outcome in ALONE.findall(text):
            outcomes.setdefault(outcome, set()).add(name)
    failed = outcomes.get("FAILED", set()) | outcomes.get("ERROR", set())
    # a worker that failed a test and then ended has the test both ways
    counts = {"passed": outcomes.get("PASSED", set()) - failed, "failed": failed}
    counts |= {"skipped": outcomes.get("SKIPPED", set())}
    said = ", ".join(f"{len(names)} {word}" for word, names in counts.items())
    if code is None:
        of = re.search(r"\[(\d+) items\]|collected (\d+) items", text)
        total = f" of {of.group(1) or of.group(2)} tests" if of else ""
        said = f"not finished when the time ended: {said}{total}"
    elif not outcomes:
        said = f"no test ran: {(text.strip().splitlines() or ['it said nothing'])[-1]}"
    found: dict[str, Any] = {"pytest": said, "exit_code": code}
    if failed:
        found["failed"] = sorted(failed)
    if code is None and (running := begun_and_not_ended(text)):
        found["running"] = running
    return found


def begun_and_not_ended(text: str) -> list[str]:
    """Tests that a cut run was at: one that hangs is among them. With workers each name is a line when it begins."""
    ended = {name for _, name in BY_A_WORKER.findall(text)} | {name for name, _ in ALONE.findall(text)}
    begun = {line.strip() for line in text.splitlines() if re.match(r"tests/\S+\.py::", line)}
    return sorted(name for name in begun - ended if not ALONE.match(name))


# --- the sanitizer ----------------------------------------------------------------------------------------------------


def find_sanitizer() -> str | None:
    """On the PATH, or where the CUDA toolkit has it."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [f"{home}/{sub}" for home in homes if home for sub in ("bin", "compute-sanitizer")]
    folders = [os.environ.get("PATH", ""), *folders]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def run_sanitizer(sanitizer: str, out: Path, until: float, cache: dict[str, str]) -> dict[str, str]:
    """Compiles without it first, in as many processes as there are cores; then both tools at once, a process a family:
    one that the sanitizer itself brings down takes no other with it."""
    # every tensor its own allocation, with its own bounds
    environment = {**cache, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    begun, n = time.time(), os.cpu_count() or 1
    parts = [exercise_command("--share", f"{i}/{n}") for i in range(1, n + 1)]
    shares = [Command(part, out / "exercise.log", environment) for part in parts]
    codes = [code for code, _ in run(shares, until)]
    cut, wrong = codes.count(None), sum(code not in (None, 0) for code in codes)
    found = {"compiled": f"by {n} processes in {time.time() - begun:.0f} s"}
    found["compiled"] += f", {cut} cut by the clock" * bool(cut) + f", {wrong} ended with an error" * bool(wrong)
    each = [(tool, family) for tool in TOOLS for family in FAMILIES]
    logs = {(tool, family): out / f"{tool}_{family}.log" for tool, family in each}
    commands = [Command(sanitizer_command(sanitizer, *key), logs[key], environment) for key in each]
    said = {key: sanitizer_result(text, code) for key, (code, text) in zip(each, run(commands, until), strict=True)}
    # one that could not begin beside the others, or knows not the options, is tried again, alone and without them
    waiting = [key for key in each if said[key].startswith(DID_NOT_RUN)]
    for number, key in enumerate(waiting):
        if not stopping() and time.time() < until:
            end = time.time() + (until - time.time()) / (len(waiting) - number)
            command = Command(sanitizer_command(sanitizer, *key, plain=True), logs[key], environment)
            ((code, text),) = run([command], end)
            said[key] = f"{sanitizer_result(text, code)}; the libraries' kernels were watched too"
    return found | {tool: together({family: said[tool, family] for family in FAMILIES}) for tool in TOOLS}


def together(said: dict[str, str]) -> str:
    """What the families' processes said, as one line: "ok" where all did, else who did not first."""
    right = {family: words for family, words in said.items() if words.startswith("ok")}
    calls = sum(int(re.search(r"(\d+) of \d+ calls", words).group(1)) for words in right.values())
    bad = "; ".join(f"{family} {words}" for family, words in said.items() if family not in right)
    return (f"{bad}; else " * bool(bad)) + f"ok: {', '.join(right) or 'none'}, {calls} calls without a fault"


def exercise_command(*chosen: str) -> list[str]:
    return [sys.executable, "-m", "bench.worker", "exercise", "--device", "cuda", *chosen]


def sanitizer_command(sanitizer: str, tool: str, family: str, plain: bool = False) -> list[str]:
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    if not plain:
        # without the errors of API calls, which libraries make on purpose to ask what there is; ours raise
        command += ["--report-api-errors", "no", "--target-processes", "application-only"]
        for name in NOT_OURS:
            command += ["--kernel-name-exclude", f"kernel_substring={name}"]
    return command + exercise_command("--family", family)


def sanitizer_result(text: str, code: int | None) -> str:
    """One line that begins with "ok", "FAULTS", "not finished" or DID_NOT_RUN."""
    of = re.search(r"^exercise: (\d+) calls$", text, re.M)
    done, total = len(re.findall(r"^call \d+ of \d+: ", text, re.M)), int(of.group(1)) if of else 0
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    faults, calls = len(FAULT.findall(text)), f"{done} of {total} calls"
    if faults or any(int(number) for summary in summaries for number in re.findall(r"\d+", summary)):
        return f"FAULTS: {'; '.join(summaries) or f'{faults} seen'}, {calls}, exit code {code}"
    if code == 0 and summaries and done == total > 0:
        return f"ok: {'; '.join(summaries)}, {calls}"
    if code is None:
        return f"not finished when the time ended: {calls}, no fault so far"
    last = (text.strip().splitlines() or ["it said nothing"])[-1].strip("= ")
    return f"{'not finished' if done else DID_NOT_RUN}: {calls}, exit code {code}, its last words: {last}"
