"""Data, training, and what is known of a run afterwards."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from minilm.cli.options import FOLDER, KERNELS
from minilm.errors import UserError


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--tokenizer", type=click.Choice(["char", "bpe"]), help="By character (default), or byte-pair encoding.")
@click.option("--vocab-size", type=int, help="For bpe: how many tokens (default 4096).")
@click.option("--val-fraction", type=float, help="Share of the text that is held out (default 0.1).")
@click.option(
    "--split",
    type=click.Choice(["auto", "tail", "document"]),
    help="Hold out the last characters (tail) or whole documents; auto: documents where there are several.",
)
@click.option("--field", help='For .jsonl: which field holds the text (default "text").')
@click.option(
    "--tokenizer-file", type=FOLDER, help="Use the tokens of this tokenizer.json, such as RUN/tokenizer.json."
)
@click.option("--unknown", type=click.Choice(["error", "replace"]), help="replace: give unseen characters a token.")
@click.option("--characters", type=int, help="For fables: how many characters to write (default 5,000,000).")
@click.option("--seed", type=int, help="For fables: the seed of its random source (default 0).")
def prepare(source: tuple[str, ...], out: Path, **options: Any) -> None:
    """Tokenize a text once: train.bin, val.bin, meta.json, tokenizer.json.

    SOURCE is fables (embedded stories whose entropy is known), shakespeare (downloaded once), python (the installed
    standard library), or files, folders and globs of .txt, .md, .py and .jsonl, each also .gz.

    \b
    minilm prepare fables --characters 20000000 --out data/fables
    minilm prepare "books/**/*.txt" --tokenizer bpe --vocab-size 8192 --out data/books
    """
    from minilm.config import DataConfig
    from minilm.corpus.dataset import open_dataset
    from minilm.corpus.dataset import prepare as prepare_data

    given = {name: value for name, value in options.items() if value is not None}
    if "tokenizer_file" in given:
        if {"tokenizer", "vocab_size"} & given.keys():
            raise UserError("--tokenizer-file brings its own tokens; leave --tokenizer and --vocab-size out.")
        given["tokenizer_file"] = str(given["tokenizer_file"].resolve())
    meta = open_dataset(prepare_data(DataConfig(source=",".join(source), **given), out)).meta
    for split in ("train", "val"):
        m = meta[split]
        click.echo(f"{split:6}{m['tokens']:>14,} tokens {m['characters']:>14,} characters {m['bytes']:>14,} bytes")
    click.echo(f"vocabulary {meta['vocab_size']} ({meta['tokenizer']['type']}), split by {meta['split']['rule']}")
    if meta["floor"]:
        floor = meta["floor"]
        click.echo(f"floor {floor['nats_per_char']:.4f} nats a character, {floor['bits_per_byte']:.4f} bits a byte")


@click.command()
@click.option(
    "--preset", help="quick (default on a CPU), tiny, capstone (default on a GPU), shakespeare-char[-cpu], gpt2."
)
@click.option("--data", "source", help="fables, shakespeare, python, or a file, folder or glob: see minilm prepare -h.")
@click.option("--kernels", type=KERNELS, help="What computes attention, norms, SwiGLU and the loss (default auto).")
@click.option("--init", type=FOLDER, metavar="RUN|DIR", help="Begin from the weights of a run, an export or an import.")
@click.option("--out", type=FOLDER, help="Run folder (default runs/<preset>-NNN).")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the newest of the preset.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, such as train.lr=3e-4.")
@click.option("--steps", type=int, help="Optimizer updates.")
@click.option("--seed", type=int, help="Of initial weights, batches and dropout.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--dtype", help="Of matrix products: auto, float32, bfloat16 or float16.")
@click.option("--matmul-precision", help="Of float32 products: highest (default), high (TF32), or medium.")
@click.option(
    "--compile", help="Use torch.compile: auto (default; where it repays), off, on, or graphs (CUDA graphs as well)."
)
@click.option("--graphs", help="Launch an update, optimizer included, as one CUDA graph: off (default) or on.")
@click.option(
    "--exact-reduction/--no-exact-reduction", default=None, help="The same bits on 1, 2, 4 and 8 processes; slower."
)
@click.option(
    "--checkpoint-activations/--no-checkpoint-activations",
    default=None,
    help="Compute blocks again for the backward: less memory, slower, the same numbers.",
)
@click.option("--shard/--no-shard", default=None, help="Cut a model that fits no GPU over the processes.")
@click.option("--save-at", help='Steps whose weights are kept: "pythia", or a list such as 0,100,1000.')
@click.option("--keep-last", type=int, help="Checkpoints to go on from that are kept (default 2).")
@click.option(
    "--on-spike",
    type=click.Choice(["continue", "rewind"]),
    help="A sudden loss: log it (default), or go back to the last checkpoint and on past those batches.",
)
@click.option("--eval-tokens", type=int, help="Validate on about so many tokens instead of the whole split.")
@click.option(
    "--log",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "csv"]),
    help="Follow it in TensorBoard, Weights & Biases (offline) or RUN/metrics.csv; may be repeated.",
)
@click.option("--baselines/--no-baselines", default=True, help="Afterwards fit n-gram models on the same text.")
@click.option("--report/--no-report", default=True, help="Afterwards write RUN/report.html.")
def train(
    preset: str | None,
    source: str | None,
    init: Path | None,
    out: Path | None,
    resume: bool,
    assignments: tuple[str, ...],
    baselines: bool,
    report: bool,
    log: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a GPT, then report on it.

    \b
    minilm train                                        a few minutes on a laptop
    minilm train --data my.txt --set model.n_layers=6
    minilm train --preset shakespeare-char --kernels torch --dtype bfloat16
    minilm train --out runs/quick-001 --resume --steps 3000
    minilm train --log tensorboard --log csv            then: tensorboard --logdir runs
    minilm train --init runs/quick-001 --data my.txt --set data.unknown=replace
    """
    from minilm.config import parse_assignment
    from minilm.pipeline import train_and_report

    settings: dict[str, dict[str, Any]] = {"train": {}, "data": {}}
    settings["train"] |= {name: value for name, value in options.items() if value is not None}
    settings["train"] |= {"log": ",".join(log)} if log else {}
    settings["data"] |= {} if source is None else {"source": source}
    for assignment in assignments:
        section, key, value = parse_assignment(assignment)
        settings.setdefault(section, {})[key] = value
    command = shlex.join(["minilm", *sys.argv[1:]])
    result = train_and_report(preset, settings, out, init, resume, baselines, report, command=command)
    if result.signal == 2:  # as a shell reports Ctrl-C; a scheduler's SIGTERM, obeyed, is a success
        sys.exit(130)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder to write (default: the run's own; for several, report/ beside them).")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write report.html, report.md and the figures of one run, or of several side by side.

    \b
    minilm report runs/quick-001
    minilm report runs/quick-001 runs/quick-002 --out reports/seeds
    """
    from minilm.report.page import write_report

    click.echo(write_report(list(runs), out))


@click.command()
@click.argument("run", type=FOLDER)
def baselines(run: Path) -> None:
    """Fit n-gram models of orders 1 to 6 on as much text as a run has seen, and compare.

    \b
    minilm baselines runs/quick-001
    """
    from rich.console import Console

    from minilm.report.runs import read_run
    from minilm.report.summary import print_summary
    from minilm.sampling.baselines import write_baselines

    write_baselines(run)
    print_summary(read_run(run), Console())


@click.command()
@click.argument("path", type=FOLDER, metavar="RUN|DATA|CHECKPOINT")
def check(path: Path) -> None:
    """Verify a run folder, prepared data or a checkpoint: checksums, shapes, the journal, and say what can be done.

    Exit code 0: all is sound. 1: something is wrong, and a line says what. 2: the path is nothing that minilm wrote.

    \b
    minilm check runs/quick-001
    minilm check runs/quick-001/checkpoints/best.pt
    """
    from minilm.check import main as run_check

    sys.exit(run_check(path))
