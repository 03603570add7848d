"""Where a training is followed from outside: TensorBoard, Weights & Biases, a table for pandas or a spreadsheet.

A logger is given what the journal has written, after it has written it: it costs no wait for the device, and what a
killed run had saved, its logs have too. What a logger raises ends that logger and never the training.

RUN/metrics.csv    one row a step (see COLUMNS), numbers as in metrics.jsonl, an empty cell where there is none
RUN/tensorboard/   event files: scalars, text samples, the figure of the report; tensorboard --logdir runs
RUN/wandb/         the same, offline unless WANDB_MODE says otherwise; wandb sync RUN/wandb/offline-run-*
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from minilm.errors import UserError
from minilm.files import write_atomically
from minilm.training import journal
from minilm.training.journal import Logger

# step: optimizer updates done; tokens: read so far; wall: seconds of training; loss: of this step's batch, nats a
# token; lr; grad_norm: global, before clipping; tokens_per_s; val_loss: nats a token; val_bpb: bits a byte
COLUMNS = ("step", "tokens", "wall", "loss", "lr", "grad_norm", "tokens_per_s", "val_loss", "val_bpb")
TAGS = {
    "loss": "loss/training",
    "val_loss": "loss/validation",
    "val_bpb": "bits_per_byte/validation",
    "lr": "optimizer/learning_rate",
    "grad_norm": "optimizer/gradient_norm",
    "tokens_per_s": "speed/tokens_per_second",
}
TABLE, BOARD, WANDB = "metrics.csv", "tensorboard", "wandb"
Row = dict[str, Any]


class Loggers(Logger):
    """The loggers of one run. Whatever one of them raises, it is left out from then on, and `warn` says so."""

    def __init__(self, loggers: dict[str, Logger], warn: Callable[[int, str], None]):
        self._loggers, self._warn, self._step = loggers, warn, 0

    def go_on(self, step: int) -> None:
        self._step = max(step, 0)
        self._each(lambda logger: logger.go_on(step))

    def rows(self, rows: list[Row]) -> None:
        self._step = rows[-1]["step"]
        self._each(lambda logger: logger.rows(rows))

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        self._each(lambda logger: logger.samples(step, samples))

    def figure(self, step: int, draw: Callable[[], bytes]) -> None:
        once = functools.cache(draw)
        self._each(lambda logger: logger.figure(step, once))

    def close(self) -> None:
        self._each(lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, tell: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                tell(logger)
            except Exception as error:
                del self._loggers[name]
                with contextlib.suppress(Exception):
                    logger.close()
                self._warn(self._step, f"the log {name} failed ({_why(error)}) and is left out from here on")


def _why(error: Exception) -> str:
    return (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__).replace("\n", " ")[:200]


def check_installed(names: Iterable[str]) -> None:
    """Raises UserError for a logger whose package is not here."""
    for name in names:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise UserError(
                f'--log {name} needs the {name} package; pip install "minilm[{name}]", or leave it out '
                "(on --resume by --set train.log=)."
            )


def loggers_of(names: Iterable[str], run: Path) -> dict[str, Logger]:
    kinds: dict[str, Callable[[Path], Logger]] = {"csv": Table, "tensorboard": Board, "wandb": Wandb}
    return {name: kinds[name](run) for name in names}


def by_step(rows: Iterable[Row]) -> list[Row]:
    """Rows of metrics.jsonl with those of one step joined, each with all of COLUMNS and None where nothing is known."""
    steps: dict[int, Row] = {}
    for row in rows:
        joined = steps.setdefault(row["step"], dict.fromkeys(COLUMNS))
        joined |= {key: value for key, value in row.items() if key in joined and joined[key] is None}
    return list(steps.values())


class Table(Logger):
    """metrics.csv. A step is written once the next begins, for its evaluation comes last."""

    def __init__(self, run: Path):
        self.path, self.journal, self._last = run / TABLE, run / journal.METRICS, list[Row]()

    def go_on(self, step: int) -> None:
        """Written anew from the journal: whatever a kill left, no step is lacking and none is there twice."""
        rows = by_step(journal.read_rows(self.journal) if self.journal.exists() else [])
        self._last = rows[-1:]  # its evaluation may be still to come
        text = ",".join(COLUMNS) + "\n" + _lines(rows[:-1])
        write_atomically(self.path, lambda part: _write(part, text))

    def rows(self, rows: list[Row]) -> None:
        joined = by_step([*self._last, *rows])
        self._append(joined[:-1])
        self._last = joined[-1:]

    def close(self) -> None:
        self._append(self._last)
        self._last = []

    def _append(self, rows: list[Row]) -> None:
        if rows:
            with open(self.path, "ab", buffering=0) as file:  # whole lines, in one write
                file.write(_lines(rows).encode())


def _lines(rows: list[Row]) -> str:
    cells = (("" if row[c] is None else json.dumps(row[c]) for c in COLUMNS) for row in rows)
    return "".join(",".join(line) + "\n" for line in cells)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


class Board(Logger):
    """TensorBoard's event files. A writer that goes on begins with the step from which earlier files do not count."""

    def __init__(self, run: Path):
        self.folder, self.journal = run / BOARD, run / journal.METRICS
        self._writer: Any = None

    def go_on(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        fresh = not any(self.folder.glob("events.*"))
        self._writer = SummaryWriter(str(self.folder), purge_step=None if fresh else step + 1)
        if fresh:
            config = (self.folder.parent / journal.CONFIG).read_text(encoding="utf-8")
            self._writer.add_text("config", _verbatim(config), 0)
            if self.journal.exists():  # a log that was asked for on the way begins at the beginning
                self.rows(journal.read_rows(self.journal))

    def rows(self, rows: list[Row]) -> None:
        for row in rows:
            for key, tag in TAGS.items():
                if row.get(key) is not None:
                    self._writer.add_scalar(tag, row[key], row["step"])
        self._writer.flush()  # as the journal's rows, so that a kill leaves both with the same

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        for sample in samples:
            self._writer.add_text(f"samples/temperature_{sample['temperature']:g}", _verbatim(sample["text"]), step)
        self._writer.flush()

    def figure(self, step: int, draw: Callable[[], bytes]) -> None:
        self._writer.add_image("report", _pixels(draw()), step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _verbatim(text: str) -> str:
    """As TensorBoard, which reads Markdown, shows it unchanged."""
    return "\n".join("    " + line for line in text.splitlines())


class Wandb(Logger):
    """Weights & Biases. It takes no row back: what a resumed run says again is left out, and kept as it was."""

    def __init__(self, run: Path):
        self.run_folder, self.reached = run, run / WANDB / "reached.json"
        self._run: Any = None
        self._logged: dict[str, int] = {}  # the last step that it was told of training, validation and samples

    def go_on(self, step: int) -> None:
        if self._run is not None:
            return
        import wandb

        self.reached.parent.mkdir(exist_ok=True)
        saved = journal.read_json(self.run_folder / journal.CONFIG)
        mode: Any = os.environ.get("WANDB_MODE", "offline")  # online it would ask for a login
        self._logged = journal.read_json(self.reached) if self.reached.exists() else {}
        identity = f"{saved['name']} {saved['facts']['created']} {saved['facts']['data_sha256']}"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "minilm"),
            name=saved["name"],
            id=hashlib.sha256(identity.encode()).hexdigest()[:12],  # the same when the run goes on
            dir=self.run_folder,
            mode=mode,
            resume=None if mode in ("offline", "disabled") else "allow",
            config={section: saved[section] for section in ("model", "train", "data")},
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        if not self._logged:
            path = self.run_folder / journal.METRICS
            self.rows(journal.read_rows(path) if path.exists() else [])

    def rows(self, rows: list[Row]) -> None:
        for row in rows:
            kind = "validation" if "val_loss" in row else "training"
            if row["step"] > self._logged.get(kind, -1):
                known = {tag: row[key] for key, tag in TAGS.items() if row.get(key) is not None}
                self._run.log(known | {"tokens": row["tokens"]}, step=row["step"])
                self._logged[kind] = row["step"]
        self._note()

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        import wandb

        if step > self._logged.get("samples", -1):
            table = wandb.Table(columns=["step", "prompt", "temperature", "text"])
            for sample in samples:
                table.add_data(step, sample["prompt"], sample["temperature"], sample["text"])
            self._run.log({"samples": table}, step=step)
            self._logged["samples"] = step
            self._note()

    def figure(self, step: int, draw: Callable[[], bytes]) -> None:
        import wandb

        self._run.log({"report": wandb.Image(_pixels(draw()))}, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _note(self) -> None:
        part = self.reached.with_suffix(".part")
        part.write_text(json.dumps(self._logged), encoding="utf-8")
        os.replace(part, self.reached)


def _pixels(png: bytes) -> Any:
    """(height, width, 3) uint8."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
