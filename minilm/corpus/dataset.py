"""A prepared corpus: train.bin and val.bin (token ids), meta.json (what they are), tokenizer.json.

prepare() writes the folder, open_dataset() reads and checks it, BatchSampler draws batches from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from minilm.config import DataConfig
from minilm.corpus.sources import BLOCK, Source, cache_folder, open_source
from minilm.corpus.tokenizer import (
    CODE_POINTS,
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    code_points,
    load_tokenizer,
)
from minilm.errors import UserError
from minilm.files import check_plain, sync_file, sync_folder

FORMAT = 1
SPLITS = ("train", "val")
LONG_LINE = 4  # blocks
FILES = {"meta.json", "tokenizer.json", "train.bin", "val.bin"}


@dataclass(frozen=True)
class Dataset:
    folder: Path
    meta: dict[str, Any]
    train: np.ndarray  # token ids, uint16 or uint32, memory-mapped
    val: np.ndarray
    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        return self.meta["vocab_size"]

    @property
    def floor(self) -> float | None:
        """The least possible mean loss on the validation split in nats a token, where the source knows it."""
        floor = self.meta["floor"]
        return floor and floor["nats"] / self.meta["val"]["tokens"]

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A mean validation loss as bits for each byte of the text, which does not depend on the tokenizer."""
        return nats_per_token / (math.log(2) * self.meta["bytes_per_token"])


def prepared(config: DataConfig) -> Dataset:
    """The dataset for `config` from the cache, prepared first where it is not there yet.

    The cache is keyed by the content of the source and by every setting that changes what is written, so a changed
    file is prepared anew and a moved one is not: meta["source"] is config.source, whatever name the text was first
    prepared under. A source that is a folder which prepare() wrote is opened as it is; UserError where
    config.tokenizer_file names other tokens than it has.
    """
    given = load_tokenizer(Path(config.tokenizer_file)) if config.tokenizer_file else None
    if _is_prepared(Path(config.source)):
        dataset = open_dataset(Path(config.source))
        if given and given.to_json() != dataset.tokenizer.to_json():
            raise UserError(
                f"{config.source} was prepared with other tokens than those of {config.tokenizer_file}; name the text "
                f"itself as --data, or prepare it again: minilm prepare TEXT --tokenizer-file {config.tokenizer_file} "
                "--out FOLDER."
            )
        return dataset
    source = source_of(config)
    settings = dataclasses.asdict(config)
    used = ["tokenizer", "val_fraction", "split", "unknown"] + (["vocab_size"] if config.tokenizer == "bpe" else [])
    settings = {name: settings[name] for name in used}
    if given:
        settings |= {"vocab_size": given.vocab_size, "given": hashlib.sha256(given.to_json().encode()).hexdigest()}
    key = json.dumps([FORMAT, source.fingerprint(), settings])
    folder = cache_folder() / "data" / hashlib.sha256(key.encode()).hexdigest()[:24]
    found = None
    if (folder / "meta.json").exists():
        with contextlib.suppress(UserError):  # what is damaged in the cache is made again
            found = open_dataset(folder)
    if found is None:
        prepare(config, folder, source)
        found = open_dataset(folder)
    return dataclasses.replace(found, meta={**found.meta, "source": config.source})


def _is_prepared(folder: Path) -> bool:
    try:
        return (folder / "meta.json").exists() and (folder / "train.bin").exists()
    except OSError:  # a name that no file can have
        return False


def source_of(config: DataConfig) -> Source:
    """The text that `config` names. Raises UserError for what cannot be read, be it for the name alone."""
    try:
        return open_source(config)
    except OSError as error:
        raise UserError(f"{config.source[:100]} cannot be read ({error.strerror}); name a file or a folder.") from None


def prepare(config: DataConfig, out: Path, source: Source | None = None) -> Path:
    """Tokenize a source into the folder `out`, which appears whole or not at all. Memory does not grow with the text.

    Raises UserError for a source that is empty or leaves a split empty, and for an `out` that holds other things.
    """
    source = source or source_of(config)
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise UserError(f"{out} exists and holds other things than prepared data; name another folder by --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}); name another folder, or move the cache by MINILM_CACHE."
        ) from None
    try:
        try:
            _write(config, source, work)
        except OSError as error:
            raise UserError(f"{work} could not be written ({error.strerror or error}); free some space.") from None
        os.chmod(work, 0o755)
        for path in work.iterdir():  # else after a power cut there may be files of the right size that hold zeros
            sync_file(path)
        sync_folder(work)
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
        sync_folder(out.parent)
    except OSError as error:
        if not (out / "meta.json").exists():  # else another process prepared the same meanwhile
            raise UserError(f"{out} could not be written ({error.strerror or error}).") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


