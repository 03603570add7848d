"""tokenizer.json as the tokenizers library and transformers read it, for both kinds of tokenizer, and back."""

from __future__ import annotations

import json
from typing import Any

from minilm.corpus.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from minilm.errors import UserError

EVERY_CHARACTER = {"Regex": r"[\s\S]"}  # one code point, the end of a line too


def to_library(tokenizer: Tokenizer) -> str:
    """The text of a tokenizer.json. Raises UserError for characters that UTF-8 has not."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.to_json()
    odd = [c for c in tokenizer.vocabulary if "\ud800" <= c <= "\udfff"]
    if odd:
        raise UserError(
            f"The vocabulary has {odd[0]!r}, half of a character, which the tokenizers library cannot hold."
        )
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": EVERY_CHARACTER,
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},  # without it, tokens are joined by spaces
            "model": {
                "type": "WordLevel",
                "vocab": {c: i for i, c in enumerate(tokenizer.vocabulary)},
                # must be named; where the vocabulary lacks it, an unknown character is an error, as it is here
                "unk_token": "\ufffd",
            },
        },
        ensure_ascii=False,
    )


def from_library(text: str) -> Tokenizer:
    """The tokenizer in a tokenizer.json: byte-level BPE, or what to_library() wrote of characters.

    Raises UserError for another kind, and whatever the library raises for what is none.
    """
    saved = json.loads(text)
    model = saved.get("model") or {}
    if model.get("type") == "WordLevel":
        return _characters(saved, model.get("vocab") or {})
    if not (model.get("type", "BPE") == "BPE" and _is_byte_level(saved) and not model.get("byte_fallback")):
        raise UserError(
            f"Its tokenizer.json is {str(model.get('type'))[:40]}, and not byte-level BPE as GPT-2's is, which alone "
            "can be read beside tokenizers of characters that minilm wrote."
        )
    from tokenizers import Tokenizer as Library

    library = Library.from_str(text)
    if library.encode("").ids:
        raise UserError(
            "Its tokenizer.json puts special tokens around every text (post_processor), which no tokenizer of minilm "
            "does; remove that from the file if the model can do without."
        )
    library.no_truncation()
    library.no_padding()
    return BPETokenizer(library)


def _is_byte_level(saved: dict[str, Any]) -> bool:
    def kinds(part: dict[str, Any] | None, inner: str) -> set[Any]:
        part = part or {}
        return {part.get("type")} | {p.get("type") for p in part.get(inner) or []}

    before, after = kinds(saved.get("pre_tokenizer"), "pretokenizers"), kinds(saved.get("decoder"), "decoders")
    return "ByteLevel" in before and "ByteLevel" in after


def _characters(saved: dict[str, Any], vocab: dict[str, int]) -> CharTokenizer:
    plain = not (saved.get("added_tokens") or saved.get("normalizer") or saved.get("post_processor"))
    split = (saved.get("pre_tokenizer") or {}).get("pattern") == EVERY_CHARACTER
    if not (plain and split and sorted(vocab.values()) == list(range(len(vocab))) and all(len(c) == 1 for c in vocab)):
        raise UserError("Its tokenizer.json is a list of words, and not of characters as minilm writes it.")
    return CharTokenizer(sorted(vocab, key=vocab.__getitem__))
