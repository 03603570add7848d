"""One grammar, walked by two pens: what a Writer draws at random, a Reader recovers from the text.

The notation. A rule is a name and a colon at the start of a line; each of its alternatives is `weight | text`, and a
line without a bar goes on with the text before it, after one space. In the text:

    /                     a new line                      _      a space at the beginning or the end
    <rule>                any alternative of that rule; <rule =x> remembers what was written as x
    {x}                   the word remembered as x, as it stands
    {x.s}                 its plural; {x.home.river} a fact about a fact about it
    [list]                any word of that list; [list.s =x] its plural, remembered as x
    [list@x]              the same, favourites of x likelier; but where x has a list of that name, from that one
    {z := x + y}          remember a number, write nothing; also - and *
    {z := a if x > y else b}   remember a or b, whichever had more

Why the probability of a text is exact: an alternative is recognised by its first step (or its first two, where the
first is fixed text), and no two alternatives of a rule begin alike, so that no text has two derivations.
"""

import re

from minilm.corpus.fables.words import Odds, integer


class Step:
    """One piece of an alternative. A step that writes nothing begins anywhere."""

    def walk(self, pen, memory):
        raise NotImplementedError

    def begins(self, reader, memory):
        """Whether the text goes on as this step would."""
        return True

    def fixed_length(self, memory):
        """How much it writes, if there is nothing to choose in it, else None."""
        return None

    def describe(self):
        return type(self).__name__


class Rule(Step):
    """<name>: one of several alternatives. `stacked` has the steps of each in reverse, as Grammar.walk wants them."""

    def __init__(self, name):
        self.name = name

    def define(self, weights, alternatives):
        self.odds = Odds(weights)
        self.alternatives = alternatives
        self.stacked = [steps[::-1] for steps in alternatives]

    def begins(self, reader, memory):
        return any(reader.fits(steps, memory) for steps in self.alternatives)

    def describe(self):
        return f"<{self.name}>"


class Literal(Step):
    def __init__(self, text):
        self.text = text

    def walk(self, pen, memory):
        pen.say(self.text)

    def begins(self, reader, memory):
        return reader.goes_on(self.text)

    def fixed_length(self, memory):
        return len(self.text)

    def describe(self):
        return repr(self.text)


class Recall(Step):
    """{name.fact.form}: what is known costs nothing to write, and has to be remembered to be predicted."""

    def __init__(self, path):
        self.path = path
        self.name, *self.facts = path.split(".")

    def spelling(self, memory):
        value = memory[self.name]
        for fact in self.facts:
            value = value[fact]
        return value if type(value) is str else value[""]

    def walk(self, pen, memory):
        pen.say(self.spelling(memory))

    def begins(self, reader, memory):
        return reader.stands(self.spelling(memory))

    def fixed_length(self, memory):
        return len(self.spelling(memory))

    def describe(self):
        return f"{{{self.path}}}"


class Pick(Step):
    """[list@owner.form =name]"""

    def __init__(self, grammar, list_name, owner, form, name):
        self.grammar, self.list_name, self.owner, self.form, self.name = grammar, list_name, owner, form or "", name
        self.words = None if owner else grammar.lists[list_name]

    def options(self, memory):
        return self.words or self.grammar.given(memory[self.owner], self.list_name)

    def walk(self, pen, memory):
        record = pen.word(self.options(memory), self.form)
        if self.name:
            memory[self.name] = record

    def begins(self, reader, memory):
        return reader.find(self.options(memory), self.form) is not None

    def describe(self):
        return f"[{self.list_name}]"


class Mark(Step):
    """<rule =name>, before the rule"""

    def __init__(self, name):
        self.name = name

    def walk(self, pen, memory):
        memory[self.name] = pen.mark()


class Keep(Step):
    """<rule =name>, after the rule"""

    def __init__(self, name):
        self.name = name

    def walk(self, pen, memory):
        memory[self.name] = {"": pen.since(memory[self.name])}


class Sum(Step):
    """{name := left + right}, also - and *"""

    def __init__(self, name, left, operator, right):
        self.name, self.left, self.operator, self.right = name, left, operator, right

    def walk(self, pen, memory):
        left, right = memory[self.left]["n"], memory[self.right]["n"]
        value = left + right if self.operator == "+" else left - right if self.operator == "-" else left * right
        memory[self.name] = integer(value)


class More(Step):
    """{name := first if x > y else second}"""

    def __init__(self, name, first, x, y, second):
        self.name, self.first, self.x, self.y, self.second = name, first, x, y, second

    def walk(self, pen, memory):
        first_has_more = memory[self.x]["n"] > memory[self.y]["n"]
        memory[self.name] = memory[self.first if first_has_more else self.second]


_SLOT = re.compile(r"<[^>]+>|\[[^\]]+\]|\{[^}]+\}|[^<\[{]+")
_CALL = re.compile(r"<([\w-]+)(?: =(\w+))?>")
_PICK = re.compile(r"\[([\w-]+)(?:@(\w+))?(?:\.(\w+))?(?: =(\w+))?\]")
_RECALL = re.compile(r"\{([\w.]+)\}")
_SUM = re.compile(r"\{(\w+) := (\w+) ([-+*]) (\w+)\}")
_MORE = re.compile(r"\{(\w+) := (\w+) if (\w+) > (\w+) else (\w+)\}")


def read_notation(notation):
    """Rule name -> list of (weight, text)."""
    rules = {}
    for line in notation.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            alternatives = rules.setdefault(line.rstrip(":"), [])
        elif "|" in line:
            weight, text = line.split("|")
            alternatives.append((int(weight), text.strip()))
        else:
            weight, text = alternatives[-1]
            alternatives[-1] = weight, f"{text} {line.strip()}"
    return rules


class Grammar:
    """Rules compiled from the notation; `lists` are the Words that slots draw from."""

    def __init__(self, notation, lists):
        self.lists = lists
        self._given = {}
        source = read_notation(notation)
        self.rules = {name: Rule(name) for name in source}
        for name, alternatives in source.items():
            weights = [weight for weight, _ in alternatives]
            self.rules[name].define(weights, [self._steps(text) for _, text in alternatives])

    def walk(self, pen):
        """One story, written or read by the pen, which raises NotAFable if it cannot go on."""
        memory = {}
        pending = [self.rules["story"]]
        while pending:
            step = pending.pop()
            if type(step) is Rule:
                pending += step.stacked[pen.alternative(step, memory)]
            else:
                step.walk(pen, memory)

    def given(self, owner, list_name):
        """The words that go with the owner: a list of its own, or the common one with its favourites."""
        own = owner.get(list_name)
        if own is not None:
            return own
        key = owner[""], list_name
        if key not in self._given:
            self._given[key] = self.lists[list_name].favouring(f"{owner['']} {list_name}")
        return self._given[key]

    def _steps(self, text):
        return [step for part in _SLOT.findall(text) for step in self._parsed(part)]

    def _parsed(self, part):
        if match := _CALL.fullmatch(part):
            rule, name = self.rules[match[1]], match[2]
            return [Mark(name), rule, Keep(name)] if name else [rule]
        if match := _PICK.fullmatch(part):
            return [Pick(self, *match.groups())]
        if match := _RECALL.fullmatch(part):
            return [Recall(match[1])]
        if match := _SUM.fullmatch(part):
            return [Sum(*match.groups())]
        if match := _MORE.fullmatch(part):
            return [More(*match.groups())]
        assert part[0] not in "<[{", f"cannot read {part}"
        return [Literal(part.replace("/", "\n").replace("_", " "))]