class _Spool:
    """The text of a source on disk as UTF-8, with what one pass over it tells: the second pass knows where to cut."""

    def __init__(self, source: Source, separator: str, path: Path):
        self.path = path
        self.seen = np.zeros(CODE_POINTS, dtype=bool)
        # of each document, separator included
        self.characters, self.bytes, self.hashes, self.log_probabilities = (
            array("q"),
            array("q"),
            array("Q"),
            array("d"),
        )
        digest, document = hashlib.sha256(), hashlib.blake2b(digest_size=8)
        characters = size = 0
        with open(path, "wb") as file:
            for piece in source.pieces():
                text = piece.text + separator if piece.ends_document and (characters or piece.text) else piece.text
                encoded = text.encode("utf-8")
                self.seen[code_points(text)] = True
                file.write(encoded)
                digest.update(encoded)
                document.update(encoded)
                characters += len(text)
                size += len(encoded)
                if piece.ends_document and characters:  # documents without text are passed over
                    self.characters.append(characters)
                    self.bytes.append(size)
                    self.hashes.append(int.from_bytes(document.digest(), "little"))
                    self.log_probabilities.append(math.nan if piece.log_probability is None else piece.log_probability)
                if piece.ends_document:
                    characters, size, document = 0, 0, hashlib.blake2b(digest_size=8)
        self.sha256 = digest.hexdigest()

    def read(self, start: int, end: int) -> Iterator[str]:
        """The text between two byte positions that lie between characters, about BLOCK bytes at a time, cut after a
        line end, so that no word or mark of a document's end is cut; a very long line after a space, or anywhere."""
        with open(self.path, "rb") as file:
            file.seek(start)
            held = b""
            while start < end:
                block = file.read(min(BLOCK, end - start))
                start += len(block)
                held += block
                cut = len(held) if start >= end else held.rfind(b"\n") + 1
                if not cut and len(held) > LONG_LINE * BLOCK:
                    cut = held.rfind(b" ") + 1 or _last_character(held)
                if cut:
                    yield held[:cut].decode("utf-8")
                    held = held[cut:]

    def byte_at(self, characters: int) -> int:
        """The byte position after so many characters."""
        position = 0
        with open(self.path, "rb") as file:
            while characters:
                block = np.frombuffer(file.read(BLOCK), dtype=np.uint8)
                starts = np.flatnonzero((block & 0xC0) != 0x80)  # the bytes that begin a character
                if len(starts) > characters:
                    return position + int(starts[characters])
                characters -= len(starts)
                position += len(block)
                if not len(block):
                    break
        return position


def _last_character(encoded: bytes) -> int:
    """Where the last character of a UTF-8 text that may end within one begins."""
    return next(i for i in range(len(encoded) - 1, -1, -1) if encoded[i] & 0xC0 != 0x80)


