"""What the report of an ablation study says: its numbers, sentences and tables, as the templates set them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from minilm.report import ablation_words, words
from minilm.report.ablation_figures import sides_of
from minilm.report.ablation_panels import Row, decimals, name_of
from minilm.report.ablation_words import Result, models_of
from minilm.report.canvas import DARK, LIGHT, svg
from minilm.report.plates import Plate
from minilm.studies.design import BASELINE, CONTROL, REORDERED
from minilm.studies.trials import DIVERGED, FAILED, FINISHED, MISSING

FIGURES = "figures"  # folder of the PNG files, beside the page


def page_of(result: Result, plates: Sequence[Plate], lost: Sequence[str]) -> dict[str, Any]:
    trials = {trial["id"]: trial for trial in result["trials"]}
    base = result["baseline"]
    return {
        "light": LIGHT,
        "dark": DARK,
        "title": f"Ablation of {base['preset'] or 'a GPT'} on {name_of(base['source'])}",
        "verdict": ablation_words.summary(result),
        "key_figures": _key_figures(result, trials),
        "settings": _settings(result, trials),
        "warnings": result["warnings"],
        "findings": [
            {"text": f["text"], "trials": _by_arm(f["trials"], trials), "n": len(set(f["trials"]))}
            for f in result["findings"]
        ],
        "rows": [row_view(row, result) for row in models_of(result)],
        "results_note": ablation_words.results_note(result),
        "reasons": [(name_of(row["arm"]), row["reason"]) for row in result["table"] if row["reason"]],
        "rates": _rates(result),
        "kernels": _kernels(result, trials),
        "by_context": _by_context(result),
        "plates": [
            {
                "title": plate.title,
                "note": plate.note,
                "png": f"{FIGURES}/{plate.name}.png",
                "panels": [
                    {
                        "title": panel.title,
                        "legend": panel.legend,
                        "tall": panel.height > 500,
                        "svg": Markup(
                            svg(
                                panel.draw,
                                f"{plate.name}{i}",
                                escape(panel.label),
                                height=panel.height,
                                margins=panel.margins,
                            )
                        ),
                    }
                    for i, panel in enumerate(plate.panels)
                ],
            }
            for plate in plates
        ],
        "lost": lost,
        "judged": ablation_words.judged(result),
        "rule": ablation_words.rule(result),
        "not_claimed": ablation_words.not_claimed(result),
        "trials": [_trial(trial) for trial in result["trials"]],
    }


def _key_figures(result: Result, trials: Mapping[str, Row]) -> list[tuple[str, str, str]]:
    """(what, value, small print) of the baseline."""
    base, row = result["baseline"], result["table"][0]
    train = trials[row["trials"][0]]["config"]["train"]
    counts = base["parameters"] or {}
    batch = base["batch_size"] * base["context_length"] * train["grad_accumulation"]
    return [
        ("layers", words.count(base["n_layers"]), ""),
        ("heads", words.count(base["n_heads"]), f"{base['d_model'] // base['n_heads']} wide"),
        ("d_model", words.count(base["d_model"]), ""),
        ("d_ff", words.count(base["d_ff"]), base["activation"]),
        ("parameters", words.count(counts.get("total")), f"{words.count(counts.get('non_embedding'))} non-embedding"),
        ("vocabulary", words.count(base["vocab_size"]), f"{base['tokenizer']} tokenizer"),
        ("steps", words.count(base["steps"]), f"{words.short(batch * base['steps'])} tokens"),
        ("batch", words.count(base["batch_size"] * train["grad_accumulation"]), f"of {base['context_length']} tokens"),
    ]


def _settings(result: Result, trials: Mapping[str, Row]) -> list[tuple[str, str]]:
    base = result["baseline"]
    rows = [
        ("schedule", base["schedule"]),
        ("learning rate", f"{words.setting(base['lr'])} to {words.setting(base['min_lr'])}"),
        ("warm-up", words.times(base["warmup_steps"], "step")),
        ("optimizer", f"{base['optimizer']}, weight decay {words.setting(base['weight_decay'])}"),
        ("data", str(base["source"])),
        ("kernels", base["kernels"]),
        ("dtype", base["dtype"]),
        ("norm", f"{base['norm']}, {base['norm_type']}"),
        ("position", base["position"]),
        ("preset", words.setting(base["preset"])),
        ("device", ", ".join(ablation_words.devices(result)) or words.NOT_KNOWN),
        ("trials", ablation_words.counted(result).partition(": ")[2]),
    ]
    return rows


def _by_arm(ids: Sequence[str], trials: Mapping[str, Row]) -> list[tuple[str, str]]:
    """(arm, its trials with their seeds) of the trials behind a sentence."""
    found: dict[str, list[str]] = {}
    for i in dict.fromkeys(ids):
        found.setdefault(trials[i]["arm"], []).append(f"{i} (seed {trials[i]['seed']})")
    return [(arm, ", ".join(named)) for arm, named in found.items()]


def row_view(row: Row, result: Result) -> dict[str, Any]:
    """A line of the table as people read it; losses with the digits that their interval bears."""
    low, high = row["difference_low"], row["difference_high"]
    difference, p, verdict = row["difference"], written_p(row["p"]), row["verdict"] or ""
    control = (result["comparison"] or {}).get("control")
    if row["axis"] == CONTROL and control:
        difference, low, high, p = control["difference"], control["low"], control["high"], written_p(control["p"])
        verdict = {True: "within chance", False: "beyond chance", None: "not judged"}[control["inside"]]
    counts = row["parameters"] or {}
    interval = decimals(row["low"], row["high"])
    return {
        "name": name_of(row["arm"]),
        "kind": {BASELINE: "base", CONTROL: "control"}.get(row["axis"], ""),
        "changes": _changes(row),
        "total": words.count(counts.get("total")),
        "non_embedding": words.count(counts.get("non_embedding")),
        "flops": _power_of_ten(row["flops"]),
        "tokens": words.short(row["tokens"]),
        "loss": words.loss(row["mean"], interval),
        "loss_interval": _interval(row["low"], row["high"], signed=False),
        "n": row["n"],
        "lost": _lost(row, {trial["id"]: trial for trial in result["trials"]}),
        "difference": words.NOT_KNOWN if difference is None else f"{difference:+.{decimals(low, high)}f}",
        "interval": _interval(low, high),
        "half": ""
        if low is None
        else f"{difference:+.{decimals(low, high)}f} ±{(high - low) / 2:.{decimals(low, high)}f}",
        "p": p,
        "verdict": verdict,
        "reason": row["reason"] or "",
        "unmatched": row["matched"] is False,
        "detectable": words.NOT_KNOWN if row["detectable"] is None else f"{row['detectable']:.2g}",
        "wall": words.duration(row["wall"]),
        "rate": words.short(row["tokens_per_s"] and round(row["tokens_per_s"])),
        "peak": words.size(row["peak_bytes"]),
    }


def _changes(row: Row) -> str:
    if row["axis"] == CONTROL:
        return "nothing but the seeds"
    changes = dict(row["changes"])
    if changes.get("model.n_kv_heads") == changes.get("model.n_heads"):
        changes.pop("model.n_kv_heads", None)  # follows from n_heads
    said = [f"{key.partition('.')[2]} {words.setting(value)}" for key, value in changes.items()]
    if row["lr"] is not None:
        said.append(f"lr {words.setting(row['lr'])}")
    return ", ".join(said)


def _lost(row: Row, trials: Mapping[str, Row]) -> str:
    """Which seeds have no loss, and why: "seeds 1, 3 diverged"."""
    said = []
    for status, what in ((DIVERGED, "diverged"), (FAILED, "failed"), (MISSING, "not finished")):
        seeds = [str(trials[i]["seed"]) for i in row["trials"] if trials[i]["status"] == status]
        if seeds:
            said.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)} {what}")
    return "; ".join(said)


def _interval(low: float | None, high: float | None, signed: bool = True) -> str:
    if low is None or high is None:
        return ""
    places = decimals(low, high)
    sign = "+" if signed else ""
    return f"{low:{sign}.{places}f} to {high:{sign}.{places}f}"


def written_p(p: float | None) -> str:
    if p is None:
        return words.NOT_KNOWN
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _power_of_ten(value: float | None) -> str:
    """10257039360 -> 1.03e10"""
    if value is None:
        return words.NOT_KNOWN
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _rates(result: Result) -> dict[str, Any] | None:
    """Losses by learning rate, where arms were tried at several."""
    if not result["rates"]:
        return None
    factors = sorted({f for rate in result["rates"].values() for f in rate["tried"]}, key=float)
    rows = [
        {
            "name": name_of(arm),
            "lr": words.setting(rate["lr"]),
            "edge": "at the edge of those tried" if rate["at_edge"] else "",
            "losses": [{"loss": _loss_at(rate["tried"], f), "chosen": float(f) == rate["factor"]} for f in factors],
        }
        for arm, rate in result["rates"].items()
    ]
    return {"factors": [f"{f}×" for f in factors], "rows": rows}


def _loss_at(tried: Mapping[str, float | None], factor: str) -> str:
    if factor not in tried:
        return ""
    return "not finite" if tried[factor] is None else words.loss(tried[factor], 4)


def _kernels(result: Result, trials: Mapping[str, Row]) -> dict[str, Any] | None:
    study = result["kernels"]
    if not study:
        return None
    by_trial = {i: row for row in result["table"] for i in row["trials"]}
    naive = by_trial[sides_of(study["rows"][0], trials)[0][0]]
    rows = [_kernel_row(study["naive"], naive, None, trials)]
    rows += [_kernel_row(row["kernels"], by_trial[sides_of(row, trials)[1][0]], row, trials) for row in study["rows"]]
    note = (
        "The same seeds and batches in every row. Final losses are equivalent where two one-sided tests place their "
        f"difference within ±{study['margin']:g} nats; the interval is 90%. The step-wise deviation is the largest "
        "difference of the training losses at one step and seed, to be held against the noise floor: naive against "
        "itself with its sums in another order."
    )
    return {"rows": rows, "margin": f"±{study['margin']:g}", "note": note}


def _kernel_row(name: str, cost: Row, row: Row | None, trials: Mapping[str, Row]) -> dict[str, Any]:
    """The naive side where `row` is None. cost: its line of the main table."""
    view = {
        "name": name_of(name),
        "loss": words.loss(cost["mean"], 4),
        "n": cost["n"],
        "rate": words.short(cost["tokens_per_s"] and round(cost["tokens_per_s"])),
        "peak": words.size(cost["peak_bytes"]),
        "lost": _lost(cost, trials),
    }
    blank = ("difference", "interval", "p", "verdict", "reason", "deviation", "noise", "speedup", "memory")
    if row is None:
        return view | dict.fromkeys(blank, "")
    test = row["equivalence"]
    within = {True: "within twice the noise", False: "beyond twice the noise", None: ""}[row["within_noise"]]
    places = decimals(test["low"], test["high"])
    return view | {
        "difference": words.NOT_KNOWN if test["difference"] is None else f"{test['difference']:+.{places}f}",
        "interval": _interval(test["low"], test["high"]),
        "p": written_p(test["p"]),
        "verdict": test["verdict"],
        "reason": test["reason"],
        "deviation": words.NOT_KNOWN if row["largest_deviation"] is None else f"{row['largest_deviation']:.2g}",
        "noise": "the noise floor" if name == REORDERED else within,
        "speedup": f"{row['speedup']:.2f}×" if row["speedup"] else "",
        "memory": f"{row['memory_ratio']:.2f}×" if row["memory_ratio"] else "",
    }


def _by_context(result: Result) -> dict[str, Any] | None:
    """Speed and memory by context length, and their ratio to naive."""
    study = result["kernels"]
    if not study or not study["by_context"]:
        return None
    found = {(row["context_length"], row["kernels"]): row for row in study["by_context"]}
    names = list(dict.fromkeys(row["kernels"] for row in study["by_context"]))

    def cell(length: int, name: str) -> dict[str, str]:
        row, naive = found.get((length, name)), found.get((length, study["naive"]))
        if row is None or row["status"] != FINISHED:
            return {"rate": row["status"] if row else "", "peak": "", "speedup": "", "memory": ""}
        ratios = {
            key: f"{row[key] / naive[key]:.2f}×" if name != study["naive"] and naive and row[key] and naive[key] else ""
            for key in ("tokens_per_s", "peak_bytes")
        }
        return {
            "rate": words.short(row["tokens_per_s"] and round(row["tokens_per_s"])),
            "peak": words.size(row["peak_bytes"]),
            "speedup": ratios["tokens_per_s"],
            "memory": ratios["peak_bytes"],
        }

    lengths = sorted({length for length, _ in found})
    rows = [{"length": words.count(length), "cells": [cell(length, name) for name in names]} for length in lengths]
    return {"names": [name_of(name) for name in names], "rows": rows}


def _trial(trial: Row) -> dict[str, Any]:
    factor = trial["lr_factor"]
    return {
        "id": trial["id"],
        "arm": name_of(trial["arm"]) + ("" if factor == 1 else f", {factor:g}× the learning rate"),
        "seed": trial["seed"],
        "loss": words.loss(trial["val_loss"], 4),
        "wall": words.duration(trial["wall"]),
        "status": trial["status"] + (f": {trial['reason']}" if trial["reason"] else ""),
        "loud": trial["status"] != FINISHED,
    }
