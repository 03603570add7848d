"""The fables promise exact probabilities, the same text everywhere, and English that hangs together."""

import hashlib
import math
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from minilm.corpus import fables, ngram
from minilm.corpus.fables import forms, grammar, pens
from tests.corpus.fables_parser import Parser

# VERSION: SHA-256 of the first 200,000 characters with seed 0
GOLDEN = {2: "71fdd1d8150036e352f0753e41d0087d7831fbab6ef421ced498bec6a0bf105c"}


@pytest.fixture(scope="module")
def stories():
    """A thousand stories and their log-probabilities."""
    source = fables.stories(10**9, seed=20260)
    return [next(source) for _ in range(1000)]


@pytest.fixture(scope="module")
def text(stories):
    return "".join(story for story, _ in stories)


@pytest.fixture(scope="module")
def parser():
    return Parser()


@pytest.fixture(scope="module")
def rules():
    return fables._grammar()


# Exact probabilities


def test_an_independent_parser_finds_one_derivation_of_each_of_1000_stories_and_the_same_probability(stories, parser):
    for story, log_p in stories:
        derivations = parser.derivations(story)
        assert len(derivations) == 1, story
        assert abs(derivations[0] - log_p) < 1e-9
        assert abs(fables.log_probability(story) - log_p) < 1e-9


def test_the_floor_follows_from_the_text_alone(stories, text, parser):
    found = [parser.derivations(f"{story}\n\n")[0] for story in text.split("\n\n")[:-1]]
    assert abs(sum(found) - sum(log_p for _, log_p in stories)) < 1e-9 * len(stories)


def test_the_odds_of_every_choice_sum_to_one(rules):
    tables = [rule.odds for rule in rules.rules.values()]
    tables += list(rules.lists.values())
    owners = [record for words in rules.lists.values() for record in words.records[:5]]
    tables += [rules.given(owner, name) for owner in owners for name in ("thing", "adverb")]
    tables += [value for owner in owners for value in owner.values() if isinstance(value, type(tables[-1]))]
    for odds in tables:
        assert math.fsum(math.exp(odds.log_p(i)) for i in range(len(odds.weights))) == pytest.approx(1, abs=1e-12)


def test_words_and_plots_are_drawn_with_the_odds_that_are_stated(rules):
    draws = 40_000
    favoured = rules.given(rules.lists["colour"].records[0], "cloth")
    for odds in (rules.rules["story"].odds, rules.lists["ruler"], rules.lists["few"], favoured):
        pen = pens.Writer(random.Random(5).random)
        counts = Counter(pen._choose(odds) for _ in range(draws))
        for i in range(len(odds.weights)):
            p = math.exp(odds.log_p(i))
            assert abs(counts[i] - draws * p) < 5 * math.sqrt(draws * p * (1 - p)), i


def test_no_two_alternatives_of_a_rule_begin_alike(rules):
    def spellings(name, form=""):
        return {record[form] for record in rules.lists[name].records}

    pronouns = {"He", "She", "They"}
    recalled = {"hero.He": pronouns, "helper.He": pronouns, "p.He": pronouns, "hero.his": {"his", "her", "their"}}
    recalled |= {"hero.The": spellings("person", "The") | spellings("pair", "The") | spellings("animal", "The")}
    recalled |= {"winner.The": spellings("animal", "The")}
    recalled |= {"hero.was": {"was", "were"}, "hero.trade.a": spellings("trade", "a"), "due": spellings("weekday")}
    recalled |= {"manner.a": spellings("temper", "a"), "stone.a": spellings("tool", "a"), "miser": spellings("folk")}
    recalled |= {"thief.epithet.a": {beast["epithet"]["a"] for beast in rules.lists["animal"].records}}
    recalled |= {"offer": spellings("number") | spellings("digit")}
    part_of = {"below": "number", "unlike": "number", "mate": "rhyme", "rival": "animal"}
    part_of |= dict.fromkeys(["native", "fellow", "other"], "person")

    def beginnings(step):
        """(text, whether a word ends there) of everything that a step can begin with."""
        if isinstance(step, grammar.Literal):
            return [(step.text, False)]
        if isinstance(step, grammar.Pick):
            return [(word, True) for word in spellings(part_of.get(step.list_name, step.list_name), step.form)]
        if isinstance(step, grammar.Recall):
            return [(word, True) for word in recalled[step.path]]
        return [begin for steps in step.alternatives for begin in beginnings_of(steps)]

    def beginnings_of(steps):
        """Of an alternative: of its first step, and of its second as well where the first is fixed text."""
        firsts = beginnings(steps[0])
        if len(steps) == 1 or isinstance(steps[0], grammar.Pick | grammar.Rule):
            return firsts
        second = steps[1]
        if (
            not isinstance(second, grammar.Literal | grammar.Pick | grammar.Rule)
            and second.describe()[1:-1] not in recalled
        ):
            return firsts
        return [(text + more, ends) for text, _ in firsts for more, ends in beginnings(second)]

    for rule in rules.rules.values():
        if len(rule.alternatives) > 1:
            starts = [(*begin, i) for i, steps in enumerate(rule.alternatives) for begin in beginnings_of(steps)]
            assert_none_begins_another(starts, rule.name)


