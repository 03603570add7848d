"""From the outcomes of trials to what may be said of them: the table of an ablation, and sentences the rule allows.

Losses are compared by minilm.studies.statistics: paired by seed, one pooled spread, p adjusted for all comparisons.
Arms that differ in their kernels only are no comparison of models and stay outside that family: for them the question
is whether they are the same, answered by an equivalence test within a margin.
"""

from __future__ import annotations

import json
import math
import statistics as means
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minilm.studies import statistics
from minilm.studies.design import BASELINE, CONTROL, KERNELS, MATCHED, NAIVE, REORDERED, SPEED
from minilm.studies.trials import DIVERGED, FAILED, FINISHED, MISSING, Outcome
from minilm.training.journal import METRICS, read_rows

MARGIN = 0.01  # nats a token within which two sets of kernels count as the same model


def analyse(outcomes: Sequence[Outcome], folders: Mapping[str, Path], margin: float = MARGIN) -> dict[str, Any]:
    """Everything that a report says, as plain JSON. folders: where the run of each outcome's id is."""
    arms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(outcome.arm, []).append(outcome)
    arms, rates = at_best_rate(arms)
    base = next(iter(arms))
    models = {a: o for a, o in arms.items() if o[0].axis not in (KERNELS, SPEED)}
    done = {a: [o for o in found if o.status in (FINISHED, DIVERGED)] for a, found in models.items()}
    trials = {a: [(o.seed, o.val_loss) for o in found] for a, found in done.items()}
    control = CONTROL if trials.get(CONTROL) else None
    if not control:
        trials.pop(CONTROL, None)
    study = statistics.compare(trials, base, control) if trials[base] else None
    table = [_row(arm, found, arms[base], study, rates) for arm, found in arms.items() if found[0].axis != SPEED]
    result = {
        "format": 1,
        "baseline": _baseline(arms[base][0]),
        "trials": [asdict(o) for o in outcomes],
        "counts": {
            status: sum(o.status == status for o in outcomes) for status in (FINISHED, DIVERGED, FAILED, MISSING)
        },
        "table": table,
        "comparison": asdict(study) if study else None,
        "kernels": _kernels(arms, folders, margin),
        "rates": rates,
        "warnings": _warnings(outcomes, study, rates),
    }
    result = json.loads(json.dumps(result))  # as it will be read again: lists, no tuples
    result["findings"] = findings(result)
    return result


def at_best_rate(arms: dict[str, list[Outcome]]) -> tuple[dict[str, list[Outcome]], dict[str, dict[str, Any]]]:
    """Of an arm that was tried at several learning rates, the trials at the one with the lowest mean loss."""
    chosen, rates = {}, {}
    for arm, found in arms.items():
        factors = sorted({o.lr_factor for o in found})
        means_of = {
            f: means.fmean([o.val_loss if o.val_loss is not None else math.inf for o in found if o.lr_factor == f])
            for f in factors
        }
        best = min(factors, key=lambda f: means_of[f])
        chosen[arm] = [o for o in found if o.lr_factor == best]
        if len(factors) > 1:
            edge = best in (factors[0], factors[-1])
            tried = {f"{f:g}": None if math.isinf(m) else m for f, m in means_of.items()}
            rates[arm] = {"factor": best, "lr": chosen[arm][0].config["train"]["lr"], "at_edge": edge, "tried": tried}
    return chosen, rates


def _baseline(outcome: Outcome) -> dict[str, Any]:
    config = outcome.config
    model, train, data = config["model"], config["train"], config["data"]
    return {
        "preset": config["preset"],
        **{name: model[name] for name in ("n_layers", "n_heads", "d_model", "d_ff", "context_length", "vocab_size")},
        **{name: model[name] for name in ("activation", "norm", "norm_type", "position")},
        "parameters": outcome.parameters,
        "tokenizer": data["tokenizer"],
        "source": data["source"],
        **{
            name: train[name]
            for name in ("steps", "batch_size", "grad_accumulation", "lr", "min_lr", "warmup_steps", "schedule")
        },
        **{name: train[name] for name in ("optimizer", "weight_decay", "kernels", "dtype")},
    }


