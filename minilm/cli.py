"""The command line: options, help, one call each. Heavy imports stay inside the commands, so that --help is instant."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

import minilm
from kernels import BackendUnavailable
from minilm.errors import UserError
from minilm.threads import wait_politely

KERNELS = click.Choice(["auto", "reference", "torch", "triton"])
FOLDER = click.Path(path_type=Path)


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


@cli.command()
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


@cli.command()
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
@click.option("--compile/--no-compile", "compiled", default=None, help="Use torch.compile.")
@click.option(
    "--exact-reduction/--no-exact-reduction", default=None, help="The same bits on 1, 2, 4 and 8 processes; slower."
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
    compiled: bool | None,
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
    settings["train"] |= {name: value for name, value in {**options, "compile": compiled}.items() if value is not None}
    settings["train"] |= {"log": ",".join(log)} if log else {}
    settings["data"] |= {} if source is None else {"source": source}
    for assignment in assignments:
        section, key, value = parse_assignment(assignment)
        settings.setdefault(section, {})[key] = value
    command = shlex.join(["minilm", *sys.argv[1:]])
    result = train_and_report(preset, settings, out, init, resume, baselines, report, command=command)
    if result.signal == 2:  # as a shell reports Ctrl-C; a scheduler's SIGTERM, obeyed, is a success
        sys.exit(130)


@cli.command()
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


@cli.command()
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


@cli.command()
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


@cli.command()
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


@cli.command()
@click.option("--recipes", help="Presets, the baseline first (default: nanoGPT's recipe for this device, and ours).")
@click.option("--target", type=click.FloatRange(0, min_open=True), help="The validation loss that counts, in nats.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--data", "source", help="Another text than Tiny Shakespeare, such as a copy of it.")
@click.option("--device", default="auto", show_default=True)
@click.option("--kernels", type=KERNELS, default="auto", show_default=True)
@click.option("--beside", multiple=True, type=FOLDER, help="A finished run folder to draw too; may be repeated.")
@click.option("--out", type=FOLDER, default=Path("races/race"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the race in --out.")
def race(**options: Any) -> None:
    """Train recipes in turn on this machine: how long does each take to a loss?

    \b
    minilm race                                               nanoGPT's recipe against ours, three seeds each
    minilm race --data input.txt --out races/offline          ... with a copy of the text, where there is no network
    minilm race --recipes quick,tiny --target 1.5 --data fables
    """
    from minilm.studies.racing import run_race

    run_race(**options)


@cli.command()
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


@cli.command()
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

    
    minilm export runs/tiny-001 --format hf --out my-gpt
    minilm export runs/tiny-001 --format hf --checkpoint last --dtype bfloat16 --out my-gpt
    minilm export runs/quick-001 --format safetensors --out my-gpt
    """
    from minilm.interop.export import export as run_export

    click.echo(run_export(run, out, form, checkpoint, dtype))


@cli.command("import")
@click.argument("path", type=FOLDER, metavar="DIR|FILE")
@click.option("--out", type=FOLDER, required=True, help="Run folder to write.")
def import_(path: Path, out: Path) -> None:
    """Read a GPT-2 or Llama that transformers saved, or what minilm export wrote, as a run folder.

    Only safetensors are read: loading other kinds of file may run what they hold.

    
    minilm import my-gpt --out runs/my-gpt
    minilm generate --run runs/my-gpt --stream
    minilm train --init runs/my-gpt --data my.txt
    """
    from minilm.interop.intake import import_model

    model = import_model(path, out)
    for note in model.notes:
        click.echo(note)
    click.echo(out)


@cli.command()
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


@cli.command()
def doctor() -> None:
    """Say what this machine has, which kernels would run on it and why."""
    from minilm.doctor import diagnose

    diagnose()


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


