"""Other Pythons of a test, in a tenth of the time: forked from a process that has imported PyTorch and done no more.

They are given a module (-m), code (-c) or a file, as the command `python` is, and an environment, a folder and standard
output of their own. What is read as Python and PyTorch start, such as the number of threads and the seed of hashes, is
the same for all. A test of start-up starts a real process by subprocess.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.waiting import PATIENCE

# PyTorch's optimizers import torch._dynamo, which takes as long again as PyTorch.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "torch._dynamo", "pytest"])
# Without what tests set; and Triton, which torch._dynamo imports, asks as it is imported whether it interprets.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
_BEGUN: weakref.WeakSet[Python] = weakref.WeakSet()


def python(*command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, check: bool = False):
    """As subprocess.run([sys.executable, *command], capture_output=True, text=True), which it is where Triton is to
    interpret."""
    if (os.environ if env is None else env).get("TRITON_INTERPRET"):
        real = [sys.executable, *map(str, command)]
        return subprocess.run(real, cwd=cwd, env=env, check=check, capture_output=True, text=True, timeout=PATIENCE)
    child = Python(*command, cwd=cwd, env=env)
    try:
        out, err = child.communicate(PATIENCE)
    finally:
        child.kill()
    if check and child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, out, err)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


class Python:
    """As subprocess.Popen([sys.executable, *command]). What it prints is for communicate(), or is added to a file."""

    def __init__(
        self,
        *command: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        file: Path | None = None,
        new_session: bool = False,
    ):
        environment = dict(os.environ if env is None else env)
        assert not environment.get("TRITON_INTERPRET"), "decided when Triton was imported"
        self._folder = tempfile.TemporaryDirectory()
        self._files = [file.absolute() if file else Path(self._folder.name, name) for name in ("out", "err")]
        given = self._files, list(map(str, command)), str(cwd or Path.cwd()), environment, new_session
        _serve()
        self._process = _FORKS.Process(target=_begin, args=given)
        self._process.start()
        _BEGUN.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("python", timeout)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (file.read_text(encoding="utf-8") for file in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


@atexit.register
def _end() -> None:
    for child in list(_BEGUN):  # multiprocessing would wait for them
        child.kill()


@contextlib.contextmanager
def forked(module: ModuleType) -> Iterator[None]:
    """What `module` starts by subprocess.run or Popen, each of them a Python, is forked."""

    def popen(command, *, env, stdout, stderr, start_new_session):
        assert command[0] == sys.executable and stderr == subprocess.STDOUT
        return Python(*command[1:], env=env, file=Path(stdout.name), new_session=start_new_session)

    def run(command, *, cwd, env, **how):
        assert command[0] == sys.executable and how == {"capture_output": True, "text": True}
        return python(*command[1:], cwd=cwd, env=env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "subprocess", SimpleNamespace(Popen=popen, run=run, STDOUT=subprocess.STDOUT))
        yield


@functools.cache
def _serve() -> None:
    """Start the process that is forked."""
    now = dict(os.environ)
    _set_environment(_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        _set_environment(now)


def _set_environment(values: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


def _begin(files: list[Path], command: list[str], cwd: str, environment: dict[str, str], new_session: bool) -> None:
    if new_session:
        os.setsid()
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(opened, stream.fileno())
        os.close(opened)
        stream.reconfigure(encoding="utf-8")
    os.chdir(cwd)
    _set_environment(environment)
    how, sys.argv = command[0], command
    if how in ("-c", "-m"):
        what, sys.argv = command[1], [how, *command[2:]]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path.insert(0, cwd if how in ("-c", "-m") else str(Path(how).parent))
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif how == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(how, run_name="__main__")
