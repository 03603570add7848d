"""Compiling for tuning: what is refused, what a launch finds in the cache, and processes that crash or are stopped."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernels.tune_compiling import Compilers, OutOfTime, result
from tests.children import python

pytestmark = pytest.mark.usefixtures("user_folder")


def run_alone(program, folder, run=python):
    """What a process prints as JSON, where kernels are compiled and not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    (folder / "program.py").write_text(program)
    done = run(folder / "program.py", env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_candidate_that_spills_is_refused_without_a_gpu_and_stages_alone_may_change_nothing(tmp_path):
    program = (
        "import json; from kernels.tune_compiling import compiles\n"
        "from kernels.tune_problems import problems; p = problems()[0]\n"
        "c = lambda m, n, w, s=3: {'BLOCK_M': m, 'BLOCK_N': n, 'num_warps': w, 'num_stages': s}\n"
        "s = next(p for p in problems() if p.op == 'swiglu_forward')\n"
        "b = [{'BLOCK': 1024, 'num_warps': w, 'num_stages': n} for w, n in ((4, 1), (4, 2), (2, 1))]\n"
        "found = [compiles(p, 90, x, p.timings[:1]) for x in (c(128, 128, 4), c(64, 64, 4), c(64, 64, 4, 2))]\n"
        "found += [compiles(s, 90, x, s.timings[:1]) for x in b]\n"
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
from kernels import fused, machine_code
from kernels.fused import tuning
from kernels.tune_problems import KERNELS, problems, uninitialised

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
for p in problems():
    for config in (p.candidates[0], p.candidates[-1]):
        for call in (*p.timings, *p.checks):
            keys = []
            for native in (False, True):
                found.clear()
                with tuning.override(p.op, config):
                    if native:
                        driver.set_active(Native(90))
                        with tuning.pretend("sm_90"):
                            p.run(fused, call, "cpu", make=uninitialised)
                    else:
                        with machine_code.compiled_launches(90):
                            p.run(fused, p.stand_in(call), "cpu", make=uninitialised)
                keys.append({key for name, key in found if name == KERNELS[p.op][0]})
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
        "import json, torch, triton; from kernels import fused; from kernels.fused import tuning\n"
        "from kernels.tune_compiling import compiles; from kernels.tune_problems import KERNELS, problems\n"
        "arch = int('%d%d' % torch.cuda.get_device_capability()); missed = []\n"
        "for op in KERNELS:\n"
        "    p = next(p for p in problems() if p.op == op); c = p.candidates[0]\n"
        "    compiles(p, arch, c, p.checks)\n"
        "    found = lambda src, cache_hit, **_: cache_hit or src.name != KERNELS[op][0] or missed.append(op)\n"
        "    triton.knobs.compilation.listener = found\n"
        "    with tuning.override(op, c): [p.run(fused, call, 'cuda') for call in p.checks]\n"
        "    triton.knobs.compilation.listener = None\n"
        "print(json.dumps(missed))"
    )
    assert run_alone(program, tmp_path) == []


COMPILERS = """
import json, os, time
from kernels.tune_compiling import Compiled, Compilers

def compile(task):
    if task == "die":
        os._exit(9)
    if task == "sleep":
        time.sleep(86400)
    return Compiled("", task + os.environ["CUDA_VISIBLE_DEVICES"] + os.environ["WHEN"])

if __name__ == "__main__":
    Compilers(1, compile).close()
    os.environ["WHEN"] = " later"
    compilers = Compilers(2, compile)
    futures = [compilers.submit(1, task) for task in ("a", "die", "b", "die", "die", "c", "d")]
    found = [future.result() for future in futures]
    asleep = [compilers.submit(1, "sleep") for _ in range(2)]
    time.sleep(0.5)
    compilers.close()
    for process in compilers._processes.values():
        process.join()
    print(json.dumps([[c.code or c.refused for c in found], any(future.done() for future in asleep)]))
"""


def test_a_compiler_that_crashes_takes_only_its_own_candidate_with_it(tmp_path):
    found, done = run_alone(COMPILERS, tmp_path)
    crashed = "does not compile: the compiler crashed"
    assert found == ["a later", crashed, "b later", crashed, crashed, "c later", "d later"]
    assert not done, "stopped, whatever was being compiled"


ELSEWHERE = """
import json
from kernels.tune_compiling import Compilers, compiles
from kernels.tune_problems import problems

if __name__ == "__main__":
    problem = next(p for p in problems() if p.op == "swiglu_forward")
    task = problem, 90, problem.candidates[0], problem.timings[:1]
    compilers = Compilers(1, compiles)
    there = compilers.submit(0, *task).result()
    compilers.close()
    print(json.dumps([there.refused, there.code, compiles(*task).code]))
"""


def test_another_process_compiles_the_same_machine_code(tmp_path):
    def begin(*command, env):  # from nothing, and its compiler from a server of its own
        return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)

    refused, there, here = run_alone(ELSEWHERE, tmp_path, begin)
    assert not refused and there == here


def test_what_is_urgent_is_compiled_first(monkeypatch):
    monkeypatch.setattr(Compilers, "_serve", lambda *_: None)
    monkeypatch.setattr(Compilers, "_start", lambda *_: None)
    compilers = Compilers(1, None)
    for urgency, task in ((1, "candidate"), (1, "another"), (0, "finalist")):
        compilers.submit(urgency, task)
    assert [compilers._tasks.get()[3] for _ in range(3)] == [("finalist",), ("candidate",), ("another",)]


def test_a_compilation_is_not_waited_for_when_the_time_is_over():
    with pytest.raises(OutOfTime):
        result(Future(), time.monotonic() + 0.05)
