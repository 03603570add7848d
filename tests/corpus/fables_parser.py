"""A second opinion on the fables: every derivation of a text, by exhaustive search, from the documented odds.

It shares with minilm.corpus.fables the text of the rules and the word lists, which are data, and nothing else: it
reads the notation itself, works the odds out again, and where the library looks ahead it tries everything.
"""

import math
import re
import zlib

from minilm.corpus.fables import plots, sentences, world

EQUALLY_LIKELY = set("month weekday syllable number score digit hour date minute below unlike mate".split())


def rules_of(notation):
    """Rule name -> list of (log-probability, tokens)."""
    rules = {}
    for block in re.split(r"\n(?=\S)", notation):
        name, colon, body = block.partition(":\n")
        if not colon or block.startswith("#"):
            continue
        weighted = re.findall(r"(\d+) \| (.*?)(?=\n +\d+ \||\n*$)", body, re.S)
        total = sum(int(weight) for weight, _ in weighted)
        rules[name] = [(math.log(int(weight) / total), tokens_of(text)) for weight, text in weighted]
    return rules


def tokens_of(text):
    text = re.sub(r"\s+", " ", text)
    return [t for t in re.split(r"(<[^>]*>|\[[^\]]*\]|\{[^}]*\})", text) if t]


class Table:
    """Where a slot is: the words that stand here, with their log-probabilities."""

    def __init__(self, records, weights, form):
        total = sum(weights)
        self.entries = {}
        for record, weight in zip(records, weights, strict=True):
            self.entries.setdefault(record[form][:3], []).append((record[form], record, math.log(weight / total)))

    def at(self, text, position):
        for length in (1, 2, 3):
            for spelling, record, log_p in self.entries.get(text[position : position + length], ()):
                if len(spelling[:3]) == length and text.startswith(spelling, position):
                    yield spelling, record, log_p


class Parser:
    def __init__(self):
        self.lists = world.lists()
        self.rules = rules_of(sentences.NOTATION + plots.NOTATION)
        self.tables = {}

    def derivations(self, text):
        """The log-probability of every way in which the grammar can write this text."""
        found = []
        pending = [(0, ("<story>", None), {}, 0.0)]
        while pending:
            position, todo, memory, log_p = pending.pop()
            while todo is not None and todo[0][0] not in "<[":
                token, todo = todo
                if token[0] == "{":
                    spelled, memory = self.recalled(token[1:-1], memory)
                else:
                    spelled = token.replace("_", " ").replace("/", "\n")
                if not text.startswith(spelled, position):
                    break
                position += len(spelled)
            else:
                if todo is None:
                    found += [log_p] if position == len(text) else []
                elif todo[0][0] == "[":
                    pending += self.picked(text, position, todo, memory, log_p)
                else:
                    pending += self.expanded(text, position, todo, memory, log_p)
        return found

    def expanded(self, text, position, todo, memory, log_p):
        call, rest = todo
        rule, _, name = call[1:-1].partition(" =")
        if rule == "":  # the end of a remembered rule: what stands since its beginning
            begin = memory[name, "begin"]
            return [(position, rest, memory | {name: {"": text[begin:position]}}, log_p)]
        if name:
            memory = memory | {(name, "begin"): position}
            rest = (f"< ={name}>", rest)
        states = []
        for choice, tokens in self.rules[rule]:
            if tokens[0][0] in "<[{" or text.startswith(tokens[0].replace("_", " ").replace("/", "\n"), position):
                follow = rest
                for token in reversed(tokens):
                    follow = (token, follow)
                states.append((position, follow, memory, log_p + choice))
        return states

    def picked(self, text, position, todo, memory, log_p):
        slot, rest = todo
        source, _, name = slot[1:-1].partition(" =")
        source, _, form = source.partition(".")
        list_name, _, owner = source.partition("@")
        return [
            (position + len(spelling), rest, memory | {name: word} if name else memory, log_p + choice)
            for spelling, word, choice in self.table(list_name, memory[owner] if owner else None, form).at(
                text, position
            )
        ]

    def table(self, list_name, owner, form):
        own = owner is not None and list_name in owner
        key = list_name, form, owner and (id(owner) if own else owner[""])
        if key not in self.tables:
            records = (owner[list_name] if own else self.lists[list_name]).records
            size = len(records)
            weights = [
                1 if list_name in EQUALLY_LIKELY else 10**7 // (rank + 1 + size // 10) for rank in range(1, size + 1)
            ]
            if owner is not None and not own:
                half = sum(weights)
                for k in range(10):
                    weights[zlib.crc32(f"{owner['']} {list_name}:{k}".encode()) % size] += half // (8 + 4 * k)
            self.tables[key] = Table(records, weights, form)
        return self.tables[key]

    def recalled(self, slot, memory):
        """What a slot in braces writes, and what is remembered after it."""
        name, assigned, value = slot.partition(" := ")
        if not assigned:
            word = memory
            for step in slot.split("."):
                word = word[step]
            return (word if isinstance(word, str) else word[""]), memory
        a, operator, b, *others = value.split()
        if operator == "if":
            x, _, y, _, c = b, *others
            return "", memory | {name: memory[a if memory[x]["n"] > memory[y]["n"] else c]}
        a, b = memory[a]["n"], memory[b]["n"]
        n = {"+": a + b, "-": a - b, "*": a * b}[operator]
        return "", memory | {name: {"": str(n), "n": n}}
