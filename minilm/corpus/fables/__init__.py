"""Small stories from a random source whose probabilities are known: to train offline, and to see the floor.

A grammar in the manner of old fables (plots.py, sentences.py) draws its words (lexicon.py, lore.py) and its people,
towns and beasts (world.py) with stated odds. No text can come about in two ways (grammar.py), so the log-probability
of a story is the sum over its choices, exactly, and minus its mean over a text is the entropy floor: the loss that no
model of any size can beat in expectation.

What there is to learn, at every scale: spelling; several thousand words with a Zipf tail; which of them go together;
the agreement of pronouns and articles; quotations and brackets that close in order; sums; rhymes; names, numbers and
magic words that come back many lines later; and thousands of facts that always hold, from what a fox fears to what
some weaver in a small town likes to eat.
"""

from collections.abc import Iterator
from functools import cache
from random import Random
from typing import NamedTuple

from minilm.corpus.fables.pens import Listener, NotAFable, Reader, Unfinished, Writer

__all__ = ["VERSION", "NotAFable", "Reading", "accepts", "log_probability", "read", "stories"]

VERSION = 2  # changes whenever the text for a seed changes


def stories(characters: int, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Stories, each with its natural-log probability, until at least that many characters; the last one is whole.

    Every story ends with a blank line, two newlines, which occurs nowhere else. The same seed gives the same stories
    on every machine, and asking for more only adds to them.
    """
    grammar = _grammar()
    random = Random(seed).random
    written = 0
    while written < characters:
        pen = Writer(random)
        grammar.walk(pen)
        text = "".join(pen.parts)
        written += len(text)
        yield text, pen.log_p


def log_probability(text: str) -> float:
    """The natural-log probability that the source writes this story, its closing blank line included.

    Raises NotAFable, a ValueError that knows the position and what was expected there, for a text that the source
    cannot write.
    """
    pen = Reader(text)
    _grammar().walk(pen)
    if pen.position != len(text):
        pen.fail(["the end"])
    return pen.log_p


def accepts(text: str) -> bool:
    """Whether the source could have written this story."""
    try:
        log_probability(text)
    except NotAFable:
        return False
    return True


class Reading(NamedTuple):
    """accepted: None while the text ends within a story that the source could still write. characters: of the story
    where accepted, its closing blank line included; else up to where it leaves the grammar, give or take a word, or
    the text ends. log_probability: of the story in nats, None where it is not accepted."""

    accepted: bool | None
    characters: int
    log_probability: float | None


def read(text: str) -> Reading:
    """Whether the source could have written the story that stands at the beginning of a text which may go on."""
    pen = Listener(text)
    try:
        _grammar().walk(pen)
    except Unfinished:
        return Reading(None, len(text), None)
    except NotAFable:
        return Reading(False, pen.furthest, None)
    return Reading(True, pen.position, pen.log_p)


@cache
def _grammar():
    # The tables take a tenth of a second to build: not at import, and once.
    from minilm.corpus.fables import plots, sentences, world
    from minilm.corpus.fables.grammar import Grammar

    return Grammar(sentences.NOTATION + plots.NOTATION, world.lists())
