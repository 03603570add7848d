"""Which block sizes, warps and pipeline stages a kernel is launched with, for a chip, a dtype and a shape.

The answer comes from a table written beforehand, never from a timing at run time: the first step runs at full speed,
and neither torch.compile nor a CUDA graph is disturbed. A table is a JSON file a chip,

    {"format": 1, "chip": "sm_90", "ops": {"attention_forward": [
        {"dtypes": ["float16", "bfloat16"], "max_width": 64, "max_length": null,
         "config": {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}}, ...]}}

of which the first entry that matches counts (null matches anything; width and length are what the op says they are).
A table may say "measured": {"device": "NVIDIA H100 80GB HBM3", "triton": ..., ...}, on what it was last tuned.
Tables are asked in this order, and the first that knows the op answers: the user's for the chip, the committed one for
the chip, the committed one for the first chip of its generation, the committed default.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

COMMITTED = Path(__file__).parent / "tuned"
FORMAT = 1
DEFAULT = "default"
LAUNCH_OPTIONS = ("num_warps", "num_stages", "maxnreg")  # for Triton; every other name is a constant of the kernel
COUNTS = ("num_stages", "maxnreg", "PROGRAMS")  # any number; the others are sizes of blocks, or warps: powers of two

_pretended_chip: str | None = None
_overrides: dict[str, Mapping[str, int]] = {}


class TuningError(ValueError):
    """A tuning table cannot be used; the message is one sentence for the person and names the file."""


def lookup(
    op: str, device: torch.device, dtype: torch.dtype | str, *, width: int, length: int | None = None
) -> Mapping[str, int]:
    """The launch configuration of `op`, as keyword arguments for the launch (read-only, about 1 µs once memoised).

    dtype is one of PyTorch's or a name of the op's own; width and length are the op's measures (head width and number
    of keys, row width and number of rows, ...).
    Raises TuningError for a table that cannot be read and for an op that no table knows.
    """
    if op in _overrides:
        return _overrides[op]
    if _pretended_chip:
        return _lookup(op, _pretended_chip, True, dtype, width, length)
    return _lookup(op, _chip(device.type, device.index), False, dtype, width, length)


@lru_cache(maxsize=65536)
def _lookup(
    op: str, chip: str, only_committed: bool, dtype: torch.dtype | str, width: int, length: int | None
) -> Mapping[str, int]:
    dtype_name = str(dtype).removeprefix("torch.")
    for table in _tables(chip, only_committed):
        for entry in table.get(op, ()):
            if (
                (entry["dtypes"] is None or dtype_name in entry["dtypes"])
                and (entry["max_width"] is None or width <= entry["max_width"])
                and (entry["max_length"] is None or (length or 0) <= entry["max_length"])
            ):
                return MappingProxyType(entry["config"])
    raise TuningError(f"no tuning table has an entry for {op}, {dtype_name}, width {width}, length {length} on {chip}.")


@lru_cache
def _tables(chip: str, only_committed: bool) -> tuple[Mapping[str, Any], ...]:
    generation = chip[:-1] + "0" if chip.startswith("sm_") else DEFAULT
    paths = list(dict.fromkeys(COMMITTED / f"{name}.json" for name in (chip, generation, DEFAULT)))
    if not only_committed:
        paths.insert(0, user_folder() / f"{chip}.json")
    return tuple(read_table(path) for path in paths if path.is_file())


@lru_cache
def _chip(device_type: str, index: int | None) -> str:
    if device_type != "cuda":
        return DEFAULT
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def forget() -> None:
    """Read the tables anew at the next lookup (they are otherwise read once a process)."""
    _lookup.cache_clear()
    _tables.cache_clear()


@contextlib.contextmanager
def pretend(chip: str) -> Iterator[None]:
    """Look up for `chip`, such as "sm_90", in the committed tables, whatever the device and the user's own tables."""
    global _pretended_chip
    before, _pretended_chip = _pretended_chip, chip
    try:
        yield
    finally:
        _pretended_chip = before


@contextlib.contextmanager
def override(op: str, config: Mapping[str, int]) -> Iterator[None]:
    """Launch `op` with `config`, whatever the tables say: for measuring a candidate."""
    _overrides[op] = config
    try:
        yield
    finally:
        del _overrides[op]


