"""What a report says of one run: its numbers, sentences, tables and figures, as the templates set them."""

import math
import shlex
from typing import Any

import numpy as np
from markupsafe import Markup

from minilm.report import learning, panels, words
from minilm.report.canvas import svg
from minilm.report.runs import Run, number, table

STEPS_SHOWN = 6  # of samples, first and last among them
SAMPLES_SHOWN = 12  # of the last step
CHARACTERS_SHOWN = 3000  # of one sample or event
EVENTS_SHOWN = 100
_COUNTS = (
    ("total", "total", "every weight once, tied ones too"),
    ("non_embedding", "non-embedding", "Kaplan's N: without token and position embeddings"),
    ("matrices_and_head", "matrices and head", "what multiplies the activations of every token"),
    ("embedding", "embedding", "token and position tables"),
)
_QUIET_EVENTS = ("best", "saved")  # one at every checkpoint: counted, not listed


def view_of(run: Run, slug: str, prefix: str) -> dict[str, Any]:
    """Everything that the templates say of one run."""
    return {
        "slug": slug,
        "name": run.name,
        "png": f"training_report_{slug}.png",
        "verdict": words.verdict(run),
        "remarks": words.remarks(run),
        "key_figures": _key_figures(run),
        "figures": _figures(run, prefix),
        "losses": _losses(run),
        "losses_note": _losses_note(run),
        "has_floor": run.floor is not None,
        "unit": run.unit,
        "watch": (watch := learning.watch_of(run)),
        "quality": learning.quality_of(run, prefix, slug),
        "progress": [] if watch else _progress(run),  # which shows the same, at one temperature
        "samples": _last_samples(run),
        "events": _events(run),
        "settings": _settings(run),
        "parameters": [(label, words.count(run.parameters.get(key)), meaning) for key, label, meaning in _COUNTS],
        "provenance": _provenance(run),
        "commands": _commands(run),
    }


def _key_figures(run: Run) -> list[tuple[str, str, str]]:
    """(what, value, small print)"""
    shown = []
    if run.best:
        nats = run.best["val_loss"]
        shown.append((f"nats a {run.unit}", words.loss(nats), f"best validation, step {run.best['step']:,}"))
        if math.isfinite(bits := run.bits_of(run.best)):
            perplexity = f", {math.exp(nats):,.2f} in perplexity" if nats < 20 else ""
            shown.append(("bits a byte", words.loss(bits), f"the same{perplexity}"))
    shown.append(("parameters", words.short(run.parameters.get("total")), "each once, tied ones too"))
    readings = f"{run.epochs:.1f} times the training text" if math.isfinite(run.epochs) else ""
    readings = "less than a tenth of the training text" if run.epochs < 0.1 else readings
    shown.append(("tokens read", words.short(run.tokens), readings))
    shown.append(("training time", words.duration(run.wall), words.times(run.steps_done, "step")))
    achieved, share = words.utilisation(run)
    if math.isfinite(achieved):
        of_peak = f", {words.percent(share)} of the peak" if math.isfinite(share) else ""
        shown.append(("tokens a second", words.short(run.tokens_per_second), f"{words.flops(achieved)}{of_peak}"))
    return shown


def curves_of(run: Run) -> panels.Curves:
    return panels.Curves(run.column("loss"), run.column("val_loss"), run.column("lr"), run.column("grad_norm"))


def reference_of(run: Run) -> panels.Reference:
    clip = number(run.train.get("grad_clip"))
    grams = tuple((f"{order}-gram", nats) for order, nats, _ in words.baseline_losses(run))
    return panels.Reference(run.floor, grams, clip if clip > 0 else None, run.unit)


