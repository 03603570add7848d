"""Tuning: what is refused, what is chosen, what is written. Where there is no GPU a stand-in tells the times."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from click.testing import CliRunner

from kernels import fused, machine_code, tune
from kernels.fused import tuning

CPU = torch.device("cpu")
GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    """A user's folder of this test alone, empty at first."""
    monkeypatch.setenv("MINILM_DATA", str(tmp_path))
    tuning.forget()
    yield tmp_path / "tuned"
    tuning.forget()


@pytest.fixture
def problem():
    """SwiGLU's forward on little calls."""
    whole = next(p for p in tune.problems() if p.op == "swiglu_forward")
    return dataclasses.replace(whole, checks=((24, (3, 5)),), timings=((24, (4,)), (40, (4,))))


def config(block, warps=4):
    return {"BLOCK": block, "num_warps": warps, "num_stages": 1}


def timer(milliseconds):
    """Times of a call by the configuration in force."""
    return lambda call, repeats: milliseconds[tuning.lookup("swiglu_forward", CPU, torch.bfloat16, width=24)["BLOCK"]]


def screen(problem, milliseconds, device=CPU):
    candidates = [(config(block), tune.Compiled()) for block in milliseconds]
    return tune.screen(problem, device, candidates, timer(milliseconds))


def search(problem, milliseconds):
    return tune.decide(screen(problem, milliseconds), CPU, timer(milliseconds))


