"""What results files say, one device at a time: read, and put in order for tables and figures.

A result whose status is not "ok" keeps nothing that was measured.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import peers
from bench.contest import OK
from minilm.errors import UserError
from minilm.studies.race import Race

FORMAT = 1
NAMES = {
    "causal_attention_packed": "attention",
    "causal_attention": "attention (q, k, v apart)",
    "linear_cross_entropy": "cross-entropy",
    "decode_attention": "decode",
}
PACKAGES = {p.name: p.package for op in peers.PEERS.values() for p in op} | {"compiled": "torch"}
STYLES = {  # colour of the sheet, dashes, marker: any two that meet in a figure differ in all three, or in two
    "triton": ("s2", "-", "o"),
    "torch": ("s1", "-", "s"),
    "reference": ("muted", ":", "v"),
    "compiled": ("s5", "--", "D"),
    "sdpa-flash": ("s3", "--", "^"),
    "sdpa-cudnn": ("s4", "-.", "P"),
    "sdpa-efficient": ("s6", "--", "<"),
    "sdpa-math": ("s7", ":", "h"),
    "flex": ("s8", "-.", ">"),
    "flash-attn": ("ink", "--", "d"),
    "flash-attn-3": ("ink", "-.", "X"),
    "flash-attn-4": ("ink", "-", "*"),
    "sdpa": ("s7", "-.", "s"),
    "liger": ("s3", "-.", "p"),
    "quack": ("s4", "--", "H"),
    "nanogpt": ("s8", "-.", "d"),
}
STRANGER = ("ink", ":", "8")
CACHED = "What fits into a cache can be faster than the floor, which is measured on tensors that do not."
Row = dict[str, Any]


@dataclass
class Machine:
    """What the files say about one device. rows: one for each (case, pass, provider), in the order in which they were
    first measured; train: one for each (label, context length, batch size); breakdown,
    memory, contexts, tried, tune: of the last file that has them; sources: (file, its "machine")."""

    device: str
    rows: dict[tuple, Row] = field(default_factory=dict)
    train: dict[tuple, Row] = field(default_factory=dict)
    side_by_side: Row | None = None
    races: list[Race] = field(default_factory=list)
    breakdown: list[Row] = field(default_factory=list)  # parts of a step's time
    memory: list[Row] = field(default_factory=list)  # parts of a step's memory
    contexts: list[Row] = field(default_factory=list)  # the longest that fit by the count
    tried: list[Row] = field(default_factory=list)
    tune: list[Row] = field(default_factory=list)  # a row an entry of the tuning table, with a time before and after
    stages: dict[str, Row] = field(default_factory=dict)  # what the tests said, and whatever else has no rows
    sources: list[tuple[str, Row]] = field(default_factory=list)

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    @property
    def ours(self) -> str:
        names = [row["provider"] for row in self.rows.values()] + [row["kernels"] for row in self.train.values()]
        return "triton" if "triton" in names else "torch"

    def told(self, of: Callable[[Row], Any]) -> str:
        """A fact about the machine: all that the files say, where they differ; empty where none does."""
        return " and ".join(dict.fromkeys(str(said) for _, facts in self.sources if (said := of(facts))))

    def version(self, package: str) -> str:
        return self.told(lambda facts: (facts.get("versions") or {}).get(package))

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the figures, as whoever measured them wrote it."""
        return [note for _, facts in self.sources for note in facts.get("notes") or ()]

    @property
    def provenance(self) -> str:
        packages = dict.fromkeys(name for _, facts in self.sources for name in facts.get("versions") or ())
        known = {"driver": self.told(lambda facts: facts.get("driver"))} | {p: self.version(p) for p in packages}
        return ", ".join([self.device, *(f"{name} {said}" for name, said in known.items() if said)])


@dataclass(frozen=True)
class Family:
    """Operations that share a figure; x is the size along it."""

    name: str
    title: str
    ops: tuple[str, ...]
    x: str
    xlabel: str


FAMILIES = (
    Family("attention", "Causal attention", ("causal_attention_packed", "causal_attention"), "T", "sequence length T"),
    Family("norms", "Normalization", ("add_layer_norm", "layer_norm", "add_rms_norm", "rms_norm"), "width", "width"),
    Family("swiglu", "SwiGLU", ("swiglu",), "width", "width"),
    Family("cross_entropy", "Cross-entropy from hidden states", ("linear_cross_entropy",), "vocab", "vocabulary"),
    Family("decode", "Decoding: one query a sequence against a cache", ("decode_attention",), "T", "cache length T"),
)


