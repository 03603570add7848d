"""What goes with a course: its capstone and its questions."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from minilm.cli.options import FOLDER, KERNELS
from minilm.errors import UserError


@click.command()
@click.option("--out", type=FOLDER, help="Folder to make it in, or to go on in.")
@click.option("--scale", type=click.Choice(["quick", "full"]), help="quick (default; two cores) or full (a GPU).")
@click.option("--data", help="Text to train on (default fables): see minilm prepare -h.")
@click.option("--kernels", type=KERNELS, help="Of all but naive against fused, which compares them (default auto).")
@click.option("--device", help="auto (default), cpu, cuda, cuda:N or mps.")
@click.option("--seed", type=click.IntRange(0), help="Of the training, the first of each study's (default 1).")
@click.option("--check", type=FOLDER, metavar="DIR", help="Make nothing: verify each deliverable in DIR.")
def capstone(out: Path | None, check: Path | None, **options: Any) -> None:
    """Make every deliverable of a course's capstone, and one page of it all.

    Training, samples by checkpoint and temperature, ablations, naive against fused kernels, a scaling ladder, report.
    Stopped or killed at any moment, the same command goes on. quick is under 30 minutes on two cores; full trains the
    8-layer preset for 10,000 steps, and some forty variants of it, on a GPU.

    \b
    minilm capstone --out capstones/mine
    minilm capstone --scale full --data books.txt --out capstones/books
    minilm capstone --check capstones/mine
    """
    if check is not None:
        if out is not None or any(value is not None for value in options.values()):
            raise UserError("--check looks at what is there and takes no other option.")
        from minilm.capstone.checklist import check as run_check

        sys.exit(run_check(check))
    if out is None:
        raise UserError("--out names no folder; give one, such as --out capstones/mine.")
    from rich.console import Console

    from minilm.capstone.run import capstone as run_capstone

    number = run_capstone(out, options, Console(), command=shlex.join(["minilm", *sys.argv[1:]]))
    if number == 2:  # as a shell reports Ctrl-C; a scheduler's SIGTERM, obeyed, is a success
        sys.exit(130)


@click.command()
@click.option("--only", metavar="N,N", help="Of the eight questions only these, such as 3,5.")
@click.option("--seed", type=click.IntRange(0), help="Draws the numbers (default: others each time).")
@click.option("--text", help="Your own text for question 6.")
@click.option("--template", type=FOLDER, metavar="FILE", help="Write a file to begin question 8 in.")
@click.option(
    "--code", type=FOLDER, metavar="FILE", help="RUN your file for question 8, in a process of its own, and test it."
)
@click.option("--progress", is_flag=True, help="Print what was answered, and what was weak.")
@click.option("--write-answers", type=FOLDER, metavar="FILE", help="Write an empty form (JSON) of drawn questions.")
@click.option("--non-interactive", is_flag=True, help="Grade the form in --answers; asks nothing, keeps nothing.")
@click.option("--answers", type=FOLDER, metavar="FILE", help="A filled form.")
@click.option("--json", "as_json", is_flag=True, help="With --non-interactive: marks as JSON.")
@click.option(
    "--export",
    type=(click.Choice(["anki"]), FOLDER),
    metavar="anki FILE",
    help="Write the questions as flash cards, a text file that Anki imports.",
)
def quiz(**options: Any) -> None:
    """Eight questions on transformers: answer from memory, then this very code shows who is right.

    Attention, its scale, its mask, the KV cache, Chinchilla, byte pairs, GPT/BERT/T5, and multi-head attention, which
    you write in a file of your own. That file is run as a program, with your rights, in a process of its own that is
    stopped if it hangs; no other file is run. What was weak is kept on this machine and comes first next time.

    \b
    minilm quiz
    minilm quiz --only 3,5 --seed 7
    minilm quiz --template mine.py
    minilm quiz --code mine.py
    minilm quiz --write-answers form.json --seed 1
    minilm quiz --non-interactive --answers form.json --code mine.py
    minilm quiz --export anki cards.txt
    """
    from minilm.quiz.command import run_quiz

    sys.exit(run_quiz(**options))