def _figures(run: Run, prefix: str) -> list[dict[str, Any]]:
    curves, reference = curves_of(run), reference_of(run)
    drawn = [
        ("Training loss", lambda axes: panels.draw_training_loss(axes, curves.train, reference)),
        ("Validation loss", lambda axes: panels.draw_validation_loss(axes, curves.val, reference)),
        ("Learning rate", lambda axes: panels.draw_learning_rate(axes, curves.lr)),
        ("Gradient norm", lambda axes: panels.draw_gradient_norm(axes, curves.grad_norm, reference.grad_clip)),
    ]
    if run.floor is not None and run.best and run.best["step"] > 0:
        drawn.append(("Above the floor", lambda axes: panels.draw_above_floor(axes, curves, run.floor)))
    if math.isfinite(run.tokens_per_second):
        drawn.append(("Tokens a second", lambda axes: panels.draw_throughput(axes, run.column("tokens_per_s"))))
    return [
        {"title": title, "svg": Markup(svg(draw, f"{prefix}{index}", f"{title} by step"))}
        for index, (title, draw) in enumerate(drawn)
    ]


def _losses(run: Run) -> list[dict[str, Any]]:
    """The model among the n-gram models and the floor, the worst first."""
    rows: list[dict[str, Any]] = [
        {"name": f"{order}-gram", "nats": nats, "bits": bits, "own": False}
        for order, nats, bits in words.baseline_losses(run)
    ]
    if not rows and run.floor is None:
        return []
    if number(run.model.get("vocab_size")) > 1:
        guess = math.log(run.model["vocab_size"])
        rows.append({"name": "even guessing", "nats": guess, "bits": run.bits_per_byte(guess), "own": False})
    if run.best:
        rows.append({"name": "this model", "nats": run.best["val_loss"], "bits": run.bits_of(run.best), "own": True})
    if run.floor is not None:
        rows.append({"name": "the floor", "nats": run.floor, "bits": run.floor_bits_per_byte, "own": False})
    rows.sort(key=lambda row: -row["nats"])
    for row in rows:
        is_above = run.floor is not None and row["name"] != "the floor"
        row["above"] = words.loss(row["nats"] - run.floor) if is_above else ""
        row["nats"], row["bits"] = words.loss(row["nats"]), words.loss(row["bits"])
    return rows


def _losses_note(run: Run) -> str:
    fitted, smoothing = number(run.baselines.get("fitted_on_tokens")), run.baselines.get("smoothing")
    said = []
    if math.isfinite(fitted):
        how = f" ({smoothing})" if smoothing else ""
        said.append(
            f"The n-gram models{how} were fitted on {fitted:,.0f} tokens of training text; "
            f"this model read {words.count(run.tokens)}."
        )
    if run.floor is not None:
        said.append("The floor is the entropy of the source that wrote the text: on average, no model can do better.")
    return " ".join(["All on the same held-out text.", *said])


def _progress(run: Run) -> list[dict[str, Any]]:
    """One sample, the first, at up to STEPS_SHOWN steps: the model as it learns."""
    if len(run.samples) < 2:
        return []
    chosen = np.unique(np.linspace(0, len(run.samples) - 1, STEPS_SHOWN).round().astype(int))
    losses = {row["step"]: row["val_loss"] for row in run.eval_rows}
    return [
        {"step": f"{step:,}", "loss": words.loss(losses.get(step)), **_sample(samples[0], 360)}
        for step, samples in (run.samples[index] for index in chosen)
    ]


def _last_samples(run: Run) -> dict[str, Any]:
    if not run.samples or (len(run.samples) > 1 and len(run.samples[-1][1]) == 1 and len(_first(run)) <= 360):
        return {}  # what there is stands among the samples by step already
    step, samples = run.samples[-1]
    shown = [_sample(sample, CHARACTERS_SHOWN) for sample in samples[:SAMPLES_SHOWN]]
    return {"step": f"{step:,}", "shown": shown, "more": len(samples) - len(shown)}


def _first(run: Run) -> str:
    return run.samples[-1][1][0]["text"]


