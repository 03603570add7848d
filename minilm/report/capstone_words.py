"""What the page of a capstone says first: the whole in one paragraph, for a reader who knows nothing of it.

Every clause is made from what the parts recorded; what a part does not bear out is not said.
"""

import math
from collections.abc import Sequence
from typing import Any

from minilm.report import words
from minilm.report.runs import Run, number
from minilm.report.scaling_panels import amount, law_of
from minilm.report.scaling_words import FABLES, interval
from minilm.studies.design import BASELINE, CONTROL, REORDERED

Result = dict[str, Any]
MOST_NAMED = 3  # arms in the first paragraph, the largest differences


def opening(run: Run, ablation: Result | None, kernels: Result | None, scaling: Result | None) -> list[str]:
    """Sentences."""
    said = [_trained(run), _reached(run)]
    said += _ablation(ablation) if ablation else []
    said += _kernels(kernels) if kernels else []
    said += _scaling(scaling["fit"]) if scaling else []
    return [sentence for sentence in said if sentence]


def _trained(run: Run) -> str:
    text = "little fables that a grammar of the program's own makes up" if run.source == FABLES else run.source
    took = f" It took {words.duration(run.wall)}" if math.isfinite(run.wall) else ""
    device = run.facts.get("device_name") if str(run.facts.get("device")).startswith("cuda") else "a processor (CPU)"
    return (
        f"A small language model, a GPT of {words.times(run.model['n_layers'], 'layer')} and "
        f"{words.short(run.parameters.get('total'))} parameters, was trained from nothing to write {text}, one "
        f"{run.unit} after another.{took and f'{took} on {device}.'}"
    )


def _reached(run: Run) -> str:
    if run.best is None:
        return "It has no finite loss on text that it had not seen."
    reached = run.best["val_loss"]
    said = f"On text that it had not seen it reached a loss of {words.loss(reached)} nats a {run.unit}"
    if math.isfinite(bits := run.bits_of(run.best)):
        said += f" ({words.loss(bits, 2)} bits a byte)"
    beside = []
    if (vocabulary := number(run.model.get("vocab_size"))) > 1:
        beside.append(f"blind guessing has {words.loss(math.log(vocabulary), 2)}")
    if grams := words.baseline_losses(run):
        order, nats, _ = min(grams, key=lambda row: row[1])
        beside.append(f"the best table that counts what follows what (a {order}-gram model) {words.loss(nats)}")
    if run.floor is not None:
        beside.append(f"the source itself, which nothing can beat, {words.loss(run.floor)}")
    told = f", where {_and(beside)}" if beside else ""
    return f"{said}{told}: lower is better."


def _ablation(result: Result) -> list[str]:
    rows = [row for row in result["table"] if row["verdict"] and row["axis"] not in (BASELINE, CONTROL)]
    if not rows:
        return []
    told = sorted((row for row in rows if row["verdict"] != "inconclusive"), key=lambda row: -abs(row["difference"]))
    unclear = [row["arm"] for row in rows if row["verdict"] == "inconclusive"]
    size = words.short((result["baseline"]["parameters"] or {}).get("total"))
    said = f"Which choices matter was asked of {words.times(len(rows), 'variant')} of a model of {size} parameters"
    if told:
        named = [
            f"{_named(row, result)} is {row['verdict']} by {abs(row['difference']):.3f}" for row in told[:MOST_NAMED]
        ]
        named[0] += " nats"
        more = f", and {len(told) - MOST_NAMED} more differ"
        said += f": {_and(named)}{more if len(told) > MOST_NAMED else ''}"
        said += f"; no difference is shown for {_and(unclear)}." if unclear else "."
    else:
        said += ": no difference is shown for any."
    return [said]


def _named(row: Result, result: Result) -> str:
    """The arm, with its size where that is not the baseline's and may be why."""
    own, base = ((r["parameters"] or {}).get("total") for r in (row, result["table"][0]))
    return f"{row['arm']} (with {own / base:.0%} of the weights)" if row["matched"] is False else row["arm"]


def _kernels(result: Result) -> list[str]:
    study = result["kernels"]
    said = []
    for row in (row for row in (study or {"rows": []})["rows"] if row["kernels"] != REORDERED):
        test, margin = row["equivalence"], f"{study['margin']:g} nats"
        speed = f", at {row['speedup']:.2f} times the speed" if row["speedup"] else ""
        if test["verdict"] == "equivalent":
            said.append(
                f"The fused kernels ({row['kernels']}) train the same model as the textbook ones: final losses agree "
                f"within {margin}{speed}."
            )
        else:
            said.append(
                f"That the fused kernels ({row['kernels']}) train the same model as the textbook ones to {margin} is "
                f"{'refuted' if test['verdict'] == 'different' else 'not shown'} by these seeds{speed}."
            )
    return said


def _scaling(fit: Result) -> list[str]:
    sizes = fit["sizes"]
    if not sizes:
        return []
    over = f"Over {len(sizes)} sizes, {amount(sizes[0]['n'])} to {amount(sizes[-1]['n'])} parameters"
    if fit["exponent"] is None:
        reason = fit["refusals"][0].rstrip(".")
        reason = reason[:1].lower() + reason[1:]
        return [f"{over}, larger models are better, but no law of it is claimed: {reason}."] if fit["slope"] else []
    law = law_of(fit)
    towards = f" towards {law.E:.2f}, which so short a training leaves," if fit["form"] == "offset" else ""
    return [
        f"{over}, the loss falls{towards} as size to the power -{law.alpha:.2f} "
        f"(95% interval {interval(law.alpha_low, law.alpha_high)})."
    ]


def key_figures(
    run: Run, kernels: Result | None, scaling: Result | None, found: int, asked: int
) -> list[tuple[str, str, str]]:
    """(what, value, small print)"""
    shown = []
    if run.best:
        shown.append(
            (f"nats a {run.unit}", words.loss(run.best["val_loss"]), f"held-out text, step {run.best['step']:,}")
        )
    if run.floor is not None and run.best:
        shown.append(("above the floor", words.loss(run.best["val_loss"] - run.floor), "the entropy of the source"))
    rows = [r for r in ((kernels or {}).get("kernels") or {"rows": []})["rows"] if r["kernels"] != REORDERED]
    if speedups := [(r["speedup"], r["kernels"]) for r in rows if r["speedup"]]:
        best, name = max(speedups)
        shown.append(("fused over naive", f"{best:.2f}×", f"tokens a second, {name}"))
    if scaling:
        fit = scaling["fit"]
        value = fit["exponent"] if fit["exponent"] is not None else fit["slope"]
        kind = "of loss against size" if fit["exponent"] is not None else "a description; no exponent is claimed"
        shown.append(("exponent" if fit["exponent"] is not None else "slope", words.loss(value), kind))
    shown.append(("deliverables", f"{found} of {asked}", "see the checklist"))
    return shown


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
