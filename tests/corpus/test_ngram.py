"""The count models promise proper probabilities, Kneser-Ney's, and the same numbers by every way of asking."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from minilm.corpus import ngram
from minilm.errors import UserError

VOCAB = 7


@pytest.fixture(scope="module")
def tokens():
    """A second-order source with rare tokens; one token of the vocabulary never occurs."""
    draw = np.random.default_rng(0)
    odds = draw.dirichlet(np.full(VOCAB - 1, 0.3), size=(VOCAB, VOCAB))
    found = [0, 1]
    for _ in range(4000):
        found.append(int(draw.choice(VOCAB - 1, p=odds[found[-2], found[-1]])))
    return np.array(found)


def textbook(tokens, order, discounts):
    """Interpolated Kneser-Ney from its definition, one dictionary a level: a function (context, token) -> p."""
    levels = []
    for length in range(1, order + 1):
        if length == order:
            grams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
        else:
            grams = [gram[1:] for gram in {tuple(tokens[i : i + length + 1]) for i in range(len(tokens) - length)}]
        counts = Counter(grams)
        after = defaultdict(dict)
        for gram, count in counts.items():
            after[gram[:-1]][gram[-1]] = count
        levels.append((after, discounts(counts)))

    def p(context, token):
        if len(context) == 0:
            shorter = 1 / VOCAB
        else:
            shorter = p(context[1:], token)
        after, discount = levels[len(context)]
        if context not in after:
            return shorter
        followers = after[context]
        total = sum(followers.values())
        kept = sum(discount[min(count, 3)] for count in followers.values())
        count = followers.get(token, 0)
        return (max(count - discount[min(count, 3)], 0) if count else 0) / total + kept / total * shorter

    return p


def chen_and_goodman(counts):
    n = Counter(counts.values())
    if min(n[k] for k in (1, 2, 3, 4)) == 0:
        return [0, 0.5, 0.5, 0.5]
    y = n[1] / (n[1] + 2 * n[2])
    return [0] + [min(max(k - (k + 1) * y * n[k + 1] / n[k], 0.05), k) for k in (1, 2, 3)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_kneser_ney_as_the_textbook_has_it(tokens, order):
    train, val = tokens[:3000], tokens[3000:3400]
    p = textbook(train.tolist(), order, chen_and_goodman)
    wanted = [p(tuple(val[max(0, i - order + 1) : i].tolist()), int(val[i])) for i in range(len(val))]
    np.testing.assert_allclose(ngram.fit(train, order, VOCAB).token_probabilities(val), wanted, rtol=1e-12)


@pytest.mark.parametrize("order", range(1, 7))
@pytest.mark.parametrize("context", [[], [3], [0, 1, 2, 3, 4, 5, 0], [VOCAB - 1], [2, VOCAB - 1, 4]])
def test_after_any_context_probabilities_are_positive_and_sum_to_one(tokens, order, context):
    p = ngram.fit(tokens, order, VOCAB).probabilities(context)
    assert p.shape == (VOCAB,)
    assert p.min() > 0
    assert p.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", [1, 3, 6])
def test_scoring_a_text_and_asking_for_distributions_agree(tokens, order):
    model = ngram.fit(tokens[:3000], order, VOCAB)
    val = tokens[3000:3100]
    one_by_one = [model.probabilities(val[:i])[token] for i, token in enumerate(val)]
    np.testing.assert_allclose(model.token_probabilities(val), one_by_one, rtol=1e-12)
    assert model.cross_entropy(val) == pytest.approx(-np.log(one_by_one).mean(), rel=1e-12)


def test_baselines_are_what_each_order_gives_by_itself(tokens):
    train, val = tokens[:3000], tokens[3000:]
    alone = [{"order": n, "nats_per_token": ngram.fit(train, n, VOCAB).cross_entropy(val)} for n in (1, 2, 4)]
    assert [found["order"] for found in ngram.baselines(train, val, VOCAB, orders=(1, 2, 4))] == [1, 2, 4]
    for found, wanted in zip(ngram.baselines(train, val, VOCAB, orders=(1, 2, 4)), alone, strict=True):
        assert found["nats_per_token"] == pytest.approx(wanted["nats_per_token"], rel=1e-12)
    assert len(ngram.baselines(train, val, VOCAB)) == 6


def test_a_text_shorter_than_the_order_is_scored_with_the_contexts_it_has(tokens):
    longest, short = (ngram.fit(tokens, order, VOCAB) for order in (5, 3))
    scored = longest.token_probabilities(tokens[:2])
    assert len(scored) == 2
    np.testing.assert_allclose(scored, short.token_probabilities(tokens[:2]), rtol=1e-12)


def test_what_repeats_is_learnt():
    cycle = np.tile(np.arange(VOCAB), 500)
    assert ngram.fit(cycle, 2, VOCAB).cross_entropy(cycle) < 0.01
    assert ngram.fit(cycle, 1, VOCAB).cross_entropy(cycle) == pytest.approx(np.log(VOCAB), rel=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_the_integer_type_of_the_tokens_does_not_matter(tokens, dtype):
    wanted = ngram.fit(tokens, 4, VOCAB).cross_entropy(tokens)
    assert ngram.fit(tokens.astype(dtype), 4, VOCAB).cross_entropy(tokens.astype(dtype)) == wanted


def test_large_vocabularies_keep_their_grams_apart():
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, 1600, 3000)  # 1600 ** 6 is just below 2 ** 64
    model = ngram.fit(tokens, 6, 1600)
    assert model.probabilities(tokens[:5])[tokens[5]] > 0.4
    assert model.probabilities(tokens[:5]).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("order", "vocab_size", "tokens", "sentence"),
    [
        (0, 50, [1, 2, 3], "order of 0 .* 1 to 11"),
        (6, 2000, [1, 2, 3], "order of 6 .* with 2000 tokens it can be 1 to 5"),
        (2, 3, [1, 2, 3], "run from 1 to 3, but vocab_size is 3"),
        (2, 3, [-1, 2], "run from -1 to 2"),
        (2, 3, [], "empty sequence"),
        (4, 3, [1, 2], "order 4 was given 2 tokens"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_a_sentence(order, vocab_size, tokens, sentence):
    with pytest.raises(UserError, match=sentence):
        ngram.fit(np.array(tokens, dtype=np.int64), order, vocab_size)
