"""Question 6: byte-pair encoding, merge by merge on the person's own text.

learn_merges() is the algorithm, written to be shown. The tokenizers library, through BPETokenizer, must find the same.
"""

from __future__ import annotations

import inspect
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from minilm.errors import UserError
from minilm.quiz.grading import Evidence, Free, Malformed, Number, Part, Question, Verdict, choice, tell

SENNRICH = "Sennrich et al. 2016, section 3.2"
LONGEST = 400  # characters of a person's text: they have to count pairs in it
MERGES = 8  # shown, or fewer where the text has fewer pairs that come twice
STEMS = ("low", "new", "slow", "old", "deep", "warm", "cold", "long", "fast", "tall")

Pair = tuple[str, str]
Words = Counter[tuple[str, ...]]  # words as tuples of symbols, and how often each comes
Merges = list[tuple[Pair, int]]


def learn_merges(words: Words, n: int, order: dict[str, int]) -> Merges:
    """Up to n merges and their counts; ties go to the first in `order`."""
    merges = []
    for _ in range(n):
        counts = count_pairs(words)
        if not counts:
            break
        best = min(counts, key=lambda p: (-counts[p], *map(order.get, p)))
        merges.append((best, counts[best]))
        order.setdefault("".join(best), len(order))
        words = merge_words(words, best)
    return merges


def count_pairs(words: Words) -> Counter[Pair]:
    """How often two symbols stand side by side within a word."""
    counts: Counter[Pair] = Counter()
    for word, times in words.items():
        for pair in pairwise(word):
            counts[pair] += times
    return counts


def merge_words(words: Words, pair: Pair) -> Words:
    """The words with each occurrence of the pair, from the left, joined to one symbol."""
    merged: Words = Counter()
    for word, times in words.items():
        symbols: list[str] = []
        for symbol in word:
            if symbols and (symbols[-1], symbol) == pair:
                symbols[-1] += symbol
            else:
                symbols.append(symbol)
        merged[tuple(symbols)] += times
    return merged


@dataclass(frozen=True, kw_only=True)
class PairPart(Part):
    """Two symbols that are merged next. `counts` holds the pairs of the text as it stands, `accepted` the right ones:
    several where counts are equal."""

    kind: ClassVar[str] = "pair"
    counts: Counter[Pair]
    accepted: tuple[Pair, ...]
    text: str

    def how(self) -> str:
        return "the two symbols, such as e r or ␣l ow; ␣ (or _) stands for a space"

    def key(self) -> str:
        return " ".join(map(show, self.accepted[0]))

    def check(self, text: str) -> Verdict:
        joined = "".join(self._plain(text).split())
        if len(joined) < 2:
            raise Malformed(f"is no pair; write {self.how()}")
        if joined in {"".join(map(show, pair)) for pair in self.accepted}:
            return Verdict(1)
        most = max(self.counts.values())
        times = max((n for pair, n in self.counts.items() if "".join(map(show, pair)) == joined), default=0)
        if times:
            return Verdict(0, f"That pair comes {times} time{'s' * (times > 1)}; another comes {most} times.")
        if joined.replace("␣", "") in "".join(self.text.split()):
            return Verdict(0, "No two symbols that stand side by side now; and no merge crosses from word to word.")
        return Verdict(0, "These two never stand side by side in the text.")

    def _plain(self, text: str) -> str:
        text = text.replace("Ġ", "␣")
        return text if "_" in self.text else text.replace("_", "␣")


