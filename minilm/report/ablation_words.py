"""The sentences that the report of an ablation study says of its own: how it ended, how it was judged, and what it does
not claim. What was found is said by minilm.studies.ablation."""

from collections.abc import Sequence
from typing import Any

from minilm.report import words
from minilm.report.ablation_panels import Row, name_of
from minilm.studies.design import KERNELS, MATCHED, REORDERED
from minilm.studies.dunnett import LEVEL, POWER
from minilm.studies.trials import FINISHED

Result = dict[str, Any]


def models_of(result: Result) -> list[Row]:
    """The rows of the main table: all but kernels, which have a table of their own where they could be compared."""
    return [row for row in result["table"] if row["axis"] != KERNELS or not result["kernels"]]


def summary(result: Result) -> str:
    """How the study ended, in a sentence or three."""
    rows = [row for row in result["table"] if row["verdict"]]
    said = []
    if rows:
        counts = {v: sum(row["verdict"] == v for row in rows) for v in ("better", "worse", "inconclusive")}
        ended = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
        said.append(f"{words.times(len(rows), 'arm')} against the baseline, {seeds_of(rows)} each: {ended}.")
    for row in (result["kernels"] or {"rows": []})["rows"]:
        if row["kernels"] != REORDERED:
            verdict, margin = row["equivalence"]["verdict"], f"±{result['kernels']['margin']:g} nats"
            within = "beyond" if verdict == "different" else "within"
            said.append(f"Against naive kernels, {name_of(row['kernels'])} is {verdict} {within} {margin}.")
    if result["counts"][FINISHED] < len(result["trials"]):
        said.append(f"{counted(result)}.")
    return " ".join(said) or "Nothing can be compared yet."


def counted(result: Result) -> str:
    counts = ", ".join(f"{n} {status}" for status, n in result["counts"].items() if n)
    return f"{words.times(len(result['trials']), 'trial')}: {counts}"


def seeds_of(rows: Sequence[Row]) -> str:
    """ "3 seeds", or "2 to 3 seeds" where they are not the same everywhere."""
    low, high = min(row["n"] for row in rows), max(row["n"] for row in rows)
    return words.times(low, "seed") if low == high else f"{low} to {high} seeds"


def devices(result: Result) -> list[str]:
    return sorted({trial["device"] for trial in result["trials"] if trial["device"]})


def results_note(result: Result) -> str:
    said = [
        "Loss is on held-out text at the last step, in nats a token, the mean over finished seeds: lower is better."
    ]
    with_interval = [row for row in result["table"] if row["difference_low"] is not None]
    if with_interval:
        said.append(
            "Below a mean stands its 95% interval, below a difference the interval that holds for all arms at once; p "
            f"is adjusted likewise. Detectable is the true difference that would be found with probability {POWER:g}."
        )
    elif any(row["verdict"] for row in result["table"]):
        said.append(
            "There is no spread to judge by, hence no interval, and all is inconclusive: run more seeds an arm."
        )
    if any(row["matched"] is False for row in models_of(result)):
        said.append(f"Unmatched arms have other than the baseline's parameters, by more than {MATCHED:.0%}.")
    said.append("Time, tokens/s and memory are means and the highest peak of a trial.")
    if len(devices(result)) > 1:
        said.append("The trials ran on different devices: their times are not comparable.")
    return " ".join(said)


def judged(result: Result) -> list[tuple[str, str]]:
    study = result["comparison"]
    if not study:
        return []
    rows = [row for row in result["table"] if row["verdict"]]
    design = {
        "blocked": "blocked: every arm has the baseline's seeds, and a seed means the same batches, so that a seed's "
        "own part in the loss cancels in a difference",
        "one-way": "one-way: the arms do not share the baseline's seeds, so differences hold the seeds' part too",
    }
    detectable = sorted({f"{row['detectable']:.2g}" for row in rows if row["detectable"] is not None}, key=float)
    return [
        ("design", design[study["design"]]),
        ("seeds an arm", seeds_of([result["table"][0], *rows])),
        ("comparisons", words.count(len(rows))),
        ("spread that differences are judged by", _nats(study["spread"])),
        ("its degrees of freedom", words.count(study["df"])),
        ("spread of single runs over seeds", _nats(study["run_spread"])),
        ("critical value of |t|", "none" if study["critical"] is None else f"{study['critical']:.2f}"),
        (
            "minimum detectable effect",
            f"{' to '.join(detectable[:: len(detectable) - 1 or 1])} nats" if detectable else "none",
        ),
    ]


def _nats(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g} nats"


def rule(result: Result) -> str:
    if not any(row["verdict"] for row in result["table"]):
        return ""
    return (
        "An arm is better or worse where its difference from the baseline has an adjusted p below "
        f"{LEVEL:g} by Dunnett's many-to-one test, with one spread pooled over all arms, so that the chance of any "
        f"false verdict in the study is {LEVEL:.0%}; all else is inconclusive. No verdict is given on fewer than two "
        "finite seeds, on an arm whose own spread is not that of the others, or in favour of a side that has a "
        "diverged seed."
    )


def not_claimed(result: Result) -> list[str]:
    rows = [row for row in models_of(result) if row["verdict"]]
    said = []
    if any(row["verdict"] == "inconclusive" for row in rows):
        said.append("Inconclusive does not mean equal: a difference below the detectable one would often go unseen.")
    if any(row["matched"] is False for row in rows):
        said.append("Where an arm is unmatched, its difference may be that of its size and not of what it changes.")
    if rows and not result["rates"]:
        said.append("One learning rate served all arms: with its own best rate an arm may stand elsewhere.")
    if result["rates"]:
        said.append(
            "An arm's learning rate is the best of those tried, picked by the loss that is compared: every arm had the "
            "same choice, and the intervals do not count it."
        )
    base = result["baseline"]
    said.append(
        f"Nothing is claimed for other data, sizes or lengths of training than these: {name_of(base['source'])}, "
        f"{words.short((base['parameters'] or {}).get('total'))} parameters, {words.times(base['steps'], 'step')}."
    )
    if result["kernels"]:
        said.append("Kernels are compared with naive alone, and stand outside the comparisons of models.")
    said.append(
        "Times are of the machine and whatever else it did; peak memory is of the whole process on a CPU and of the "
        "tensors on a GPU. Neither has a part in a verdict."
    )
    return said
