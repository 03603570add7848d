"""Files that are written whole or not at all, and read only where they are plain files."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Container
from pathlib import Path

from minilm.errors import UserError


def data_folder() -> Path:
    """Where what a person gathers is kept: $MINILM_DATA, or minilm in the platform's folder for programs' data."""
    if folder := os.environ.get("MINILM_DATA"):
        return Path(folder).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "minilm"


def write_atomically(path: Path, write: Callable[[Path], object], before: Callable[[], None] | None = None) -> None:
    """Have `write` fill a temporary file, make it durable, call `before`, and only then give the file its name.

    A kill, a full disk or a power cut at any moment leaves either the old file or the new one, whole.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "r+b") as file:  # for writing: Windows syncs no other
            os.fsync(file.fileno())
        if before is not None:
            before()
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} could not be written ({reason}); free some space and --resume.") from None
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)  # the new name itself must survive a power cut


def write_folder(path: Path, names: Container[str], write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder beside `path`, make it durable, and only then give it that name.

    A folder that is there already is replaced where it holds nothing but `names`. Raises UserError where it holds other
    things or nothing can be written.
    """
    check_plain(path, folder=True)
    foreign = [p.name for p in path.iterdir() if p.name not in names] if path.exists() else []
    if foreign:
        raise UserError(f"{path} holds other things, such as {foreign[0]}; name another folder by --out.")
    make_folder(path.parent)
    work = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        new = work / "new"
        new.mkdir()
        write(new)
        for file in (p for p in new.rglob("*") if p.is_file()):
            sync_file(file)
        for folder in (new, *(p for p in new.rglob("*") if p.is_dir())):
            sync_folder(folder)
        if path.exists():
            os.replace(path, work / "old")
        os.replace(new, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}); free some space.") from None
    finally:
        if work is not None:
            if (work / "old").exists() and not path.exists():
                os.replace(work / "old", path)
            shutil.rmtree(work, ignore_errors=True)


def make_folder(path: Path) -> None:
    """The folder and those above it, with names that survive a power cut. Raises UserError where it cannot be."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}).") from None
    for made in missing:
        sync_folder(made.parent)


def sync_folder(path: Path) -> None:
    if os.name == "posix":  # Windows opens no folders
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync_file(path: Path) -> None:
    """Make durable what has been appended to a file, where there is one."""
    if path.exists():
        with open(path, "r+b") as file:
            os.fsync(file.fileno())


def remove_parts(folder: Path) -> None:
    """What a killed write_atomically() left in a folder that is ours alone."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def check_plain(path: Path, folder: bool = False) -> None:
    """Raises UserError for a link, a pipe, a device, or a folder where a file should be (or the reverse); what does not
    exist passes. A link could lead anywhere, and opening a pipe would wait for ever."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)[:200]} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if stat.S_ISLNK(mode):
        raise UserError(f"{path} is a link to {os.readlink(path)}; name what it points to, or put a copy there.")
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise UserError(f"{path} is no {'folder' if folder else 'regular file'}; remove it or name another.")