def byte_pairs(rng: random.Random, text: str | None = None) -> Question:
    """Raises UserError for a text in which no two merges can be learned."""
    a, b = rng.sample(STEMS, 2)
    drawn = " ".join([a] * rng.choice((3, 4)) + [a + "er"] * 2 + [b + "er"] * rng.choice((2, 3)) + [b + "est"])
    text = clean(drawn if text is None else text)
    vocabulary = rng.choice((50_257, 32_768, 65_536, 100_000))
    words, order = split_words(text)
    if len(found := learn_merges(words, 2, dict(order))) < 2 or found[1][1] < 2:
        raise UserError(
            f"The text for question 6, {text[:40]!r}, teaches fewer than two merges; give words that share letters."
        )
    (first, times), _ = found
    start = count_pairs(words)
    tied = [pair for pair, n in start.items() if n == times]
    states = {pair: merge_words(words, pair) for pair in [first, *tied]}
    second = [
        pair
        for state in states.values()
        for pair, n in count_pairs(state).items()
        if n == max(count_pairs(state).values())
    ]
    symbols, left = _length(words), _length(states[first])
    parts: tuple[Part, ...] = (
        PairPart(
            id="6a",
            topic="the first merge",
            prompt="Which pair of symbols is merged first? (Where several come equally often, any of them.)",
            counts=start,
            accepted=(first, *tied),
            text=text,
            why=f"{_side(first)} comes {times} times, and nothing oftener: the most frequent pair wins ({SENNRICH}).",
        ),
        Number(
            id="6b",
            topic="tokens after a merge",
            prompt=f"The text begins as {symbols} symbols (spaces count). How many are left after the first merge?",
            answer=left,
            tolerance=1e-6,
            unit="tokens",
            also=tuple(_length(state) for state in states.values()),
            mistakes=(
                (symbols, "The merge joins symbols: each time it happens, two become one."),
                (symbols - 1, "All occurrences are merged, not only the first."),
                (symbols - 2 * (symbols - left), "Two become one, so each occurrence takes away one, not two."),
                (symbols + 1, "The vocabulary grows by one; the text gets shorter."),
            ),
            why=f"{symbols} - {symbols - left} = {left}: an occurrence saves one token; the vocabulary grows by one.",
        ),
        PairPart(
            id="6c",
            topic="the second merge",
            prompt="With the first pair joined everywhere, which pair is merged second?",
            counts=count_pairs(states[first]),
            accepted=tuple(dict.fromkeys((found[1][0], *second))),
            text=text,
            why=f"{_side(found[1][0])} comes {found[1][1]} times now, and nothing oftener: "
            f"each merge counts anew ({SENNRICH}).",
        ),
        Number(
            id="6d",
            topic="merges of a vocabulary",
            prompt=f"A byte-level vocabulary of {vocabulary:,} with one special token: how many merges were learned?",
            answer=vocabulary - 257,
            tolerance=1e-9,
            unit="merges",
            mistakes=(
                (vocabulary - 256, "The special token has a place too, and comes from no merge."),
                (vocabulary - 1, "The 256 bytes are in the vocabulary before any merge."),
                (vocabulary, "The 256 bytes and the special token come from no merge."),
                (vocabulary - 255, "The special token takes a place away; it does not add a merge."),
            ),
            why="256 bytes + merges + 1: GPT-2's 50,257 are 50,000 merges (Radford et al. 2019, section 2.2).",
        ),
        choice(
            rng,
            "it is split into bytes, and the merges are applied in the order they were learned",
            [
                ("the longest piece in the vocabulary is taken, again and again", "That is WordPiece, as BERT has it."),
                ("it becomes an unknown token", "Any text is bytes, and every byte is in the vocabulary."),
                (
                    "its own most frequent pairs are merged",
                    "Counting ended with training; only the list of merges stays.",
                ),
            ],
            id="6e",
            topic="encoding a new word",
            prompt="How is a word encoded that training never saw?",
            why=f"Encoding replays the merges ({SENNRICH}); bytes leave nothing unknown (Radford et al. 2019).",
        ),
        Free(
            id="6f",
            topic="why subwords",
            prompt="Why pieces of words, rather than whole words or single characters?",
            why=f"The rare word was the reason ({SENNRICH.partition(',')[0]}, section 1).",
            model="Whole words need a huge vocabulary and still meet unknown ones; single characters make long texts, "
            "and attention pays for length with its square. Byte-pair encoding gives frequent words one token and "
            "spells rare ones from pieces that other words share.",
            points=(
                ("whole words leave unknown or rare words", "A list of words never covers names and new forms."),
                ("characters make sequences long, hence dear", "Length costs: attention grows with its square."),
                (
                    "frequent strings get one token, rare ones share pieces",
                    "It adapts: frequent is short, rare is spelt.",
                ),
            ),
        ),
    )
    setting = (
        f"The text: {printable(text)}\n"
        f"Its words, a space going with the word after it: {' | '.join(map(_spelt, _in_order(text)))}\n"
        "Every byte is a symbol at first. Pairs are counted within words, never across."
    )
    return Question(6, "Byte-pair encoding", parts, lambda: _verify(text), setting)


