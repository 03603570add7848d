"""python -m bench.gpu: what was found is kept and told, whatever ends a run, and the next one goes on with it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch

from bench import archive, checking, failures, gpu, processes, worker
from bench.processes import Command
from minilm import hardware

PYTHON = sys.executable
OURS = "tests/kernels/test_swiglu.py::test_"


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


# --- commands ---------------------------------------------------------------------------------------------------------


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
end = time.time() + 5
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
    found = checking.run_sanitizer(str(tool), tmp_path, time.time() + 20, {"TRITON_CACHE_DIR": str(cache)})
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


# --- going on elsewhere -----------------------------------------------------------------------------------------------


def results(out: Path) -> Path:
    """A folder as a run leaves it."""
    for name, text in {
        "rows.jsonl": '{"kind": "ops", "key": "a", "rows": []}\n{"cut',
        "chip.json": "{}",
        "data/tuned/sm_90.json": '{"table": 1}',
        "race/nanogpt-1/metrics.jsonl": "{}",
        "race/nanogpt-1/done": "",
        "race/ours/runs/a/checkpoints/last.pt": "weights",
        "race/compiled/inductor/x.json": "{}",
        "triton_cache/x.json": "{}",
        "ops.log": "short",
    }.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    (out / "memcheck.log").write_text("first" + "x" * 2**20 + "last")
    return out


def test_an_archive_holds_what_is_needed_to_go_on_and_no_more(tmp_path):
    out = results(tmp_path / "out")
    assert archive.pack(out, tmp_path / "sent" / "a.tar.gz") == []
    archive.unpack(tmp_path / "sent" / "a.tar.gz", tmp_path / "new" / "out")
    new = tmp_path / "new" / "out"
    there = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    assert there == {
        "rows.jsonl", "chip.json", "data/tuned/sm_90.json", "race/nanogpt-1/metrics.jsonl", "race/nanogpt-1/done",
        "ops.log", "memcheck.log",
    }  # fmt: skip
    for name in there - {"memcheck.log"}:
        assert (new / name).read_bytes() == (out / name).read_bytes()
    text = (new / "memcheck.log").read_text()
    assert text.startswith("first") and text.endswith("last") and len(text) < 2**19 and "bytes left out" in text


def test_an_archive_that_would_be_too_large_leaves_out_what_can_be_spared(tmp_path, monkeypatch):
    out = results(tmp_path / "out")
    (out / "race" / "noise").write_bytes(os.urandom(2**16))
    monkeypatch.setattr(archive, "LIMIT", 2**15)
    left = archive.pack(out, tmp_path / "a.tar.gz")
    assert "race/noise" in left and "ops.log" in left
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert tar.getnames() == ["rows.jsonl", "chip.json", "data/tuned/sm_90.json"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/../../outside", "link"])
def test_an_archive_that_reaches_outside_is_refused_and_nothing_is_written(name, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("rows.jsonl"))
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(tarfile.TarError):
        archive.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "outside").exists()


def test_an_archive_is_there_from_the_beginning_and_kept_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "EVERY", 0.05)
    out, file = results(tmp_path / "out"), tmp_path / "a.tar.gz"
    with archive.kept_up_to_date(out, file):
        wait_for_member = time.time() + 5
        (out / "rows.jsonl").write_text("later")
        while time.time() < wait_for_member:
            if file.exists():
                with tarfile.open(file) as tar:
                    if tar.extractfile("rows.jsonl").read() == b"later":
                        break
            time.sleep(0.02)
        else:
            pytest.fail("the archive was not written again")
    with archive.kept_up_to_date(out, None):
        pass


@pytest.fixture
def machine(monkeypatch):
    """What the machine says of itself, which a test may change; nothing is measured."""
    facts = {"device": "NVIDIA H100", "revision": "abc", "versions": {}}

    def say(command, **options):
        facts["revision"] = os.environ.get("MINILM_REVISION") or facts["revision"]
        return SimpleNamespace(returncode=0, stdout=json.dumps(facts), stderr="")

    monkeypatch.setattr(gpu.subprocess, "run", say)
    monkeypatch.setattr(gpu.shutil, "which", lambda *_: None)
    monkeypatch.setenv("MINILM_REVISION", "")
    return facts


@pytest.fixture
def tests_stage(monkeypatch):
    ran = []
    monkeypatch.setattr(gpu, "run_tests", lambda out, *_: ran.append(out) or {"pytest": "1 passed"})
    return ran


def main(out: Path, *arguments: str) -> int:
    return gpu.main(["--stage", "tests", "--minutes", "1", "--out", str(out), *map(str, arguments)])


def test_the_same_command_goes_on_from_an_archive(tmp_path, machine, tests_stage):
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "a.tar.gz"
    assert main(first, "--archive", file, "--revision", "r1") == 0
    assert main(second, "--from", file, "--archive", tmp_path / "b.tar.gz", "--revision", "r1") == 0
    assert (second / "rows.jsonl").read_text() == (first / "rows.jsonl").read_text()
    record = json.loads((second / "nvidia-h100.json").read_text())
    assert record["stages"] == {"tests": {"pytest": "1 passed"}} and record["machine"]["revision"] == "r1"
    with tarfile.open(tmp_path / "b.tar.gz") as tar:
        assert {"rows.jsonl", "nvidia-h100.json"} <= set(tar.getnames())
    assert tests_stage == [first, second]


def test_what_is_not_to_be_mixed_is_refused_in_a_sentence(tmp_path, machine, tests_stage, capsys):
    def refused(*arguments):
        with pytest.raises(SystemExit):
            main(tmp_path / "out", *arguments)
        return capsys.readouterr().err

    main(tmp_path / "out", "--archive", tmp_path / "a.tar.gz")
    machine["revision"] = "abc+"
    assert "holds results of the revision abc, and this is the revision abc+; results of two are not mixed" in refused()
    machine["revision"] = None
    assert "and this is the revision that is not known" in refused()
    machine["revision"], machine["device"] = "abc", "NVIDIA H200"
    assert "holds results of the device NVIDIA H100, and this is the device NVIDIA H200" in refused()
    assert "holds results already; leave --from out" in refused("--from", tmp_path / "a.tar.gz")
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(SystemExit):
        main(tmp_path / "new", "--from", tmp_path / "text")
    assert "it takes what --archive has written" in capsys.readouterr().err
    assert tests_stage == [tmp_path / "out"]


def test_a_run_that_is_told_to_stop_assembles_what_it_has_and_begins_no_other_stage(tmp_path, machine, monkeypatch):
    def stopped_in(out, *_):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"pytest": "not finished"}

    begun = []
    monkeypatch.setattr(gpu, "run_tests", stopped_in)
    monkeypatch.setattr(gpu, "run_stage", lambda *arguments: begun.append(arguments))
    file = tmp_path / "a.tar.gz"
    assert gpu.main(["--out", str(tmp_path / "out"), "--archive", str(file)]) == 128 + signal.SIGTERM
    record = json.loads((tmp_path / "out" / "nvidia-h100.json").read_text())
    assert record["stages"] == {"tests": {"pytest": "not finished"}} and begun == []
    with tarfile.open(file) as tar:
        assert json.load(tar.extractfile("nvidia-h100.json")) == record


def test_a_copy_without_git_has_the_revision_that_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "minilm" / "hardware.py"))
    monkeypatch.setenv("MINILM_REVISION", "abc")
    assert hardware.git_revision() == "abc"
    monkeypatch.delenv("MINILM_REVISION")
    assert hardware.git_revision() is None


@pytest.mark.skipif(not (processes.ROOT / ".git").exists(), reason="needs a checkout")
def test_a_copy_whose_git_is_of_another_day_has_the_revision_that_it_is_told(monkeypatch):
    """As the first results of a GPU had, whose machine was sent the files and an older .git."""
    monkeypatch.delenv("MINILM_REVISION", raising=False)
    of_git = hardware.git_revision()
    monkeypatch.setenv("MINILM_REVISION", "abc")
    assert of_git != "abc" and hardware.git_revision() == "abc"
