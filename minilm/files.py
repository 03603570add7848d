"""Files that are written whole or not at all, and read only where they are plain files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from minilm.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], None], before: Callable[[], None] | None = None) -> None:
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