def _row(
    arm: str, found: list[Outcome], base: list[Outcome], study: statistics.Study | None, rates: dict[str, Any]
) -> dict[str, Any]:
    """A line of the table. Means over the seeds that finished."""
    first, finished = found[0], [o for o in found if o.status == FINISHED]

    def mean(name: str) -> float | None:
        values = [v for o in finished if (v := getattr(o, name)) is not None]
        return means.fmean(values) if values else None

    parameters = next((o.parameters for o in found if o.parameters), None)
    n_base = next((o.parameters["total"] for o in base if o.parameters), None)
    matched = None
    if parameters and n_base:
        matched = abs(parameters["total"] - n_base) <= MATCHED * n_base
    alone = {a.name: a for a in study.arms} if study else {}
    against = {c.arm: c for c in study.comparisons} if study else {}
    a, c = alone.get(arm), against.get(arm)
    tokens, flops = mean("tokens"), mean("flops_per_token")
    return {
        "arm": arm,
        "axis": first.axis,
        "changes": _changes(base[0].config, first.config),
        "parameters": parameters,
        "matched": matched,
        "flops": flops * tokens if flops and tokens else None,
        "tokens": tokens,
        "lr": first.config["train"]["lr"] if arm in rates else None,
        "n": len(finished),
        "diverged": [o.seed for o in found if o.status == DIVERGED],
        "mean": a.mean if a else mean("val_loss"),
        "low": a.low if a else None,
        "high": a.high if a else None,
        "difference": c.difference if c else None,
        "difference_low": c.low if c else None,
        "difference_high": c.high if c else None,
        "p": c.p if c else None,
        "detectable": c.detectable if c else None,
        "verdict": c.verdict if c else None,
        "reason": c.reason if c else None,
        "wall": mean("wall"),
        "tokens_per_s": mean("tokens_per_s"),
        "peak_bytes": max((o.peak_bytes for o in finished if o.peak_bytes), default=None),
        "trials": [o.id for o in found],
    }


def _changes(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section in ("model", "train", "data")
        for key, value in other[section].items()
        if (section, key) not in (("train", "seed"), ("train", "lr"), ("train", "min_lr"))
        and base[section][key] != value
    }


# --- naive against fused ----------------------------------------------------------------------------------------------


def _kernels(arms: dict[str, list[Outcome]], folders: Mapping[str, Path], margin: float) -> dict[str, Any] | None:
    """The study of the switch, where there is one: is it the same model, how much faster, how much smaller?"""
    sides: dict[str, list[Outcome]] = {}
    for found in arms.values():
        kernels = found[0].config["train"]["kernels"]
        if found[0].arm == REORDERED:
            sides[REORDERED] = found
        elif found[0].axis in (BASELINE, KERNELS):
            sides.setdefault(kernels, found)
    if NAIVE not in sides or len(sides) < 2:
        return None
    naive = sides.pop(NAIVE)
    noise = largest_difference(naive, sides[REORDERED], folders) if REORDERED in sides else None
    rows = []
    for name, fused in sides.items():
        test = statistics.equivalence(_losses(naive), _losses(fused), margin)
        deviation = largest_difference(naive, fused, folders)
        speeds = _paired(naive, fused, "tokens_per_s")
        memory = _paired(naive, fused, "peak_bytes")
        rows.append(
            {
                "kernels": name,
                "equivalence": asdict(test),
                "largest_deviation": deviation,
                "noise": noise,
                "within_noise": deviation <= 2 * noise if noise is not None and deviation is not None else None,
                "speedup": means.geometric_mean([f / n for n, f in speeds]) if speeds else None,
                "memory_ratio": means.geometric_mean([f / n for n, f in memory]) if memory else None,
                "trials": [o.id for o in [*naive, *fused]],
            }
        )
    by_context = [
        {
            "kernels": found[0].config["train"]["kernels"],
            "context_length": found[0].config["model"]["context_length"],
            "tokens_per_s": found[0].tokens_per_s,
            "peak_bytes": found[0].peak_bytes,
            "status": found[0].status,
            "reason": found[0].reason,
            "trial": found[0].id,
        }
        for found in arms.values()
        if found[0].axis == SPEED
    ]
    return {"naive": NAIVE, "margin": margin, "rows": rows, "by_context": by_context}