def test_no_word_of_a_list_is_another_or_begins_one(rules):
    for name, words in rules.lists.items():
        for form in {"", "a", "s", "ed", "ing", "T"} & set(words.records[0]):
            starts = [(record[form], True, i) for i, record in enumerate(words.records)]
            assert_none_begins_another(starts, f"{name}.{form}")


def assert_none_begins_another(starts, where):
    """starts: (text, whether a word ends there, number of the choice)."""
    open_starts = []
    for begin, ends, choice in sorted(starts):
        open_starts = [start for start in open_starts if begin.startswith(start[0])]
        for other, other_ends, other_choice in open_starts:
            if choice != other_choice:
                goes_on = begin[len(other) : len(other) + 1] in pens._WORD_CHARACTERS
                assert other_ends and goes_on and other != begin, (where, other, begin)
        open_starts.append((begin, ends, choice))


def test_ngram_models_of_rising_order_approach_the_floor_from_above_and_never_cross_it():
    train = "".join(story for story, _ in fables.stories(1_500_000, seed=1))
    held_out = list(fables.stories(200_000, seed=2))
    val = "".join(story for story, _ in held_out)
    floor = -sum(log_p for _, log_p in held_out) / len(val)
    codes = {character: i for i, character in enumerate(sorted(set(train + val)))}
    tokens = [np.array([codes[character] for character in part]) for part in (train, val)]
    losses = [found["nats_per_token"] for found in ngram.baselines(*tokens, len(codes))]
    assert all(longer < shorter for shorter, longer in pairwise(losses)), losses
    assert min(losses) > 1.5 * floor, "six characters cannot tell who lives where, and ever more would have to"


# The same text everywhere


def test_a_seed_gives_the_same_stories_again_and_another_seed_others():
    assert list(fables.stories(20_000, seed=7)) == list(fables.stories(20_000, seed=7))
    assert next(fables.stories(1, seed=7)) != next(fables.stories(1, seed=8))


def test_asking_for_more_only_adds_stories():
    few, many = (list(fables.stories(characters, seed=3)) for characters in (10_000, 30_000))
    assert many[: len(few)] == few
    assert len(many) > len(few)


@pytest.mark.parametrize("characters", [1, 5_000, 50_000])
def test_stories_stop_with_the_one_that_reaches_the_number_of_characters(characters):
    lengths = [len(story) for story, _ in fables.stories(characters, seed=4)]
    assert sum(lengths[:-1]) < characters <= sum(lengths)


def test_none_come_where_none_were_asked_for():
    assert list(fables.stories(0)) == []


def test_the_text_for_a_seed_changes_only_with_the_version():
    text = "".join(story for story, _ in fables.stories(200_000))[:200_000]
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN[fables.VERSION]


def test_importing_the_fables_builds_no_tables():
    modules = "import sys, minilm.corpus.fables; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True).stdout.split()
    assert not {"minilm.corpus.fables.world", "numpy", "torch"} & set(loaded)


