"""minilm check: is what is on disk sound, what is wrong with it, and what can be done?

Reads only. A run folder, prepared data or one checkpoint; every file that minilm wrote there is read to its last byte.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from minilm.corpus.dataset import SPLITS, open_dataset
from minilm.corpus.tokenizer import load_tokenizer
from minilm.errors import UserError
from minilm.files import check_plain
from minilm.training import checkpoint, journal
from minilm.training.journal import read_config

BLOCK = 1 << 20


@dataclass
class Findings:
    """What was looked at: sound things and wrong ones with what can be done, in the order of looking."""

    lines: list[tuple[bool, str]] = field(default_factory=list)

    def sound(self, text: str) -> None:
        self.lines.append((True, text))

    def wrong(self, text: str, remedy: str) -> None:
        self.lines.append((False, f"{text.rstrip('.')}. What can be done: {remedy}."))

    def tried(self, what: str, look: Callable[[], object], remedy: str) -> bool:
        """Look; a UserError is a finding. `look` may return what there is to add to the name of what is sound."""
        try:
            self.sound(f"{what}{look() or ''}")
            return True
        except UserError as error:
            self.wrong(str(error), remedy)
            return False

    @property
    def faults(self) -> int:
        return sum(not sound for sound, _ in self.lines)


def check(path: Path) -> Findings:
    """Look at a run folder, a folder of prepared data, or a checkpoint. Raises UserError for a path that is none."""
    check_plain(path, folder=not path.is_file())
    found = Findings()
    if path.is_file() and path.suffix == ".pt":
        remedy = "use another checkpoint of the run"
        found.tried(str(path), lambda: _look_at_checkpoint(path), remedy)
    elif (path / journal.CONFIG).exists():
        _check_run(path, found)
    elif any((path / name).exists() for name in ("meta.json", "train.bin", "val.bin")):
        _check_data(path, found)
    else:
        raise UserError(f"{path} is no run folder, no prepared data and no checkpoint (.pt); name one of those.")
    return found


def tell(found: Findings) -> int:
    """Print what was found; returns the exit code, 0 where all is sound and 1 where something is wrong."""
    for sound, text in found.lines:
        click.echo(f"{'ok   ' if sound else 'WRONG'} {text}")
    count = found.faults
    click.echo("Everything is sound." if not count else f"{count} {'thing is' if count == 1 else 'things are'} wrong.")
    return 1 if count else 0


def _look_at_checkpoint(path: Path) -> str:
    state = checkpoint.load(path)
    if "config" not in state or not isinstance(state.get("step"), int):
        raise UserError(f"{path} lacks the configuration or the step of a run: minilm train did not write it.")
    for name, tensor in state["model"].items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path} holds numbers that are not finite, in {name}.")
    kind = "to go on from" if "optimizers" in state else "weights only"
    return f": step {state['step']}, {kind}, {sum(t.numel() for t in state['model'].values()):,} numbers"


def _check_data(path: Path, found: Findings) -> None:
    again = "prepare the data again, by minilm prepare ... --out " + str(path)
    if not found.tried(f"{path}: sizes, format, vocabulary", lambda: open_dataset(path) and None, again):
        return
    data = open_dataset(path)
    for split in SPLITS:
        found.tried(f"{path / split}.bin: checksum", partial(_look_at_hash, path, data.meta, split), again)


def _look_at_hash(path: Path, meta: dict[str, Any], split: str) -> str:
    digest = hashlib.sha256()
    with open(path / f"{split}.bin", "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != meta[split].get("sha256"):
        raise UserError(f"{path / split}.bin is not what was written: its SHA-256 differs from that in meta.json.")
    return f", {meta[split]['tokens']:,} tokens"


def _check_run(path: Path, found: Findings) -> None:
    if not found.tried(str(path), lambda: journal.check_folder(path), "put plain files and folders in its place"):
        return
    anew = "start a new run; samples and journal of this one can still be read"
    if not found.tried(f"{path / journal.CONFIG}", lambda: read_config(path) and None, anew):
        return
    config = read_config(path)
    imported = "imported" in journal.read_json(path / journal.CONFIG)  # weights alone, no training to go on with
    if not imported:
        _silently(found, lambda: journal.read_facts(path), anew)
    for name, look in (
        ("tokenizer.json", lambda: f", {load_tokenizer(path / 'tokenizer.json').vocab_size} tokens"),
        (journal.DATA, lambda: journal.read_json(path / journal.DATA) and None),
    ):
        found.tried(f"{path / name}", look, f"copy {name} from the prepared data, or from a run on the same text")
    if imported:
        weights = path / checkpoint.FOLDER / checkpoint.best_name(config.preset)
        found.tried(str(weights), lambda: _look_at_checkpoint(weights), "import the model again")
        return
    steps = _check_checkpoints(path, found)
    _check_journal(path, found, steps, checkpoint.best_loss(path, config.preset))
    for sample in sorted((path / journal.SAMPLES).glob("*.json")):
        _silently(found, partial(journal.read_json, sample), "delete it; nothing depends on it")
    parts = [part for name in journal.FOLDERS for part in (path / name).glob(".*.part")]
    if parts:
        found.wrong(f"{parts[0]} is half of a write that a kill cut off", "nothing; the next --resume removes it")


def _silently(found: Findings, look: Callable[[], Any], remedy: str) -> None:
    try:
        look()
    except UserError as error:
        found.wrong(str(error), remedy)


def _check_checkpoints(path: Path, found: Findings) -> int | None:
    """Every checkpoint of a run; returns the step of the newest to go on from that is sound."""
    folder = path / checkpoint.FOLDER
    try:
        newest, _ = checkpoint.newest(path)
    except UserError:
        newest = None
    if newest is None:
        remedy = "start a new run" if any(folder.glob("*")) else "--resume starts it from the beginning"
        found.wrong(f"{folder} has no sound checkpoint to go on from", remedy)
    for file in sorted(folder.glob("*.pt")):
        remedy = "delete it"
        if file.name == checkpoint.LAST and newest is not None:
            remedy = f"minilm train --out {path} --resume goes on from {newest.name}"
        elif "best" in file.name:
            remedy = "use --checkpoint last, or give the run more steps: the next best is saved again"
        found.tried(str(file), partial(_look_at_checkpoint, file), remedy)
    return None if newest is None else checkpoint.verify(newest)["step"]


def _check_journal(path: Path, found: Findings, step: int | None, best_on_disk: float) -> None:
    """Lines whole, every step once, evaluations once, and as far as the newest checkpoint."""
    before = found.faults
    for name in (journal.METRICS, journal.EVENTS):
        file = path / name
        if not file.exists():
            found.wrong(f"{file} is missing", "nothing, for its rows are gone; training can go on by --resume")
            continue
        lines = file.read_bytes().splitlines(keepends=True)
        whole = len(journal.read_rows(file))
        if whole < len(lines) or (lines and not lines[-1].endswith(b"\n")):
            torn = len(lines) - whole or 1
            found.wrong(f"{file} has {torn} lines that are torn", f"minilm train --out {path} --resume mends it")
    rows = journal.read_rows(path / journal.METRICS) if (path / journal.METRICS).exists() else []
    counts = Counter((row["step"], "loss" in row) for row in rows)
    twice = sorted({step for (step, _), n in counts.items() if n > 1})
    if twice:
        found.wrong(f"{path / journal.METRICS} has step {twice[0]} twice", "nothing; reports show both rows")
    last = max([step or 0, *(row["step"] for row in rows if "loss" in row)])
    missing, first = journal.missing_steps(rows, last)
    if missing:
        found.wrong(
            f"{path / journal.METRICS} lacks {missing} of {last} steps, the first of them {first}",
            "nothing, for those rows are gone; the weights are not touched by it",
        )
    losses = [row["val_loss"] for row in rows if isinstance(row.get("val_loss"), float)]
    if losses and best_on_disk < math.inf and best_on_disk > min(losses) * (1 + 1e-6):
        found.wrong(
            f"the best checkpoint has a validation loss of {best_on_disk:.4f} and the journal a better one, "
            f"{min(losses):.4f}",
            "give the run more steps, or take the weights from last.pt",
        )
    if found.faults == before:
        found.sound(f"{path / journal.METRICS}: {last} steps without a gap, {len(losses)} evaluations")


def main(path: Path) -> int:
    """What the command does: look, tell, exit code."""
    try:
        return tell(check(path))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
