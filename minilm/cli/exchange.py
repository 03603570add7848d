"""Models for other programs, and from them."""

from __future__ import annotations

from pathlib import Path

import click

from minilm.cli.options import FOLDER


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--format",
    "form",
    type=click.Choice(["hf", "safetensors"]),
    required=True,
    help="hf: as transformers loads it (GPT-2 or Llama layout). safetensors: our own names, every model.",
)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--checkpoint", default="best", help="best (default), last, or a step that was kept.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
def export(run: Path, form: str, out: Path, checkpoint: str, dtype: str) -> None:
    """Write a trained model for others: config, weights, tokenizer and a model card.

    \b
    minilm export runs/tiny-001 --format hf --out my-gpt
    minilm export runs/tiny-001 --format hf --checkpoint last --dtype bfloat16 --out my-gpt
    minilm export runs/quick-001 --format safetensors --out my-gpt
    """
    from minilm.interop.export import export as run_export

    click.echo(run_export(run, out, form, checkpoint, dtype))


@click.command("import")
@click.argument("path", type=FOLDER, metavar="DIR|FILE")
@click.option("--out", type=FOLDER, required=True, help="Run folder to write.")
def import_(path: Path, out: Path) -> None:
    """Read a GPT-2 or Llama that transformers saved, or what minilm export wrote, as a run folder.

    Only safetensors are read: loading other kinds of file may run what they hold.

    \b
    minilm import my-gpt --out runs/my-gpt
    minilm generate --run runs/my-gpt --stream
    minilm train --init runs/my-gpt --data my.txt
    """
    from minilm.interop.intake import import_model

    model = import_model(path, out)
    for note in model.notes:
        click.echo(note)
    click.echo(out)
