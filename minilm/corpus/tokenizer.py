"""Text to token ids and back, exactly: by character, or by byte-level byte-pair encoding."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minilm.errors import UserError

END_OF_TEXT = "<|endoftext|>"  # between the documents of a byte-pair encoded corpus, as in GPT-2
REPLACEMENT = "\ufffd"
CODE_POINTS = 0x110000
# Byte-level tokens are written in characters that can be seen: a byte that prints in Latin-1 stands for itself, the
# others for the characters from 256 on, in order (GPT-2's byte encoding).
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(b): b for b in _PRINTED} | {
    chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in _PRINTED)
}
PIECE, PIECES = 1 << 14, 64  # characters of a text that the library is given at a time, and how many such pieces


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of a text, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class CharTokenizer:
    """One token a character (Unicode code point), numbered in the order of `vocabulary`."""

    kind = "char"

    def __init__(self, vocabulary: Iterable[str]):
        self.vocabulary = list(vocabulary)
        self.vocab_size = len(self.vocabulary)
        self._codes = code_points("".join(self.vocabulary))
        self._ids = np.full(CODE_POINTS, -1, dtype=np.int32)
        self._ids[self._codes] = np.arange(self.vocab_size, dtype=np.int32)

    @staticmethod
    def train(seen: np.ndarray, unknown: str = "error") -> CharTokenizer:
        """From a bool table of the code points seen; with unknown="replace", U+FFFD joins them."""
        seen = seen.copy()
        seen[ord(REPLACEMENT)] |= unknown == "replace"
        return CharTokenizer(map(chr, np.flatnonzero(seen)))

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        """Ids (int32) of a text. A character outside the vocabulary raises UserError naming it and its position, or
        with unknown="replace" becomes U+FFFD, or "?" or a space where the vocabulary lacks that."""
        ids = self._ids[code_points(text)]
        if (ids < 0).any():
            if unknown == "replace":
                stand_in = next((c for c in (REPLACEMENT, "?", " ") if c in self.vocabulary), self.vocabulary[0])
                return np.where(ids < 0, self._ids[ord(stand_in)], ids)
            at = int(np.argmax(ids < 0))
            raise UserError(
                f"The character {text[at]!r} at position {at} is not among the {self.vocab_size} that this tokenizer "
                "knows; leave it out, or replace what is unknown with --unknown replace."
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        codes = self._codes[np.asarray(ids, dtype=np.int64)]
        return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def incremental(self) -> Callable[[int | None], str]:
        """A function that takes ids one after another and gives the text that is whole by then; None: no id follows."""
        return lambda token: "" if token is None else self.decode([token])

    def beginning(self) -> np.ndarray:
        """What stands before a new document: a blank line, or what this vocabulary has nearest to it."""
        return self.encode("\n\n", unknown="replace")

    def to_json(self) -> str:
        return json.dumps({"type": self.kind, "vocabulary": self.vocabulary})


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, over bytes as in GPT-2), by the tokenizers library."""

    kind = "bpe"

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Merges learned from an iterable of texts; fewer than asked for where the text has no more pairs."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(_pieces(texts), trainer)
        return BPETokenizer(tokenizer)

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        """Ids (int32) of a text; every byte has a token, so nothing is unknown."""
        return np.array(self._tokenizer.encode(text).ids, dtype=np.int32)

    def encode_many(self, texts: list[str]) -> np.ndarray:
        """The ids of texts one after another, encoded in parallel, a few pieces at a time: an encoding is large."""
        ids, pieces = [np.empty(0, np.int32)], _pieces(texts)
        while some := list(itertools.islice(pieces, PIECES)):
            ids += [np.array(e.ids, dtype=np.int32) for e in self._tokenizer.encode_batch_fast(some)]
        return np.concatenate(ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def incremental(self) -> Callable[[int | None], str]:
        """As CharTokenizer's: a token may end within a character, whose first bytes are then held back."""
        added = self._tokenizer.get_added_tokens_decoder()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def gained(token: int | None) -> str:
            if token is None:
                return decoder.decode(b"", final=True)
            if token in added:
                return decoder.decode(added[token].content.encode("utf-8"))
            return decoder.decode(bytes(BYTES[c] for c in self._tokenizer.id_to_token(token)))

        return gained

    def beginning(self) -> np.ndarray:
        """What stands before a new document."""
        return self.encode(END_OF_TEXT + "\n")

    def to_json(self) -> str:
        return self._tokenizer.to_str()


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts in pieces of at most PIECE characters, cut before the space before a word: no token reaches across.

    The library reads some hundred texts ahead: of whole megabytes that would be most of its memory.
    """
    for text in texts:
        start = 0
        while len(text) - start > PIECE:
            end = start + PIECE
            while (end := text.rfind(" ", start + 1, end)) > 0 and text[end - 1].isspace():
                pass  # within a run of spaces tokens do reach across
            end = end if end > 0 else start + PIECE
            yield text[start:end]
            start = end
        yield text[start:]


Tokenizer = CharTokenizer | BPETokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer saved as JSON at `path`; raises UserError for a file that holds none."""
    try:
        text = path.read_text(encoding="utf-8")
        saved = json.loads(text)
        if saved.get("type") == CharTokenizer.kind:
            return CharTokenizer(saved["vocabulary"])
        from minilm.corpus.tokenizer_json import from_library

        return from_library(text)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: prepare the data again, or give the run folder whole.") from None
    except UserError as error:
        raise UserError(f"{path} holds no tokenizer that can be used. {error}") from None
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{path} holds no tokenizer ({error}): prepare the data again.") from None