def run_alone(program, folder):
    """A process where kernels are compiled, not interpreted, and what it prints as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    (folder / "program.py").write_text(program)
    command = [sys.executable, folder / "program.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_the_fastest_configuration_is_chosen_and_its_gain_is_told(problem):
    outcome = search(problem, {512: 3.0, 1024: 2.0, 2048: 1.0})
    assert outcome.before == config(1024)
    assert outcome.chosen == config(2048)
    assert outcome.before_ms == [2.0, 2.0]
    assert outcome.speedup == pytest.approx(2.0)


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_the_present_configuration_stays_unless_it_is_beaten_by_more_than_the_noise(problem):
    outcome = search(problem, {1024: 1.0, 2048: 0.99})
    assert outcome.chosen == outcome.before == config(1024)
    assert outcome.speedup == 1.0
    assert search(problem, {1024: 1.0, 2048: 0.97}).chosen == config(2048)


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
@pytest.mark.parametrize("kind", ["wrong", "other bits", "not finite"])
def test_a_wrong_or_fickle_candidate_is_refused_however_fast(kind, problem, monkeypatch):
    swiglu, calls = fused.swiglu, []

    def broken(x):
        y = swiglu(x)
        if tuning.lookup("swiglu_forward", CPU, x.dtype, width=24)["BLOCK"] == 2048:
            calls.append(1)
            nudge = {"wrong": 1.05, "other bits": 1 + len(calls) % 2 * 2**-7, "not finite": math.inf}[kind]
            y = y * nudge
        return y

    monkeypatch.setattr(fused, "swiglu", broken)
    outcome = search(problem, {1024: 1.0, 2048: 0.1})
    assert outcome.chosen == config(1024)
    (refused, reason), *_ = outcome.refused
    assert refused == config(2048)
    assert reason.startswith(
        "wrong: " + {"wrong": "error", "other bits": "other bits", "not finite": "not finite"}[kind]
    )


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_of_a_wrong_finalist_the_next_fastest_takes_the_place(problem, monkeypatch):
    swiglu, judged = fused.swiglu, set()

    def broken(x):
        block = tuning.lookup("swiglu_forward", CPU, x.dtype, width=24)["BLOCK"]
        judged.add(block)
        return swiglu(x) * (1.05 if block in (2048, 4096) else 1)

    times = {64: 9.0, 128: 0.7, 256: 0.6, 512: 0.4, 1024: 1.0, 2048: 0.3, 4096: 0.1, 8192: 0.5}
    screened = screen(problem, times)
    assert [c["BLOCK"] for c in screened.ranked[:3]] == [4096, 2048, 512]
    monkeypatch.setattr(fused, "swiglu", broken)
    outcome = tune.decide(screened, CPU, timer(times))
    assert outcome.chosen == config(512)
    assert {c["BLOCK"] for c, _ in outcome.refused} == {2048, 4096}
    assert 64 not in judged, "only finalists are judged"


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_candidates_that_are_refused_or_the_same_machine_code_are_not_timed(problem):
    timed = []
    candidates = [
        (config(512), tune.Compiled("spills 3 times")),
        (config(1024), tune.Compiled("", "a")),
        (config(1024) | {"num_stages": 2}, tune.Compiled("", "a")),
        (config(1024, 8), tune.Compiled("", "a")),  # as much code, and more threads to run it
        (config(2048), tune.Compiled("", "b")),
    ]
    screened = tune.screen(problem, CPU, candidates, lambda call, repeats: timed.append(call) or 1.0)
    assert screened.ranked == [config(1024), config(1024, 8), config(2048)]
    assert len(timed) == screened.outcome.timed == 3
    assert screened.outcome.refused == [(config(512), "spills 3 times")]


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_when_the_time_is_over_nothing_more_is_timed(problem):
    until = time.monotonic() + 0.05

    def slow(call, repeats):
        time.sleep(0.03)
        return 1.0

    with pytest.raises(tune.OutOfTime):
        tune.screen(problem, CPU, ((config(1024), tune.Compiled()) for _ in range(1000)), slow, until)
    with pytest.raises(tune.OutOfTime):
        tune.decide(screen(problem, {1024: 1.0, 2048: 0.5}), CPU, slow, until)
    with pytest.raises(tune.OutOfTime):  # no finalist but the present configuration, which needs no judging
        tune.decide(screen(problem, {1024: 1.0}), CPU, slow, until)
    with pytest.raises(tune.OutOfTime):  # nor is a compilation waited for
        tune._result(tune.Future(), until)


def test_what_is_timed_is_the_kernel_configured_as_it_was_launched(problem):
    if GPU:
        pytest.skip("interpreted")
    replays = tune._replays(problem, CPU, problem.timings)
    assert len(replays) == 2
    for replay in replays:
        (launch,) = replay.args[0]
        assert launch.args[0].__name__ == "_swiglu_forward"
        out = launch.args[3]
        before = out.clone()
        out.zero_()
        replay()
        assert torch.equal(out, before)


def test_a_kernel_is_timed_with_the_second_stage_that_its_programs_make_necessary():
    """Else more programs, each with a sum of its own, would seem to cost nothing."""
    if GPU:
        pytest.skip("interpreted")
    for op, expected in (
        ("layer_norm_backward", ["_norm_backward", "_sum_partials"]),
        ("layer_norm_sum_partials", ["_norm_backward", "_sum_partials"]),
        ("decode", ["_decode_kernel", "_merge_kernel"]),
    ):
        problem = next(p for p in tune.problems() if p.op == op)
        call = (64, (40,)) if op.startswith("layer_norm") else (64, (1, 1, 200))
        (replay,) = tune._replays(problem, CPU, [call])
        assert [launch.args[0].__name__ for launch in replay.args[0]] == expected


def test_every_problem_names_a_kernel_that_its_operation_launches(monkeypatch):
    """... and configurations that a table may hold."""
    if GPU:
        pytest.skip("interpreted")
    for p in {(p.op): p for p in tune.problems()}.values():
        kernel = type(vars(fused.attention)["_forward_kernel"])
        monkeypatch.setattr(kernel, "run", lambda *args, **kwargs: None)  # nothing need run to be recorded
        (replay,) = tune._replays(p, CPU, p.checks[:1])
        assert tune.KERNELS[p.op][0] in [launch.args[0].__name__ for launch in replay.args[0]]
        for candidate in p.candidates:
            assert tuning._entry_fault(p.entry(candidate)) is None


def test_a_table_written_by_tuning_is_read_and_keeps_every_other_entry(problem, user_folder):
    ops = {p.op for p in tune.problems()}
    before = {str(p): p.present(CPU) for p in tune.problems()}
    outcome = tune.Outcome(problem, config(1024), config(2048, 8))
    path = user_folder / "default.json"
    tune.write(path, "default", CPU, [outcome])
    assert tuning.lookup("swiglu_forward", CPU, torch.float16, width=99) == config(2048, 8)
    assert tuning.lookup("swiglu_forward", CPU, torch.float32, width=99) == config(1024)
    assert set(tuning.read_table(path)) == {"swiglu_forward"}
    assert json.loads(path.read_text())["measured"]["torch"] == torch.__version__
    for p in tune.problems():
        if str(p) != str(problem):
            assert p.present(CPU) == before[str(p)], p
    for op in ops:  # a table of all ops says for every class what was said before
        tune.write(path, "default", CPU, [tune.Outcome(p, {}, before[str(p)]) for p in tune.problems() if p.op == op])
    assert {str(p): p.present(CPU) for p in tune.problems()} == before


def test_the_bounds_of_the_committed_tables_are_bounds_of_problems():
    """Else a tuned entry would be put over a finer committed one, on shapes that nobody measured."""
    for path in tuning.COMMITTED.glob("*.json"):
        for op, entries in tuning.read_table(path).items():
            bounds = {(p.max_width, p.max_length) for p in tune.problems() if p.op == op}
            for entry in entries:
                assert (entry["max_width"], entry["max_length"]) in bounds, (path.name, op, entry)


def test_what_the_capstone_launches_is_tuned_first_and_single_precision_last():
    found = tune.problems()
    ops = {"attention_forward", "attention_backward_q", "attention_backward_kv"}
    assert {p.op for p in found[:3]} == ops
    assert {(p.max_width, p.max_length, p.dtypes) for p in found[:3]} == {(64, 256, tune.HALF)}
    dtypes = [p.dtypes for p in found if p.op != "layer_norm_sum_partials"]  # whose sums are always float32
    assert dtypes == sorted(dtypes, key=lambda d: d != tune.HALF)
    assert len({str(p) for p in found}) == len(found)
    assert any("TMA" in c for c in found[0].candidates)
    assert not any("TMA" in c for p in tune.problems(tma=False) for c in p.candidates)


def test_what_tuning_may_write_is_reached_by_the_cases_of_the_machine_code(user_folder, monkeypatch):
    """Else the test that they reach every committed entry would fail after `minilm tune --commit`."""
    if GPU:
        pytest.skip("interpreted")
    names, ops = {}, {}
    for number, p in enumerate(sorted(tune.problems(), key=lambda p: (p.max_width or 2**20, p.max_length or 2**20)), 1):
        names[number] = str(p)
        ops.setdefault(p.op, []).append(p.entry({**p.present(CPU), "maxnreg": number}))
    tuning.write_table(user_folder / "default.json", "default", ops)
    tuning.forget()
    kernel = type(vars(fused.attention)["_forward_kernel"])
    monkeypatch.setattr(kernel, "run", lambda *args, **kwargs: None)
    lookup, seen = tuning.lookup, set()
    monkeypatch.setattr(tuning, "lookup", lambda *a, **k: seen.add(lookup(*a, **k)["maxnreg"]) or lookup(*a, **k))
    for case in machine_code.cases().values():
        case()
    assert [names[number] for number in names.keys() - seen] == []


def test_entries_behind_which_the_same_would_be_found_are_not_written():
    def entry(width, length, block, dtypes=("float16",)):
        return {"dtypes": list(dtypes), "max_width": width, "max_length": length, "config": {"BLOCK": block}}

    short, longer = entry(64, 256, 1), entry(64, None, 1)
    assert tune._needed([short, longer]) == [longer]
    assert tune._needed([short, entry(64, None, 2)]) == [short, entry(64, None, 2)]
    assert tune._needed([short, entry(64, 512, 2), longer]) == [short, entry(64, 512, 2), longer]
    assert tune._needed([entry(32, None, 1), short]) == [entry(32, None, 1), short]  # of a length that short has not
    assert tune._needed([short, entry(64, None, 1, ("float32",))]) == [short, entry(64, None, 1, ("float32",))]


def test_a_candidate_that_spills_is_refused_without_a_gpu_and_stages_alone_may_change_nothing(tmp_path):
    program = (
        "import json; from kernels import tune; p = tune.problems()[0]\n"
        "c = lambda m, n, w, s=3: {'BLOCK_M': m, 'BLOCK_N': n, 'num_warps': w, 'num_stages': s}\n"
        "s = next(p for p in tune.problems() if p.op == 'swiglu_forward')\n"
        "b = [{'BLOCK': 1024, 'num_warps': w, 'num_stages': n} for w, n in ((4, 1), (4, 2), (2, 1))]\n"
        "found = [tune.compiles(p, 90, x, p.timings[:1]) for x in (c(128, 128, 4), c(64, 64, 4), c(64, 64, 4, 2))]\n"
        "found += [tune.compiles(s, 90, x, s.timings[:1]) for x in b]\n"
        "print(json.dumps([p.op, [f.refused for f in found], [f.code for f in found]]))"
    )
    op, (spilling, *others), codes = run_alone(program, tmp_path)
    assert op == "attention_forward"
    assert spilling.startswith("spills")
    assert others == [""] * 5
    assert codes[1] != codes[2] and codes[3] == codes[4] != codes[5]


KEYS = """
import hashlib, json, torch
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.runtime.cache import get_cache_key
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction
from kernels import fused, machine_code, tune
from kernels.fused import tuning

