"""`minilm capstone --check`: is every deliverable there, and is it what it says?

Nothing is taken on its name. A file must have the SHA-256 that was recorded when it was written, and what it says is
found again: weights are loaded, steps counted, the tables of studies made anew from the journals of their trials.
"""

from __future__ import annotations

import math
import shlex
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from minilm.capstone.folder import BEST, PAGE, TRAIN, Folder, read_result
from minilm.capstone.plan import MIN_AXES
from minilm.errors import UserError
from minilm.report.runs import read_run
from minilm.studies import ladder
from minilm.studies.ablation import analyse
from minilm.studies.design import BASELINE, CONTROL, KERNELS, REORDERED, SPEED
from minilm.studies.scaling import MIN_SEEDS
from minilm.studies.trials import FAILED, FINISHED, METRICS, Study, outcome_of, result_of
from minilm.training import checkpoint

QUESTIONS = "12345678"
LARGEST_PAGE = 5_000_000  # bytes
MIN_TEMPERATURES, MIN_STEPS = 3, 2  # of samples
SAME = 1e-6  # relative: numbers that are computed anew may differ in their last digits between machines
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Item:
    """A deliverable. text: its evidence, or what is missing; file: what to look at; remedy: the command that makes
    it."""

    name: str
    stage: str
    found: bool
    text: str
    file: str = ""
    sha256: str = ""
    remedy: str = ""


def checklist(folder: Folder, page: bool = True) -> list[Item]:
    """Every deliverable, the quiz and, if `page`, the page of it all last."""
    whole = shlex.join(["minilm", "capstone", "--out", str(folder.path)])
    looks: list[tuple[str, str, Callable[[Folder], tuple[str, str]], str]] = [
        ("trained checkpoint", "train", _checkpoint, whole),
        ("training curves", "train", _curves, whole),
        ("generated samples", "samples", _samples, whole),
        ("ablation report", "ablation", _ablation, whole),
        ("naive against fused", "kernels", _kernels, whole),
        ("scaling curve", "scaling", _scaling, whole),
        ("quiz", "quiz", _quiz, "minilm quiz"),
    ]
    if page:
        looks.append(("the page", "report", _page, whole))
    return [_item(folder, *look) for look in looks]


def _item(folder: Folder, name: str, stage: str, look: Callable[[Folder], tuple[str, str]], remedy: str) -> Item:
    try:
        file, text = look(folder)
        return Item(name, stage, True, text, file, folder.files.get(file, ""))
    except UserError as error:
        return Item(name, stage, False, str(error).rstrip("."), remedy=remedy)
    except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        return Item(name, stage, False, f"its files cannot be understood ({error!r:.80})", remedy=remedy)


def check(path: Path) -> int:
    """Print the checklist; 0 where all is there, 1 where something is missing. Raises UserError for no capstone."""
    items = checklist(Folder(path))
    for item in items:
        if item.found:
            where = f"  [{item.file}{', sha256 ' + item.sha256[:12] if item.sha256 else ''}]"
            click.echo(f"ok       {item.name}: {item.text}{where}")
        else:
            click.echo(f"MISSING  {item.name}: {item.text}. To make it: {item.remedy}")
    lost = sum(not item.found for item in items)
    click.echo(
        "Everything is there." if not lost else f"{lost} of {len(items)} {'is' if lost == 1 else 'are'} missing."
    )
    return 1 if lost else 0


# --- the training -----------------------------------------------------------------------------------------------------


def _checkpoint(folder: Folder) -> tuple[str, str]:
    folder.sound(BEST)
    state = checkpoint.load(folder.path / BEST)
    for name, tensor in state["model"].items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{BEST} holds numbers that are not finite, in {name}")
    step, loss = state["step"], state["val_loss"]
    best = read_run(folder.path / TRAIN).best
    # the journal keeps seven digits
    if best is None or best["step"] != step or not math.isclose(best["val_loss"], loss, rel_tol=1e-6):
        known = "none" if best is None else f"step {best['step']} with {best['val_loss']:.4f}"
        raise UserError(f"{BEST} is of step {step} with loss {loss:.4f}, and the best of the journal is {known}")
    numbers = sum(t.numel() for t in state["model"].values())
    return BEST, f"step {step:,}, validation loss {loss:.4f} nats a token, {numbers:,} numbers, loads"


