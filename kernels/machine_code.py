"""Compiles every kernel of kernels/fused for GPUs that are not there, and reads what the machine code says.

    python -m kernels.machine_code --arch 80,90 --json machine_code.json

The representative calls of kernels.machine_code_cases go through the real launchers with the committed tuning tables of
the chip asked for, so strides, alignment and constants are specialised as they will be on a GPU; but a launch only
compiles, and nothing runs. The figures come from Triton's own cuobjdump and nvdisasm.

Under TRITON_INTERPRET nothing can be compiled, so this needs a process without it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from kernels.fused import tuning
from kernels.machine_code_cases import CASES

HERE = Path(__file__).parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS = 65536  # of a multiprocessor, on every chip here


@dataclass(frozen=True)
class Chip:
    """Limits of a multiprocessor (CUDA C++ programming guide, table of compute capabilities)."""

    shared_kib: int
    block_shared_kib: int
    warps: int
    blocks: int


CHIPS = {
    80: Chip(164, 163, 64, 32),
    86: Chip(100, 99, 48, 16),
    89: Chip(100, 99, 48, 24),
    90: Chip(228, 227, 64, 32),
    100: Chip(228, 227, 64, 32),
    120: Chip(100, 99, 48, 24),
}
DEFAULT_ARCHS = (80, 89, 90, 100)


@dataclass(frozen=True)
class Figures:
    """What one kernel in one configuration costs and uses. Counts are of instructions in the code, not executed."""

    case: str
    kernel: str
    arch: int
    config: dict[str, int]
    registers: int
    spills: int
    shared: int
    fits: bool
    tensor_core: int  # HMMA, HGMMA or UTC*MMA
    wgmma: int
    loads_128: int
    loads: int
    blocks_per_sm: int
    warps_per_sm: int


class _AbsentDriver:
    """Stands in for the CUDA driver: says which chip to compile for, and that nothing is there to run on."""

    def __init__(self, arch: int):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton keeps one cache of kernels a device: one a chip

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiled_launches(arch: int) -> Iterator[list[Any]]:
    """Within, launches compile for `arch` and do not run; yields the list that the compiled kernels are added to."""
    launches: list[Any] = []
    run, active = triton.JITFunction.run, driver._active

    def compile_only(self, *args, grid, warmup, **kwargs):
        launches.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    driver.set_active(_AbsentDriver(arch))
    triton.JITFunction.run = compile_only
    try:
        with tuning.pretend(f"sm_{arch}"):
            yield launches
    finally:
        triton.JITFunction.run = run
        driver._active = active  # reset_active() would look for a GPU


def figures(kernel: Any, case: str, config: dict[str, int]) -> Figures:
    """Read a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    arch, warps, shared = kernel.metadata.target.arch, kernel.metadata.num_warps, kernel.metadata.shared
    chip = CHIPS.get(arch) or CHIPS[arch // 10 * 10]  # the first of its generation
    registers = int(re.search(r"\bREG:(\d+)", usage).group(1))
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", assembly, re.M)

    def count(pattern: str) -> int:
        return sum(re.match(pattern, opcode) is not None for opcode in opcodes)

    blocks = min(
        REGISTERS // (-(-registers // 8) * 8 * 32 * warps),
        chip.shared_kib * 1024 // (shared + 1024),  # each block costs 1 KiB of the system's own
        chip.warps // warps,
        chip.blocks,
    )
    return Figures(
        case=case,
        kernel=kernel.metadata.name,
        arch=arch,
        config=config,
        registers=registers,
        spills=count(r"LDL|STL"),
        shared=shared,
        fits=shared <= chip.block_shared_kib * 1024,
        tensor_core=count(r"HMMA|HGMMA|UTC\w*MMA"),
        wgmma=count(r"HGMMA"),
        loads_128=count(r"(LDG|LDGSTS)\..*\b128"),
        loads=count(r"(LDG|LDGSTS)\."),
        blocks_per_sm=blocks,
        warps_per_sm=blocks * warps,
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def cases(pattern: str = "") -> dict[str, Callable[[], None]]:
    """The cases whose "operation: label" contains the regular expression."""
    named = {f"{op}: {label}": case for op, chosen in CASES.items() for label, case in chosen.items()}
    return {label: case for label, case in named.items() if re.search(pattern, label)}


def measure(arch: int, chosen: dict[str, Callable[[], None]]) -> Iterable[Figures]:
    """The figures of every kernel that the cases launch on `arch`, each distinct machine code once a case."""
    for label, case in chosen.items():
        with compiled_launches(arch) as launches:
            case()
        for kernel in {kernel.hash: kernel for kernel in launches}.values():
            yield figures(kernel, label, _config(kernel))


def _config(kernel: Any) -> dict[str, int]:
    """The constants in capitals that the kernel was compiled with, and its warps and stages."""
    names = kernel.src.fn.arg_names
    constants = {names[path[0]]: value for path, value in kernel.src.constants.items() if len(path) == 1}
    blocks = {name: value for name, value in constants.items() if name.isupper() and type(value) is int}
    return {**blocks, "num_warps": kernel.metadata.num_warps, "num_stages": kernel.metadata.num_stages}


def source_hashes() -> dict[str, str]:
    """By module of kernels/fused that has cases: of everything that decides its figures but Triton.

    That is the module and what it imports of kernels, the entries of its ops in every committed table, and the cases.
    """
    tables = {path.stem: tuning.read_table(path) for path in sorted(tuning.COMMITTED.glob("*.json"))}
    hashes = {}
    for module in CASES:
        digest = hashlib.sha256()
        for path in sorted(_sources(HERE / "fused" / f"{module}.py")):
            code = as_compiled(path.read_text(encoding="utf-8"))
            digest.update(f"{path.relative_to(HERE).as_posix()}\0{code}\0".encode())
        entries = {
            chip: {op: entries for op, entries in ops.items() if op.startswith(module)} for chip, ops in tables.items()
        }
        functions = sorted({as_compiled(inspect.getsource(case.func)) for case in CASES[module].values()})
        digest.update(json.dumps([entries, sorted(CASES[module]), functions], sort_keys=True).encode())
        hashes[module] = digest.hexdigest()
    return hashes


def as_compiled(source: str) -> str:
    """Python source as its syntax tree in words: without comments, docstrings and layout, which no compiler sees.

    Not ast.dump, whose words change with the version of Python: fields that are empty or say only how something was
    written are left out, as later versions add more of them.
    """

    def words(node: Any) -> str:
        if isinstance(node, list):
            return " ".join(words(each) for each in node if not _is_docstring(each))
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = {name: value for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")}
        said = {name: words(value) for name, value in fields.items() if value is not None}
        return f"({type(node).__name__} {' '.join(f'{name}={value}' for name, value in said.items() if value)})"

    return words(ast.parse(textwrap.dedent(source)))


def _is_docstring(node: Any) -> bool:
    """A string that is a statement."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _sources(path: Path) -> set[Path]:
    """A file of kernels and the files of kernels/fused that it imports, and what those import; and the dropout hash.

    Not operators.py, which is the host's alone: what a kernel is launched with is in the files that launch it.
    """
    found, waiting = set(), [path]
    while waiting:
        path = waiting.pop()
        found.add(path)
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"^from kernels\.fused\.(\w+) import", text, re.M)
        names += re.findall(r"\w+", "".join(re.findall(r"^from kernels\.fused import (.+)$", text, re.M)))
        others = [HERE / "fused" / f"{name}.py" for name in names if name != "operators"]
        others += [HERE / "dropout.py"] if re.search(r"^from kernels import .*\bdropout\b", text, re.M) else []
        waiting += [other for other in others if other not in found]
    return found


def write_json(path: Path, rows: list[Figures], hashes: dict[str, str | None]) -> None:
    """`rows` are of the modules in `hashes`, None where not all of a module was measured; what the file has of others
    stays."""
    kept, sources = [], {}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["triton"] == triton.__version__:
            sources = {module: digest for module, digest in before["sources"].items() if module not in hashes}
            kept = [row for row in before["kernels"] if row["case"].split(":")[0] in sources]
    every = sorted([*kept, *map(asdict, rows)], key=lambda row: (row["arch"], row["case"].split(":")[0]))
    record = {"sources": dict(sorted({**sources, **hashes}.items())), "triton": triton.__version__}
    lines = ",\n".join("  " + json.dumps(row) for row in every)
    head = json.dumps(record)[1:-1]
    path.write_text(f'{{{head}, "kernels": [\n{lines}\n]}}\n', encoding="utf-8")


def stale_modules(path: Path) -> list[str]:
    """The modules whose figures in `path` are missing or were taken from other sources than those that are here now."""
    there = json.loads(path.read_text(encoding="utf-8"))["sources"] if path.exists() else {}
    return [module for module, digest in source_hashes().items() if there.get(module) != digest]


def _print_table(rows: list[Figures]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "kernel", "configuration", title=f"Machine code, Triton {triton.__version__}")
    for heading in ("sm", "registers", "spills", "shared KiB", "tensor core", "128-bit loads", "blocks/SM", "warps/SM"):
        table.add_column(heading, justify="right")
    for row in rows:
        bad = row.spills or not row.fits
        table.add_row(
            row.case,
            row.kernel,
            " ".join(f"{name.removeprefix('num_')} {value}" for name, value in row.config.items()),
            str(row.arch),
            str(row.registers),
            str(row.spills),
            f"{row.shared / 1024:.0f}" + ("" if row.fits else " (too much)"),
            f"{row.tensor_core}" + (" wgmma" if row.wgmma else ""),
            f"{row.loads_128} of {row.loads}",
            str(row.blocks_per_sm),
            str(row.warps_per_sm),
            style="red" if bad else None,
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.machine_code", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--arch", default=",".join(map(str, DEFAULT_ARCHS)), help="compute capabilities, as 80,90")
    parser.add_argument("--cases", default="", metavar="REGEX", help="only the cases whose label contains it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--stale", action="store_true", help="only of modules whose figures in FILE are out of date")
    options = parser.parse_args(arguments)
    archs = options.arch.split(",")
    if unknown := [arch for arch in archs if arch not in map(str, CHIPS)]:
        parser.error(f"no figures are known for {', '.join(unknown)}; --arch takes {', '.join(map(str, CHIPS))}")
    if not (chosen := cases(options.cases)):
        parser.error(f"no case has a label that contains {options.cases!r}")
    if options.stale:
        if not options.json:
            parser.error("--stale compares with the FILE of --json; name it")
        modules = stale_modules(options.json)
        chosen = {label: case for label, case in chosen.items() if label.split(":")[0] in modules}
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, with which nothing is compiled; unset it")
    rows = [row for arch in archs for row in measure(int(arch), chosen)]
    _print_table(rows)
    if options.json:
        measured = {label.split(":")[0] for label in chosen}
        whole = not options.cases and set(DEFAULT_ARCHS) <= set(map(int, archs))
        write_json(options.json, rows, {m: d if whole else None for m, d in source_hashes().items() if m in measured})
    return 0


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # a GPU that is there is not the one compiled for
    sys.exit(main())