# Texts that no story has


def test_a_blank_line_ends_each_story_and_occurs_nowhere_else(stories):
    assert all(
        story.endswith("\n\n") and story.count("\n\n") == 1 and not story.endswith("\n\n\n") for story, _ in stories
    )


def changed(stories, pattern, change):
    """The first stories in which the pattern stands, with what it finds changed, and where."""
    found = [(story, match) for story, _ in stories for match in [re.search(pattern, story)] if match]
    assert len(found) >= 5
    for story, match in found[:5]:
        yield story[: match.start(1)] + change(match) + story[match.end(1) :], match.start(1)


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (r"\w{3}(\w)\w", lambda found: "Q"),
        (r"so had (\d+)", lambda found: str(int(found[1]) + 1)),
        (r"and (\d+) make \d", lambda found: str(int(found[1]) + 1)),
        (r"making (\d+)", lambda found: str(int(found[1]) + 10)),
        (r"\([^()]*(\))", lambda found: ""),
        (r"\([^()]*(\))", lambda found: "))"),
        (r'[.!]" \w+ [^"]*\.(\n)', lambda found: '"\n'),
        (r"\. (He|She) (?:\w+ed) ", lambda found: "They"),
        (r"(He|She) was as ", lambda found: {"He": "She", "She": "He"}[found[1]]),
        (r"the river (\w+)", lambda found: "Thames"),
        (r" (an) [aeiou]", lambda found: "a"),
        (r"(\n\n)$", lambda found: "\n"),
        (r"(\n\n)$", lambda found: "\n\n "),
        (r"^(\w)", lambda found: f" {found[1]}"),
    ],
)
def test_both_parsers_refuse_a_story_that_was_changed_and_name_the_place(stories, parser, pattern, change):
    for story, place in changed(stories, pattern, change):
        assert parser.derivations(story) == []
        assert not fables.accepts(story)
        with pytest.raises(ValueError, match="at character .* expected .* found") as refused:
            fables.log_probability(story)
        assert refused.value.position >= place - 25, "what comes before the change is in order"


def test_where_a_random_letter_is_changed_the_parsers_agree_whether_it_still_is_a_story(stories, parser):
    draw = random.Random(9)
    refused = 0
    for story, _ in stories[:300]:
        place = draw.randrange(len(story))
        story = story[:place] + draw.choice("abcdefghijklmnopqrstuvwxyz0123456789 .,") + story[place + 1 :]
        derivations = parser.derivations(story)
        assert fables.accepts(story) == (len(derivations) == 1)
        if derivations:
            assert abs(fables.log_probability(story) - derivations[0]) < 1e-9
        refused += not derivations
    assert refused > 250


@pytest.mark.parametrize("text", ["", "\n\n", "Once upon a time", "The ", "((((((" * 500, "é"])
def test_what_is_no_story_at_all_is_refused(text):
    assert not fables.accepts(text)


# English that hangs together


def test_every_sum_is_right(text):
    sums = [
        (r"(\d+) and (\d+) make (\d+)", lambda a, b, c: a + b == c),
        (r"had (\d+) [\w-]+, picked (\d+) more, and so had (\d+)\.", lambda a, b, c: a + b == c),
        (r"had (\d+) [\w-]+, ate (\d+), and so had (\d+) left", lambda a, b, c: a - b == c),
        (r'"(\d+) and (\d+)\?" "(\d+)\."', lambda a, b, c: a + b == c),
        (r'"(\d+) less (\d+)\?" "(\d+)\."', lambda a, b, c: a - b == c),
        (r'"(\d+) times (\d+)\?" "(\d+)\."', lambda a, b, c: a * b == c),
        (r"had (\d+) [\w-]+ and gave \w+ (\d+), which left (\d+)\.", lambda a, b, c: a - b == c),
        (r'"(\d+)," [^.]+\. "Done!" [^.]+\. \w+ took (\d+), promised (\d+) ', lambda a, b, c: a * b == c),
        (r"there were (\d+) more: (\d+), then (\d+), then", lambda a, b, c: b + a == c),
    ]
    for pattern, right in sums:
        found = re.findall(pattern, text)
        assert len(found) >= 10, pattern
        assert all(right(*map(int, numbers)) for numbers in found), pattern
    for day in re.findall(r"for (\d+) \w+ and (.*?)\.", text):
        total = int(day[0])
        for price, making in re.findall(r"for (\d+), making (\d+)", day[1]):
            total += int(price)
            assert total == int(making)


