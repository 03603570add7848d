"""The quiz in a terminal: asks, hints, explains, shows the evidence, and keeps what was weak."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minilm.errors import UserError
from minilm.quiz.grading import Free, Malformed, Part, Question, Verdict
from minilm.quiz.multihead import RUNS, TEMPLATE, Code
from minilm.quiz.progress import progress_path, read_progress, record
from minilm.quiz.questions import draw_questions

WIDTH = 80
SECOND_TRY = 0.5  # the score of an answer that was right only after a hint


class Game:
    """One sitting. play() returns the exit code: 0, or 130 after Ctrl-C."""

    def __init__(self, numbers: Sequence[int], seed: int, text: str | None = None):
        self.numbers, self.seed, self.text = numbers, seed, text
        for stream in (sys.stdin, sys.stdout):  # a terminal that lacks a sign gets "?", not a traceback
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        plain = Console()
        self.console = Console(width=min(plain.width, WIDTH), highlight=False, markup=False, emoji=False)
        self.keeps = True  # until the progress file refuses
        self.scores: dict[int, list[tuple[Part, float]]] = {}

    def play(self) -> int:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (importing it gives input() line editing and history)
        code = 0
        try:
            self._play()
        except EOFError:
            self.console.print("\nLeaving.")
        except KeyboardInterrupt:
            self.console.print("\nLeaving.")
            code = 130
        self._sum_up()
        return code

    def _play(self) -> None:
        progress = read_progress()
        weak = [(part, entry) for part, entry in progress.weak() if int(part[0]) in self.numbers]
        first, known = ({int(part[0]) for part in parts} for parts in (dict(weak), progress.entries))
        order = sorted(self.numbers, key=lambda number: 0 if number in first else 1 if number not in known else 2)
        self.say(f"minilm quiz, seed {self.seed} (--seed {self.seed} asks the same again)", "bold")
        self.say(
            "Answer from memory; a calculator is fine. A wrong answer gets a hint and one more try, for half the "
            "point. After each question this very code shows who is right. Numbers may be written 0.25, 1.5e9, 2^10, "
            "3*64 or 1/8. Enter alone: I do not know. Ctrl-D: leave."
        )
        if progress.note:
            self.say(progress.note, "yellow")
        if weak:
            self.say("Weak last time, so first: " + ", ".join(f"{part} {entry.topic}" for part, entry in weak) + ".")
        for place, number in enumerate(order, 1):
            self._question(self._draw(number), place, len(order))

    def _draw(self, number: int) -> Question:
        if number == 6 and self.text is None:
            self.console.print()
            self.say("Question 6 is about a text: your own, some words that share letters, up to 400 characters.")
            while True:
                given = self._input("text (Enter: one is drawn) ")
                try:
                    return draw_questions(self.seed, [number], given or None)[0]
                except UserError as error:
                    self.say(str(error), "yellow")
        with self.console.status("Drawing ..."):
            return draw_questions(self.seed, [number], self.text)[0]

    def _question(self, question: Question, place: int, of: int) -> None:
        self.console.print()
        self.console.rule(Text(f"{question.number}  {question.title}   ({place} of {of})"), align="left")
        if question.setting:
            self.say(question.setting)
        scores = self.scores.setdefault(question.number, [])
        for part in question.parts:
            score = self._part(part)
            scores.append((part, score))
            self._keep(part, score)
        self._show_evidence(question)
        got = sum(score for _, score in scores)
        self.console.print()
        self.say(f"Question {question.number}: {got:.3g} of {len(scores)}.", "bold")
        if place < of and sys.stdin.isatty():
            self._input("Enter goes on ")

    def _part(self, part: Part) -> float:
        """The score of one part, when the person is through with it."""
        self.console.print()
        self.say(part.prompt, "bold", indent=4, label=part.id)
        for option in part.lettered():
            self.say(option, indent=4)
        self.say(f"({part.how()})", "dim", indent=4)
        if isinstance(part, Free):
            return self._free(part)
        if isinstance(part, Code):
            return self._code(part)
        best = 0.0
        for worth, further in ((1.0, " Once more."), (SECOND_TRY, "")):
            verdict = self._answer(part)
            if verdict is None:
                break
            if verdict.right:
                self.say(f"Right. {part.why}", "green", indent=4)
                return max(worth, best)
            best = max(best, worth * verdict.score)
            self.say(f"{'In part' if verdict.score else 'Not'} right. {verdict.hint}{further}", "yellow", indent=4)
        self._tell_solution(part)
        return best

    def _answer(self, part: Part) -> Verdict | None:
        """What was typed, checked; None for nothing typed. What cannot be read is asked for again."""
        while given := self._input("> "):
            try:
                return part.check(given)
            except Malformed as fault:
                self.say(f"{given[:60]!r} {fault}.", "yellow", indent=4)
        return None

    def _free(self, part: Free) -> float:
        given = self._input("> ")
        self.say("A model answer:", "bold", indent=4)
        self.say(part.model, indent=4)
        if not given:
            self.say(part.why, indent=4)
            return 0.0
        self.say("Did yours say this? (y or n)", "bold", indent=4)
        marks = "".join(self._yes(f"    {point}? ") for point, _ in part.points)
        verdict = part.check(marks)
        if verdict.right:
            self.say(f"All {len(part.points)} points. {part.why}", "green", indent=4)
        else:
            self.say(f"{marks.count('y')} of {len(part.points)} points. {verdict.hint}", "yellow", indent=4)
            self.say(part.why, indent=4)
        return verdict.score

    def _code(self, part: Code) -> float:
        """As many tries as the person likes: a function is mended, not guessed."""
        self.say(RUNS, "yellow", indent=4)
        while given := self._input("file> "):
            try:
                if self._run(part, given):
                    return 1.0
                self.say("Mend the file and give its path again; Enter gives up.")
            except Malformed as fault:
                self.say(f"{given!r} {fault}.", "yellow")
                self._offer_template(Path(given).expanduser())
        self._tell_solution(part)
        return 0.0

    def _run(self, part: Code, path: str) -> bool:
        with self.console.status("Running your file ..."):
            verdict, printed = part.run(path)
        if printed:
            self.say("Your file printed:")
            self.say(printed, "dim", indent=4)
        if verdict.right:
            self.say(f"Right, in every case. {part.why}", "green", indent=4)
        else:
            self.say(f"Not right. {verdict.hint}", "yellow", indent=4)
        return verdict.right

    def test_file(self, path: Path) -> None:
        """Question 8's file alone, for who is mending it. Raises UserError where it is missing."""
        part = next(part for part in draw_questions(self.seed, [8])[0].parts if isinstance(part, Code))
        self.say(RUNS, "yellow")
        try:
            self._keep(part, float(self._run(part, str(path))))
        except Malformed as fault:
            raise UserError(f"{path} {fault}.") from None

    def _offer_template(self, path: Path) -> None:
        if path.suffix == ".py" and not path.exists() and self._yes(f"Write the template to {path}? ") == "y":
            write_template(path)
            self.say(f"Written. Fill it in with your editor, then give {path} again.")

    def _tell_solution(self, part: Part) -> None:
        self.say("The answer:", indent=4)
        self.say(part.solution(), "bold", indent=4)
        self.say(part.why, indent=4)

    def _show_evidence(self, question: Question) -> None:
        self.console.print()
        self.say("What the code says", "bold cyan")
        with self.console.status("Running it ..."):
            evidence = question.verify()
        for shown in evidence:
            mark, style = ("✓", "green") if shown.holds else ("✗", "red")
            self.say(shown.claim, style, indent=2, label=mark)
            for line in shown.lines:
                self.say(line, indent=4)
            if not shown.holds:
                self.say(
                    f"This does not hold on this machine: a bug in minilm; please report it, with seed {self.seed}."
                )

    def _keep(self, part: Part, score: float) -> None:
        if self.keeps:
            try:
                record(part.id, part.topic, score)
            except UserError as error:
                self.keeps = False
                self.say(str(error), "yellow")

    def _sum_up(self) -> None:
        answered = [(part, score) for scores in self.scores.values() for part, score in scores]
        if not answered:
            return
        self.console.print()
        self.console.rule(Text("Score"), align="left")
        for number, scores in sorted(self.scores.items()):
            if scores:
                weak = ", ".join(f"{part.id} {part.topic}" for part, score in scores if score < 1)
                label = f"question {number}: {sum(s for _, s in scores):4.3g} of {len(scores)}"
                self.say(weak, indent=26, label=label)
        self.say(f"{sum(score for _, score in answered):.3g} of {len(answered)} in all.", "bold")
        if self.keeps:
            self.say(f"Kept in {progress_path()}; what was weak comes first next time (minilm quiz --progress).")

    def _yes(self, prompt: str) -> str:
        while (given := self._input(prompt).lower()) not in ("y", "n", "yes", "no"):
            self.say("y or n, please; Ctrl-D leaves.", "yellow", indent=4)
        return given[0]

    def _input(self, prompt: str) -> str:
        given = input(prompt)
        if not sys.stdin.isatty():  # nobody's terminal has shown it
            print(given)
        return given.strip("\r\n\t ")

    def say(self, text: str, style: str = "", indent: int = 0, label: str = "") -> None:
        """Text wrapped beside its label, or beside nothing; the label takes up the indentation."""
        for n, line in enumerate(text.split("\n")):
            if indent == 0:
                self.console.print(Text(line, style))
                continue
            table = Table.grid()
            table.add_column(width=indent)
            table.add_column(max_width=self.console.width - indent)
            table.add_row(Text(label if n == 0 else "", style), Text(line, style))
            self.console.print(table)


def write_template(path: Path) -> None:
    """The file to begin question 8 in. Raises UserError where something of that name exists or cannot be made."""
    write_new(path, TEMPLATE)


def write_new(path: Path, text: str) -> None:
    """A new text file, UTF-8. Raises UserError where something of that name exists or cannot be made."""
    try:
        with open(path, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists already; name another file, or remove it.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error}).") from None
