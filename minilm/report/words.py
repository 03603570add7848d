"""Numbers as people write them, and the sentences that a report says about a run. Every sentence is made from what
the run recorded; what was not recorded is "n/a" or is not said."""

import math
from typing import Any

import numpy as np

from minilm.report.panels import moving_average
from minilm.report.runs import Run, number

NOT_KNOWN = "n/a"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)


def count(value: Any) -> str:
    """1234567 -> 1,234,567"""
    value = number(value)
    return f"{value:,.0f}" if math.isfinite(value) else NOT_KNOWN


def short(value: Any) -> str:
    """838144 -> 0.84M, 12345 -> 12.3k"""
    value = number(value)
    if not math.isfinite(value):
        return NOT_KNOWN
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (size if letter == "k" else 0.1 * size):
            scaled = value / size
            return f"{scaled:.{2 if scaled < 1 else 1 if scaled < 100 else 0}f}".removesuffix(".0") + letter
    return f"{value:g}"


def loss(value: Any, digits: int = 3) -> str:
    value = number(value)
    return f"{value:.{digits}f}" if math.isfinite(value) else NOT_KNOWN


def duration(seconds: Any) -> str:
    """151.2 -> 2 min 31 s"""
    seconds = number(seconds)
    if not math.isfinite(seconds):
        return NOT_KNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def size(bytes_: Any) -> str:
    """118000000 -> 118 MB"""
    bytes_ = number(bytes_)
    if not math.isfinite(bytes_):
        return NOT_KNOWN
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:.3g} {name}"
    return f"{bytes_:.0f} bytes"


def flops(rate: Any) -> str:
    """1.1e11 -> 110 GFLOP/s"""
    rate = number(rate)
    if not math.isfinite(rate):
        return NOT_KNOWN
    unit, prefix = next(((unit, prefix) for unit, prefix in ((1e12, "T"), (1e9, "G")) if rate >= unit), (1e6, "M"))
    return f"{rate / unit:.3g} {prefix}FLOP/s"


def percent(share: float) -> str:
    """0.0312 -> 3%; a share that is neither nought nor all is never written as either"""
    if not math.isfinite(share):
        return NOT_KNOWN
    if 0 < share < 0.01:
        return "less than 1%"
    return "more than 99%" if 0.99 < share < 1 else f"{100 * share:.0f}%"