def _losses(found: Sequence[Outcome]) -> list[tuple[int, float | None]]:
    return [(o.seed, o.val_loss) for o in found if o.status in (FINISHED, DIVERGED)]


def _paired(first: Sequence[Outcome], second: Sequence[Outcome], name: str) -> list[tuple[float, float]]:
    """Values of both at the seeds that both have."""
    one, two = ({o.seed: getattr(o, name) for o in side if getattr(o, name)} for side in (first, second))
    return [(one[seed], two[seed]) for seed in sorted(one.keys() & two.keys())]


def largest_difference(
    first: Sequence[Outcome], second: Sequence[Outcome], folders: Mapping[str, Path]
) -> float | None:
    """The largest difference of the training losses of two sides at one step and seed, in nats a token."""
    two = {o.seed: o for o in second}
    largest = None
    for outcome in first:
        other = two.get(outcome.seed)
        if other is None or FINISHED not in (outcome.status, other.status):
            continue
        losses = []
        for side in (outcome, other):
            path = folders[side.id] / METRICS
            losses.append(
                {r["step"]: r["loss"] for r in read_rows(path) if r.get("loss") is not None} if path.exists() else {}
            )
        shared = losses[0].keys() & losses[1].keys()
        if shared:
            largest = max(largest or 0.0, max(abs(losses[0][s] - losses[1][s]) for s in shared))
    return largest


# --- words ------------------------------------------------------------------------------------------------------------


def _warnings(outcomes: Sequence[Outcome], study: statistics.Study | None, rates: dict[str, Any]) -> list[str]:
    found = list(study.warnings) if study else ["The baseline has no finished trial yet: nothing can be compared."]
    if any(o.axis == KERNELS for o in outcomes):  # which are compared otherwise
        found = [warning for warning in found if not warning.startswith("The baseline is the only arm")]
    if open_ := sum(o.status == MISSING for o in outcomes):
        found.append(f"{open_} of {len(outcomes)} trials are not finished: this table is not the last word.")
    found += [f"{o.arm}, seed {o.seed} failed: {o.reason}" for o in outcomes if o.status == FAILED]
    if not rates and any(o.axis not in (BASELINE, CONTROL, KERNELS, SPEED) for o in outcomes):
        found.append(
            "Every arm was trained at the baseline's learning rate, which suits some better than others: "
            "--lr-triplet tries three an arm."
        )
    found += [
        f"The best learning rate of {arm} ({rate['lr']:g}) is at the edge of those tried: a better one may lie beyond."
        for arm, rate in rates.items()
        if rate["at_edge"]
    ]
    return found


