"""The quiz as cards: a tab-separated text that Anki imports (its manual, "Text Files"), one card a part."""

from __future__ import annotations

import html
from collections.abc import Sequence

from minilm.quiz.grading import Free, Part, Question
from minilm.quiz.multihead import Code

HEADER = "#separator:tab\n#html:true\n#notetype:Basic\n#deck:minilm quiz\n#columns:Front\tBack\tTags\n#tags column:3\n"


def make_cards(questions: Sequence[Question]) -> str:
    """UTF-8 text with Anki's file headers; fields are HTML, escaped, without tabs or line ends of their own."""
    lines = []
    for question in questions:
        tags = f"minilm-quiz minilm-quiz::{question.number}"
        for part in question.parts:
            front = [question.setting, f"{part.id}. {part.prompt}", *part.lettered()]
            lines.append("\t".join((_field("\n".join(filter(None, front))), _back(part), tags)))
    return HEADER + "\n".join(lines) + "\n"


def _back(part: Part) -> str:
    if isinstance(part, Code):
        source = html.escape(part.key()).replace("\n", "<br>").replace("\t", "    ")
        return f"<pre>{source}</pre>{_field(part.why)}"
    points = "".join(f"<li>{_field(point)}</li>" for point, _ in part.points) if isinstance(part, Free) else ""
    return f"{_field(part.solution())}{f'<ul>{points}</ul>' if points else '<br><br>'}{_field(part.why)}"


def _field(text: str) -> str:
    return html.escape(text).replace("\t", " ").replace("\r", "").replace("\n", "<br>")
