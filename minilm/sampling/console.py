"""`minilm generate`: texts for prompts given as options, or for lines typed one after another."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from minilm.corpus.tokenizer import Tokenizer
from minilm.decoding import Sampling
from minilm.errors import UserError
from minilm.files import data_folder
from minilm.model import GPT
from minilm.sampling.generate import Writer, sampling_of, unescaped

HISTORY_LINES = 1000
HELP = """A line is a prompt (\\n begins a new line in it); an empty one goes on with the last text.
/temperature 0.8, /top-k 40, /top-p 0.9, /min-p 0.05, /repetition-penalty 1.2   how tokens are drawn; "off" undoes
/tokens 200    how many new tokens at most        /seed 7    the same draws for the same prompt again
/stop TEXT     where a text ends; may be repeated; "off" undoes
Ctrl-C ends the text being written; Ctrl-D or /quit ends all."""


@dataclass(frozen=True)
class Settings:
    """What the command was asked for."""

    prompts: tuple[str, ...]  # one for each text
    stream: bool
    interactive: bool
    writing: dict[str, Any]  # of a Writer

    @staticmethod
    def of(options: dict[str, Any]) -> Settings:
        """From the options of the command line; raises UserError for those that exclude each other."""
        options = dict(options)
        prompts, samples = options.pop("prompts"), options.pop("samples")
        stream, interactive = options.pop("stream"), options.pop("interactive")
        sampling = sampling_of(**{f.name: options.pop(f.name) for f in dataclasses.fields(Sampling)})
        stop = [unescaped(s) for s in options.pop("stop")]
        texts = tuple(p for p in prompts or ("",) for _ in range(samples))
        if interactive and (prompts or samples > 1):
            raise UserError("--interactive takes its prompts from what is typed; leave out --prompt and --samples.")
        if stream and len(texts) > 1:
            raise UserError(f"--stream shows one text as it comes and {len(texts)} were asked for; leave it out.")
        return Settings(texts, stream, interactive, {**options, "sampling": sampling, "stop": stop})


def write(model: GPT, tokenizer: Tokenizer, settings: Settings) -> None:
    """Print what was asked for; the speed goes to standard error."""
    if settings.interactive:
        Conversation(model, tokenizer, **settings.writing).run()
        return
    prompts = settings.prompts
    writer = Writer(model, tokenizer, prompts, **settings.writing)
    if settings.stream:
        _show(prompts[0])
    for pieces in writer:
        if settings.stream:
            _show(pieces[0])
    if settings.stream:
        click.echo()
    elif len(prompts) == 1:
        click.echo(prompts[0] + writer.texts[0])
    else:
        for i, (prompt, text) in enumerate(zip(prompts, writer.texts, strict=True), 1):
            click.echo(f"--- {i} of {len(prompts)} ---\n{prompt}{text}\n")
    _say_speed(writer)


def _show(piece: str) -> None:
    if piece:
        click.echo(piece, nl=False)


def _say_speed(writer: Writer) -> None:
    if words := writer.speed():
        click.secho(words, dim=True, err=True)


class Conversation:
    """Prompts typed one after another. A language model knows of no turns: every prompt begins a text anew, and an
    empty line goes on with the last one."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, sampling: Sampling, **options: Any):
        self.model, self.tokenizer, self.sampling, self.options = model, tokenizer, sampling, options
        self.text = ""  # prompt and all that followed

    def run(self) -> None:
        click.echo(f"{HELP.splitlines()[0]} /help says more.")
        with _history():
            while True:
                try:
                    line = input("> ")
                except (EOFError, KeyboardInterrupt):
                    click.echo()
                    return
                if line.strip() in ("/quit", "/exit"):
                    return
                try:
                    self._command(line.strip()) if line.startswith("/") else self._write(unescaped(line))
                except UserError as error:
                    click.echo(str(error))

    def _write(self, prompt: str) -> None:
        text = prompt or self.text
        writer = Writer(self.model, self.tokenizer, [text], sampling=self.sampling, **self.options)
        _show(prompt)
        with contextlib.suppress(KeyboardInterrupt):
            for (piece,) in writer:
                _show(piece)
        self.text = text + writer.texts[0]
        click.echo()
        _say_speed(writer)

    def _command(self, line: str) -> None:
        name, _, value = line[1:].partition(" ")
        value = value.strip()
        field = name.replace("-", "_")
        if name == "help":
            click.echo(HELP)
        elif name == "stop":
            self.options["stop"] = [] if value == "off" else [*self.options["stop"], unescaped(value)]
        elif name == "seed":
            self.options["seed"] = None if value == "off" else _number(name, value, int)
        elif name == "tokens":
            tokens = _number(name, value, int)
            if tokens < 1:
                raise UserError(f"/tokens is {tokens}; it must be at least 1.")
            self.options["max_new_tokens"] = tokens
        elif field in (fields := {f.name: f for f in dataclasses.fields(Sampling)}):
            drawn = fields[field].default if value == "off" else _number(name, value, int if name == "top-k" else float)
            self.sampling = sampling_of(**{**dataclasses.asdict(self.sampling), field: drawn})
        else:
            raise UserError(f"/{name} is no command; /help lists them.")


def _number(name: str, value: str, kind: type) -> float:
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"/{name} is {value!r}; it must be a number, or off.") from None


@contextlib.contextmanager
def _history():
    """Lines typed before, by the arrow keys, in this program and the next time; where the system has readline."""
    try:
        import readline
    except ImportError:
        readline = None  # type: ignore[assignment]
    if readline is None or not sys.stdin.isatty():
        yield
        return
    path: Path = data_folder() / "history"
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written to costs the history alone
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
