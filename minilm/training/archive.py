"""What a checkpoint file holds, found out without running, allocating or following anything that it says.

torch.load(weights_only=True) runs no code, but it takes a file's word for sizes and does not look at its checksums. So
a file is read in four passes, each of which must hold before the next: the archive (nothing compressed, no entry
larger than the file, checksums); the opcodes and names in its pickle, of which a checkpoint needs few; its tensors on
the meta device, which takes no memory; and only then, by checkpoint.load(), the tensors themselves.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minilm.errors import UserError
from minilm.files import check_plain

# The opcodes of Python's pickle protocol 2 that a checkpoint is written in, and how many bytes follow each. What is not
# here is refused unread.
STOP, GLOBAL = ord("."), ord("c")  # after GLOBAL two lines: a module, and a name in it
# MARK REDUCE BUILD BINPERSID; EMPTY_DICT SETITEM SETITEMS; EMPTY_LIST APPEND APPENDS; EMPTY_TUPLE TUPLE TUPLE1 TUPLE2
# TUPLE3; NONE NEWTRUE NEWFALSE
SIZES = dict.fromkeys(b"(RbQ}su]ae)t\x85\x86\x87N\x88\x89", 0)
# PROTO BINPUT BINGET BININT1; BININT2; LONG_BINPUT LONG_BINGET BININT; BINFLOAT
SIZES |= dict.fromkeys(b"\x80qhK", 1) | dict.fromkeys(b"M", 2) | dict.fromkeys(b"rjJ", 4) | dict.fromkeys(b"G", 8)
COUNTED = {0x8A: 1, ord("X"): 4}  # LONG1 BINUNICODE: so many bytes hold the number of those after them
OPCODES = {STOP, GLOBAL, *SIZES, *COUNTED}
ENTRY = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
STORAGES = "Float Double Half BFloat16 Long Int Short Char Byte Bool".split()
NAMES = frozenset(
    ["collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {kind}Storage" for kind in STORAGES)]
)


def inspect(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file with its tensors on the meta device: names, shapes and dtypes, no numbers.

    Raises UserError for a file that is missing, damaged, foreign, or asks for more memory than it has bytes.
    """
    check_plain(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_opcodes(path, _checked(path, archive))
        state = torch.load(path, map_location="meta", weights_only=True)
        _check_sizes(path, state)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except UserError:
        raise
    except Exception as error:  # what a foreign file makes zipfile and torch raise is anything
        raise unreadable(path, error) from None
    return state


def unreadable(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
    return UserError(f"{path} is no checkpoint that can be read ({reason}).")


def _checked(path: Path, archive: zipfile.ZipFile) -> bytes:
    """The pickle of an archive all of whose entries are stored as they are, in place, and pass their checksums."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path} has compressed entries, which no checkpoint has: it is not used.")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or not all(map(ENTRY.fullmatch, names)) or not all(map(_is_as_written, entries)):
        raise UserError(f"{path} has entries that no checkpoint has: it is not used.")
    # another reader of the same bytes must see the same archive: nothing before it, nothing after, nothing twice
    if archive.comment or entries[0].header_offset or sum(e.file_size for e in entries) > os.path.getsize(path):
        raise UserError(f"{path} has entries that overlap or lie outside of it: it is not used.")
    damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path} is damaged ({damaged} fails its checksum); use another checkpoint.")
    (pickled,) = (name for name in names if name.split("/")[1:] == ["data.pkl"])
    return archive.read(pickled)


def _is_as_written(entry: zipfile.ZipInfo) -> bool:
    """No attribute that another reader may go by: torch takes an entry that is marked as a folder for an empty one, and
    gives a tensor the numbers that memory happens to hold."""
    plain = entry.flag_bits in (0, 0x0808) and entry.file_size == entry.compress_size and not entry.comment
    return plain and not (entry.external_attr or entry.internal_attr or entry.volume)


def _check_opcodes(path: Path, pickled: bytes) -> None:
    """Every opcode up to the end is one of OPCODES, every name one of NAMES; nothing is made of them."""
    file = io.BytesIO(pickled)
    while (code := _exactly(file, 1)[0]) != STOP:
        if code == GLOBAL:
            name = " ".join(file.readline().decode("ascii").removesuffix("\n") for _ in range(2))
            if name not in NAMES:
                raise UserError(f"{path} asks for {name[:60]!r}, which no checkpoint needs: it is not used.")
        elif code in COUNTED:
            _exactly(file, int.from_bytes(_exactly(file, COUNTED[code]), "little"))
        elif code in SIZES:
            _exactly(file, SIZES[code])
        else:
            raise UserError(f"{path} asks for opcode {code:#04x}, which no checkpoint needs: it is not used.")


def _exactly(file: io.BytesIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise ValueError("what it describes has no end")
    return found


def _check_sizes(path: Path, state: Any) -> None:
    """A tensor is no larger than the bytes behind it, and all than twice the file: tied weights share theirs."""
    asked = 0
    for t in tensors_in(state):
        nbytes, stored = t.numel() * t.element_size(), t.untyped_storage().nbytes()
        asked += nbytes
        if nbytes > stored or asked > 2 * os.path.getsize(path):
            shape = "x".join(map(str, t.shape))
            raise UserError(f"{path} asks for more than it holds, with a tensor of {shape}: it is not used.")


def tensors_in(state: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested containers, each container once, however often it is referred to."""
    todo, seen = [state], set()
    while todo:
        item = todo.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            todo += item.values() if isinstance(item, dict) else item
