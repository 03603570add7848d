"""Where text comes from: the embedded fables, Shakespeare, the installed Python, or the person's own files.

A source is read as a stream of pieces of documents, so that memory stays flat whatever the size of the corpus.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import json
import os
import sysconfig
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from minilm.config import DataConfig
from minilm.errors import UserError

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SUFFIXES = (".txt", ".md", ".py", ".jsonl")
BLOCK = 1 << 20  # bytes read at a time


class Piece(NamedTuple):
    text: str
    ends_document: bool
    log_probability: float | None = None  # of the whole document in nats, where the source knows it


def cache_folder() -> Path:
    """Where prepared and downloaded data are kept: $MINILM_CACHE, else $XDG_CACHE_HOME/minilm, else ~/.cache/minilm."""
    if "MINILM_CACHE" in os.environ:
        return Path(os.environ["MINILM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minilm"


class Source:
    """A named corpus: `pieces()` streams its text, `fingerprint()` is a SHA-256 that changes when the text does.

    separated: whether something must be put between its documents. by_document: from how many documents on whole ones
    are held out, where the split is left to us.
    """

    separated = False
    by_document = 100  # one in ten by a hash of each: no validation split at all once in 40,000 such corpora

    def pieces(self) -> Iterator[Piece]:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError


class Fables(Source):
    """Stories from a random source written in code, whose exact probability is known."""

    by_document = 1

    def __init__(self, characters: int, seed: int):
        self.characters, self.seed = characters, seed

    def pieces(self) -> Iterator[Piece]:
        from minilm.corpus import fables

        for text, log_probability in fables.stories(self.characters, self.seed):
            yield Piece(text, True, log_probability)

    def fingerprint(self) -> str:
        from minilm.corpus import fables

        return hashlib.sha256(f"fables {fables.VERSION} {self.characters} {self.seed}".encode()).hexdigest()


class Files(Source):
    """Text files in sorted order, one document each; of .jsonl files one document a line, from `field`."""

    def __init__(self, paths: list[Path], field: str = "text", skip_undecodable: bool = False):
        self.paths, self.field, self.skip_undecodable = paths, field, skip_undecodable
        lines = any(_suffix(path) == ".jsonl" for path in paths)
        self.separated = lines or len(paths) > 1

    def pieces(self) -> Iterator[Piece]:
        for path in self.paths:
            yield from self._lines(path) if _suffix(path) == ".jsonl" else self._text(path)

    def _text(self, path: Path) -> Iterator[Piece]:
        if self.skip_undecodable and not _is_utf8(path):
            return
        decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
        with _open(path) as file:
            while True:
                block = _read(file, path)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, read - pending + error.start, error) from None
                read += len(block)
                if text or not block:
                    yield Piece(text, ends_document=not block)
                if not block:
                    return

    def _lines(self, path: Path) -> Iterator[Piece]:
        offset = 0
        with _open(path) as file:
            for number, line in enumerate(_whole_lines(file, path), 1):
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line.decode("utf-8")) if line.strip() else None
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, offset + error.start, error) from None
                except json.JSONDecodeError as error:
                    raise UserError(f"{where} is not JSON ({error.msg}); every line must hold one object.") from None
                offset += len(line)
                if row is None:
                    continue
                if not isinstance(row, dict) or not isinstance(row.get(self.field), str):
                    raise UserError(
                        f"{where} has no text in the field {self.field!r}; name the right one by --field (data.field)."
                    )
                text = row[self.field]
                if any("\ud800" <= c <= "\udfff" for c in text):
                    raise UserError(f"{where} holds half of a character (a lone surrogate); mend or drop the line.")
                yield Piece(text, True)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.field.encode())
        for path in self.paths:
            digest.update(f"\0{_suffix(path)}\0".encode())
            with _open(path) as file:
                while block := _read(file, path):
                    digest.update(block)
        return digest.hexdigest()


def open_source(config: DataConfig) -> Source:
    """The source that config.source names. Raises UserError for what does not exist or is of no known kind."""
    name = config.source
    if not name.strip():
        raise UserError("The data source is empty; give fables, shakespeare, python, or a path.")
    if name == "fables":
        return Fables(config.characters, config.seed)
    if name == "shakespeare":
        return Files([shakespeare()])
    if name == "python":
        return Files(_standard_library(), skip_undecodable=True)
    paths = (
        _resolve(name) if Path(name).exists() or "," not in name else [q for p in name.split(",") for q in _resolve(p)]
    )
    return Files(sorted(set(paths)), config.field)


def shakespeare() -> Path:
    """Karpathy's Tiny Shakespeare (1.1 MB), downloaded into the cache once and checked by its SHA-256."""
    path = cache_folder() / "shakespeare.txt"
    if path.exists() and _sha256(path.read_bytes()) == SHAKESPEARE_SHA256:
        return path
    instead = f"put the file at {path} yourself, name a file of your own, or use --data fables"
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
            content = response.read(16 * BLOCK)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"Shakespeare could not be downloaded ({reason}); {instead}.") from None
    if _sha256(content) != SHAKESPEARE_SHA256:
        raise UserError(f"What {SHAKESPEARE_URL} sent is not Tiny Shakespeare (its SHA-256 differs); {instead}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)
    return path


def _standard_library() -> list[Path]:
    """The installed standard library without its tests (which not every distribution ships) and other packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    found = [p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts)]
    return sorted(found, key=lambda p: p.relative_to(root).as_posix())


def _resolve(name: str) -> list[Path]:
    path, allowed = Path(name).expanduser(), ", ".join(SUFFIXES) + ", each also .gz"
    if path.is_dir():
        seen = (p for p in path.rglob("*") if p.is_file() and _suffix(p) in SUFFIXES)
        # hidden files and folders (.git, .env.txt) are not text that anyone meant
        found = sorted(p for p in seen if not any(part.startswith(".") for part in p.relative_to(path).parts))
        if not found:
            raise UserError(f"The folder {name} holds no file that can be read; it needs {allowed}.")
        return found
    if path.is_file():
        if _suffix(path) not in SUFFIXES:
            raise UserError(f"{name} ends in {path.suffix or 'nothing'!r}; a data file must end in {allowed}.")
        return [path]
    if path.exists():
        raise UserError(f"{name} is neither a file nor a folder; name a file, a folder or a glob of {allowed}.")
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
    if not found:
        kind = "No file matches" if glob.has_magic(name) else "There is no file, folder or source named"
        raise UserError(f"{kind} {name}; give fables, shakespeare, python, or a path to {allowed}.")
    return [p for p in found if _suffix(p) in SUFFIXES] or _resolve(str(found[0]))


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None


def _whole_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({error}); the file is damaged or cut short.")


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset} ({error.reason}); save the file as UTF-8."
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