def _sample(sample: dict[str, Any], limit: int) -> dict[str, Any]:
    text, prompt = sample["text"], sample.get("prompt")
    prompt = prompt if isinstance(prompt, str) and text.startswith(prompt) else ""
    if not prompt.strip():  # a model asked to begin a document is often given the end of the one before
        prompt, text = "", text.lstrip("\r\n")
    cut = text[:limit].rstrip() + " …" if len(text) > limit else text
    chosen = ((key, number(sample.get(key))) for key in ("temperature", "top_k", "top_p", "seed"))
    settings = [f"{key.replace('_', '-')} {value:.12g}" for key, value in chosen if math.isfinite(value)]
    return {"prompt": cut[: len(prompt)], "text": cut[len(prompt) :], "settings": " · ".join(settings)}


def _events(run: Run) -> dict[str, Any]:
    told = [e for e in run.events if e["event"] not in _QUIET_EVENTS]
    counts = (("new best", "best"), ("checkpoint", "saved"))
    quiet = [words.times(n, word) for word, event in counts if (n := run.count(event))]
    shown = [
        {
            "step": words.count(event.get("step")),
            "event": event["event"].replace("_", "-"),
            "loud": event["event"] in ("spike", "non_finite"),
            "message": str(event.get("message") or "")[:CHARACTERS_SHOWN],
            "time": str(event.get("time") or "")[:19].replace("T", " "),
        }
        for event in told[:EVENTS_SHOWN]
    ]
    return {"shown": shown, "more": len(told) - len(shown), "quiet": " and ".join(quiet)}


def _settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    data = dict(table(run.config, "data"))
    of_no_effect = {"vocab_size"} if data.get("tokenizer") == "char" else set()
    of_no_effect |= {"field"} if ".jsonl" not in str(data.get("source")) else set()
    of_no_effect |= {"characters", "seed"} if data.get("source") != "fables" else set()
    data = {key: value for key, value in data.items() if key not in of_no_effect}
    tables = (("Model", run.model), ("Training", run.train), ("Data", data))
    return [
        (title, [(key, str(value) if key == "seed" else words.setting(value)) for key, value in settings.items()])
        for title, settings in tables
        if settings
    ]


def _provenance(run: Run) -> list[tuple[str, str]]:
    facts, versions = run.facts, table(run.facts, "versions")
    why = f" ({facts['kernels_reason']})" if facts.get("kernels_reason") else ""
    shown_versions = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    checkpoints = ", ".join(f"{name} ({words.size(bytes_)})" for name, bytes_ in run.checkpoints)
    device = " · ".join(str(part) for part in (facts.get("device"), facts.get("device_name")) if part)
    return [
        ("started", str(facts.get("created") or words.NOT_KNOWN).replace("T", " ").replace("Z", " UTC")),
        ("preset", str(run.config.get("preset") or "none")),
        ("device", device or words.NOT_KNOWN),
        ("kernels", f"{facts.get('kernels') or words.NOT_KNOWN}{why}"),
        ("dtype", str(facts.get("dtype") or words.NOT_KNOWN)),
        ("dtype, residual stream", str(facts.get("residual_dtype") or words.NOT_KNOWN)),
        ("tokens a step", words.count(facts.get("tokens_per_step"))),
        ("FLOPs a token", words.count(facts.get("flops_per_token"))),
        ("memory, estimated", words.size(facts.get("memory_estimate_bytes"))),
        ("versions", shown_versions or words.NOT_KNOWN),
        ("revision", str(facts.get("git_revision") or "not in a repository")),
        ("data, SHA-256", str(facts.get("data_sha256") or words.NOT_KNOWN)),
        ("checkpoints", checkpoints or "none yet"),
    ]


def _commands(run: Run) -> list[tuple[str, str]]:
    """(what for, command): the one that made this run first."""
    folder = shlex.quote(str(run.path))
    commands = [("run it again", str(run.facts["command"]))] if run.facts.get("command") else []
    commands.append(("write with the model", f"minilm generate --run {folder}"))
    if run.status != "finished":
        commands.append(("go on training", f"minilm train --out {folder} --resume"))
    return [*commands, ("make this page again", f"minilm report {folder}")]
