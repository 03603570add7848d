"""Reads a run folder: what training wrote on disk, and nothing else.

The files and their fields are those that training writes: config.json, data.json, metrics.jsonl, events.jsonl,
baselines.json, samples/step_*.json, samples/watch.json and quality.json, and the names and sizes of checkpoints/*.pt,
which are never opened. A run may still be going on: every file but config.json and metrics.jsonl may be missing, and
the last line of a .jsonl file may be torn.
"""

import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minilm.errors import UserError

FORMAT = 1
WHAT_A_RUN_IS = "give a folder that `minilm train` wrote, one that holds config.json and metrics.jsonl"


@dataclass(frozen=True)
class Run:
    """One training run as it stands on disk. Rows are in order of step, the last writing of a step counts, and
    numbers that were written as null or NaN are NaN. Losses are nats per token, `wall` is seconds of training,
    resumes included."""

    path: Path
    config: dict[str, Any]
    data: dict[str, Any]
    train_rows: list[dict[str, Any]]  # step (from 1), tokens, loss, lr, grad_norm, tokens_per_s, wall
    eval_rows: list[dict[str, Any]]  # step (from 0), tokens, val_loss, val_bpb, wall
    events: list[dict[str, Any]] = field(default_factory=list)
    baselines: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)  # (step, samples), in order of step
    watch: dict[str, Any] = field(default_factory=dict)  # texts by checkpoint, prompt and temperature
    quality: dict[str, Any] = field(default_factory=dict)  # how good those are
    checkpoints: list[tuple[str, int]] = field(default_factory=list)  # (file name, bytes)
    left_out: list[str] = field(default_factory=list)  # what could not be read, a sentence each

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def model(self) -> dict[str, Any]:
        return table(self.config, "model")

    @property
    def train(self) -> dict[str, Any]:
        return table(self.config, "train")

    @property
    def facts(self) -> dict[str, Any]:
        return table(self.config, "facts")

    @property
    def parameters(self) -> dict[str, Any]:
        """The four counts: total, non_embedding, matrices_and_head, embedding."""
        return table(self.facts, "parameters")

    @property
    def epochs(self) -> float:
        """How many times the training text was read, NaN when not known."""
        return self.tokens / (number(table(self.data, "train").get("tokens")) or math.nan)

    @property
    def unit(self) -> str:
        """What one token is: "character" with a character tokenizer, "token" otherwise."""
        kind = table(self.data, "tokenizer").get("type") or table(self.config, "data").get("tokenizer")
        return "character" if kind == "char" else "token"

    @property
    def source(self) -> str:
        source = str(self.data.get("source") or table(self.config, "data").get("source") or "text")
        return re.split(r"[\\/]", source.rstrip("\\/"))[-1] or "text"

    @property
    def bytes_per_token(self) -> float:
        """Bytes of validation text per token, NaN when not recorded."""
        return number(self.data.get("bytes_per_token")) or math.nan

    @property
    def floor_bits_per_byte(self) -> float:
        """The source's own entropy in bits per byte, NaN when nobody knows it."""
        return number(table(self.data, "floor").get("bits_per_byte"))

    @property
    def floor(self) -> float | None:
        """The loss in nats per token that no model can beat on average, None when nobody knows it."""
        nats = self.floor_bits_per_byte * math.log(2) * self.bytes_per_token
        if math.isnan(nats) and self.unit == "character":
            nats = number(table(self.data, "floor").get("nats_per_char"))
        return nats if math.isfinite(nats) else None

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest finite loss (the first of them), None before there is one."""
        finite = [row for row in self.eval_rows if math.isfinite(row["val_loss"])]
        return min(finite, key=lambda row: row["val_loss"]) if finite else None

    @property
    def last(self) -> dict[str, Any]:
        return max(self.train_rows[-1:] + self.eval_rows[-1:], key=lambda row: row["step"])

    @property
    def steps_done(self) -> int:
        return self.last["step"]

    @property
    def steps_planned(self) -> int | None:
        steps = number(self.train.get("steps"))
        return int(steps) if math.isfinite(steps) else None

    @property
    def wall(self) -> float:
        """Seconds of training, NaN when not recorded."""
        return max(
            (w for row in self.train_rows + self.eval_rows if not math.isnan(w := row["wall"])), default=math.nan
        )

    @property
    def tokens(self) -> float:
        return max(
            (t for row in self.train_rows + self.eval_rows if not math.isnan(t := row["tokens"])), default=math.nan
        )

    @property
    def status(self) -> str:
        """ "finished", "stopped" or "going on"."""
        if self.steps_planned is not None and self.steps_done >= self.steps_planned:
            return "finished"
        marks = [e.get("event") for e in self.events if e.get("event") in ("started", "resume", "stopped", "finished")]
        return marks[-1] if marks and marks[-1] in ("stopped", "finished") else "going on"

    @property
    def tokens_per_second(self) -> float:
        """Median over the training rows, NaN when not recorded."""
        rates = self.column("tokens_per_s")[1]
        rates = rates[np.isfinite(rates)]
        return float(np.median(rates)) if len(rates) else math.nan

    def bits_per_byte(self, nats_per_token: float) -> float:
        return nats_per_token / (math.log(2) * self.bytes_per_token)

    def bits_of(self, row: dict[str, Any]) -> float:
        """Bits per byte of an evaluation: as recorded, else from its nats; NaN when neither is known."""
        return row["val_bpb"] if math.isfinite(row["val_bpb"]) else self.bits_per_byte(row["val_loss"])

    def column(self, key: str, against: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """(x, y), float64 both, of one column: from the evaluation rows for val_loss and val_bpb, else from the
        training rows."""
        rows = self.eval_rows if key in ("val_loss", "val_bpb") else self.train_rows
        return (
            np.array([row[against] for row in rows], dtype=float),
            np.array([row[key] for row in rows], dtype=float),
        )

    def count(self, event: str) -> int:
        return sum(e.get("event") == event for e in self.events)


def read_run(path: str | Path) -> Run:
    """Reads one run folder. Raises UserError for a folder that is no run, has no metrics yet or was written in
    another format."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"There is no run folder at {path}; {WHAT_A_RUN_IS}.")
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a run folder, for it has no config.json; {WHAT_A_RUN_IS}.")
    left_out: list[str] = []
    config = _read_json(path / "config.json", left_out, required=True)
    if config.get("format") != FORMAT:
        raise UserError(
            f"{path / 'config.json'} has format {config.get('format')!r} and this minilm reads format {FORMAT}; "
            "report the run with the version of minilm that trained it."
        )
    rows = _read_lines(path / "metrics.jsonl", left_out)
    train_rows = _in_order(rows, ("loss", "lr", "grad_norm", "tokens_per_s"))
    eval_rows = _in_order(rows, ("val_loss", "val_bpb"))
    if not train_rows and not eval_rows:
        raise UserError(f"{path} has no metrics yet; let the training take at least one step and report again.")
    return Run(
        path=path,
        config=config,
        data=_read_json(path / "data.json", left_out),
        train_rows=train_rows,
        eval_rows=eval_rows,
        events=[e for e in _read_lines(path / "events.jsonl", left_out) if isinstance(e.get("event"), str)],
        baselines=_read_json(path / "baselines.json", left_out),
        samples=_read_samples(path / "samples", left_out),
        watch=_read_json(path / "samples" / "watch.json", left_out),
        quality=_read_json(path / "quality.json", left_out),
        checkpoints=sorted((p.name, p.stat().st_size) for p in (path / "checkpoints").glob("*.pt")),
        left_out=left_out,
    )


