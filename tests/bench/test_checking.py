"""The stage tests: pytest and the sanitizer have their counts told, and ok is said of nothing that was cut."""

import os
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from bench import checking, failures, processes, worker
from tests.waiting import PATIENCE

PYTHON = sys.executable
OURS = "tests/kernels/test_swiglu.py::test_"


# --- pytest -----------------------------------------------------------------------------------------------------------

BY_WORKERS = f"""\
created: 16/16 workers
16 workers [790 items]

scheduling tests via LoadScheduling

{OURS}no_rows_at_all 
{OURS}opcheck[gpt, no bias, untied]
[gw1] [  1%] PASSED {OURS}no_rows_at_all 
[gw3] [  1%] FAILED {OURS}opcheck[gpt, no bias, untied] 
{OURS}that_hangs
[gw2] [  2%] SKIPPED {OURS}far[a b] 
[gw2] [  2%] ERROR {OURS}setup 
[gw3] node down: Not properly terminated
[gw3] [  3%] FAILED {OURS}opcheck[gpt, no bias, untied] 
"""
ALONE = f"""\
collected 59 items

{OURS}no_rows_at_all PASSED [  1%]
{OURS}opcheck[gpt, no bias, untied] FAILED [  3%]
{OURS}far[c] SKIPPED (needs the interpreter) [  5%]
{OURS}setup ERROR [  6%]
{OURS}that_hangs """


@pytest.mark.parametrize(("text", "total"), [(BY_WORKERS, 790), (ALONE, 59)], ids=["workers", "alone"])
def test_a_run_of_tests_that_is_cut_has_its_counts_and_the_names_of_what_failed(text, total):
    found = checking.pytest_result(text, None)
    assert found["pytest"] == f"not finished when the time ended: 1 passed, 2 failed, 1 skipped of {total} tests"
    assert found["failed"] == [f"{OURS}opcheck[gpt, no bias, untied]", f"{OURS}setup"]
    assert found["running"] == [f"{OURS}that_hangs"]


def test_a_run_of_tests_that_ends_by_itself_says_so_and_one_that_ran_none_says_why():
    assert checking.pytest_result(BY_WORKERS, 1)["pytest"] == "1 passed, 2 failed, 1 skipped"
    assert "running" not in checking.pytest_result(BY_WORKERS, 1)
    assert checking.pytest_result("ERROR: unrecognized arguments: -n\n", 4) == {
        "pytest": "no test ran: ERROR: unrecognized arguments: -n", "exit_code": 4,
    }  # fmt: skip


def test_the_workers_are_as_many_as_cores_and_only_what_is_installed_is_asked_for():
    command = checking.pytest_command("cuda", lambda module: True)
    assert command[command.index("-n") + 1] == str(os.cpu_count())
    assert command[command.index("--timeout") + 1] == "300" and "-v" in command and "tests/kernels" in command
    plain = checking.pytest_command("cuda", lambda module: False)
    assert "-n" not in plain and "--timeout" not in plain and "--timeout-method" not in plain
    assert "--timeout-method" not in checking.pytest_command("cuda", lambda module: module == "pytest_timeout")


def test_why_a_test_failed_is_written_at_once_by_the_one_process_that_hears_of_all(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILM_FAILURES", str(tmp_path / "failures.log"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    report = SimpleNamespace(failed=True, nodeid="a::b", when="call", longreprtext="assert 1 == 2")
    failures.pytest_runtest_logreport(report)
    failures.pytest_runtest_logreport(SimpleNamespace(failed=False))
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    failures.pytest_runtest_logreport(report)
    assert (tmp_path / "failures.log").read_text() == "a::b, call\nassert 1 == 2\n\n"


def test_a_worker_ends_after_a_fault_on_the_gpu_and_only_a_worker(monkeypatch):
    ended = []

    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for worker_name, synchronize, expected in (("gw1", lambda: None, []), (None, fail, []), ("gw1", fail, [1])):
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        if worker_name:
            monkeypatch.setenv("PYTEST_XDIST_WORKER", worker_name)
        else:
            monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        failures.pytest_runtest_logfinish()
        assert ended == expected


# --- the sanitizer ----------------------------------------------------------------------------------------------------


def log(done: int, *lines: str, total: int = 2) -> str:
    calls = [f"call {n} of {total}: swiglu_forward, bfloat16, 24 x (3, 5)" for n in range(1, done + 1)]
    return "\n".join(["========= COMPUTE-SANITIZER", f"exercise: {total} calls", *calls, *lines]) + "\n"


NO_ERRORS = "========= ERROR SUMMARY: 0 errors"
NO_RACES = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
INVALID = "========= Invalid __global__ read of size 2 bytes"
RACE = "========= Warning: Race reported between Read access at _scale+0x10 and Write access at _scale+0x20 [4 hazards]"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (log(2, NO_ERRORS), 0, "ok: ERROR SUMMARY: 0 errors, 2 of 2 calls"),
        (log(2, NO_RACES), 0, "ok: RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings), 2 of 2 calls"),
        (log(2, INVALID, "========= ERROR SUMMARY: 1 error"), 9, "FAULTS: ERROR SUMMARY: 1 error, 2 of 2 calls"),
        (log(2, RACE, "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)"), 0, "FAULTS: RACECHECK"),
        (log(1, INVALID), None, "FAULTS: 1 seen, 1 of 2 calls"),
        (log(1), None, "not finished when the time ended: 1 of 2 calls, no fault so far"),
        (log(1, "RuntimeError: no", NO_ERRORS), 1, "not finished: 1 of 2 calls, exit code 1"),
        (log(1, NO_RACES), 0, "not finished: 1 of 2 calls, exit code 0"),
        (log(2), 0, "not finished: 2 of 2 calls, exit code 0"),
        (log(2, NO_ERRORS), 139, "not finished: 2 of 2 calls, exit code 139"),
        (log(0, NO_ERRORS), 0, "did not run: 0 of 2 calls"),
        (log(0, NO_ERRORS, total=0), 0, "did not run: 0 of 0 calls"),
        ("Error: unknown option\n", 1, "did not run: 0 of 0 calls, exit code 1, its last words: Error: unknown option"),
    ],
)
def test_ok_is_said_only_of_all_calls_and_of_a_summary_without_a_fault(text, code, said):
    assert checking.sanitizer_result(text, code).startswith(said)