def _curves(folder: Folder) -> tuple[str, str]:
    name = f"{TRAIN}/metrics.jsonl"
    folder.sound(name)
    run = read_run(folder.path / TRAIN)
    steps = [row["step"] for row in run.train_rows]
    if steps != list(range(1, (run.steps_planned or 0) + 1)):
        raise UserError(f"{name} has {len(steps)} of {run.steps_planned} steps")
    ends = {}
    for key in ("loss", "lr", "grad_norm"):
        values = [row[key] for row in run.train_rows if math.isfinite(row[key])]
        if len(values) < 0.99 * len(steps):
            raise UserError(f"{name} lacks {key} at {len(steps) - len(values)} steps")
        ends[key] = (values[0], values[-1], max(values))
    figure = _sound_png(folder, "figures/training_report.png")
    loss, lr, norm = ends["loss"], ends["lr"], ends["grad_norm"]
    text = f"loss {loss[0]:.3f} to {loss[1]:.3f}, learning rate up to {lr[2]:.3g}, gradient norm up to {norm[2]:.3g}"
    return name, f"{len(steps):,} steps without a gap: {text}; {len(run.eval_rows)} evaluations; drawn in {figure}"


def _samples(folder: Folder) -> tuple[str, str]:
    name = f"{TRAIN}/samples/watch.json"
    folder.sound(name)
    cells = list(cells_of(read_result(folder.path / name)))
    steps = sorted({step for step, *_ in cells})
    temperatures = sorted({temperature for _, temperature, *_ in cells})
    empty = [(step, temperature) for step, temperature, _, text in cells if not text.strip()]
    if len(steps) < MIN_STEPS or len(temperatures) < MIN_TEMPERATURES:
        raise UserError(
            f"{name} has {len(steps)} checkpoints and {len(temperatures)} temperatures; {MIN_STEPS} and "
            f"{MIN_TEMPERATURES} are asked for"
        )
    if len(empty) > len(cells) // 2:
        raise UserError(f"{name} has {len(empty)} empty texts of {len(cells)}")
    at = ", ".join(f"{t:g}" for t in temperatures)
    return (
        name,
        f"{len(cells)} texts, {len(steps)} checkpoints from step {steps[0]:,} to {steps[-1]:,}, temperatures {at}",
    )


def cells_of(watch: dict[str, Any]) -> Iterator[tuple[int, float, str, str]]:
    """(step, temperature, prompt, text) of every sample in watch.json."""
    for at in watch["checkpoints"]:
        for sample in at["samples"]:
            yield at["step"], sample["temperature"], sample["prompt"], sample["text"]


# --- studies ----------------------------------------------------------------------------------------------------------


def _study(folder: Folder, name: str) -> Study:
    """A study whose every trial has ended, with what its journal says."""
    study = Study(folder.path / name)
    for row in study.rows:
        if wrong := trial_fault(study, row["id"]):
            raise UserError(f"{name}: trial {row['id']} ({row['arm']}, seed {row['seed']}) {wrong}")
    return study


def trial_fault(study: Study, trial_id: str) -> str | None:
    """What is wrong with the result of a trial, which must be that of its own journal; None where it is sound."""
    result = study.result(trial_id)
    if result is None:
        return "has not ended"
    if result["status"] == FAILED:
        return f"failed: {result.get('reason', '')}"
    if result["status"] != FINISHED:
        return None
    run = study.folder(trial_id)
    if not (run / METRICS).exists():
        return "has no journal"
    found = result_of(outcome_of(run))
    for key in ("status", "val_loss", "best_val_loss", "steps", "tokens"):
        if not _same(result.get(key), found[key]):
            return f"says {key} {result.get(key)} and its journal {found[key]}"
    return None


def _table(folder: Folder, name: str) -> dict[str, Any]:
    """The result of an ablation study, which must be what its trials give."""
    study = _study(folder, name)
    for file in ("result.json", "report.html"):
        folder.sound(f"{name}/{file}")
    outcomes = study.outcomes()
    result = read_result(study.path / "result.json")
    if not _same(analyse(outcomes, {o.id: study.folder(o.id) for o in outcomes}), result):
        raise UserError(f"{name}/result.json is not what its trials give")
    return result


def _figures(folder: Folder, name: str) -> list[str]:
    figures = sorted(file for file in folder.files if file.startswith(f"{name}/figures/"))
    if not figures:
        raise UserError(f"{name} has no figures")
    return [_sound_png(folder, figure) for figure in figures]


