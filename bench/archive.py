"""What a run needs to go on elsewhere, in one small file: rows, tables, results, and the ends of the logs."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Lock, Thread

LIMIT = 15 * 2**20  # bytes of an archive
LARGEST = 4 * 2**20  # bytes of a file of a race
LOG_HEAD, LOG_TAIL = 2**17, 2**18  # bytes kept of a log: how it began, and how it ended
EVERY = 30  # seconds
_one_at_a_time = Lock()


def pack(out: Path, archive: Path) -> list[str]:
    """Writes `archive`, a .tar.gz of what matters in `out`; returns what was left out for its size."""
    with _one_at_a_time:
        needed, useful, left = _needed(out), _useful(out), []
        data = _tar(out, needed + useful)
        if len(data) > LIMIT:
            left, data = [str(path.relative_to(out)) for path in useful], _tar(out, needed)
        archive.parent.mkdir(parents=True, exist_ok=True)
        temporary = archive.with_name(archive.name + ".tmp")
        temporary.write_bytes(data)
        temporary.replace(archive)
    return left


def _needed(out: Path) -> list[Path]:
    """Without these the same command would not go on where it was."""
    return [*sorted(out.glob("*.jsonl")), *sorted(out.glob("*.json")), *sorted((out / "data").rglob("*.json"))]


def _useful(out: Path) -> list[Path]:
    """Logs, and the trainings of a race without their checkpoints: one that had not ended begins anew."""
    race = [path for path in sorted((out / "race").rglob("*")) if "compiled" not in path.relative_to(out).parts]
    race = [path for path in race if path.is_file() and path.suffix != ".pt" and path.stat().st_size <= LARGEST]
    return [*sorted(out.glob("*.log")), *race]


def _tar(out: Path, paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in paths:
            if path.is_symlink():
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # a worker has just replaced it
                continue
            if path.suffix == ".log" and len(data) > LOG_HEAD + LOG_TAIL:
                cut = f"\n... {len(data) - LOG_HEAD - LOG_TAIL} bytes left out ...\n".encode()
                data = data[:LOG_HEAD] + cut + data[-LOG_TAIL:]
            member = tarfile.TarInfo(path.relative_to(out).as_posix())
            member.size, member.mtime = len(data), int(time.time())
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack(archive: Path, out: Path) -> None:
    """Puts what pack() wrote into `out`. Raises OSError or tarfile.TarError, before anything is in `out`, where the
    file is no such archive or a member would land outside."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter="data")
        shutil.copytree(folder, out, dirs_exist_ok=True)


@contextlib.contextmanager
def kept_up_to_date(out: Path, archive: Path | None) -> Iterator[None]:
    """Within, `archive` (None: nothing) is written anew every half minute, for a kill leaves no time to write it."""
    if archive is None:
        yield
        return
    done = Event()

    def watch() -> None:
        while True:
            with contextlib.suppress(OSError):  # of which whoever writes the last one hears
                pack(out, archive)
            if done.wait(EVERY):
                return

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
