"""Models that only count: interpolated n-grams with modified Kneser-Ney smoothing, the bar a transformer has to clear.

    p_n(w | context) = max(c - D(c), 0) / c(context) + gamma(context) · p_{n-1}(w | shorter context)

(Chen and Goodman 1999, section 3). The highest order counts occurrences; the lower ones count in how many different
contexts a sequence occurs, because they are asked only where the longer context is of no help. Below the unigram
stands the uniform distribution, so every token has some probability. Of three smoothings tried (modified Kneser-Ney
with and without those continuation counts, Witten-Bell) it gave the least held-out loss: on Tiny Shakespeare, 6-gram,
1.523 nats a character against 1.666 and 1.698; LOG.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minilm.errors import UserError

SMOOTHING = "interpolated modified Kneser-Ney"
FALLBACK_DISCOUNT = 0.5  # where too few sequences occur once to four times to estimate one from


@dataclass(frozen=True)
class _Table:
    """Sequences of one length as sorted integers, the newest token least significant, and what smoothing needs."""

    sequences: np.ndarray  # uint64, unique, sorted
    counts: np.ndarray
    contexts: np.ndarray  # uint64, unique, sorted: sequences without their last token
    totals: np.ndarray  # of the counts of each context
    gammas: np.ndarray  # share of each context's probability that goes to the shorter one
    discounts: np.ndarray  # of counts 0, 1, 2, and 3 or more

    @staticmethod
    def build(sequences: np.ndarray, counts: np.ndarray, vocab_size: int) -> _Table:
        discounts = _discounts(counts)
        of_context = sequences // np.uint64(vocab_size)
        starts = np.flatnonzero(np.concatenate(([True], of_context[1:] != of_context[:-1])))
        totals = np.add.reduceat(counts, starts)
        gammas = np.add.reduceat(discounts[np.minimum(counts, 3)], starts) / totals
        return _Table(sequences, counts, of_context[starts], totals, gammas, discounts)

    def interpolate(self, sequences: np.ndarray, lower: np.ndarray, vocab_size: int) -> np.ndarray:
        """Probabilities of the last token of each sequence, given `lower`, those after the shorter context."""
        at, found = _find(self.sequences, sequences)
        count = np.where(found, self.counts[at], 0)
        context, seen = _find(self.contexts, sequences // np.uint64(vocab_size))
        own = (count - self.discounts[np.minimum(count, 3)]) / self.totals[context]
        return np.where(seen, own + self.gammas[context] * lower, lower)


class NGram:
    """n-gram models of every order up to `order`, fitted to a sequence of token ids at once."""

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int):
        """tokens (N,) integers below vocab_size, N >= order. Raises UserError where sequences do not fit in 64 bits."""
        if vocab_size**order >= 2**64:
            raise UserError(
                f"an n-gram of order {order} over a vocabulary of {vocab_size} does not fit in 64 bits; use "
                f"characters, or a vocabulary of at most {int(2 ** (64 / order))}."
            )
        if len(tokens) < order:
            raise UserError(f"{len(tokens)} tokens are too few to fit n-grams of order {order}.")
        self.order, self.vocab_size = order, vocab_size
        unique = [np.unique(_pack(tokens, n, vocab_size), return_counts=True) for n in range(1, order + 1)]
        self._top = [_Table.build(*found, vocab_size) for found in unique]
        self._lower = []
        for n in range(1, order):  # in how many contexts one token longer each sequence occurs
            endings = unique[n][0] % np.uint64(vocab_size**n)
            self._lower.append(_Table.build(*np.unique(endings, return_counts=True), vocab_size))

    def cross_entropy(self, tokens: np.ndarray, order: int | None = None) -> float:
        """Mean nats a token of (N,) ids under the model of `order` (the highest unless given). Every token is scored;
        the first ones have as much context as there is."""
        order = order or self.order
        total = 0.0
        for start in range(0, len(tokens), 1 << 20):  # in parts, so that memory stays flat
            part = tokens[max(0, start - order + 1) : start + (1 << 20)]
            total -= np.log(self._score(part, order)[min(start, order - 1) :]).sum()
        return float(total / len(tokens))

    def probabilities(self, context: np.ndarray, order: int | None = None) -> np.ndarray:
        """(vocab_size,) probabilities of the next token after `context` (as much of it as the order uses)."""
        order = min(order or self.order, len(context) + 1)
        used = np.asarray(context, dtype=np.uint64)[len(context) - order + 1 :]
        base = np.uint64(0)
        for token in used:
            base = base * np.uint64(self.vocab_size) + token
        p = np.full(self.vocab_size, 1 / self.vocab_size)
        for n in range(1, order + 1):
            tail = base % np.uint64(self.vocab_size ** (n - 1)) if n > 1 else np.uint64(0)
            sequences = tail * np.uint64(self.vocab_size) + np.arange(self.vocab_size, dtype=np.uint64)
            p = self._table(n, order).interpolate(sequences, p, self.vocab_size)
        return p

    def _table(self, n: int, order: int) -> _Table:
        return self._top[n - 1] if n == order else self._lower[n - 1]

    def _score(self, tokens: np.ndarray, order: int) -> np.ndarray:
        """The probability of each token after those before it."""
        p = np.full(len(tokens), 1 / self.vocab_size)
        for n in range(1, min(order, len(tokens)) + 1):
            sequences = _pack(tokens, n, self.vocab_size)
            lower = p[n - 1 :].copy()
            p[n - 1 :] = self._table(n, order).interpolate(sequences, lower, self.vocab_size)
            if n < order:  # a token with no more context than this is scored by the model of this order
                p[n - 1] = self._top[n - 1].interpolate(sequences[:1], lower[:1], self.vocab_size)[0]
        return p


def baselines(
    train: np.ndarray, val: np.ndarray, vocab_size: int, orders: Iterable[int] = range(1, 7)
) -> list[dict[str, float]]:
    """[{"order", "nats_per_token"}, ...]: models of each order fitted on `train` and scored on `val`."""
    orders = list(orders)
    model = NGram(train, max(orders), vocab_size)
    return [{"order": n, "nats_per_token": model.cross_entropy(val, n)} for n in orders]


def _pack(tokens: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """The n tokens that end at each position, as one integer, from position n - 1 on."""
    packed = np.zeros(len(tokens) - n + 1, dtype=np.uint64)
    for offset in range(n):
        packed *= np.uint64(vocab_size)
        packed += tokens[offset : len(tokens) - n + 1 + offset].astype(np.uint64)
    return packed


def _find(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted integer stands among the known ones, and whether it does."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return at, known[at] == wanted


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D(0) = 0, D(1), D(2), D(3+), estimated from how many sequences occur once to four times (equation 26 there)."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0] + 3 * [FALLBACK_DISCOUNT])
    y = n1 / (n1 + 2 * n2)
    estimated = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(estimated, [0, 0.01, 0.01, 0.01], [0, 1, 2, 3])
