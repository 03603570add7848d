"""The two pens that walk the grammar: a Writer draws every choice, a Reader finds in a text which choices were made.

Both keep count of the log-probability, in nats. A Listener is a Reader of a text that may go on after its end.
"""

from bisect import bisect_right

_WORD_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


class Unfinished(Exception):
    """The text ends where the source could still go on."""


class NotAFable(ValueError):
    """The source cannot have written this text: at `position`, in characters, one of `expected` should follow."""

    def __init__(self, text, position, expected):
        self.position = position
        self.expected = tuple(expected)
        found = repr(text[position : position + 20]) if position < len(text) else "the end"
        super().__init__(f"at character {position}: expected {' or '.join(self.expected[:6])}, found {found}")


class Writer:
    def __init__(self, random):
        self.random = random  # draws from [0, 1)
        self.parts = []
        self.log_p = 0.0

    def say(self, text):
        self.parts.append(text)

    def alternative(self, rule, memory):
        return self._choose(rule.odds)

    def word(self, words, form):
        record = words.records[self._choose(words)]
        self.parts.append(record[form])
        return record

    def mark(self):
        return len(self.parts)

    def since(self, mark):
        return "".join(self.parts[mark:])

    def _choose(self, odds):
        i = bisect_right(odds.cumulative, self.random() * odds.total, 0, odds.last)
        self.log_p += odds.log_p(i)
        return i


class Reader:
    def __init__(self, text):
        self.text = text
        self.position = 0
        self.log_p = 0.0

    def say(self, text):
        if not self.text.startswith(text, self.position):
            agreed = 0
            while self.text.startswith(text[: agreed + 1], self.position):
                agreed += 1
            self.position += agreed
            self.fail([repr(text[agreed:])])
        self.position += len(text)

    def alternative(self, rule, memory):
        fitting = [i for i, steps in enumerate(rule.alternatives) if self.fits(steps, memory)]
        if not fitting:
            self.fail(steps[0].describe() for steps in rule.alternatives)
        assert len(fitting) == 1, f"<{rule.name}> is ambiguous at character {self.position} of {self.text!r}"
        self.log_p += rule.odds.log_p(fitting[0])
        return fitting[0]

    def word(self, words, form):
        i = self.find(words, form)
        if i is None:
            self.fail([f"a word such as {words.records[0][form]!r}"])
        record = words.records[i]
        self.log_p += words.log_p(i)
        self.position += len(record[form])
        return record

    def mark(self):
        return self.position

    def since(self, mark):
        return self.text[mark : self.position]

    def fits(self, steps, memory):
        """Whether the text goes on as the first of these steps does, and, if that is fixed text, as the second."""
        first = steps[0]
        if not first.begins(self, memory):
            return False
        length = first.fixed_length(memory)
        if length is None or len(steps) == 1:
            return True
        self.position += length
        begins = steps[1].begins(self, memory)
        self.position -= length
        return begins

    def goes_on(self, spelling):
        """Whether this text stands here."""
        return self.text.startswith(spelling, self.position)

    def stands(self, spelling):
        """Whether this spelling stands here as a whole word."""
        end = self.position + len(spelling)
        return self.text.startswith(spelling, self.position) and self.text[end : end + 1] not in _WORD_CHARACTERS

    def find(self, words, form):
        """Position in the list of the one word that stands here, or None."""
        text, start = self.text, self.position
        spellings, lengths = words.index(form)
        found = None
        for length in lengths:
            i = spellings.get(text[start : start + length])
            if i is not None and text[start + length : start + length + 1] not in _WORD_CHARACTERS:
                assert found is None, f"two words of one list stand at character {start} of {text!r}"
                found = i
        return found

    def fail(self, expected):
        raise NotAFable(self.text, self.position, expected)


class Listener(Reader):
    """Raises Unfinished where the answer to a question lies after the end of the text, and NotAFable only where nothing
    that might follow could mend it: no two alternatives begin alike, so that one in agreement to the end is enough.
    furthest: up to where the text agrees with something that the source could write."""

    def __init__(self, text):
        super().__init__(text)
        self.furthest = 0

    def say(self, text):
        self._wait_for([text])
        super().say(text)

    def goes_on(self, spelling):
        self._wait_for([spelling])
        return super().goes_on(spelling)

    def stands(self, spelling):
        self._wait_for([spelling], whole_word=True)
        return super().stands(spelling)

    def find(self, words, form):
        spellings, lengths = words.index(form)
        self._wait_for(spellings if len(self.text) - self.position <= lengths[-1] else (), whole_word=True)
        return super().find(words, form)

    def _wait_for(self, spellings, whole_word=False):
        rest = self.text[self.position :]
        if any(len(rest) < len(s) + whole_word and s.startswith(rest) for s in spellings):
            raise Unfinished
        self.furthest = max(self.furthest, self.position)
        if len(spellings) == 1:
            differs = (i for i, (a, b) in enumerate(zip(rest, spellings[0], strict=False)) if a != b)
            self.furthest = max(self.furthest, self.position + next(differs, len(spellings[0])))
