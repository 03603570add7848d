"""The folder of a capstone: what it was begun with, how long its stages took, and the SHA-256 of what they wrote.

DIR/capstone.json          this record
DIR/train/                 the run folder;  DIR/capstone_best.pt  its best weights
DIR/ablation/ kernels/ scaling/   study folders, each with its own report
DIR/report.html report.md figures/
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minilm.capstone.plan import STAGES, Options
from minilm.errors import UserError
from minilm.files import check_plain, make_folder, remove_parts
from minilm.training.journal import read_json, write_json

FORMAT = 1
RECORD, BEST, TRAIN, PAGE = "capstone.json", "capstone_best.pt", "train", "report.html"
LOCK_WAIT_S = 1.0
BLOCK = 1 << 20


class Folder:
    """A capstone on disk. Raises UserError where the folder is none."""

    def __init__(self, path: Path):
        self.path = path
        check_plain(path, folder=True)
        if not (path / RECORD).exists():
            raise UserError(f"{path} is no capstone, for it has no {RECORD}; minilm capstone --out {path} makes one.")
        record = read_json(path / RECORD)
        try:
            if record["format"] != FORMAT:
                raise KeyError
            self.options = Options(**record["options"])
            self.seconds: dict[str, float] = {name: float(record["seconds"].get(name, 0.0)) for name in STAGES}
            self.files: dict[str, str] = {str(k): str(v) for k, v in record["files"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path / RECORD} is no record of a capstone in format {FORMAT}.") from None

    @classmethod
    def create(cls, path: Path, options: Options) -> Folder:
        write_json(path / RECORD, {"format": FORMAT, "options": asdict(options), "seconds": {}, "files": {}})
        return cls(path)

    def record(self, stage: str, seconds: float, files: Iterable[Path] = ()) -> None:
        """Keep the time spent on a stage in all, and what its files hold."""
        self.seconds[stage] = round(seconds, 1)
        self.files |= {file.relative_to(self.path).as_posix(): sha256(file) for file in files if file.is_file()}
        content = {"options": asdict(self.options), "seconds": self.seconds, "files": dict(sorted(self.files.items()))}
        write_json(self.path / RECORD, {"format": FORMAT, **content})

    def sound(self, name: str) -> str:
        """The SHA-256 of a file that is as it was written; raises UserError for one that is missing or has changed."""
        path = self.path / name
        check_plain(path)
        if not path.exists():
            raise UserError(f"{name} is missing")
        known, now = self.files.get(name), sha256(path)
        if known is None:
            raise UserError(f"{name} was not written by this capstone, or not to its end")
        if known != now:
            raise UserError(f"{name} has changed since it was written: {now[:12]} instead of {known[:12]}")
        return now


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One at a time works in a folder. Raises UserError where another process does, where it cannot be written, and for
    one that holds other things."""
    check_plain(path, folder=True)
    strange = [p.name for p in path.iterdir() if p.name[0] != "."] if path.is_dir() else []
    if strange and not (path / RECORD).exists():
        raise UserError(f"{path} holds other things ({strange[0]}) and no capstone; name another folder by --out.")
    make_folder(path)
    holder, lock = path / ".holder", FileLock(path / ".lock")
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise UserError(f"{path} is in use by {who}; wait for it, or name another folder by --out.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another folder by --out.") from None
    try:
        remove_parts(path)
        holder.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def empty_stub(path: Path, manifest: str) -> bool:
    """Whether a folder is what a kill left that came before its manifest was written."""
    return path.is_dir() and not (path / manifest).exists() and not any(p.is_file() for p in path.rglob("[!.]*"))


def read_result(path: Path) -> Any:
    """A JSON file of a study; raises UserError without a word of run folders where it is missing."""
    check_plain(path)
    if not path.exists():
        raise UserError(f"{path.name} is missing")
    return read_json(path)
