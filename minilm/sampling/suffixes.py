"""The suffixes of a long text in order, to find the longest passages that another text has in common with it.

Prefix doubling (Manber and Myers 1993, "Suffix arrays: a new method for on-line string searches"), begun with as many
symbols as one integer holds and sorting again only what is still tied, as Larsson and Sadakane (2007, "Faster suffix
sorting") do. Four million characters take about two seconds and 330 MB.
"""

from __future__ import annotations

import numpy as np

DEEPEST = 2048  # symbols that are looked at to tell two suffixes apart


class SuffixIndex:
    """Of symbols (n,), integers from 0 on, such as code points. Suffixes alike in their first DEEPEST symbols are in
    no particular order: a match that is longer than that may be found shorter than it is, but no shorter than that."""

    def __init__(self, symbols: np.ndarray):
        present = np.zeros(int(symbols.max(initial=0)) + 1, dtype=bool)
        present[symbols] = True
        self._codes = np.cumsum(present, dtype=np.int32) * present  # 1 and up; 0: not in this text, or after its end
        self._unknown = int(present.sum()) + 1  # what a query has there instead: it equals nothing
        self._bits = self._unknown.bit_length()
        self._width = 63 // self._bits  # symbols in a key
        self._keys = self._packed(self._codes[symbols], after=0)
        self._order = self._sorted()

    def longest_matches(self, symbols: np.ndarray) -> np.ndarray:
        """For every position of symbols (m,) how many from there on occur together in the text, (m,) int64."""
        known = symbols < len(self._codes)
        codes = np.where(known, self._codes[np.where(known, symbols, 0)], 0)
        keys = self._packed(np.where(codes > 0, codes, self._unknown), after=self._unknown)
        n, places = len(self._order), np.arange(len(symbols))
        low, high = np.zeros(len(symbols), np.int64), np.full(len(symbols), n)
        while (searching := np.flatnonzero(low < high)).size:  # the first suffix that is not before the query's
            middle = (low[searching] + high[searching]) // 2
            before = self._is_before(self._order[middle], keys, places[searching])
            low[searching] = np.where(before, middle + 1, low[searching])
            high[searching] = np.where(before, high[searching], middle)
        matches = np.zeros(len(symbols), np.int64)
        for neighbour in (low - 1, low):
            there = np.flatnonzero((neighbour >= 0) & (neighbour < n))
            agreed = self._agreement(self._order[neighbour[there]], keys, places[there])
            matches[there] = np.maximum(matches[there], agreed)
        return matches

    def _packed(self, codes: np.ndarray, after: int) -> np.ndarray:
        """The `_width` codes from every position on as one integer, in the order of which the codes are."""
        padded = np.concatenate((codes.astype(np.int64), np.full(self._width, after, np.int64)))
        keys = np.zeros(len(codes), np.int64)
        for i in range(self._width):
            keys <<= self._bits
            keys |= padded[i : i + len(codes)]
        return keys

    def _sorted(self) -> np.ndarray:
        n = len(self._keys)
        order = np.argsort(self._keys)
        begins = np.ones(n, dtype=bool)  # whether a group of suffixes that are alike so far begins at this slot
        begins[1:] = np.diff(self._keys[order]) != 0
        slots, depth = np.arange(n), self._width
        rank = np.empty(n, dtype=np.int64)  # the slot at which a suffix's group begins
        rank[order] = np.maximum.accumulate(np.where(begins, slots, 0))
        while depth < DEEPEST:
            tied = np.flatnonzero(~(begins & np.append(begins[1:], True)))
            if not tied.size:
                break
            suffixes = order[tied]
            rest = suffixes + depth
            pairs = rank[suffixes] * (n + 1) + np.where(rest < n, rank[np.minimum(rest, n - 1)] + 1, 0)
            again = np.argsort(pairs)
            order[tied] = suffixes[again]
            begins[tied[1:]] = np.diff(pairs[again]) != 0
            rank[order[tied]] = np.maximum.accumulate(np.where(begins[tied], tied, 0))
            depth *= 2
        return order

    def _compared(self, suffixes: np.ndarray, keys: np.ndarray, places: np.ndarray, depth: int):
        """The keys of suffixes of the text and of a query, `depth` symbols on."""
        at, of_query = suffixes + depth, places + depth
        text = np.where(at < len(self._keys), self._keys[np.minimum(at, len(self._keys) - 1)], 0)
        end = np.iinfo(np.int64).max  # equals no key of the text
        return text, np.where(of_query < len(keys), keys[np.minimum(of_query, len(keys) - 1)], end)

    def _is_before(self, suffixes: np.ndarray, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Whether each suffix of the text comes before that of the query at the same index."""
        before, left, depth = np.zeros(len(suffixes), dtype=bool), np.arange(len(suffixes)), 0
        while left.size and depth < DEEPEST:
            text, query = self._compared(suffixes[left], keys, places[left], depth)
            before[left] = text < query
            left, depth = left[text == query], depth + self._width
        return before

    def _agreement(self, suffixes: np.ndarray, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How many symbols each suffix of the text shares with that of the query at the same index."""
        agreed, left, depth = np.zeros(len(suffixes), np.int64), np.arange(len(suffixes)), 0
        while left.size:
            text, query = self._compared(suffixes[left], keys, places[left], depth)
            differ = text ^ query
            for i in range(1, self._width + 1):  # every symbol up to the first that differs
                agreed[left] += differ >> (self._bits * (self._width - i)) == 0
            left, depth = left[differ == 0], depth + self._width
        return agreed