def _write(config: DataConfig, source: Source, work: Path) -> None:
    given = load_tokenizer(Path(config.tokenizer_file)) if config.tokenizer_file else None
    kind = given.kind if given else config.tokenizer
    separator = {"char": "\n\n", "bpe": END_OF_TEXT + "\n"}[kind] if source.separated else ""
    spool = _Spool(source, separator, work / "text")
    if not spool.bytes:
        raise UserError(f"{config.source} is empty; it needs some text to learn from.")
    rule = config.split if config.split != "auto" else "document" if len(spool.bytes) >= source.by_document else "tail"
    ranges = _by_document(spool, config) if rule == "document" else _tail(spool, config)

    if given is not None:
        tokenizer: Tokenizer = given
    elif config.tokenizer == "char":
        tokenizer = CharTokenizer.train(spool.seen, config.unknown)
    else:
        tokenizer = BPETokenizer.train(
            (text for start, end in ranges["train"] for text in spool.read(start, end)), config.vocab_size
        )
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    meta: dict[str, Any] = {
        "format": FORMAT,
        "source": config.source,
        "tokenizer": {"type": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "unknown": config.unknown},
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        "split": {"rule": rule, "val_fraction": config.val_fraction},
        "documents": len(spool.bytes),
        "sha256": spool.sha256,
    }
    for split in SPLITS:
        try:
            meta[split] = _tokenize(spool, ranges[split], tokenizer, dtype, work / f"{split}.bin", config.unknown)
        except UserError as error:
            raise UserError(
                f"{config.source} has more than {config.tokenizer_file} knows. {error} "
                "(In training: --set data.unknown=replace.)"
            ) from None
        if not meta[split]["tokens"]:
            raise UserError(
                f"{config.source} leaves the {split} split empty ({len(spool.bytes)} documents split by {rule}); give "
                "more text, another --val-fraction (data.val_fraction), or --split tail (data.split)."
            )
    meta["bytes_per_token"] = meta["val"]["bytes_per_token"]  # of the text that losses are measured on
    meta["floor"] = _floor(spool, config) if rule == "document" and not separator else None
    (work / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    spool.path.unlink()


def _tail(spool: _Spool, config: DataConfig) -> dict[str, list[tuple[int, int]]]:
    """The first characters train and the last val_fraction of them validate, as nanoGPT does."""
    total = sum(spool.characters)
    cut, end = spool.byte_at(int(total * (1 - config.val_fraction))), sum(spool.bytes)
    return {"train": [(0, cut)], "val": [(cut, end)]}


def _is_val(spool: _Spool, config: DataConfig) -> np.ndarray:
    """Documents go by a hash of their text, so that equal ones are never on both sides and an added one moves none."""
    return np.frombuffer(spool.hashes, dtype=np.uint64) < np.uint64(config.val_fraction * 2**64)


def _by_document(spool: _Spool, config: DataConfig) -> dict[str, list[tuple[int, int]]]:
    is_val, ends = _is_val(spool, config), np.cumsum(np.frombuffer(spool.bytes, dtype=np.int64))
    edges = np.flatnonzero(np.diff(is_val)) + 1  # where the side changes; neighbours on one side are read as one
    bounds = [0, *ends[edges - 1].tolist(), int(ends[-1])]
    sides = is_val[[0, *edges]]
    runs = list(itertools.pairwise(bounds))
    return {split: [r for r, v in zip(runs, sides, strict=True) if v == (split == "val")] for split in SPLITS}


def _floor(spool: _Spool, config: DataConfig) -> dict[str, float] | None:
    """What the true source itself gives the validation documents: no model can do better but by luck."""
    is_val = _is_val(spool, config)
    nats = -np.frombuffer(spool.log_probabilities)[is_val].sum()
    if not np.isfinite(nats):
        return None
    characters = np.frombuffer(spool.characters, dtype=np.int64)[is_val].sum()
    size = np.frombuffer(spool.bytes, dtype=np.int64)[is_val].sum()
    return {
        "nats": float(nats),
        "nats_per_char": float(nats / characters),
        "bits_per_byte": float(nats / size / math.log(2)),
    }


def _tokenize(
    spool: _Spool, ranges: list[tuple[int, int]], tokenizer: Tokenizer, dtype: np.dtype, path: Path, unknown: str
) -> dict[str, Any]:
    tokens = characters = size = 0
    digest = hashlib.sha256()
    held: list[str] = []
    with open(path, "wb") as file:

        def flush() -> int:
            encode_many = getattr(tokenizer, "encode_many", None)
            ids = encode_many(held) if encode_many else tokenizer.encode("".join(held), unknown)
            held.clear()
            content = ids.astype(dtype).tobytes()
            file.write(content)
            digest.update(content)
            return len(ids)

        for start, end in ranges:
            for text in spool.read(start, end):
                held.append(text)
                characters += len(text)
                size += len(text.encode("utf-8"))
                if sum(map(len, held)) >= BLOCK:
                    tokens += flush()
        if held:
            tokens += flush()
    return {
        "tokens": tokens,
        "characters": characters,
        "bytes": size,
        "bytes_per_token": size / max(tokens, 1),
        "sha256": digest.hexdigest(),
    }


def open_dataset(folder: Path) -> Dataset:
    """A prepared folder, checked: sizes as meta.json says and every id within the vocabulary. Raises UserError."""
    check_plain(folder, folder=True)
    for name in FILES:
        check_plain(folder / name)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise UserError(
                f"{folder} was prepared in format {meta['format']}; this version reads {FORMAT}: prepare it again."
            )
        kinds = {"vocab_size": int, "bytes_per_token": int | float, "sha256": str, "floor": dict | None}
        wrong = [key for key, kind in kinds.items() if not isinstance(meta[key], kind)]
        wrong += [] if wrong or 0 < meta["bytes_per_token"] < math.inf else ["bytes_per_token"]
        wrong += [] if meta["floor"] is None or isinstance(meta["floor"]["nats"], int | float) else ["floor"]
        if wrong:
            raise TypeError(wrong[0])
        arrays = {}
        for split in SPLITS:
            path = folder / f"{split}.bin"
            dtype, tokens = np.dtype({"uint16": "<u2", "uint32": "<u4"}[meta["dtype"]]), meta[split]["tokens"]
            if path.stat().st_size != tokens * dtype.itemsize:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes and meta.json says {tokens * dtype.itemsize}: the file is "
                    "damaged, prepare the data again."
                )
            arrays[split] = np.memmap(path, dtype=dtype, mode="r")
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is missing: {folder} is no prepared data (minilm prepare makes it)."
        ) from None
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{folder / 'meta.json'} cannot be read ({error!r}): prepare the data again.") from None
    for split, tokens in arrays.items():
        if (at := _first_from(folder / f"{split}.bin", tokens.dtype, meta["vocab_size"])) is not None:
            raise UserError(
                f"{folder / split}.bin holds token {tokens[at]} at position {at} and the vocabulary has "
                f"{meta['vocab_size']}: the file is damaged or not from this tokenizer, prepare the data again."
            )
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.vocab_size != meta["vocab_size"]:
        raise UserError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens and meta.json says {meta['vocab_size']}: "
            "it is not the one that the ids are from, prepare the data again."
        )
    return Dataset(folder, meta, arrays["train"], arrays["val"], tokenizer)


