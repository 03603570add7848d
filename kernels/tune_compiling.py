"""Compiles the candidates of tuning in other processes, without the GPU, while the GPU measures.

A candidate is compiled as it will be launched, so that the launch finds it in Triton's cache. What comes back is why it
cannot be used, where its machine code spills or needs more shared memory than there is; else a digest of that code, by
which candidates that are the same are known.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import PriorityQueue
from threading import Thread
from typing import Any

import torch
import triton

from kernels import fused, machine_code
from kernels.fused import tuning
from kernels.tune_problems import KERNELS, Call, Config, Problem, uninitialised


class OutOfTime(Exception):
    """The time is over; what is being tuned keeps its present configuration."""


@dataclass(frozen=True)
class Compiled:
    """What became of a candidate: why it is refused, or nothing; and a digest of its machine code."""

    refused: str = ""
    code: str = ""


def compiles(problem: Problem, arch: int, config: Config, calls: Sequence[Call]) -> Compiled:
    """Compile what `calls` launch for `arch`, with `config` for the kernel of the problem. Needs no GPU."""
    digest = hashlib.sha256()
    try:
        with machine_code.compiled_launches(arch) as launches, tuning.override(problem.op, config):
            for call in calls:
                problem.run(fused, call, "cpu", make=uninitialised)
        kernels = [kernel for kernel in launches if kernel.metadata.name == KERNELS[problem.op][0]]
        for kernel in {kernel.hash: kernel for kernel in kernels}.values():
            digest.update(kernel.asm["cubin"])
            found = machine_code.figures(kernel, "", {})
            if found.spills:
                return Compiled(f"spills {found.spills} times")
            if not found.fits:
                return Compiled(f"needs {found.shared / 1024:.0f} KiB of shared memory")
    except Exception as error:  # whatever the compiler raises: another candidate may do better
        return Compiled(f"does not compile: {type(error).__name__}: {str(error)[:200]}")
    return Compiled("", digest.hexdigest())


class Compilers:
    """Processes that compile, the most urgent first. One that dies, as by a fault in LLVM, is replaced; what it was
    compiling is refused, and nothing else is lost.

    function(*task) is called there, and found there by its name; it returns a Compiled.
    """

    def __init__(self, count: int, function: Callable[..., Compiled]):
        # PyTorch and Triton, seconds of a processor, are imported once, and every process is forked from there
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["kernels.tune_compiling"])
        self._function = function
        self._tasks: PriorityQueue[tuple[float, int, Future[Compiled], tuple[Any, ...]]] = PriorityQueue()
        self._numbers = itertools.count()
        self._processes: dict[int, Any] = {}
        self._closed = False
        for number in range(count):
            Thread(target=self._serve, args=(number, self._start(number)), daemon=True).start()

    def submit(self, urgency: float, *task: Any) -> Future[Compiled]:
        """The smaller the urgency, the earlier; first come, first served where it is equal."""
        future: Future[Compiled] = Future()
        self._tasks.put((urgency, next(self._numbers), future, task))
        return future

    def close(self) -> None:
        """Stop at once, whatever is being compiled."""
        self._closed = True
        for process in self._processes.values():
            process.kill()

    def _start(self, number: int) -> Any:
        ours, theirs = self._context.Pipe()
        self._processes[number] = self._context.Process(
            target=_work, args=(theirs, self._function, dict(os.environ)), daemon=True
        )
        self._processes[number].start()
        theirs.close()  # else its end would not be noticed here
        return ours

    def _serve(self, number: int, connection: Any) -> None:
        while True:
            *_, future, task = self._tasks.get()
            try:
                connection.send(task)
                future.set_result(connection.recv())
            except (EOFError, OSError):
                if self._closed:
                    return
                future.set_result(Compiled("does not compile: the compiler crashed"))
                connection = self._start(number)


def _work(connection: Any, function: Callable[..., Compiled], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)  # of who starts it now, and not of when the first was started
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it compiles only; a context on the GPU would cost memory and time
    os.nice(10)  # and must not make the process wait that measures
    torch.set_num_threads(1)
    triton.knobs.compilation.store_binary_only = True  # what a launch needs: a tenth of the files' size
    with contextlib.suppress(EOFError, OSError):  # the other side is gone
        while True:
            connection.send(function(*connection.recv()))


class Compiling:
    """What is compiled for tuning, each thing once: candidates in order, and before them what is waited for."""

    def __init__(self, arch: int):
        self.arch = arch
        self.compilers = Compilers(max((os.cpu_count() or 1) - 1, 1), compiles)  # one core is for who measures
        self.close = self.compilers.close
        self.futures: dict[Any, Future[Compiled]] = {}

    def _submit(self, urgency: int, problem: Problem, config: Config, calls: Sequence[Call]) -> Future[Compiled]:
        calls = tuple(dict.fromkeys(map(problem.stand_in, calls)))
        key = (problem.op, problem.dtypes, calls, *config.items())
        if key not in self.futures:
            self.futures[key] = self.compilers.submit(urgency, problem, self.arch, dict(config), calls)
        return self.futures[key]

    def candidates(self, chosen: Sequence[Problem]) -> list[Future[Compiled]]:
        return [self._submit(1, p, config, p.timings[:1]) for p in chosen for config in p.candidates]

    def awaited(self, problem: Problem, until: float) -> Iterator[tuple[Config, Compiled]]:
        for config in problem.candidates:
            yield config, result(self._submit(1, problem, config, problem.timings[:1]), until)

    def present(self, problem: Problem, device: torch.device) -> None:
        self._submit(0, problem, problem.present(device), problem.timings)

    def finalists(self, problem: Problem, configs: Iterable[Config]) -> None:
        for config in configs:
            self._finalist(problem, config)

    def finalist(self, problem: Problem, until: float, config: Config) -> Compiled:
        return result(self._finalist(problem, config), until)

    def _finalist(self, problem: Problem, config: Config) -> Future[Compiled]:
        return self._submit(0, problem, config, (*problem.checks, *problem.timings[1:]))


def result(future: Future[Compiled], until: float) -> Compiled:
    """Raises OutOfTime if it is not there by `until`, by time.monotonic."""
    try:
        return future.result(None if until == math.inf else max(until - time.monotonic(), 0))
    except concurrent.futures.TimeoutError:
        raise OutOfTime from None