def _ablation(folder: Folder) -> tuple[str, str]:
    result = _table(folder, "ablation")
    rows = [row for row in result["table"] if row["axis"] not in (BASELINE, CONTROL, KERNELS, SPEED)]
    axes = sorted({row["axis"] for row in rows})
    if len(axes) < MIN_AXES:
        raise UserError(f"the ablation has {len(axes)} axes ({', '.join(axes)}); {MIN_AXES} are asked for")
    seeds = min(row["n"] + len(row["diverged"]) for row in (result["table"][0], *rows))
    if seeds < MIN_SEEDS:
        raise UserError(f"an arm of the ablation has {seeds} seeds; {MIN_SEEDS} are asked for")
    if not (result["comparison"] or {}).get("control"):
        raise UserError("the ablation has no A/A arm")
    if not result["findings"]:
        raise UserError("the ablation has no analysis: none of its sentences is borne out")
    figures = _figures(folder, "ablation")
    text = f"axes {', '.join(axes)}; {len(rows)} arms and A/A, {seeds} seeds; {len(result['findings'])} findings"
    return "ablation/report.html", f"{text}; {len(figures)} figures"


def _kernels(folder: Folder) -> tuple[str, str]:
    result = _table(folder, "kernels")
    rows = [row for row in (result["kernels"] or {"rows": []})["rows"] if row["kernels"] != REORDERED]
    if not rows:
        raise UserError("no fused kernels stand beside the naive ones")
    figures = _figures(folder, "kernels")
    said = []
    for row in rows:
        test = row["equivalence"]
        speed = f", {row['speedup']:.2f} times as fast" if row["speedup"] else ""
        said.append(f"{row['kernels']} {test['verdict']} by {test['difference']:+.4f} nats{speed}")
    return "kernels/report.html", f"{'; '.join(said)}; {len(figures)} figures"


def _scaling(folder: Folder) -> tuple[str, str]:
    study = _study(folder, "scaling")
    for file in ("scaling.json", "scaling.html"):
        folder.sound(f"scaling/{file}")
    result = read_result(study.path / "scaling.json")
    if not _same(ladder.analyse(ladder.read_outcomes([study.path]), result["count"]), result):
        raise UserError("scaling/scaling.json is not what its trials give")
    curve = _sound_png(folder, "scaling/capstone_scaling_curve.png")
    fit = result["fit"]
    if fit["exponent"] is not None:
        law = fit[fit["form"]]
        text = f"exponent {fit['exponent']:.3f} ({law['alpha_low']:.3f} to {law['alpha_high']:.3f})"
    elif fit["refusals"]:
        text = f"an exponent is refused: {' '.join(fit['refusals'])} Slope {fit['slope'] or math.nan:.3f}"
    else:
        raise UserError("the ladder has neither an exponent nor a reason for none")
    return curve, f"{len(fit['sizes'])} sizes, {text}"


# --- the rest ---------------------------------------------------------------------------------------------------------


def _quiz(_: Folder) -> tuple[str, str]:
    from minilm.quiz.progress import progress_path, read_progress

    progress = read_progress()
    unanswered = [q for q in QUESTIONS if not any(part.startswith(q) for part in progress.entries)]
    if unanswered:
        raise UserError(f"of the eight questions {', '.join(unanswered)} {'is' if len(unanswered) == 1 else 'are'} "
                        "not answered yet")  # fmt: skip
    weak = "; ".join(f"{part} {entry.topic} ({entry.last:.0%})" for part, entry in progress.weak())
    right = sum(entry.last == 1 for entry in progress.entries.values())
    text = f"all eight answered, {right} of {len(progress.entries)} parts right; weak: {weak or 'none'}"
    return progress_path().name, text


def _page(folder: Folder) -> tuple[str, str]:
    folder.sound(PAGE)
    text = (folder.path / PAGE).read_text(encoding="utf-8")
    if len(text.encode()) > LARGEST_PAGE:
        raise UserError(f"{PAGE} has {len(text.encode()):,} bytes; {LARGEST_PAGE:,} are allowed")
    if not text.rstrip().endswith("</html>"):
        raise UserError(f"{PAGE} is cut off")
    return PAGE, f"{len(text.encode()):,} bytes, {text.count('<svg ')} figures, asks for nothing else"


def _sound_png(folder: Folder, name: str) -> str:
    """The name of a PNG file all of whose chunks are whole."""
    folder.sound(name)
    content = (folder.path / name).read_bytes()
    position, last = len(PNG), b""
    if content.startswith(PNG):
        while position + 12 <= len(content):
            length, kind = struct.unpack(">I4s", content[position : position + 8])
            body = content[position + 4 : position + 8 + length]
            if content[position + 8 + length : position + 12 + length] != struct.pack(">I", zlib.crc32(body)):
                break
            position, last = position + 12 + length, kind
    if last != b"IEND" or position != len(content):
        raise UserError(f"{name} is no whole PNG")
    return name


def _same(one: Any, other: Any) -> bool:
    """Equal, numbers to six digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int) and float in (type(one), type(other)):
        return math.isclose(one, other, rel_tol=SAME, abs_tol=1e-12)
    return one == other
