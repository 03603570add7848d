"""This machine: what it has, its kernels, its shell."""

from __future__ import annotations

import click

INSTALL = {
    "bash": "In every new shell: echo 'eval \"$(minilm completion bash)\"' >> ~/.bashrc",
    "zsh": "In every new shell: echo 'eval \"$(minilm completion zsh)\"' >> ~/.zshrc",
    "fish": "In every new shell: minilm completion fish > ~/.config/fish/completions/minilm.fish",
}


@click.command()
def doctor() -> None:
    """Say what this machine has, which kernels would run on it and why.

    \b
    minilm doctor
    """
    from minilm.doctor import diagnose

    diagnose()


@click.command()
@click.option("--op", "ops", multiple=True, help="Operation, or the beginning of its name; several are allowed.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), help="Stop after so many minutes, and keep what was found."
)
@click.option("--commit", is_flag=True, help="Write the table that comes with minilm instead of your own.")
def tune(ops: tuple[str, ...], minutes: float | None, commit: bool) -> None:
    """Measure launch configurations of the Triton kernels on this GPU, and keep the fastest.

    A candidate whose results are wrong or whose machine code spills is refused. The table is read by every later run
    on a GPU of this kind; deleting it brings the committed one back.

    \b
    minilm tune
    minilm tune --op attention --op layer_norm_backward --minutes 5
    """
    from minilm.tune import tune as run_tuning

    run_tuning(ops, minutes, commit)


@click.command()
@click.argument("shell", type=click.Choice(list(INSTALL)))
def completion(shell: str) -> None:
    """Print a script that lets a shell complete commands and options by the Tab key.

    \b
    minilm completion bash >> ~/.bashrc
    minilm completion zsh >> ~/.zshrc
    minilm completion fish > ~/.config/fish/completions/minilm.fish
    """
    from click.shell_completion import get_completion_class

    from minilm.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(f"# {INSTALL[shell]}\n{kind(cli, {}, 'minilm', '_MINILM_COMPLETE').source()}")