@cli.command()
@click.option("--study", help="Whose shape: quick (default; minutes on two cores) or capstone (hours on a GPU).")
@click.option(
    "--axes", help="Of depth, width, activation, norm, norm_type, position, warmup, kernels (default: the study's)."
)
@click.option(
    "--axis", "fields", multiple=True, metavar="FIELD=V1,V2", help="Any other setting, such as dropout=0,0.1."
)
@click.option("--cross", help="Axes of which every combination is an arm, such as norm,warmup,depth.")
@click.option("--baseline", help="Preset that the arms start from (default: the study's).")
@click.option("--data", help="Text to train on: see minilm prepare -h.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer updates a trial.")
@click.option("--seeds", type=click.IntRange(1), help="Seeds an arm (default 3).")
@click.option("--match", type=click.Choice(["params", "none"]), help="params: give arms the baseline's size by d_ff.")
@click.option("--lr-triplet", is_flag=True, default=None, help="Try half, one and two times the learning rate an arm.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting of every arm.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trials at a time.")
@click.option("--out", type=FOLDER, help="Study folder (default studies/<study>).")
@click.option("--resume", is_flag=True, help="Go on with the study in --out.")
@click.option("--shard", metavar="I/N", help="Run part I of N of the trials only.")
@click.option(
    "--merge", multiple=True, type=FOLDER, help="Take the results of a copy of this study that ran elsewhere."
)
@click.option("--emit-slurm", type=click.IntRange(1), metavar="N", help="Write STUDY/run.sbatch, an array of N tasks.")
@click.option("--from", "runs", multiple=True, type=FOLDER, help="Report on finished runs or studies; trains nothing.")
def ablate(
    out: Path | None,
    resume: bool,
    jobs: int,
    shard: str | None,
    merge: tuple[Path, ...],
    emit_slurm: int | None,
    runs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Compare ways to train: arms against a baseline, several seeds each, with intervals.

    Writes STUDY/report.html, report.md, table.csv, result.json and figures. Killed at any moment, the same command with
    --resume goes on, and the table ends the same.

    \b
    minilm ablate                                       depth, width, activation, norm, kernels on little stories
    minilm ablate --axes kernels                        naive against fused: the same model? how much faster?
    minilm ablate --axis model.dropout=0.1,0.2 --data my.txt --steps 500 --seeds 5
    minilm ablate --out studies/quick --resume
    minilm ablate --from runs/a --from runs/b --out studies/mine
    """
    from rich.console import Console

    from minilm.studies import study

    console = Console()
    out = out or Path("studies") / (options["study"] or study.QUICK)
    if runs:
        study.report_runs(runs, out, console)
        return
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: _words(given[name]) for name in ("axes", "cross") if name in given}
    plan = study.Plan(**given)
    if emit_slurm:
        path = study.write_slurm(study.plan_study(out, plan, resume), emit_slurm)
        console.print(f"Written: {path}; submit it by sbatch {path}", highlight=False, soft_wrap=True)
    elif not study.ablate(out, plan, resume, jobs, _shard(shard), merge, console):
        sys.exit(130)


@cli.command()
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


@cli.command()
@click.argument("sources", nargs=-1, type=FOLDER)
@click.option("--sizes", help="Of the ladder, each LAYERSxWIDTH: 2x32,3x48,3x64,4x80,4x112,5x128 by default.")
@click.option("--steps", help="Optimizer updates; several, such as 100,200,400, fit loss against size and data.")
@click.option("--flops", help="Compute budgets instead of steps, such as 1e11,3e11,1e12: an IsoFLOP fit.")
@click.option(
    "--count",
    type=click.Choice(["non_embedding", "total", "matrices_and_head"]),
    default="non_embedding",
    show_default=True,
    help="Which count of parameters the law is in.",
)
@click.option("--baseline", help="Preset that the sizes are made of (default: quick's little sister).")
@click.option("--data", help="Text to train on: see minilm prepare -h.")
@click.option("--seeds", type=click.IntRange(1), help="Seeds a size (default 3).")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting of every size.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trials at a time.")
@click.option("--out", type=FOLDER, default=Path("studies/scale"), show_default=True, help="Study folder.")
@click.option("--resume", is_flag=True, help="Go on with the ladder in --out.")
@click.option("--shard", metavar="I/N", help="Run part I of N of the trials only.")
def scale(
    sources: tuple[Path, ...],
    sizes: str | None,
    steps: str | None,
    flops: str | None,
    count: str,
    jobs: int,
    out: Path,
    resume: bool,
    shard: str | None,
    **options: Any,
) -> None:
    """Fit a scaling law to a ladder of sizes, or say why it cannot be.

    Without SOURCES a ladder is trained; with them, finished runs or the depth and width arms of studies are read.

    \b
    minilm scale                                  six sizes, three seeds, minutes on two cores
    minilm scale studies/quick --out reports/law  what an ablation's sizes say
    minilm scale --steps 100,200,400              loss against size and data
    """
    from rich.console import Console

    from minilm.studies import ladder, study

    plan = study.Plan(**{name: value for name, value in options.items() if value is not None})
    counts = [int(n) for n in _numbers(steps, "--steps", whole=True)]
    budgets = _numbers(flops, "--flops")
    named = _words(sizes)
    if not ladder.scale(sources, out, plan, named, counts, budgets, count, resume, jobs, _shard(shard), Console()):
        sys.exit(130)


def _numbers(text: str | None, option: str, whole: bool = False) -> list[float]:
    found = []
    for word in _words(text):
        try:
            value = float(word)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf") or (whole and value != int(value)):
            kind = "whole numbers above 0" if whole else "numbers above 0"
            raise UserError(f"{option} is {text!r}; it must be {kind}, separated by commas.")
        found.append(value)
    return found


@cli.command()
@click.option("--params", type=float, help="Parameters of the model.")
@click.option("--flops", type=float, help="Floating-point operations of the whole training.")
@click.option("--tokens", type=float, help="Tokens to train on.")
@click.option("--chip", default="H100", show_default=True, help="Whose time is told, such as A100, H100 or RTX 4090.")
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Share of the chip's peak that is reached.")
@click.option("--preset", help="Of which the memory of training and of the cache is told as well.")
def budget(**options: Any) -> None:
    """What a training of some size, data or compute comes to: the optimal split, hours, memory.

    \b
    minilm budget --params 124e6
    minilm budget --flops 1e19 --chip A100 --mfu 0.35
    minilm budget --tokens 3e8 --preset capstone
    """
    from minilm.studies.calculator import tell_budget

    tell_budget(**options)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UserError(f"--shard is {text!r}; it must be I/N with I from 1 to N, such as 1/2.")
    return int(number), int(of)


@cli.command()
@click.option("--op", "ops", multiple=True, help="Operation, or the beginning of its name; several are allowed.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Begin nothing more after so many minutes.")
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


if __name__ == "__main__":
    main()