found = set()

class Compiled:
    function = packed_metadata = None
    launch_metadata = run = staticmethod(lambda *args: None)

def key_of(self, key, signature, device, constexprs, options, attrs, warmup):
    _, _, target, backend, _ = self.device_caches[device]
    source = self.ASTSource(self, signature, constexprs, attrs)
    key = get_cache_key(source, backend, options, get_cache_invalidating_env_vars())
    found.add((self.__name__, hashlib.sha256(key.encode()).hexdigest()))
    return Compiled

class Native(machine_code._AbsentDriver):  # but that nothing is compiled or run, launches are as on a GPU
    def get_current_device(self):
        return 0

JITFunction._do_compile = key_of
machine_code.triton.JITFunction.run = JITFunction.run
fused.cross_entropy._add_product = lambda *args, **kwargs: None  # the work that a stand-in spares PyTorch
torch.mm = lambda a, b, out: out
differing = []
for p in tune.problems():
    for config in (p.candidates[0], p.candidates[-1]):
        for call in (*p.timings, *p.checks):
            keys = []
            for native in (False, True):
                found.clear()
                with tuning.override(p.op, config):
                    if native:
                        driver.set_active(Native(90))
                        with tuning.pretend("sm_90"):
                            p.run(fused, call, "cpu", make=tune._uninitialised)
                    else:
                        with machine_code.compiled_launches(90):
                            p.run(fused, p.stand_in(call), "cpu", make=tune._uninitialised)
                keys.append({key for name, key in found if name == tune.KERNELS[p.op][0]})
            if keys[0] != keys[1] or not keys[0]:
                differing.append([str(p), call, config])
