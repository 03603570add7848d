"""Where a step's time goes and what its memory is: rows of a results file as tables, for a page or a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.contest import OK
from bench.records import Machine, digits

Row = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]  # what it is, head, rows
WAYS = (False, True)  # activations kept, activations computed again


def time_tables(breakdown: Iterable[Row]) -> Iterable[Table]:
    """A table a way to train: each part, its floor, and the longest of what it consists of."""
    by_label: dict[str, list[Row]] = {}
    for row in breakdown:
        by_label.setdefault(row["label"], []).append(row)
    for label, rows in by_label.items():
        first = rows[0]
        title = f"Where the time of a step goes: {first['preset']}, {first['context_length']} x {first['batch_size']}"
        head = ["part", "ms", "floor, ms", "above", "calls", "longest, ms"]
        title += f", {label}, {digits(1e3 * first['step_s'])} ms by the clock"
        if first.get("launches"):
            title += f", {first['launches']:.0f} launches in {digits(1e3 * first['host_s'])} ms of the host"
        yield title, head, [_part(row) for row in rows]


def _part(row: Row) -> list[str]:
    floor, seconds = row["floor_s"], row["seconds"]
    return [
        row["part"],
        f"{seconds * 1e3:.3f}",
        "" if floor is None else f"{floor * 1e3:.3f}",
        f"{seconds / floor:.1f}" if floor and seconds else "",
        f"{row['calls']:.0f}",
        ", ".join(f"{name[:48]} {spent * 1e3:.2f}" for name, spent in row["names"]),
    ]


def memory_table(memory: Sequence[Row]) -> Table:
    """MiB by part, a column a way to compute."""
    columns: dict[str, dict[str, int]] = {}
    for row in memory:
        columns.setdefault(_way(row), {})[row["part"]] = row["bytes"]
    parts = dict.fromkeys(row["part"] for row in memory)
    rows = [[part, *(_mib(column.get(part)) for column in columns.values())] for part in parts]
    rows.append(["all", *(_mib(sum(column.values())) for column in columns.values())])
    first = memory[0]
    size = f"{first['preset']}, {first['context_length']} x {first['batch_size']}"
    return f"Memory of a step, MiB, by the count: {size}", ["part", *columns], rows


def contexts_table(memory: Iterable[Row], contexts: Sequence[Row], tried: Iterable[Row] = ()) -> Table:
    """A row a set of kernels: the memory of a step, and the longest context that fits into the budget, each with
    activations kept and computed again; with what was tried, the longest that ran, too."""
    total: dict[tuple[str, bool], int] = {}
    for row in memory:
        key = row["kernels"], row["checkpoint_activations"]
        total[key] = total.get(key, 0) + row["bytes"]
    longest = {(row["kernels"], row["checkpoint_activations"]): row["context_length"] for row in contexts}
    head = ["kernels", "MiB a step", "computed again", "longest context", "computed again"]
    rows = [
        [name, *(_mib(total.get((name, w))) for w in WAYS), *(_count(longest[name, w]) for w in WAYS)]
        for name in dict.fromkeys(row["kernels"] for row in contexts)
    ]
    ran: dict[tuple[str, bool], int] = {}
    for row in tried:
        if row["status"] == OK:
            key = row["kernels"], row["checkpoint_activations"]
            ran[key] = max(ran.get(key, 0), row["context_length"])
    if ran:
        head += ["tried", "computed again"]
        rows = [[*cells, *(_count(ran.get((cells[0], w))) for w in WAYS)] for cells in rows]
    budget = f"{contexts[0]['budget_bytes'] / 2**30:.3g} GiB"
    return f"Memory of a step, and the longest context of one sequence in {budget}", head, rows


def tried_table(tried: Iterable[Row]) -> Table:
    head = ["kernels", "context", "counted, GiB", "peak, GiB", "a step, s"]
    return "Contexts tried, one sequence of the capstone", head, [
        [_way(row), f"{row['context_length']:,}", _gib(row["counted_bytes"]), _gib(row["peak_bytes"]) or row["status"]]
        + [f"{row['step_s']:.3f}" if row["step_s"] else ""]
        for row in tried
    ]  # fmt: skip


def _way(row: Row) -> str:
    return row["kernels"] + ", computed again" * row["checkpoint_activations"]


def _count(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f}"


def tables(machine: Machine) -> Sequence[Table]:
    """All that a machine has of these."""
    found = list(time_tables(machine.breakdown))
    found += [memory_table(machine.memory)] if machine.memory else []
    return found + ([tried_table(machine.tried)] if machine.tried else [])
