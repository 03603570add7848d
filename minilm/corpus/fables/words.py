"""Weighted choices: the odds of a rule's alternatives, and word lists with a Zipf tail.

Weights are integers. The only floating-point numbers are their sums, which are exact, a product with a uniform draw,
and the logarithm of a quotient: the same seed chooses the same words on every machine.
"""

import zlib
from functools import cached_property
from itertools import accumulate
from math import log

FAVOURITES = 10


class Odds:
    """A distribution over positions, by integer weights."""

    def __init__(self, weights):
        self.weights = weights
        self.last = len(weights) - 1

    @cached_property
    def cumulative(self):
        return list(accumulate(map(float, self.weights)))

    @cached_property
    def total(self):
        return self.cumulative[-1]

    def log_p(self, i):
        return log(self.weights[i] / self.total)


class Words(Odds):
    """A word list with its weights. A word is a dict: name of a form -> spelling, name of a fact -> another word."""

    def __init__(self, records, weights, index=None):
        super().__init__(weights)
        self.records = records
        self._index = {} if index is None else index

    def index(self, form):
        """Spelling -> position in the list, and the lengths that spellings have, for one form."""
        if form not in self._index:
            spellings = {record[form]: i for i, record in enumerate(self.records)}
            self._index[form] = spellings, sorted({len(spelling) for spelling in spellings})
        return self._index[form]

    def favouring(self, key):
        """The same words, ten of which, fixed by the key, have half the total weight more to share among them."""
        weights = list(self.weights)
        total = sum(weights)
        for k, i in enumerate(favourites(key, len(weights))):
            weights[i] += total // (8 + 4 * k)
        return Words(self.records, weights, self._index)


def favourites(key, size):
    return [zlib.crc32(f"{key}:{k}".encode()) % size for k in range(FAVOURITES)]


def zipf_words(records):
    """The first the likeliest, as 1 / (rank + shift): Zipf's law, with Mandelbrot's shift of a tenth of the list."""
    records = list(records)
    shift = 1 + len(records) // 10
    return Words(records, [10_000_000 // (rank + shift) for rank in range(1, len(records) + 1)])


def equal_words(records):
    records = list(records)
    return Words(records, [1] * len(records))


def integer(n):
    """A number as a word."""
    return {"": str(n), "n": n}