def test_no_kernel_of_ours_is_left_out_by_the_sanitizers_filter():
    sources = [path.read_text() for path in (processes.ROOT / "kernels" / "fused").glob("*.py")]
    names = [name for text in sources for name in re.findall(r"@triton\.jit\b.*?\ndef (\w+)\(", text, re.S)]
    assert len(names) > 12 and "_forward_kernel" in names
    assert [name for name in names if any(part in name for part in checking.NOT_OURS)] == []


FAKE = """\
#!{python}
import sys, time
from pathlib import Path
tool = sys.argv[sys.argv.index("--tool") + 1]
here = Path(__file__).parent
(here / f"{{tool}}.begun").touch()
with (here / "arguments").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
other = here / {{"memcheck": "racecheck.begun", "racecheck": "memcheck.begun"}}[tool]
end = time.time() + 600
while not other.exists() and time.time() < end:
    time.sleep(0.02)
if {trouble!r} == "port" and tool == "racecheck" and not (here / "again").exists():
    (here / "again").touch()
    sys.exit("cannot open a port")
if {trouble!r} == "option" and "--kernel-name-exclude" in sys.argv:
    sys.exit("unrecognised option")
print("exercise: 1 calls\\ncall 1 of 1: x")
print({{"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": "RACECHECK SUMMARY: 0 hazards displayed"}}[tool])
"""


@pytest.mark.parametrize("trouble", ["", "port", "option"])
def test_both_tools_run_at_once_over_what_was_compiled_before_and_what_could_not_begin_runs_again_alone(
    trouble, tmp_path, monkeypatch
):
    tool, cache = tmp_path / "compute-sanitizer", tmp_path / "cache"
    tool.write_text(FAKE.format(python=PYTHON, trouble=trouble))
    tool.chmod(0o755)
    cache.mkdir()
    assert checking.exercise_command("--share", "1/2")[-4:] == ["--device", "cuda", "--share", "1/2"]
    code = "import os, sys; from pathlib import Path; Path(os.environ['TRITON_CACHE_DIR'], sys.argv[-1][:1]).touch()"
    monkeypatch.setattr(checking, "exercise_command", lambda *chosen: [PYTHON, "-c", code, *chosen])
    monkeypatch.setattr(checking, "FAMILIES", ("swiglu", "decode"))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found = checking.run_sanitizer(str(tool), tmp_path, time.time() + PATIENCE, {"TRITON_CACHE_DIR": str(cache)})
    assert sorted(path.name for path in cache.iterdir()) == ["1", "2"]  # each part in a process of its own
    assert re.fullmatch(r"by 2 processes in \d+ s", found["compiled"])
    for tool_name in checking.TOOLS:
        assert found[tool_name] == "ok: swiglu, decode, 2 calls without a fault"
    asked = (tmp_path / "arguments").read_text().splitlines()
    assert len(asked) == 4 + {"": 0, "port": 1, "option": 4}[trouble]
    for line in asked[:4]:
        assert "--kernel-name-exclude kernel_substring=_ZN2at " in line and "--error-exitcode 9" in line
    for line in asked[4:]:
        assert "--kernel-name-exclude" not in line
    assert sorted(line.split()[-1] for line in asked[:4]) == ["decode", "decode", "swiglu", "swiglu"]


def test_a_family_that_is_not_clean_comes_first_and_hides_no_other():
    fine = "ok: ERROR SUMMARY: 0 errors, 4 of 4 calls"
    said = {"swiglu": fine, "decode": "FAULTS: 1 seen, 2 of 4 calls, exit code 9"}
    assert checking.together(said) == (
        "decode FAULTS: 1 seen, 2 of 4 calls, exit code 9; else ok: swiglu, 4 calls without a fault"
    )
    assert checking.together({"decode": "cut"}) == "decode cut; else ok: none, 0 calls without a fault"


def test_the_parts_of_the_exercise_are_all_of_it_once(monkeypatch, capsys):
    pytest.importorskip("triton")
    from kernels.tune_problems import KERNELS, TF32, Problem

    ran = []
    monkeypatch.setattr(Problem, "run", lambda self, ops, call, device: ran.append((str(self), call)))

    def calls(share):
        ran.clear()
        worker.exercise(torch.device("cpu"), share)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"exercise: {len(ran)} calls" and len(lines) == 1 + len(ran)
        assert lines[-1].startswith(f"call {len(ran)} of {len(ran)}: ")
        return list(ran)

    whole = calls(None)
    assert sorted(call for i in (1, 2, 3) for call in calls(f"{i}/3")) == sorted(whole)
    assert not any(TF32[0] in problem for problem, _ in whole)
    families = {problem.split("_")[0].split(",")[0] for problem, _ in whole}
    assert families == {op.split("_")[0] for op in KERNELS}