print(json.dumps(differing))
"""


def test_what_is_compiled_beforehand_is_what_a_launch_looks_for_in_the_cache(tmp_path):
    """By the names of their files in Triton's cache, for every problem, of its first and last candidate."""
    assert run_alone(KEYS, tmp_path) == []


@pytest.mark.gpu
def test_what_is_compiled_beforehand_is_found_by_the_launch(tmp_path):
    program = (
        "import json, torch, triton; from kernels import fused, tune; from kernels.fused import tuning\n"
        "arch = int('%d%d' % torch.cuda.get_device_capability()); missed = []\n"
        "for op in tune.KERNELS:\n"
        "    p = next(p for p in tune.problems() if p.op == op); c = p.candidates[0]\n"
        "    tune.compiles(p, arch, c, p.checks)\n"
        "    found = lambda src, cache_hit, **_: cache_hit or src.name != tune.KERNELS[op][0] or missed.append(op)\n"
        "    triton.knobs.compilation.listener = found\n"
        "    with tuning.override(op, c): [p.run(fused, call, 'cuda') for call in p.checks]\n"
        "    triton.knobs.compilation.listener = None\n"
        "print(json.dumps(missed))"
    )
    assert run_alone(program, tmp_path) == []


COMPILERS = """
import json, os, time
from kernels import tune

def compile(task):
    if task == "die":
        os._exit(9)
    if task == "sleep":
        time.sleep(60)
    return tune.Compiled("", task + os.environ["CUDA_VISIBLE_DEVICES"])

if __name__ == "__main__":
    compilers = tune.Compilers(2, compile)
    futures = [compilers.submit(1, task) for task in ("a", "die", "b", "die", "die", "c", "d")]
    found = [future.result() for future in futures]
    asleep = [compilers.submit(1, "sleep") for _ in range(2)]
    time.sleep(0.5)
    begun = time.monotonic()
    compilers.close()
    for process in compilers._processes.values():
        process.join()
    closed = time.monotonic() - begun
    print(json.dumps([[c.code or c.refused for c in found], closed, any(future.done() for future in asleep)]))
"""


