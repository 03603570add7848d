"""n-gram models: proper distributions, the textbook's formula, and as good as counting gets."""

import itertools
from collections import Counter

import numpy as np
import pytest

from minilm.corpus.ngram import NGram, baselines
from minilm.errors import UserError

RNG = np.random.default_rng(0)
# a second-order source over 6 tokens, so that order 3 is right and higher ones add nothing
TRANSITIONS = RNG.dirichlet(np.full(6, 0.3), size=(6, 6))


def sample(length, seed):
    rng, tokens = np.random.default_rng(seed), [0, 1]
    for _ in range(length - 2):
        tokens.append(rng.choice(6, p=TRANSITIONS[tokens[-2], tokens[-1]]))
    return np.array(tokens)


TRAIN, VAL = sample(20_000, 1), sample(5_000, 2)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_after_any_context_sum_to_one(order):
    model = NGram(TRAIN[:500], order, 8)  # two tokens are never seen
    for context in ([], [3], [0, 1], [7, 7, 7, 7], [1, 2, 3, 4, 5], VAL[:9]):
        p = model.probabilities(np.array(context, dtype=np.int64))
        assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_cross_entropy_is_that_of_the_probabilities_of_every_token(order):
    model, val = NGram(TRAIN[:2000], 6, 6), VAL[:300]
    by_hand = -np.mean([np.log(model.probabilities(val[:i], order)[val[i]]) for i in range(len(val))])
    assert model.cross_entropy(val, order) == pytest.approx(by_hand, rel=1e-12)


def test_a_bigram_is_the_formula_of_modified_kneser_ney():
    text = sample(400, 3).tolist()
    bigrams, continuations = Counter(itertools.pairwise(text)), Counter()
    for _, b in bigrams:
        continuations[b] += 1

    def discounted(counts):
        n = [sum(c == i for c in counts.values()) for i in range(1, 5)]
        if 0 in n:
            return {1: 0.5, 2: 0.5, 3: 0.5}
        y = n[0] / (n[0] + 2 * n[1])
        return {i: min(max(i - (i + 1) * y * n[i] / n[i - 1], 0.01), i) for i in (1, 2, 3)}

    def smoothed(counts, lower, w):
        d, total = discounted(counts), sum(counts.values())
        kept = max(counts.get(w, 0) - d[min(counts[w], 3)], 0) if counts.get(w) else 0
        return kept / total + sum(d[min(c, 3)] for c in counts.values()) / total * lower

    d2, model = discounted(bigrams), NGram(np.array(text), 2, 6)
    for a in range(6):
        after = {b: c for (x, b), c in bigrams.items() if x == a}
        p = model.probabilities(np.array([a]))
        for w in range(6):
            lower = smoothed(continuations, 1 / 6, w)
            c = after.get(w, 0)
            own = (c - d2[min(c, 3)] if c else 0) + sum(d2[min(x, 3)] for x in after.values()) * lower
            assert p[w] == pytest.approx(own / sum(after.values()), rel=1e-12)


def test_the_right_order_comes_close_to_the_source_and_none_goes_below_it():
    truth = -np.mean([np.log(TRANSITIONS[VAL[i - 2], VAL[i - 1]][VAL[i]]) for i in range(2, len(VAL))])
    losses = {row["order"]: row["nats_per_token"] for row in baselines(TRAIN, VAL, 6)}
    assert losses[1] > losses[2] > losses[3] > truth
    assert losses[3] < truth + 0.02
    assert all(loss > truth for loss in losses.values())


def test_scoring_in_parts_changes_nothing(monkeypatch):
    model = NGram(TRAIN, 4, 6)
    long = np.tile(VAL, 300)  # more than one part
    p = model._score(long, 4)
    assert model.cross_entropy(long) == pytest.approx(-np.log(p).mean(), rel=1e-12)


def test_what_does_not_fit_in_64_bits_is_refused():
    with pytest.raises(UserError, match="order 6 over a vocabulary of 4096 does not fit in 64 bits"):
        NGram(TRAIN, 6, 4096)
    with pytest.raises(UserError, match="3 tokens are too few"):
        NGram(TRAIN[:3], 6, 6)