def device_guard(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the GPU of `x` current for a launch, which Triton does not do by itself. Free for the GPU in use."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def user_folder() -> Path:
    """Where a user's own tables lie: $MINILM_DATA/tuned, or tuned/ in the platform's folder for a program's data."""
    if folder := os.environ.get("MINILM_DATA"):
        return Path(folder).expanduser() / "tuned"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "minilm" / "tuned"


def read_table(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The ops of a table file, checked. Raises TuningError, one sentence, naming the file and the first fault."""
    return _read(path)["ops"]


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TuningError(f"the tuning table {path} cannot be read ({error}); mend or remove it.") from None
    if fault := _fault(table, path.stem):
        raise TuningError(f"the tuning table {path} cannot be used: {fault}; mend or remove it.")
    return table


def write_table(
    path: Path, chip: str, ops: Mapping[str, list[dict[str, Any]]], measured: Mapping[str, str] | None = None
) -> None:
    """Write `ops` into the table at `path`, keeping its other ops; atomic. Raises TuningError for a fault.

    measured: on what they were measured; without it the table keeps what it says.
    """
    kept = _read(path) if path.is_file() else {"ops": {}}
    table = {"format": FORMAT, "chip": chip, "ops": dict(sorted({**kept["ops"], **ops}.items()))}
    if measured := measured or kept.get("measured"):
        table["measured"] = dict(measured)
    if fault := _fault(table, path.stem):
        raise TuningError(f"the tuning table for {path} was not written: {fault}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(_layout(table), encoding="utf-8")
    temporary.replace(path)


def _layout(table: Mapping[str, Any]) -> str:
    """JSON with one entry a line, so that a change of one entry is a change of one line."""
    ops = [
        f"  {json.dumps(op)}: [\n" + ",\n".join(f"   {json.dumps(entry)}" for entry in entries) + "\n  ]"
        for op, entries in table["ops"].items()
    ]
    head = f'{{\n "format": {table["format"]},\n "chip": {json.dumps(table["chip"])},\n'
    if "measured" in table:
        head += f' "measured": {json.dumps(table["measured"])},\n'
    return head + ' "ops": {\n' + ",\n".join(ops) + "\n }\n}\n"


def _fault(table: Any, chip: str) -> str | None:
    """What is wrong with a table, as the middle of a sentence, or None."""
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        return f"it is no table of format {FORMAT}"
    if table.get("chip") != chip:
        return f"it is for the chip {table.get('chip')!r} and its file is named {chip}.json"
    measured = table.get("measured", {})
    if not isinstance(measured, dict) or not all(isinstance(value, str) for value in measured.values()):
        return '"measured" is no object of strings'
    if not isinstance(table.get("ops"), dict):
        return '"ops" is no object of lists of entries'
    for op, entries in table["ops"].items():
        if not isinstance(entries, list):
            return f"{op} is no list of entries"
        for number, entry in enumerate(entries, 1):
            if fault := _entry_fault(entry):
                return f"entry {number} of {op}: {fault}"
    return None


def _entry_fault(entry: Any) -> str | None:
    if not isinstance(entry, dict) or entry.keys() != {"dtypes", "max_width", "max_length", "config"}:
        return "an entry has exactly dtypes, max_width, max_length and config"
    dtypes, config = entry["dtypes"], entry["config"]
    if dtypes is not None and not (isinstance(dtypes, list) and all(isinstance(d, str) for d in dtypes)):
        return f"dtypes is {dtypes!r}; it must be null or a list of names"
    for bound in ("max_width", "max_length"):
        if entry[bound] is not None and not _is_count(entry[bound]):
            return f"{bound} is {entry[bound]!r}; it must be null or a positive integer"
    if not isinstance(config, dict) or not {"num_warps", "num_stages"} <= config.keys():
        return "config lacks num_warps or num_stages"
    for name, value in config.items():
        if name not in LAUNCH_OPTIONS and not name.isupper():
            return f"{name} is no launch option ({', '.join(LAUNCH_OPTIONS)}) and no constant in capitals"
        if not _is_count(value):
            return f"{name} is {value!r}; it must be a positive integer"
        if name not in COUNTS and value & (value - 1):
            return f"{name} is {value}; it must be a power of two"
    if config["num_warps"] > 32 or config["num_stages"] > 8:
        return f"{config['num_warps']} warps and {config['num_stages']} stages; at most 32 and 8 are possible"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