def test_a_compiler_that_crashes_takes_only_its_own_candidate_with_it(tmp_path):
    found, seconds_to_close, done = run_alone(COMPILERS, tmp_path)
    crashed = "does not compile: the compiler crashed"
    assert found == ["a", crashed, "b", crashed, crashed, "c", "d"]
    assert seconds_to_close < 10 and not done, "stopped, whatever was being compiled"


def test_what_is_urgent_is_compiled_first(monkeypatch):
    monkeypatch.setattr(tune.Compilers, "_serve", lambda *_: None)
    monkeypatch.setattr(tune.Compilers, "_start", lambda *_: None)
    compilers = tune.Compilers(1, None)
    for urgency, task in ((1, "candidate"), (1, "another"), (0, "finalist")):
        compilers.submit(urgency, task)
    assert [compilers._tasks.get()[3] for _ in range(3)] == [("finalist",), ("candidate",), ("another",)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "Tuning measures on an NVIDIA GPU"), (["--op", "nonsense"], "No operation to tune is called 'nonsense'")],
)
def test_what_cannot_be_tuned_is_refused_in_a_sentence(arguments, sentence):
    if GPU:
        pytest.skip("there is a GPU to tune on")
    from minilm.cli import cli
    from minilm.errors import UserError

    result = CliRunner().invoke(cli, ["tune", *arguments])
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)


@pytest.fixture
def pretended(monkeypatch, problem):
    """Tuning from end to end where there is no GPU: SwiGLU forward and backward; times from a table."""
    backward = next(p for p in tune.problems() if p.op == "swiglu_backward")
    backward = dataclasses.replace(backward, checks=problem.checks, timings=problem.timings)
    small = tuple(config(block) for block in (512, 1024, 2048))
    both = [dataclasses.replace(p, candidates=small) for p in (problem, backward)]
    monkeypatch.setattr(tune, "problems", lambda *_: both)
    monkeypatch.setattr(tune, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(tune.torch, "device", lambda *_: CPU)
    monkeypatch.setattr(tune, "milliseconds", lambda call, repeats: call.args[0][0].keywords["BLOCK"] ** -0.5)

    class AtOnce:
        def __init__(self, *_):
            self.submitted = []

        def submit(self, urgency, problem, arch, config, calls):
            self.submitted.append((problem.op, tuple(calls)))
            future = tune.Future()
            future.set_result(tune.Compiled())
            return future

        def close(self):
            pass

    monkeypatch.setattr(tune, "Compilers", AtOnce)
    return both


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_each_outcome_is_told_and_written_at_once_and_what_is_finished_is_skipped(pretended, tmp_path):
    forward, backward = map(str, pretended)
    path, heard = tmp_path / "default.json", []

    def say(outcome):
        heard.append(("said", str(outcome.problem), outcome.chosen["BLOCK"]))
        assert outcome.problem.op in tuning.read_table(path)

    tune.tune(path, say=say, begin=lambda key: heard.append(("begun", key)))
    assert heard == [
        ("begun", forward),
        ("begun", backward),  # while the finalists of the first are compiled
        ("begun", forward + tune.FINALS),
        ("said", forward, 2048),
        ("begun", backward + tune.FINALS),
        ("said", backward, 2048),
    ]
    heard.clear()
    tune.tune(path, say=say, begin=lambda key: heard.append(("begun", key)), skip={forward})
    assert [what for what in heard if what[0] == "said"] == [("said", backward, 2048)]
    assert tuning.read_table(path)["swiglu_forward"][0]["config"]["BLOCK"] == 2048


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_minutes_are_a_limit_and_what_is_finished_by_then_is_kept(pretended, tmp_path, monkeypatch):
    quick = tune.milliseconds
    monkeypatch.setattr(tune, "milliseconds", lambda *args: time.sleep(0.02) or quick(*args))
    begun = time.monotonic()
    path, outcomes = tune.tune(tmp_path / "default.json", minutes=0.001)
    assert outcomes == [] and not path.exists()
    assert time.monotonic() - begun < 5


@pytest.mark.gpu
def test_tuning_writes_a_table_that_later_lookups_use(user_folder):
    path, (outcome, *_) = tune.tune(ops=["swiglu_forward"], minutes=1)
    assert path.parent == user_folder
    device = torch.device("cuda", torch.cuda.current_device())
    assert outcome.problem.present(device) == outcome.chosen