def setting(value: Any) -> str:
    """One value of a configuration, as a person reads it."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(setting(inner) for inner in value)
    return str(value)


def visible(text: str) -> str:
    """Text that any page can hold: control characters as their pictures, and the halves of surrogate pairs, which
    UTF-8 cannot hold, as the replacement character."""
    return text.replace("\r\n", "\n").translate(_PICTURES)


def times(n: int, one: str) -> str:
    return f"{n:,} {one}" if n == 1 else f"{n:,} {one}s"


def verdict(run: Run) -> str:
    """What came of the run, in one sentence."""
    layers, parameters = run.model.get("n_layers"), short(run.parameters.get("total"))
    what = f"{_article(layers)} {layers}-layer, " if layers else "A "
    what += f"{parameters}-parameter GPT" if parameters != NOT_KNOWN else "GPT"
    done, planned = run.steps_done, run.steps_planned
    whole = times(done, "step")
    if run.status != "finished" and planned and done < planned:
        whole = f"{done:,} of {planned:,} steps"
    place = _place(run)
    if run.best is None:
        missing = "no evaluation gave a finite loss" if run.eval_rows else "it has not been evaluated yet"
        return f"{what} has trained for {whole}{place}; {missing}."
    best, last = run.best, run.eval_rows[-1]
    value = f"{loss(best['val_loss'])} nats a {run.unit}"
    if math.isfinite(bits := run.bits_of(best)):
        value += f" ({loss(bits, 2)} bits a byte)"
    when = f"after {whole}" if best is last else f"at step {best['step']:,}, its best over {whole}"
    limit = f"; the best possible is {loss(run.floor, 2)}" if run.floor is not None else ""
    has = "has reached" if run.status == "going on" else "reached"
    return f"{what} {has} {value} on held-out {run.source} {when}{place}{limit}."


def remarks(run: Run) -> list[str]:
    """What a careful reader would notice in the curves, a sentence each."""
    makers = (_against_baselines, _against_floor, _overfitting, _epochs, _trouble, _clipping)
    return [sentence for make in makers for sentence in make(run)] + run.left_out


def baseline_losses(run: Run) -> list[tuple[int, float, float]]:
    """(order, nats per token, bits per byte) of each n-gram model, in order."""
    orders = run.baselines.get("orders")
    rows = [row for row in orders if isinstance(row, dict)] if isinstance(orders, list) else []
    found = [
        (number(row.get("order")), number(row.get("nats_per_token")), number(row.get("bits_per_byte"))) for row in rows
    ]
    return sorted(
        (int(order), nats, bits) for order, nats, bits in found if math.isfinite(order) and math.isfinite(nats)
    )


def utilisation(run: Run) -> tuple[float, float]:
    """(FLOP/s achieved, share of the device's peak); NaN where the rate or the peak is not known."""
    achieved = run.tokens_per_second * number(run.facts.get("flops_per_token"))
    return achieved, achieved / number(run.facts.get("peak_flops"))


def _article(n: Any) -> str:
    return "An" if str(n).startswith("8") or n in (11, 18) else "A"


def _place(run: Run) -> str:
    device = str(run.facts.get("device") or "")
    name = run.facts.get("device_name") if device and device != "cpu" else device
    took = f" in {duration(run.wall)}" if math.isfinite(run.wall) else ""
    return took + (f" on {name or device}" if device else "")


def _against_baselines(run: Run) -> list[str]:
    grams = baseline_losses(run)
    if not grams or run.best is None:
        return []
    reached = run.best["val_loss"]
    order, nats, _ = min(grams, key=lambda row: row[1])
    best = f"the best of them, the {order}-gram, gives {loss(nats)} nats a {run.unit}"
    if reached < nats:
        return [f"It beats every n-gram model fitted on the same text: {best}."]
    return [f"It does not yet beat every n-gram model fitted on the same text: {best}."]


def _against_floor(run: Run) -> list[str]:
    vocab_size = number(run.model.get("vocab_size"))
    if run.floor is None or run.best is None:
        return []
    reached, above = run.best["val_loss"], run.best["val_loss"] - run.floor
    if above < 0:
        return [
            f"{loss(reached)} is {loss(-above)} below the floor: either the held-out text is by chance easier than its "
            "source is on average, or something is counted wrongly."
        ]
    guessing = math.log(vocab_size) if vocab_size > 1 else math.nan
    if not guessing > run.floor or reached > guessing:
        return [f"It is {loss(above)} nats a {run.unit} above the floor."]
    share = percent((guessing - reached) / (guessing - run.floor))
    return [
        f"It is {loss(above)} nats a {run.unit} above the floor, the source's own entropy, and has come {share} of the "
        f"way there from even guessing ({loss(guessing)})."
    ]


def _overfitting(run: Run) -> list[str]:
    best, last = run.best, run.eval_rows[-1] if run.eval_rows else None
    if best is None or best["step"] > 0.9 * last["step"] or not last["val_loss"] > best["val_loss"] + 0.005:
        return []
    return [
        f"Validation was best at step {best['step']:,} and stood at {loss(last['val_loss'])} by step {last['step']:,}, "
        f"{loss(last['val_loss'] - best['val_loss'])} higher: the mark of overfitting."
    ]


def _epochs(run: Run) -> list[str]:
    if not run.epochs > 4:
        return []
    return [
        f"It read its training text {run.epochs:.1f} times; past about four readings, more of the same text helps less "
        "and less (Muennighoff et al. 2023)."
    ]


def _trouble(run: Run) -> list[str]:
    said = []
    losses = run.column("loss")[1]
    if spikes := run.count("spike"):
        said.append(f"The loss jumped {'once' if spikes == 1 else f'{spikes:,} times'}; the events below say where.")
    if lost := int((~np.isfinite(losses)).sum()):
        said.append(f"The training loss was not finite at {times(lost, 'logged step')}.")
    if resumed := run.count("resume"):
        said.append(f"The run was taken up again {'once' if resumed == 1 else f'{resumed:,} times'}.")
    average = moving_average(losses)
    if run.best and len(average) and math.isfinite(average[-1]) and run.eval_rows[-1]["val_loss"] - average[-1] > 0.1:
        gap = run.eval_rows[-1]["val_loss"] - average[-1]
        said.append(f"At the end the validation loss was {loss(gap)} above the averaged training loss.")
    return said


def _clipping(run: Run) -> list[str]:
    clip, norms = number(run.train.get("grad_clip")), run.column("grad_norm")[1]
    norms = norms[np.isfinite(norms)]
    if not clip > 0 or not len(norms):
        return []
    return [f"Gradients were clipped to norm {clip:g} at {percent(float((norms > clip).mean()))} of the logged steps."]
