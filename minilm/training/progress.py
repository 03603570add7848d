"""What a person sees of a training: facts before it, a live line during it, plain lines where there is no terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from minilm.config import RunConfig
from minilm.corpus.dataset import Dataset

LINE_EVERY_S = 10.0  # where the output is no terminal


def duration(seconds: float) -> str:
    """3725 -> "1h02m", 151 -> "2m31s", 9.5 -> "9.5s"."""
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(number: float) -> str:
    """A count of bytes: "24.5 MB", decimal."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


class ProgressLine:
    """The live line of a training: step, loss, validation loss, tokens/s, MFU, time left."""

    def __init__(self, console: Console, steps: int, done: int):
        self.console, self.steps = console, steps
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, text="")

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, text: str) -> None:
        self._bar.update(self._task, completed=step, text=text)
        due = time.monotonic() - self._last_line >= LINE_EVERY_S
        if not self.console.is_terminal and (due or step == self.steps):
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self.steps}  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)


def introduction(run: Path, c: RunConfig, f: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """What is known of a training of configuration `c` on `data` before its first step, from its facts `f`."""
    counts, floor = f["parameters"], data.floor
    return {
        "run": run,
        "device": f"{f['device']} ({f['device_name']})",
        **({"processes": processes(c, f)} if f["world_size"] > 1 else {}),
        "precision": f"{f['dtype']}, residual stream {f['residual_dtype']}, weights float32",
        "kernels": f"{f['kernels']} ({f['kernels_reason']})",
        "compile": f"{f['compile']} ({f['compile_reason']})"
        + ("" if f["compile"] == "off" else "; the first step takes up to a minute"),
        **({"graphs": "on (every update is one CUDA graph)"} if c.train.graphs == "on" else {}),
        "model": f"{c.model.n_layers} layers, {c.model.n_heads} heads, d_model {c.model.d_model}, d_ff "
        f"{c.model.d_ff}, context {c.model.context_length}",
        "parameters": f"{counts['total']:,} in all; {counts['non_embedding']:,} without embeddings; "
        f"{counts['matrices_and_head']:,} in matrices and head; {counts['embedding']:,} in embeddings",
        "data": f"{c.data.source}: {len(data.train):,} tokens to train on, {len(data.val):,} "
        f"held out, vocabulary {data.vocab_size} ({c.data.tokenizer})"
        + (f", floor {floor:.4f} nats/token" if floor else ""),
        "steps": f"{c.train.steps:,} of {f['tokens_per_step']:,} tokens: {f['epochs']:.2f} epochs",
        "cost": f"{f['flops_per_token'] / 1e6:,.1f} MFLOP a token, about {size(f['memory_estimate_bytes'])} of memory",
    }


def processes(c: RunConfig, f: dict[str, Any]) -> str:
    how = "sharded" if c.train.shard else "exact reduction" if c.train.exact_reduction else "data parallel"
    each = c.train.batch_size // f["world_size"]
    return f"{f['world_size']} ({f['backend']}, {how}), {each} of {c.train.batch_size} sequences each"


def facts_table(facts: dict[str, Any]) -> Table:
    """Two columns, names dim."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    return table
