"""The forms that a word takes: articles, plurals, past tenses.

A word is a dict from the name of a form to its spelling: "" as it stands, "a" and "A" with its article, "s" the
plural, "T" and "aT" as in a title, "ed" and "ing" for verbs.
"""

import re


def _table(text):
    return dict(pair.split(":") for pair in text.split())


_PLURALS = _table("""loaf:loaves shelf:shelves knife:knives mouse:mice wolf:wolves goose:geese ox:oxen sheep:sheep
potato:potatoes tomato:tomatoes deer:deer trout:trout salmon:salmon bison:bison dormouse:dormice
scarf:scarves midwife:midwives""")

_PASTS = _table("""go:went run:ran ride:rode creep:crept weave:wove stride:strode slink:slunk buy:bought find:found
choose:chose win:won lose:lost steal:stole keep:kept hide:hid catch:caught hold:held sell:sold
bring:brought forget:forgot make:made build:built draw:drew break:broke eat:ate bite:bit sleep:slept
sing:sang weep:wept swim:swam kneel:knelt say:said fly:flew flee:fled drive:drove slide:slid
think:thought get:got take:took see:saw lend:lent send:sent seek:sought mislay:mislaid shake:shook
shrink:shrank bend:bent wind:wound cut:cut speed:sped spring:sprang swing:swung sweep:swept throw:threw
wear:wore hang:hung fling:flung""")

_DOUBLING = re.compile(r"([^aeiou]|qu)*[aeiou][^aeiouwxy]|unwrap|forget|admit|leapfrog")  # hop, hopped; wait, waited
_VOWELS = "aeiou"
_AN = {"hourglass", "honest"}  # by sound, not by letter
_A = {"useful", "useless"}


def article(word: str) -> str:
    """The article by sound: a useful lamp, an hourglass."""
    return "an" if word in _AN or (word[0] in _VOWELS and word not in _A) else "a"


def noun(word):
    name = f"{article(word)} {word}"
    title = word.title()
    return {"": word, "a": name, "A": _capital(name), "s": plural(word), "T": title, "aT": f"{article(word)} {title}"}


def adjective(word):
    name = f"{article(word)} {word}"
    return {"": word, "a": name, "A": _capital(name), "T": word.title()}


def verb(word):
    return {"": word, "ed": past(word), "ing": gerund(word)}


def _capital(phrase):
    return phrase[0].upper() + phrase[1:]


def plural(word):
    head, hyphen, last = word.rpartition("-")
    if last in _PLURALS:
        return head + hyphen + _PLURALS[last]
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return word + "es"
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def past(word):
    if word in _PASTS:
        return _PASTS[word]
    if word.endswith("e"):
        return word + "d"
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ied"
    return (word + word[-1] if _DOUBLING.fullmatch(word) else word) + "ed"


def gerund(word):
    if word.endswith("ie"):
        return word[:-2] + "ying"
    if word.endswith("e") and not word.endswith("ee"):
        return word[:-1] + "ing"
    return (word + word[-1] if _DOUBLING.fullmatch(word) else word) + "ing"