def _first_from(path: Path, dtype: np.dtype, bound: int) -> int | None:
    """The position of the first token that is not below `bound`. Read in blocks: a map would stay resident whole."""
    buffer, start = np.empty(1 << 18, dtype), 0
    with path.open("rb") as file:
        while size := file.readinto(buffer.data):
            block = buffer[: size // dtype.itemsize]
            if int(block.max()) >= bound:
                return start + int(np.argmax(block >= bound))
            start += len(block)
    return None


class BatchSampler:
    """Random windows of a token array: the batch of a step is a function of (seed, step) and of nothing else.

    So any step's batch can be made at any time, in any process, and a resumed run goes on with the very batches it
    would have had. Windows are drawn with replacement, as nanoGPT draws them.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, batch_size: int, seed: int):
        if len(tokens) <= context_length:
            raise UserError(
                f"The training split has {len(tokens)} tokens and model.context_length is {context_length}; give at "
                f"least {context_length + 1} tokens, or lower --set model.context_length."
            )
        self.tokens, self.batch_size, self.seed = tokens, batch_size, seed
        self.dtype = tokens.dtype
        mapped = isinstance(tokens, np.memmap) and hasattr(os, "pread")
        self.file = open(cast(Any, tokens).filename, "rb") if mapped else None  # noqa: SIM115 (as long as the sampler)
        self.window = np.arange(context_length + 1)
        self.starts = len(tokens) - context_length

    def batch(self, step: int) -> np.ndarray:
        """(batch_size, context_length + 1) int64: inputs without the last column, targets without the first."""
        # counter-based (Salmon et al. 2011); raw words, because their stream never changes between NumPy versions
        raw = np.random.Philox(key=self.seed, counter=step << 64).random_raw(self.batch_size)
        offsets = (raw % np.uint64(self.starts)).astype(np.int64)
        if self.file is None:
            return self.tokens[offsets[:, None] + self.window].astype(np.int64)
        # read, not mapped: what is mapped stays resident, in the end the whole file
        dtype, length = self.dtype, len(self.window)
        read = (os.pread(self.file.fileno(), length * dtype.itemsize, o * dtype.itemsize) for o in offsets.tolist())
        return np.frombuffer(b"".join(read), dtype).reshape(self.batch_size, length).astype(np.int64)