def clean(text: str) -> str:
    """Without lone surrogates, which are no text. Raises UserError where it is too long to count pairs in by hand."""
    from minilm.corpus.tokenizer import END_OF_TEXT

    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) > LONGEST or END_OF_TEXT in text:
        raise UserError(
            f"The text for question 6 has {len(text)} characters; at most {LONGEST} are asked for, "
            f"without {END_OF_TEXT}, because you are to count its pairs."
        )
    return text


def split_words(text: str) -> tuple[Words, dict[str, int]]:
    """Words of byte symbols, as GPT-2 splits them, with their counts; and the order of the 256 bytes."""
    from tokenizers import pre_tokenizers

    words = Counter(tuple(word) for word in _in_order(text))
    return words, {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def _in_order(text: str) -> list[str]:
    from tokenizers import pre_tokenizers

    return [word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]


def _length(words: Words) -> int:
    return sum(len(word) * times for word, times in words.items())


def show(symbol: str) -> str:
    """A byte-level symbol for reading: its text, ␣ for a space, hexadecimal for what is no character by itself."""
    raw = bytes(_bytes()[c] for c in symbol)
    try:
        return "".join("␣" if c == " " else c if c.isprintable() else f"⟨{ord(c):02X}⟩" for c in raw.decode("utf-8"))
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02X}⟩" for byte in raw)


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "␤" if c == "\n" else "·" for c in text)


def _bytes() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 for itself, the rest from U+0100 on (Radford et al. 2019)."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


def _spelt(word: Iterable[str]) -> str:
    return " ".join(map(show, word))


def _side(pair: Pair) -> str:
    return f"“{show(pair[0])} {show(pair[1])}”"


def _verify(text: str) -> list[Evidence]:
    words, order = split_words(text)
    learned = [(pair, n) for pair, n in learn_merges(words, MERGES, dict(order)) if n > 1]
    lines = [f"{'':>3} {'pair':16}{'count':>6}{'tokens':>8}{'vocabulary':>12}   new symbol"]
    lines.append(f"{'':>3} {'':16}{'':>6}{_length(words):8}{256:12}")
    for n, (pair, times) in enumerate(learned, 1):
        words = merge_words(words, pair)
        lines.append(f"{n:3} {_spelt(pair):16}{times:6}{_length(words):8}{256 + n:12}   {show(''.join(pair))}")
    pieces = [_merged(word, learned) for word in _in_order(text)]
    lines.append("")
    lines.append("The text now: " + " | ".join(_spelt(word) for word in pieces))
    source = f"{inspect.getsource(learn_merges)}\n{inspect.getsource(count_pairs)}".splitlines()
    return [
        Evidence("Merge by merge on this text.", tuple(lines), True),
        _same_as_the_library(text, learned, [symbol for word in pieces for symbol in word]),
        Evidence("The algorithm as it ran here (minilm/quiz/merges.py):", tuple(source), True),
    ]


def _merged(word: str, learned: Merges) -> tuple[str, ...]:
    words: Words = Counter([tuple(word)])
    for pair, _ in learned:
        words = merge_words(words, pair)
    return next(iter(words))


def _same_as_the_library(text: str, learned: Merges, pieces: list[str]) -> Evidence:
    from minilm.corpus.tokenizer import BPETokenizer

    tokenizer = BPETokenizer.train([text], 257 + len(learned))
    model = json.loads(tokenizer.to_json())["model"]
    theirs = [tuple(pair) for pair in model["merges"]]
    names = {number: symbol for symbol, number in model["vocab"].items()}
    ids = tokenizer.encode(text)
    same_merges = theirs == [pair for pair, _ in learned]
    same_tokens = [names[int(i)] for i in ids] == pieces
    whole = tokenizer.decode(ids) == text
    return Evidence(
        "The tokenizers library, through minilm's BPETokenizer, learns the same merges from the same text.",
        (
            f"{len(learned)} merges, in the same order: {same_merges}",
            f"{tell(len(ids))} tokens, the same ones: {same_tokens}; decoded again, the same text: {whole}",
        ),
        same_merges and same_tokens and whole,
    )
