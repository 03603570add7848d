"""Text from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minilm.cli.options import FOLDER, KERNELS


@click.command()
@click.option("--run", type=FOLDER, required=True, help="Run folder.")
@click.option("--checkpoint", default="best", help="best (default), last, or a step that was kept.")
@click.option("--prompt", "prompts", multiple=True, help="Text to go on from; may be repeated. None: a new document.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Texts for each prompt.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=500, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(1), help="Draw from the k likeliest tokens.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="... the likeliest that reach p together.")
@click.option("--min-p", type=click.FloatRange(0, 1), help="... those at least p times as likely as the likeliest.")
@click.option(
    "--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: used tokens are less likely."
)
@click.option("--stop", multiple=True, help="A text ends before this; \\n is a new line; may be repeated.")
@click.option("--seed", type=int, help="Of the draws (default: another each time).")
@click.option("--stream", is_flag=True, help="Print characters as they come.")
@click.option("--interactive", is_flag=True, help="Type prompts one after another.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the decoding step: for long texts.")
@click.option(
    "--unknown", type=click.Choice(["error", "replace"]), default="error", help="Unseen characters in --prompt."
)
@click.option("--kernels", type=KERNELS, default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="float32", show_default=True
)
def generate(run: Path, checkpoint: str, kernels: str, device: str, dtype: str, **options: Any) -> None:
    """Write text with a trained model.

    \b
    minilm generate --run runs/quick-001 --stream
    minilm generate --run runs/quick-001 --prompt "The miller" --temperature 0.5 --seed 7
    minilm generate --run runs/quick-001 --prompt "The " --prompt "Once " --samples 3 --stop "\\n\\n"
    minilm generate --run runs/quick-001 --interactive
    """
    from minilm.sampling import console
    from minilm.sampling.generate import load_run

    settings = console.Settings.of(options)  # before a model is read for nothing
    model, tokenizer = load_run(run, checkpoint, kernels, device, dtype)
    console.write(model, tokenizer, settings)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--prompt", "prompts", multiple=True, help='Text to go on from; may be repeated. "": a new document.')
@click.option(
    "--temperature", "temperatures", multiple=True, type=click.FloatRange(0), help="Default: 0.3, 0.7, 1 and 1.5."
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=150, show_default=True, help="Of every text.")
@click.option("--samples", type=click.IntRange(1), default=20, show_default=True, help="Texts that a figure rests on.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--quality/--no-quality", default=True, help="Judge the texts, beside held-out text and n-gram models.")
@click.option("--kernels", "kernels_name", type=KERNELS, default="auto", show_default=True)
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="float32", show_default=True
)
def samples(run: Path, **options: Any) -> None:
    """Watch a model learn: prompts by temperatures by the checkpoints that a run kept, and how good the texts are.

    Writes RUN/samples/watch.txt and watch.json, and RUN/quality.json; minilm report then shows them.

    \b
    minilm samples runs/quick-001
    minilm samples runs/quick-001 --prompt "The fox " --temperature 0.5 --temperature 1 --no-quality
    """
    from rich.console import Console

    from minilm.sampling.samples import run_samples

    run_samples(run, Console(), **{name: value for name, value in options.items() if value != ()})
