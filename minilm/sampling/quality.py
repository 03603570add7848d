"""How good generated texts are: each figure is a share of what was counted in texts of one length, with an interval.

Words are runs of letters, digits and underscores, hyphens and apostrophes within them included; a word that the end of
a text cuts is left out.

repeated_4grams      words 4 in a row that stood in the same text before / all 4 in a row (Welleck et al. 2020,
                     "Neural text generation with unlikelihood training", section 6: seq-rep-4)
distinct_1, _2       different words, and different pairs of words in a row / all, in the first `distinct_words` words
                     of a text (Li et al. 2016, "A diversity-promoting objective function", section 5): it falls with
                     length, so a text with fewer words is not judged
known_words          words that the training text has, letter case included / all
novelty_1 to _10     n-grams that the training text does not have / all (McCoy et al. 2023, "How much do language models
                     copy from their training data?", section 4); of characters or of words: see Training
longest_copy         characters of the longest passage that stands in the training text too / texts: its mean
accepted             stories that the grammar of the fables can write / stories judged (fables only)
followed             characters up to which a text is the beginning of such a story / texts
story_nats           nats that the true source gives accepted stories / their characters: minus the log-probability
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np

from minilm.corpus.tokenizer import code_points
from minilm.sampling.suffixes import SuffixIndex

ORDERS = range(1, 11)  # of the n-grams whose novelty is judged
SEARCHED = 1 << 22  # characters of the training text that are looked through, from its beginning
RESAMPLES = 2000
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
Tallies = dict[str, list[tuple[float, float]]]  # figure -> (part, whole) of every text


def words_of(text: str) -> list[str]:
    """The words of a text, without one at its end that may go on."""
    found = list(_WORD.finditer(text))
    if found and re.fullmatch(r"[-'’]?", text[found[-1].end() :]):
        found.pop()
    return [match[0] for match in found]


class Training:
    """What generated texts are compared with: the first SEARCHED characters of the training text.

    by: what the n-grams of novelty are made of, "character" or "word". Characters tell most of a model that writes
    them one by one: it must learn its very spelling. A model of tokens spells by the token, so that words are asked.
    """

    def __init__(self, text: str, by: str = "character"):
        text = text[:SEARCHED]
        words = _WORD.findall(text)
        self.by, self.characters, self.words = by, len(text), set(words)
        self._text = SuffixIndex(code_points(text))
        self._numbers = {word: number for number, word in enumerate(sorted(self.words))} if by == "word" else {}
        self._words: Any = (
            SuffixIndex(np.array([self._numbers[word] for word in words], np.int64)) if by == "word" else None
        )

    def matches(self, text: str) -> np.ndarray:
        """Of every character of a text: how many from there on stand together in the training text."""
        return self._text.longest_matches(code_points(text))

    def word_matches(self, words: Sequence[str]) -> np.ndarray:
        """The same of words, where n-grams are of words."""
        unknown = len(self._numbers)
        return self._words.longest_matches(np.array([self._numbers.get(word, unknown) for word in words], np.int64))


def tally(texts: Sequence[str], distinct_words: int, training: Training | None = None) -> Tallies:
    """Every figure but those of stories, counted in every text; without the training text, what needs none."""
    counted: Tallies = {"repeated_4grams": [repeated(words_of(text), 4) for text in texts]}
    for n in (1, 2):
        counted[f"distinct_{n}"] = [distinct(words_of(text), n, distinct_words) for text in texts]
    if training is None:
        return counted
    counted |= {name: [] for name in ("known_words", *(f"novelty_{n}" for n in ORDERS), "longest_copy")}
    for text in texts:
        words, matches = words_of(text), training.matches(text)
        counted["known_words"].append((sum(word in training.words for word in words), len(words)))
        units = matches if training.by == "character" else training.word_matches(words)
        for n in ORDERS:
            counted[f"novelty_{n}"].append(novel(units, n))
        counted["longest_copy"].append((int(matches.max(initial=0)), 1))
    return counted


def repeated(words: Sequence[str], n: int) -> tuple[int, int]:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


def distinct(words: Sequence[str], n: int, length: int) -> tuple[int, int]:
    """Of the first `length` words; (0, 0) where there are fewer."""
    if len(words) < length or length < n:
        return 0, 0
    grams = list(words[:length]) if n == 1 else list(pairwise(words[:length]))
    return len(set(grams)), len(grams)


def novel(matches: np.ndarray, n: int) -> tuple[int, int]:
    """From what longest_matches() found for a text."""
    grams = max(0, len(matches) - n + 1)
    return int((matches[:grams] < n).sum()), grams


def story_tally(texts: Iterable[str]) -> Tallies:
    """Of texts that begin with a story: accepted, followed and story_nats. Story cut at the end of its text: not judged
    by the grammar, for it might have ended well."""
    from minilm.corpus import fables

    counted: Tallies = {"accepted": [], "followed": [], "story_nats": []}
    for text in texts:
        reading = fables.read(text)
        counted["accepted"].append((float(bool(reading.accepted)), float(reading.accepted is not None)))
        counted["followed"].append((reading.characters, 1))
        if reading.accepted:
            probability = cast(float, reading.log_probability)  # of what the grammar accepts it is known
            counted["story_nats"].append((-probability, reading.characters))
    return counted


def summary(counted: Tallies, seed: int = 0) -> dict[str, dict[str, Any]]:
    """figure -> value, low and high (95%) and n, the number of texts in which there was something to count.

    Intervals are percentiles of bootstrap resamples of whole texts (Efron and Tibshirani 1993, chapter 13), for
    what stands in one text is not independent. Of `accepted` it is Wilson's (1927), since all or none of a few stories
    resample to themselves. None where nothing was counted, and where there is but one text to resample.
    """
    return {name: _interval(name, pairs, seed) for name, pairs in counted.items()}


def _interval(name: str, pairs: Sequence[tuple[float, float]], seed: int) -> dict[str, Any]:
    counts = np.array([pair for pair in pairs if pair[1] > 0], dtype=float).reshape(-1, 2)
    n = len(counts)
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    part, whole = counts.sum(axis=0)
    low = high = None
    if name == "accepted":
        low, high = wilson(int(part), int(whole))
    elif n > 1:
        drawn = counts[np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))].sum(axis=1)
        low, high = (float(edge) for edge in np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5)))
    return {"value": float(part / whole), "low": low, "high": high, "n": n}


def wilson(part: int, whole: int) -> tuple[float, float]:
    """The 95% score interval of a share."""
    z2, p = 1.959964**2, part / whole
    middle = (p + z2 / (2 * whole)) / (1 + z2 / whole)
    half = math.sqrt(z2 * (p * (1 - p) / whole + z2 / (4 * whole**2))) / (1 + z2 / whole)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_row(values: Sequence[float], count: float | None = None, value: float | None = None) -> dict[str, Any]:
    """A mean with the interval that the spread of its values gives: of as many as there are, or `count`, around their
    own mean or `value`."""
    mean = float(np.mean(values)) if value is None else value
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None, "n": len(values)}
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(count or len(values))
    return {"value": mean, "low": mean - half, "high": mean + half, "n": len(values)}