def number(value: Any) -> float:
    """The value as a float, NaN for anything that is not a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        return math.nan


def table(parent: dict[str, Any], key: str) -> dict[str, Any]:
    """The object that `parent` holds at `key`, empty where there is none."""
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _read_json(path: Path, left_out: list[str], required: bool = False) -> dict[str, Any]:
    if not path.is_file() and not required:
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, OSError):
        value = None
    if isinstance(value, dict):
        return value
    if required:
        raise UserError(f"{path} cannot be read as a JSON object; {WHAT_A_RUN_IS}.")
    left_out.append(f"{path.name} could not be read and was left out.")
    return {}


def _read_lines(path: Path, left_out: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file. A torn line (the last one of a run that is being written, or the place where
    a killed run was taken up again) is left out, and said so unless it is the last."""
    if not path.is_file():
        return []
    rows, torn = [], []
    lines = _text(path).splitlines()
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn.append(index)
    if inner := [index for index in torn if index != len(lines) - 1]:
        lines_of = "1 unreadable line" if len(inner) == 1 else f"{len(inner)} unreadable lines"
        left_out.append(f"{lines_of} of {path.name} left out.")
    return rows


def _in_order(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows that hold the first key, one a step: a resumed run writes some steps twice, and the later writing is
    the one that the weights went through."""
    by_step = {}
    for row in rows:
        step = number(row.get("step"))
        if keys[0] in row and math.isfinite(step):
            by_step[int(step)] = {"step": int(step)} | {key: number(row.get(key)) for key in ("tokens", "wall", *keys)}
    return [by_step[step] for step in sorted(by_step)]


def _read_samples(folder: Path, left_out: list[str]) -> list[tuple[int, list[dict[str, Any]]]]:
    by_step = {}
    for path in sorted(folder.glob("step_*.json")):
        found = _read_json(path, left_out)
        step, samples = number(found.get("step")), found.get("samples")
        if math.isfinite(step) and isinstance(samples, list):
            kept = [s for s in samples if isinstance(s, dict) and isinstance(s.get("text"), str)]
            if kept:
                by_step[int(step)] = kept
    return [(step, by_step[step]) for step in sorted(by_step)]


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")
