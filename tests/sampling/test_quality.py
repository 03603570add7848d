"""The judges: each figure is what a slow and obvious count gives, and what was planted is found."""

import math
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm.corpus import fables
from minilm.corpus.tokenizer import code_points
from minilm.sampling import quality
from minilm.sampling.quality import Training, distinct, novel, repeated, story_tally, summary, tally, wilson, words_of
from minilm.sampling.suffixes import DEEPEST, SuffixIndex

TEXT = "The fox met the crow by the old mill. Give me the cheese, said the fox, and I will sing for you; "
WORDS = st.lists(st.sampled_from("the old mill fox's re-met I".split()), max_size=40)
SOME = st.text("abc é漢\n", min_size=1, max_size=60)


def longest_matches_slowly(text, query):
    found = []
    for i in range(len(query)):
        n = 0
        while i + n < len(query) and query[i : i + n + 1] in text:
            n += 1
        found.append(n)
    return found


def grams_of(units, n):
    return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]


# The suffix index


@settings(max_examples=200)
@given(text=st.text("ab", min_size=1, max_size=200) | st.text("abcdef é漢", min_size=1, max_size=200), query=SOME)
def test_the_longest_match_from_every_place_is_found(text, query):
    query += text[3:40] + "z" + text[-20:]
    found = SuffixIndex(code_points(text)).longest_matches(code_points(query))
    assert found.tolist() == longest_matches_slowly(text, query)


def test_a_match_is_found_in_whole_however_often_its_beginning_is_repeated():
    passage = "".join(random.Random(1).choices("abcdefgh", k=3 * DEEPEST))
    text = "ab" * 5000 + passage + "ab" * 5000
    index = SuffixIndex(code_points(text))
    assert index.longest_matches(code_points("z" + passage + "z"))[1] == len(passage)
    assert (
        index.longest_matches(code_points("ab" * 3000 + "z"))[0] >= DEEPEST
    )  # as long as that they may be told shorter


def test_passages_that_begin_alike_for_long_are_told_apart():
    draw = random.Random(2)
    common = "".join(draw.choices("ab", k=700))
    ends = ["".join(draw.choices("abcd", k=40)) + "." for _ in range(60)]
    index = SuffixIndex(code_points("".join(common + end for end in ends)))
    for end in ends:
        assert index.longest_matches(code_points(common + end + "!"))[0] == 741


def test_matches_end_with_the_text_that_is_searched_and_with_the_query():
    index = SuffixIndex(code_points("abcab"))
    assert index.longest_matches(code_points("cabab")).tolist() == [3, 2, 1, 2, 1]
    assert index.longest_matches(code_points("")).tolist() == []


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The fox's re-met, 'quoted' x_1 12.", ["The", "fox's", "re-met", "quoted", "x_1", "12"]),
        ("one two thr", ["one", "two"]),
        ("one two fox-", ["one", "two"]),
        ("one two ", ["one", "two"]),
        ("", []),
    ],
)
def test_words_are_runs_of_letters_and_one_that_is_cut_is_left_out(text, words):
    assert words_of(text) == words


# The figures


@settings(max_examples=100)
@given(words=WORDS, n=st.integers(1, 4))
def test_a_group_of_words_is_repeated_where_it_stood_before(words, n):
    grams = grams_of(words, n)
    before = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repeated(words, n) == (before, len(grams))


@settings(max_examples=100)
@given(words=WORDS, n=st.sampled_from([1, 2]), length=st.integers(2, 20))
def test_distinct_is_counted_in_so_many_words_and_not_in_fewer(words, n, length):
    grams = grams_of(words[:length], n)
    kinds = [gram for i, gram in enumerate(grams) if gram not in grams[:i]]
    assert distinct(words, n, length) == ((len(kinds), len(grams)) if len(words) >= length else (0, 0))


@settings(max_examples=100)
@given(text=SOME, query=SOME, n=st.integers(1, 10))
def test_an_ngram_of_characters_is_new_where_the_training_text_lacks_it(text, query, n):
    grams = [query[i : i + n] for i in range(len(query) - n + 1)]
    assert novel(Training(text).matches(query), n) == (sum(gram not in text for gram in grams), len(grams))


@settings(max_examples=100)
@given(words=WORDS.filter(len), query=WORDS, n=st.integers(1, 10))
def test_an_ngram_of_words_is_new_where_the_training_text_lacks_it(words, query, n):
    training = Training(" ".join(words) + " ", by="word")
    text = " ".join([*query, "unheard-of", ""])
    seen, grams = grams_of(words, n), grams_of([*query, "unheard-of"], n)
    found = tally([text], 2, training)[f"novelty_{n}"]
    assert found == [(sum(gram not in seen for gram in grams), len(grams))]


def test_a_copy_that_was_planted_is_found_with_its_length():
    passage = TEXT[10:70]
    text = f"Zebras quietly hum: {passage}Zq! Zounds."
    assert tally([text], 2, Training(TEXT * 3))["longest_copy"] == [(len(passage), 1)]


def test_a_copy_has_nothing_new_and_a_foreign_text_nothing_else():
    for by in ("character", "word"):
        copied, foreign = (summary(tally([text], 5, Training(TEXT, by))) for text in (TEXT[:80], "XQZ QQZ JXQ " * 5))
        for n in range(1, 11):
            assert copied[f"novelty_{n}"]["value"] == 0
        for n in range(2, 11):
            assert foreign[f"novelty_{n}"]["value"] == 1
        assert copied["known_words"]["value"] == 1 and foreign["known_words"]["value"] == 0


