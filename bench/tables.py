"""Results for reading in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bench import contest, steps


def ops_table(found: Sequence[contest.Row], title: str) -> Table:
    """Rows for reading: a line a provider, with its speed relative to PyTorch's own operator."""
    shown = Table("case", "pass", "provider", box=None, pad_edge=False, title=title)
    on_gpu = any(row.host is not None for row in found)
    headings = ["time", "20-80%", "vs torch", "GFLOP/s", "GB/s", "of floor"]
    for heading in headings + ["host", "memory"] * on_gpu:
        shown.add_column(heading, justify="right", no_wrap=True)
    torch_times = {(row.case, row.which): row.median for row in found if row.provider == "torch"}
    before = None
    for row in found:
        key = (row.case, row.which)
        name = key if key != before else ("", "")
        before = key
        if row.median is None:
            shown.add_row(*name, row.provider, row.status, style="dim" if row.status == contest.ABSENT else "red")
            continue
        baseline = torch_times.get(key)
        cells = [
            microseconds(row.median),
            f"{microseconds(row.p20)}-{microseconds(row.p80)}",
            f"{baseline / row.median:.2f}x" if baseline else "",
            f"{row.flops_per_s / 1e9:,.3g}" if row.flops_per_s else "",
            f"{row.bytes_per_s / 1e9:,.3g}",
            f"{row.fraction:.0%}",
        ]
        if on_gpu:
            cells += [microseconds(row.host), f"{row.peak_bytes / 2**20:,.0f} MiB"]
        shown.add_row(*name, row.provider, *cells)
    if not on_gpu:
        shown.caption = (
            "of floor: the floor is measured on tensors too large for a cache, so a small case may pass 100%"
        )
    return shown


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def steps_table(found: Sequence[steps.StepRow], title: str) -> Table:
    """Training steps: a line a way to train, with its speed relative to the plain reference."""
    shown = Table("context x batch", "kernels", box=None, pad_edge=False, title=title)
    for heading in ("a step", "tokens/s", "vs reference", "MFU", "peak memory", "first step"):
        shown.add_column(heading, justify="right", no_wrap=True)
    plain = {(row.context_length, row.batch_size): row.step_s for row in found if row.label == "reference eager"}
    for row in found:
        size = f"{row.context_length} x {row.batch_size}"
        if row.step_s is None:
            shown.add_row(size, row.label, row.status, style="red")
            continue
        baseline = plain.get((row.context_length, row.batch_size))
        shown.add_row(
            size,
            row.label,
            microseconds(row.step_s),
            f"{row.tokens_per_s:,.0f}",
            f"{baseline / row.step_s:.2f}x" if baseline else "",
            f"{row.mfu:.1%}" if row.mfu else "",
            f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes else "",
            f"{row.first_step_s:.1f} s",
        )
    return shown


def plain_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Names to the left, numbers to the right."""
    shown = Table(head[0], box=None, pad_edge=False, title=title)
    for number, name in enumerate(head[1:], 1):
        longest = max((len(row[number]) for row in rows), default=0)
        shown.add_column(name, justify="left" if longest > 20 else "right")
    for row in rows:
        shown.add_row(*row)
    return shown
