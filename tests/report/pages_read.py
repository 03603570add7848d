"""A page as its reader has it, and as its writer must have made it."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Tags with their attributes, ids, text, and the cells of each table's rows by the first; fails on a tag that is
    not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.tags, self.ids, self.words, self.rows, self.open = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in VOID else self.open

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += f" {data.strip()}"

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    @classmethod
    def at(cls, path):
        return cls(path.read_text(encoding="utf-8"))

    def row(self, first):
        """The cells of the first row that begins with this one."""
        return next([c.strip() for c in row] for row in self.rows if row and row[0].strip().startswith(first))