def test_a_text_that_repeats_itself_is_told_from_one_that_does_not():
    looped = summary(tally(["one two three four five " * 8] * 2, 20))
    plain = summary(tally([" ".join(f"w{i}" for i in range(40)) + " "] * 2, 20))
    assert looped["repeated_4grams"]["value"] == 32 / 37 and plain["repeated_4grams"]["value"] == 0
    assert looped["distinct_1"]["value"] == 5 / 20 and plain["distinct_1"]["value"] == 1
    assert looped["distinct_2"]["value"] == 5 / 19 and plain["distinct_2"]["value"] == 1


def test_known_words_are_those_of_the_training_text_in_its_spelling():
    assert tally(["The crow the Crow cro "], 2, Training(TEXT))["known_words"] == [(3, 5)]


def test_only_the_beginning_of_a_long_training_text_is_searched(monkeypatch):
    monkeypatch.setattr(quality, "SEARCHED", 40)
    training = Training(TEXT)
    assert training.characters == 40
    assert training.matches(TEXT[50:80]).max() < 30 and training.matches(TEXT[5:40]).max() == 35


# Intervals


def test_a_figure_is_the_share_over_all_texts_with_an_interval_around_it():
    row = summary({"known_words": [(1, 10), (30, 40), (0, 0), (8, 10)]})["known_words"]
    assert row["value"] == 39 / 60 and row["n"] == 3 and row["low"] < row["value"] < row["high"]


def test_nothing_to_count_and_a_single_text_have_no_interval():
    assert summary({"x": [(0, 0)]})["x"] == {"value": None, "low": None, "high": None, "n": 0}
    assert summary({"x": [(3, 4)]})["x"] == {"value": 0.75, "low": None, "high": None, "n": 1}


def test_intervals_hold_the_truth_about_as_often_as_they_promise():
    draw, held = np.random.default_rng(3), 0
    for _ in range(300):
        whole = draw.integers(10, 60, 40)
        row = summary({"x": list(zip(draw.binomial(whole, 0.3), whole, strict=True))})["x"]
        held += row["low"] <= 0.3 <= row["high"]
    assert 0.90 <= held / 300 <= 0.98  # three standard errors around what 40 texts allow


@pytest.mark.parametrize(("part", "whole"), [(0, 20), (3, 20), (20, 20)])
def test_the_score_interval_ends_where_the_share_is_1_96_deviations_away(part, whole):
    for edge in wilson(part, whole):
        if 0 < edge < 1:
            assert abs(part / whole - edge) == pytest.approx(1.959964 * math.sqrt(edge * (1 - edge) / whole))
    low, high = wilson(part, whole)
    assert low <= part / whole <= high and high - low > 0.1


# Stories


@pytest.fixture(scope="module")
def stories():
    return list(fables.stories(60_000, seed=77))


def test_the_grammar_accepts_every_true_story_and_gives_it_its_own_probability(stories):
    found = summary(story_tally([story for story, _ in stories]))
    nats = -sum(log_p for _, log_p in stories) / sum(len(story) for story, _ in stories)
    assert found["accepted"]["value"] == 1 and found["accepted"]["n"] == len(stories)
    assert found["story_nats"]["value"] == pytest.approx(nats, rel=1e-12)
    assert found["followed"]["value"] == pytest.approx(np.mean([len(story) for story, _ in stories]))


def test_what_follows_a_story_does_not_count(stories):
    (first, log_p), (second, _) = stories[:2]
    assert fables.read(first + second) == fables.read(first + "zzz") == (True, len(first), log_p)
    assert story_tally([first + second]) == story_tally([first])


def test_a_story_that_is_cut_anywhere_is_neither_accepted_nor_refused(stories):
    for story, _ in stories[:15]:
        for end in range(0, len(story), 11):
            assert fables.read(story[:end]) == (None, end, None), story[:end]
    cut = summary(story_tally([story[:-2] for story, _ in stories]))
    assert cut["accepted"] == {"value": None, "low": None, "high": None, "n": 0}
    assert cut["story_nats"]["value"] is None


def test_a_story_in_which_a_letter_was_changed_is_refused_there_and_no_ending_mends_it(stories):
    draw, refused = random.Random(5), 0
    for story, _ in stories:
        place = draw.randrange(len(story) - 40)
        changed = story[:place] + draw.choice("abcdefghijklmnopqrstuvwxyz,.Q") + story[place + 1 :]
        reading = fables.read(changed)
        assert reading.accepted == fables.accepts(changed)
        if not reading.accepted:
            refused += 1
            assert place - 25 <= reading.characters <= place + 25
            ends = next(end for end in range(place, len(changed)) if fables.read(changed[:end]).accepted is False)
            for more in ("", story[ends:], stories[0][0]):
                assert fables.read(changed[:ends] + more).accepted is False
    assert refused > 0.8 * len(stories)


def test_text_that_is_no_story_is_refused_at_once():
    assert fables.read("Xyz was here.\n\n") == (False, 0, None)
    assert fables.read("The Contest of the Qrx\n") == (False, len("The Contest of the "), None)
    assert fables.read("The Contexts of the fox") == (False, len("The Conte"), None)
    assert fables.read("") == (None, 0, None)
    assert summary(story_tally(["\n\n", "Xy"]))["accepted"]["value"] == 0


def test_the_share_of_stories_has_an_interval_even_where_all_or_none_are_accepted(stories):
    row = summary(story_tally([story for story, _ in stories[:20]]))["accepted"]
    assert row["high"] == 1 and 0.8 < row["low"] < 0.9


def test_every_figure_is_explained_where_it_is_computed(stories):
    names = {*tally([TEXT], 3, Training(TEXT)), *story_tally([stories[0][0]])}
    for name in names:
        assert re.search(rf"^{re.sub(r'_[0-9]+$', '', name)}", quality.__doc__, re.MULTILINE), name