def read(paths: Iterable[Path], say: Callable[[str], None] = print) -> list[Machine]:
    """One Machine a device, in the order of the files; later files replace what earlier ones measured. Says which
    files are of another kind, and raises UserError when none is left."""
    machines: dict[str, Machine] = {}
    for path in paths:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            say(f"{path} is left out: it could not be read as JSON ({error}).")
            continue
        if isinstance(data, dict) and {"target", "device", "runners"} <= data.keys():  # of minilm race
            machines.setdefault(data["device"], Machine(data["device"])).races.append(Race.from_dict(data))
            continue
        facts = data.get("machine") if isinstance(data, dict) and data.get("format") == FORMAT else None
        if not isinstance(facts, dict) or not facts.get("device"):
            say(f"{path} is left out: it holds no benchmark results of format {FORMAT}.")
            continue
        machine = machines.setdefault(facts["device"], Machine(facts["device"]))
        machine.sources.append((path.name, facts))
        for row in map(_cleaned, data.get("ops") or ()):
            machine.rows[row["case"], row["which"], row["provider"]] = row
        for row in map(_cleaned, data.get("train") or ()):
            machine.train[row.get("preset"), row["label"], row["context_length"], row["batch_size"]] = row
        machine.side_by_side = data.get("side_by_side") or machine.side_by_side
        machine.breakdown = data.get("breakdown") or machine.breakdown
        machine.memory = data.get("memory") or machine.memory
        machine.contexts = data.get("contexts") or machine.contexts
        machine.tried = data.get("contexts tried") or machine.tried
        machine.tune = [row for row in data.get("tune") or () if "speedup" in row] or machine.tune
        machine.stages |= data.get("stages") or {}
    if not machines:
        raise UserError("None of the files holds benchmark results; give files that python -m bench.gpu has written.")
    return list(machines.values())


MEASURED = (
    "median p20 p80 low high host floor fraction flops_per_s bytes_per_s peak_bytes tokens_per_s mfu step_s"
    " first_step_s"
).split()


def _cleaned(row: Row) -> Row:
    """What was measured is None where there is none, and all of it unless the result is right."""
    nothing = dict.fromkeys(MEASURED)
    return nothing | row if row["status"] == OK else row | nothing


def of_family(machine: Machine, family: Family) -> list[Row]:
    return [row for row in machine.rows.values() if row["op"] in family.ops]


def main_cases(rows: Sequence[Row], family: Family) -> list[str]:
    """Those of the README. Of widths: the case of each series that was measured first. Of lengths and vocabularies:
    the one that was measured first of all, and the largest of each series."""
    firsts: dict[tuple, Row] = {}
    largest: dict[tuple, Row] = {}
    for row in rows:
        firsts.setdefault(series(row), row)
        largest[series(row)] = max(largest.get(series(row), row), row, key=size)
    chosen = firsts.values() if family.x == "width" else [*rows[:1], *largest.values()]
    return list(dict.fromkeys(row["case"] for row in chosen))


def series(row: Row) -> tuple:
    return row["op"], row["dtype"], row["shape"].get("H"), row["shape"].get("D")


def size(row: Row) -> tuple[int, ...]:
    return math.prod(row["shape"].values()), *reversed(row["shape"].values())


def faults(rows: Sequence[Row], known: Sequence[str]) -> list[str]:
    """A sentence a status that is not among `known`: who has it, at how many rows of what, and at which sizes."""
    found: dict[str, dict[tuple[str, str], list[int]]] = {}
    total = Counter((name_of(row), _what(row)) for row in rows)
    for row in rows:
        if row["status"] not in known:
            sizes = found.setdefault(row["status"], {}).setdefault((name_of(row), _what(row)), [])
            sizes.append(_length(row))
    return [
        f"{status}: " + "; ".join(_how_often(*key, sizes, total[key]) for key, sizes in by_name.items())
        for status, by_name in found.items()
    ]


def _how_often(name: str, what: str, sizes: Sequence[int], of: int) -> str:
    return f"{name} in {len(sizes)} of {of} rows of {what} ({', '.join(map(thousands, sorted({*sizes})))})"


def name_of(row: Row) -> str:
    return row["provider"] if "provider" in row else row["label"]


def _what(row: Row) -> str:
    return f"{short(row['op'])} by {_x(row)}" if "op" in row else "training by context length"


def _x(row: Row) -> str:
    """The name of the size that its figure runs along."""
    return next((family.x for family in FAMILIES if row["op"] in family.ops), next(iter(row["shape"])))


def _length(row: Row) -> int:
    return row["shape"][_x(row)] if "op" in row else row["context_length"]


def rank(name: str) -> tuple[int, str]:
    """For sorting: providers and ways to train in the order of STYLES."""
    order = list(STYLES)
    first = name.partition(" ")[0]
    return (order.index(first) if first in order else len(order)), name


def short(op: str) -> str:
    return NAMES.get(op, op)


def title_of(row: Row) -> str:
    """Of a provider, with its version: "liger-kernel 0.6.4", "sdpa-flash (torch 2.13.0)"."""
    name, version = name_of(row), row.get("version") or ""
    package = PACKAGES.get(name, "")
    if name in peers.OURS or not version:
        return name
    return f"{package} {version}" if package.startswith(name) else f"{name} ({f'{package} {version}'.strip()})"


def thousands(x: int) -> str:
    return f"{x // 1024}k" if x >= 1024 and x % 1024 == 0 else f"{x}"


def digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
