"""The command line: options, help, one call each. Heavy imports stay inside the commands, so that --help is instant."""

from __future__ import annotations

import os
import sys

import click

import minilm
from kernels import BackendUnavailable
from minilm.cli import course, exchange, machine, studies, training, writing
from minilm.errors import UserError
from minilm.threads import wait_politely


def main() -> None:
    """The `minilm` command: what a person can mend is one sentence on standard error and exit code 2."""
    wait_politely()
    try:
        sys.exit(cli.main(prog_name="minilm", standalone_mode=False) or 0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except (UserError, BackendUnavailable, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes on a machine one speaks for all
            click.echo(f"minilm: {text}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a name too long for any file, a folder that may not be read
        name = str(error.filename or "a file")
        shown = name if len(name) < 200 else name[:100] + "..."
        click.echo(f"minilm: {shown} cannot be used ({error.strerror or error}); name another.", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(minilm.__version__, prog_name="minilm")
def cli() -> None:
    """From raw text to a small GPT that can be trusted.

    \b
    minilm train                        train a small GPT on embedded stories, offline
    minilm train --data my.txt          ... or on your own text
    minilm generate --run runs/quick-001 --stream
    minilm samples runs/quick-001       watch it learn: text from every checkpoint, judged
    minilm report runs/quick-001        one page with curves, samples and settings
    minilm check runs/quick-001         is everything on disk sound?
    minilm doctor                       what this machine has, and what would run on it
    minilm tune                         fit the Triton kernels to this GPU
    minilm capstone --out capstones/a   all of it: train, compare, scale, report
    """


for room in (training, writing, studies, course, exchange, machine):
    for command in vars(room).values():
        if isinstance(command, click.Command):
            cli.add_command(command)