def test_brackets_and_quotations_close_in_order(stories):
    deepest = 0
    for story, _ in stories:
        for line in story.splitlines():
            assert line.count('"') % 2 == 0, line
            depth = 0
            for character in line:
                depth += (character == "(") - (character == ")")
                assert depth >= 0, line
                deepest = max(deepest, depth)
            assert depth == 0, line
    assert deepest >= 3


def test_nobody_changes_sex_trade_or_home_from_one_story_to_the_next(text):
    facts = defaultdict(set)
    for name, trade, town, pronoun in re.findall(r"\n(\w+) the ([\w-]+) lived in (\w+), .*?\. (He|She) ", text):
        facts[name, "trade"].add(trade), facts[name, "home"].add(town), facts[name, "pronoun"].add(pronoun)
    for town, river in re.findall(r"(\w+), on the river (\w+)", text):
        facts[town, "river"].add(river)
    for beast, fear in re.findall(r"the (\w+), as you know, fears the ([\w-]+)", text):
        facts[beast, "fear"].add(fear)
    assert len(facts) > 400
    assert all(len(known) == 1 for known in facts.values())


def test_articles_go_by_sound(text):
    assert {word for word in re.findall(r"\b[Aa] ([aeiou][\w-]*)", text)} <= {"useful", "useless"}
    assert {word for word in re.findall(r"\b[Aa]n ([^aeiouAEIOU][\w-]*)", text)} <= {"hourglass", "honest"}
    assert forms.noun("hourglass")["a"] == "an hourglass"


def test_rhymes_rhyme(text, rules):
    rhymes = {word[""]: {mate[""] for mate in word["mate"].records} for word in rules.lists["rhyme"].records}
    couplets = re.findall(r"(\w+),\n.*?(\w+);\n", text)
    assert len(couplets) > 100
    assert all(second in rhymes[first] for first, second in couplets)


def test_the_words_have_irregular_forms_where_english_has():
    assert [forms.plural(w) for w in ("loaf", "cherry", "fox", "walnut", "day", "sheep")] == [
        "loaves", "cherries", "foxes", "walnuts", "days", "sheep",
    ]  # fmt: skip
    assert [forms.past(w) for w in ("walk", "hop", "wait", "cry", "bake", "steal", "quip")] == [
        "walked", "hopped", "waited", "cried", "baked", "stole", "quipped",
    ]  # fmt: skip
    assert [forms.gerund(w) for w in ("sleep", "swim", "dance", "tie")] == ["sleeping", "swimming", "dancing", "tying"]


def test_the_lexicon_has_several_thousand_words_with_a_zipf_tail(rules):
    text = "".join(story for story, _ in fables.stories(2_000_000, seed=6))
    counts = Counter(re.findall(r"[A-Za-z][A-Za-z'-]*", text))
    frequencies = sorted(counts.values(), reverse=True)
    assert len(frequencies) > 7_000
    ranks = np.array([10, 30, 100, 300, 1000, 3000])
    slope = np.polyfit(np.log(ranks), np.log([frequencies[rank - 1] for rank in ranks]), 1)[0]
    assert -1.2 < slope < -0.8
    people = [counts[person[""]] for person in rules.lists["folk"].records]
    tenth = len(people) // 10
    assert sum(people[:tenth]) > 4 * sum(people[-tenth:]) > 0


def test_the_alphabet_is_small_and_ascii(text):
    assert text.isascii()
    assert 60 <= len(set(text)) <= 75


def test_most_stories_have_300_to_1500_characters(stories):
    within = [300 <= len(story) <= 1500 for story, _ in stories]
    assert sum(within) > 0.95 * len(within)