def findings(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Sentences that the data bear, each with the trials behind it. Nothing is claimed that the rule does not allow."""
    base = next(iter(result["table"]), None)
    compared = [row for row in result["table"] if row["verdict"]]
    shown = [row for row in compared if row["verdict"] != "inconclusive"]
    sentences = [
        {"text": _difference_sentence(row, base), "trials": [*base["trials"], *row["trials"]]}
        for row in sorted(shown, key=lambda row: row["difference"])
    ]
    unclear = [row for row in compared if row["verdict"] == "inconclusive" and row["n"] and not row["diverged"]]
    if judged := [row for row in unclear if row["p"] is not None]:
        detectable = [row["detectable"] for row in judged if row["detectable"]]
        bound = f"; differences under {max(detectable):.4f} nats would often go unseen here" if detectable else ""
        text = f"No difference from the baseline is shown for {'; '.join(row['arm'] for row in judged)}{bound}."
        sentences.append({"text": text, "trials": _trials_of(base, *judged)})
    if unjudged := [row for row in unclear if row["p"] is None]:
        text = f"Too few seeds to judge {'; '.join(row['arm'] for row in unjudged)} by."
        sentences.append({"text": text, "trials": _trials_of(base, *unjudged)})
    for row in (row for row in compared if row["diverged"]):
        seeds = ", ".join(map(str, row["diverged"]))
        text = f"{row['arm']} diverged at seed{'s' * (len(row['diverged']) > 1)} {seeds}: it cannot count as better."
        sentences.append({"text": text, "trials": row["trials"]})
    control = (result["comparison"] or {}).get("control")
    if control and control["difference"] is not None:
        inside = "within what chance explains" if control["inside"] else "more than chance explains, which is a warning"
        text = f"The same configuration with other seeds (A/A) differs by {control['difference']:+.4f} nats "
        rows = [row for row in result["table"] if row["axis"] in (BASELINE, CONTROL)]
        sentences.append({"text": f"{text}({_p(control['p'])}): {inside}.", "trials": _trials_of(*rows)})
    for row in (result["kernels"] or {"rows": []})["rows"]:
        sentences.append({"text": _kernels_sentence(row, result["kernels"]["margin"]), "trials": row["trials"]})
    return sentences


def _trials_of(*rows: dict[str, Any]) -> list[str]:
    return [trial for row in rows for trial in row["trials"]]


def _p(p: float) -> str:
    return "p below 0.0001" if p < 1e-4 else f"p {p:.2g}"


def _difference_sentence(row: dict[str, Any], base: dict[str, Any]) -> str:
    size = "" if row["matched"] else f" It has {_share(row, base)} baseline's parameters: size may be why."
    interval = f"{row['difference_low']:+.4f} to {row['difference_high']:+.4f}"
    return (
        f"{row['arm']} is {row['verdict']} than the baseline by {abs(row['difference']):.4f} nats a token (95% "
        f"interval {interval}, adjusted {_p(row['p'])}, {row['n']} seeds).{size}"
    )


def _share(row: dict[str, Any], base: dict[str, Any]) -> str:
    if not (row["parameters"] and base["parameters"]):
        return "another number of"
    return f"{row['parameters']['total'] / base['parameters']['total']:.0%} of the"


def _kernels_sentence(row: dict[str, Any], margin: float) -> str:
    test = row["equivalence"]
    name = row["kernels"] if row["kernels"] == REORDERED else f"{row['kernels']} kernels"
    if test["verdict"] == "equivalent":
        same = f"give the same final loss as {NAIVE} within ±{margin:g} nats ({_p(test['p'])}, {test['n']} seeds)"
    elif test["verdict"] == "different":
        same = f"give another final loss than {NAIVE}, by {test['difference']:+.4f} nats"
    else:
        same = f"are not shown to give the same final loss as {NAIVE} within ±{margin:g} nats ({test['reason']})"
    words = f"{name[0].upper()}{name[1:]} {same}"
    if row["kernels"] != REORDERED:
        if row["speedup"]:
            words += f", at {row['speedup']:.2f} times its tokens/s"
        if row["memory_ratio"]:
            words += f" and {row['memory_ratio']:.2f} times its peak memory"
    if row["largest_deviation"] is not None:
        words += f"; at no step do the training losses differ by more than {row['largest_deviation']:.2g} nats"
        if row["noise"] is not None and row["kernels"] != REORDERED:
            words += f" (another order of the sums alone: {row['noise']:.2g})"
    return words + "."
