"""What the project's pages (README.md, docs/) tell a reader to run, and how a test runs it.

A test keeps a table from what stands on a page to one of

    Shortened("--steps 4")               the very command, with these options after its own: later ones win
    Covered("tests/test_x.py::test_y")   another test runs it: which
    Cannot("it needs a GPU")             why no test can

for commands, and Replaced({"[...]": "[2.0]"}) in place of Shortened for Python. A command that is in no table is a
failure: whoever writes one into a page says here how it is tested. A command of a table that is on no page is one too.
"""

import ast
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from minilm.cli import main
from minilm.studies import design, trials
from tests.capstone.miniature import run_here

ROOT = Path(__file__).parents[1]
# Options that make a command short, to be appended to it: of minilm train, and of minilm ablate and scale.
_MODEL = "--set model.n_layers=2 --set model.d_model=16 --set model.n_heads=2 --set model.context_length=32"
SMALL = f"{_MODEL} --set data.characters=20000 --set train.warmup_steps=1 --set train.eval_tokens=500"
TRAIN = f"--device cpu --steps 4 {SMALL} --set train.sample_interval=0"
TRIALS = f"--steps 2 --seeds 1 {SMALL} --set train.device=cpu"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Shortened:
    """As it stands, with `options` appended. Each of `makes` must exist afterwards."""

    options: str = ""
    makes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Covered:
    test: str  # path::name or path::Class::name


@dataclass(frozen=True)
class Cannot:
    reason: str


@dataclass(frozen=True)
class Replaced:
    """Python as it stands but for what is replaced: every key must be in it."""

    by: dict[str, str] = field(default_factory=dict)


def pages() -> list[Path]:
    """Every page that a reader of the project is meant to read."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """(line of the first, text) of the fenced blocks of some languages."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)) + 1, m[2]) for m in FENCE.finditer(text) if m[1] in languages]


def commands(page: Path) -> list[tuple[int, str]]:
    """(line, command) of a page's sh and bash blocks: a command a line, or several joined by &&; comments are none."""
    found = []
    for first, block in blocks(page, "sh", "bash"):
        lines = block.replace("\\\n", "  ").split("\n")
        for number, line in enumerate(lines, first):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            ends = [-1, *(i for i, word in enumerate(words) if word == "&&"), len(words)]
            parts = [words[a + 1 : b] for a, b in pairwise(ends)]
            found += [(number, written(part)) for part in parts if part]
    return found


def written(words: list[str] | str) -> str:
    """The one way in which a command is written, whatever its quotes and spaces."""
    return shlex.join(shlex.split(words) if isinstance(words, str) else words)


def check_tables(page: Path, table: dict[str, object], python: dict[str, object]) -> list[str]:
    """What is wrong between a page and its tables, a sentence each."""
    known, faults, used = {written(key): value for key, value in table.items()}, [], set()
    for line, command in commands(page):
        used.add(command)
        if command not in known:
            faults.append(f"{page.name}:{line}: {command!r} is in no table: say how it is tested")
    faults += [f"{page.name} does not have {key!r}: take it out of the table" for key in known if key not in used]
    for line, text in blocks(page, "python"):
        keys = [key for key in python if key in text]
        if len(keys) != 1:
            faults.append(f"{page.name}:{line}: this Python is named by {len(keys)} keys of the table; one is needed")
        used |= set(keys)
    faults += [f"{page.name} has no Python with {key!r}: take it out of the table" for key in python if key not in used]
    for value in (*table.values(), *python.values()):
        if isinstance(value, Covered) and not exists(value.test):
            faults.append(f"there is no test {value.test}")
        if isinstance(value, Cannot) and len(value.reason) < 15:
            faults.append(f"{value.reason!r} is no reason")
    return faults


def exists(test: str) -> bool:
    """Whether a test of this name, which every run of the tests includes, is in the file that it names."""
    path, *names = test.split("::")
    if not names or not (ROOT / path).is_file():
        return False
    level = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for name in names:
        inside = [node for node in level if getattr(node, "name", None) == name]
        marks = [ast.unparse(mark) for node in inside for mark in node.decorator_list]
        if not inside or any(mark.endswith((".slow", ".gpu", ".faults")) for mark in marks):
            return False
        level = inside[0].body
    return names[-1].startswith("test_")


def run_page(page: Path, table: dict[str, object], python: dict[str, object], folder: Path) -> list[str]:
    """Run what a page tells to run, in its order, in `folder`; returns what went wrong, a sentence each."""
    known, faults = {written(key): value for key, value in table.items()}, []
    todo = [(line, command, known.get(command)) for line, command in commands(page)]
    for line, text in blocks(page, "python"):
        todo += [(line, text, value) for key, value in python.items() if key in text]
    for line, what, how in sorted(todo, key=lambda item: item[0]):
        begun = time.monotonic()
        if isinstance(how, Shortened):
            said = run(f"{what} {how.options}", folder)
            missing = [name for name in how.makes if not list(folder.glob(name))]
            said = said or (missing and f"made no {', '.join(missing)}")
        elif isinstance(how, Replaced):
            said = run_python(what, how.by, folder)
        else:
            continue
        faults += [f"{page.name}:{line}: {what}\n{said}"] if said else []
        print(f"{time.monotonic() - begun:5.1f} s  {what.splitlines()[0]}")
    return faults


def run(command: str, folder: Path) -> str | None:
    """None where it ends with 0, else what it said. minilm runs in this process, which has PyTorch loaded already."""
    program, *words = shlex.split(command)
    if program == "minilm":
        return run_minilm(words, folder)
    python = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    if program not in python:
        return f"the tests run minilm, python and torchrun, not {program}: name the test that covers it"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*python[program], *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    return None if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]


@contextlib.contextmanager
def reader_at(folder: Path, said: io.StringIO) -> Iterator[pytest.MonkeyPatch]:
    """In `folder`, what is printed going to `said`."""
    to = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
    with contextlib.chdir(folder), to[0], to[1], pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "_run_one", run_here)  # trials of a study in this process too
        patch.setattr(design, "AXES", dict(design.AXES))  # a page may add one
        yield patch


def run_minilm(words: list[str], folder: Path) -> str | None:
    said = io.StringIO()
    with reader_at(folder, said) as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["minilm", *words])
        main()
    return None if not ended.value.code else f"exit code {ended.value.code}: {said.getvalue()[-2000:]}"


def run_python(text: str, by: dict[str, str], folder: Path) -> str | None:
    for old, new in by.items():
        if old not in text:
            return f"{old!r} is not in it: the table is out of date"
        text = text.replace(old, new)
    script = folder / "page.py"
    script.write_text(text, encoding="utf-8")
    try:
        with reader_at(folder, io.StringIO()):
            runpy.run_path(str(script))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
