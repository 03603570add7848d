"""What `minilm quiz` does for each of its options; those that do not go together are refused, none is ignored."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from minilm.errors import UserError

USES = {  # what each way of calling makes use of
    "--template": (),
    "--progress": (),
    "--export": ("--only", "--seed", "--text"),
    "--write-answers": ("--only", "--seed", "--text"),
    "--non-interactive": ("--answers", "--only", "--json"),
    "--code": ("--seed",),
    "the quiz in a terminal": ("--only", "--seed", "--text"),
}


def run_quiz(
    only: str | None,
    seed: int | None,
    text: str | None,
    code: Path | None,
    template: Path | None,
    progress: bool,
    export: tuple[str, Path] | None,
    write_answers: Path | None,
    non_interactive: bool,
    answers: Path | None,
    as_json: bool,
) -> int:
    """The exit code. Raises UserError for options that do not go together and for files that are of no use."""
    ways = {
        "--template": template,
        "--progress": progress or None,
        "--export": export,
        "--write-answers": write_answers,
        "--non-interactive": non_interactive or None,
        "--code": None if non_interactive else code,  # by itself it is a way to call the quiz too
    }
    chosen = [way for way, value in ways.items() if value is not None]
    if len(chosen) > 1:
        raise UserError(f"{chosen[0]} and {chosen[1]} were both given; they are two ways to call the quiz: choose one.")
    way = chosen[0] if chosen else "the quiz in a terminal"
    details = {"--only": only, "--seed": seed, "--text": text, "--answers": answers}
    given = [name for name, value in {**details, "--json": as_json or None}.items() if value is not None]
    for name in given:
        if name not in USES[way]:
            why = "; a form holds its seed and its text" if non_interactive and name in ("--seed", "--text") else ""
            raise UserError(f"{name} has no use with {way}{why}; leave it out.")
    if way == "--non-interactive" and answers is None:
        raise UserError("--non-interactive needs a filled form: --answers FILE (--write-answers FILE writes one).")
    if way == "--progress":
        return _tell_progress()
    from minilm.quiz.classroom import all_numbers

    numbers = all_numbers(only)
    for name, value, number in (("--text", text, 6), ("--code", code, 8)):
        if value is not None and number not in numbers:
            raise UserError(f"{name} is for question {number}, which --only {only} leaves out; add it or drop {name}.")
    if way == "--non-interactive":
        return _grade(answers, numbers if only else None, code, as_json)
    return _draw_and_do(
        way, ways[way] if chosen else None, numbers, secrets.randbelow(10_000) if seed is None else seed, text
    )


def _draw_and_do(way: str, value: Any, numbers: list[int], seed: int, text: str | None) -> int:
    import click

    from minilm.quiz.anki import make_cards
    from minilm.quiz.classroom import make_form
    from minilm.quiz.play import Game, write_new, write_template
    from minilm.quiz.questions import draw_questions

    match way:
        case "--template":
            write_template(value)
            click.echo(f"{value}: fill it in, then minilm quiz --code {value}")
        case "--export":
            path = value[1]
            write_new(path, make_cards(draw_questions(seed, numbers, text)))
            click.echo(f"{path}: import it in Anki with File, Import (seed {seed})")
        case "--write-answers":
            write_new(value, make_form(draw_questions(seed, numbers, text), seed, text))
            click.echo(f"{value}: fill it in, then minilm quiz --non-interactive --answers {value}")
        case "--code":
            Game(numbers, seed).test_file(value)
        case _:
            return Game(numbers, seed, text).play()
    return 0


def _grade(answers: Path, numbers: list[int] | None, code: Path | None, as_json: bool) -> int:
    import click

    from minilm.quiz.classroom import grade
    from minilm.quiz.multihead import RUNS

    if code is not None:
        click.echo(f"{code}: {RUNS}", err=True)
    marks = grade(answers, numbers, code)
    if as_json:
        click.echo(marks.to_json())
    else:
        _tell_marks(marks)
    return 0


def _tell_marks(marks: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "about", "score", "hint", box=None, pad_edge=False)
    for mark in marks.marks:
        score = "?" if mark.score is None else f"{mark.score:.3g}"
        table.add_row(mark.id, mark.topic, score, " ".join([mark.hint, *(f"[{point}]" for point in mark.rubric)]))
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    unread = sum(mark.score is None for mark in marks.marks)
    console.print(f"{marks.score:.3g} of {len(marks.marks)}, seed {marks.seed}")
    if unread:
        console.print(
            f"{unread} answers are to be read: set their points in the form to true or false, and grade again."
        )


def _tell_progress() -> int:
    from rich.console import Console
    from rich.table import Table

    from minilm.quiz.progress import progress_path, read_progress

    console = Console(highlight=False, markup=False, emoji=False)
    progress = read_progress()
    if progress.note:
        console.print(progress.note)
    if not progress.entries:
        console.print(f"Nothing answered yet; minilm quiz begins, and keeps what was weak in {progress_path()}.")
        return 0
    table = Table("part", "about", "asked", "right", "last", "when (UTC)", box=None, pad_edge=False)
    weak = progress.weak()
    strong = [(part, entry) for part, entry in sorted(progress.entries.items()) if entry.last == 1]
    for part, entry in [*weak, *strong]:
        when = entry.when.replace("T", " ")[:16]
        table.add_row(part, entry.topic, str(entry.asked), str(entry.right), f"{entry.last:.3g}", when)
    console.print(table)
    console.print(
        f"{len(weak)} weak of {len(progress.entries)} answered, the weakest first; kept in {progress_path()}."
    )
    return 0
