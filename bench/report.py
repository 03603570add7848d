"""Figures and tables from results files: `python -m bench.report bench/results/*.json`.

Every number that is shown is a number of a file, or a quotient of two of them. What is drawn and what is tabled is
chosen by shape, never by outcome, and a result whose status is not "ok" has no number anywhere.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from bench import inside
from bench.charts import figures
from bench.contest import ABSENT, MEMORY, OK
from bench.records import (
    CACHED,
    FAMILIES,
    Machine,
    Row,
    digits,
    faults,
    main_cases,
    of_family,
    rank,
    read,
    short,
    title_of,
)
from minilm.errors import UserError
from minilm.report.canvas import save_png, sheet
from minilm.report.race import remarks, table, verdict
from minilm.studies.race import Race
from minilm.training.checkpoint import write_atomically

COUNTED = "by the count: what autograd keeps, without scratch memory; *computed again*: `--checkpoint-activations`"
FEW = 3  # sizes that a table holds beside each other
BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"


def duration(seconds: float) -> str:
    unit, scale = ("us", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s", 1)
    return f"{digits(seconds * scale)} {unit}"


def markdown_table(head: Sequence[str], numbers: int, rows: Iterable[Sequence[str]]) -> list[str]:
    """The last `numbers` columns are set to the right."""
    rule = ["---"] * (len(head) - numbers) + ["--:"] * numbers
    return [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in (head, rule, *rows)]


def _plain(cell: str) -> str:
    return " ".join(str(cell).split()).replace("|", "\\|")


def main_rows(machine: Machine) -> list[list[str]]:
    """The README's rows: of the main cases forward and backward, or both where they are not told apart."""
    shown = []
    for family in FAMILIES:
        rows = of_family(machine, family)
        for case in main_cases(rows, family):
            passes: dict[str, dict[str, Row]] = {}
            for row in rows:
                if row["case"] == case:
                    passes.setdefault(row["which"], {})[row["provider"]] = row
            for which in [one for one in passes if one != "both"] or ["both"]:
                shown.append(_main_row(machine, which, passes[which]))
    return shown


def _main_row(machine: Machine, which: str, by_provider: dict[str, Row]) -> list[str]:
    some = next(iter(by_provider.values()))
    mine = by_provider.get(machine.ours)
    others = [row for row in by_provider.values() if row is not mine and row["median"]]
    best = min(others, key=lambda row: row["median"], default=None)
    case = " ".join([short(some["op"]), *(f"{k}={v}" for k, v in some["shape"].items()), some["dtype"]])
    ratio = share = "–"
    if mine and mine["median"]:
        share = f"{mine['fraction']:.0%}"
        if best:
            ratio = _floored(best["median"] / mine["median"])
    cells = [case, which, _time(mine), _time(by_provider.get("torch")), _time(best)]
    if best:
        title = title_of(best) if best["provider"] != "torch" else f"PyTorch {machine.version('torch')}".strip()
        cells[4] += f", {title}"
    return [*(cells if machine.ours != "torch" else cells[:3] + cells[4:]), ratio, share]


def _time(row: Row | None) -> str:
    return "–" if row is None else duration(row["median"]) if row["median"] else row["status"]


def training_rows(machine: Machine) -> tuple[list[str], list[list[str]]]:
    """(head, rows): a row a way to train. Of more than FEW sizes: the one measured first, the one at which something
    first ran out of memory, the first at which nanoGPT ran, and the longest."""
    rows = list(machine.train.values())
    sizes = list(dict.fromkeys(_train_size(row) for row in rows))
    failed = [_train_size(row) for row in rows if row["status"] == MEMORY]
    beside = [_train_size(row) for row in rows if row["kernels"] == "nanogpt" and row["tokens_per_s"]]
    telling = {sizes[0], max(sizes), *sorted(failed)[:1], *beside[:1]}
    chosen = sorted(sizes if len(sizes) <= FEW else telling)
    head = ["training step", *(f"T={T} B={B}" for T, B in chosen), f"first step at T={sizes[0][0]}"]
    found = {(row["label"], _train_size(row)): row for row in rows}
    table = []
    for label in sorted(dict.fromkeys(row["label"] for row in rows), key=rank):
        first = found.get((label, sizes[0]))
        seconds = first and first["first_step_s"]
        cells = [_training_cell(found.get((label, one))) for one in chosen]
        table.append([label, *cells, duration(seconds) if seconds else "–"])
    return head, table


def against_nanogpt(machine: Machine) -> list[str]:
    """A sentence a size at which nanoGPT was measured: our steps per second over its, mode by mode."""
    said = []
    for size in dict.fromkeys(_train_size(row) for row in machine.train.values()):
        rows = [row for row in machine.train.values() if _train_size(row) == size and row["step_s"]]
        found = {row["label"]: row for row in rows if not row.get("reason")}  # which is why it was not timed in turns
        theirs = {label.partition(" ")[2]: row for label, row in found.items() if label.startswith("nanogpt ")}
        by_dtype: dict[str, list[str]] = {}
        for exact in ("", " float32"):
            for mode, other in theirs.items():
                if mine := found.get(f"{machine.ours} {mode}{exact}"):
                    ours, has = mine.get("dtype", ""), other.get("dtype", "")
                    where = f"in {ours}" if ours == has else f"in {ours} where nanoGPT has {has}"
                    by_dtype.setdefault(where if ours else "", []).append(_ratio(mine, other, mode))
        if by_dtype:
            words = "; ".join(f"{where} {', '.join(ratios)}".strip() for where, ratios in by_dtype.items())
            said.append(
                f"Against nanoGPT at T={size[0]} B={size[1]}, the steps per second of `--kernels {machine.ours}`: "
                f"{words} (from the ends of both intervals; steps taken in turns, in one run{_on_threads(machine)})."
            )
    return said


def repaid(machine: Machine) -> list[str]:
    """After how many steps compiling has repaid what it cost before the first, where eager ones were timed beside."""
    rows = list(machine.train.values())
    found = {
        row["label"]: row
        for row in rows
        if _train_size(row) == _train_size(rows[0]) and row["step_s"] and not row.get("reason")
    }
    said = []
    for label, row in found.items():
        mode = label.split()[1]
        if mode == "eager" or not (eager := found.get(label.replace(mode, "eager"))):
            continue
        spent = max(row["first_step_s"] - eager["first_step_s"], 0.0)
        ends = [(eager["low"], row["high"]), (eager["high"], row["low"])] if row.get("low") and eager.get("low") else []
        after, *between = (_steps(spent, slow - fast) for slow, fast in [(eager["step_s"], row["step_s"]), *ends[::-1]])
        said.append(f"{label} {after}" + (f" ({' to '.join(between)})" if between else ""))
    size = f"T={rows[0]['context_length']} B={rows[0]['batch_size']}" if rows else ""
    words = "Steps after which compiling has repaid what it costs before the first"
    return [f"{words}, at {size}, from the ends of both intervals: {'; '.join(said)}."] if said else []


def _steps(spent: float, saved: float) -> str:
    """Two digits: it is not known better."""
    return f"{float(f'{math.ceil(spent / saved):.1e}'):,.0f}" if saved > 0 and spent / saved < 1e6 else "never"


def _ratio(mine: Row, theirs: Row, mode: str) -> str:
    ratio = f"{_floored(theirs['step_s'] / mine['step_s'])} times {mode}"
    if mine.get("low") and theirs.get("low"):
        ratio += f" [{theirs['low'] / mine['high']:.2f} to {theirs['high'] / mine['low']:.2f}]"
    return ratio


def _on_threads(machine: Machine) -> str:
    """What a CPU's time depends on."""
    count = machine.told(lambda facts: facts.get("type") == "cpu" and facts.get("threads"))
    return f", on {count} thread{'s' * (count != '1')}" if count else ""


def _floored(ratio: float) -> str:
    return f"{math.floor(ratio * 100 + 1e-9) / 100:.2f}"


def _train_size(row: Row) -> tuple[int, int]:
    return row["context_length"], row["batch_size"]


def _training_cell(row: Row | None) -> str:
    if row is None or row["tokens_per_s"] is None:
        return row["status"] if row else "–"
    peak = f", {row['peak_bytes'] / 2**30:.1f} GiB" if row.get("peak_bytes") else ""
    share = f", {_percent(row['mfu'])}" if row["mfu"] is not None else ""
    between = ""
    if row.get("low"):
        tokens = row["context_length"] * row["batch_size"]
        between = f" ({tokens / row['high']:,.0f} to {tokens / row['low']:,.0f})"
    return f"{row['tokens_per_s']:,.0f}{between}{share}{peak}"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}"


def _side_by_side(found: Row) -> str:
    """Of bench.side_by_side's summary, whose ratio holds its own interval, or of one that is flat."""
    said = found["ratio"] if isinstance(found["ratio"], dict) else found | {"geometric_mean": found["ratio"]}
    pairs = found.get("pairs")
    count = f"{len(pairs)} alternated pairs" if isinstance(pairs, list) else "alternated pairs"
    level = f"{said['level']:.0%} " if said.get("level") else ""
    return (
        f"`minilm train` makes {said['geometric_mean']:.2f} times the steps per second of a plain PyTorch loop of the"
        f" same model ({level}interval {said['low']:.2f} to {said['high']:.2f}, from {count})."
    )


def _race(race: Race) -> list[str]:
    """How long recipes take to a loss, as `minilm race` found it."""
    shown = table(race)
    return [
        _plain(" ".join([verdict(race), *remarks(race)])),
        "\n".join(markdown_table(shown["head"], len(shown["head"]) - 1, shown["rows"])),
    ]


def _tuned(rows: Sequence[Row]) -> str:
    faster = [row["speedup"] for row in rows if row["speedup"] > 1]
    best = max(rows, key=lambda row: row["speedup"])
    told = f"Block sizes tuned on this chip: {len(rows)} entries of the table, of which {len(faster)} changed"
    if faster:
        told += (
            f" and made their kernels {_floored(statistics.geometric_mean(faster))} times as fast in the geometric mean"
        )
        told += f", at most {_floored(best['speedup'])} times ({best['problem']})"
    return _plain(f"{told}.")


def _tuning_row(row: Row) -> list[str]:
    def config(of: Row) -> str:
        return " ".join(f"{name.removeprefix('num_')} {value}" for name, value in sorted(of.items()))

    def times(of: Sequence[float]) -> str:
        return ", ".join(duration(milliseconds * 1e-3) for milliseconds in of)

    kept = row["speedup"] == 1
    return [
        row["problem"], config(row["before"]), times(row["before_ms"]), "" if kept else config(row["chosen"]),
        "" if kept else times(row["chosen_ms"]), "" if kept else _floored(row["speedup"]),
    ]  # fmt: skip


def _measured_by(machine: Machine) -> str:
    files = []
    for name, facts in machine.sources:
        known = [f"revision {facts['revision']}"] if facts.get("revision") else []
        known += [facts["date"][:10]] if facts.get("date") else []
        files.append(f"`{name}`" + (f" ({', '.join(known)})" if known else ""))
    return f"{machine.provenance}; from {', '.join(files)}."


EXPLAINED = (
    "Median time of a call. *ratio* is the time of the best other, PyTorch included, over ours: above 1 ours is faster,"
    " below 1 it loses (rounded down). *of floor* is our share of the speed that the machine's own matrix product and"
    " copy, measured in the same run, allow. Cases are chosen by shape: the first measured and the largest."
)


def readme_part(machine: Machine, every_row: str, pictures: dict[str, str]) -> str:
    """Of one device, as Markdown. every_row, pictures: where all rows and the figures are, from the README."""
    parts = [f"### {_plain(machine.device)}"]
    if machine.rows:
        ours = [machine.ours, "PyTorch"] if machine.ours != "torch" else ["torch"]
        head = ["case", "pass", *ours, "best other", "ratio", "of floor"]
        parts.append("\n".join(markdown_table(head, 2, main_rows(machine))))
        if any((row["fraction"] or 0) > 1 for row in machine.rows.values() if row["provider"] == machine.ours):
            parts.append(CACHED)
    if sentences := faults(machine.rows.values(), (OK, ABSENT)):
        parts.append("Without a time: " + _plain(". ".join(sentences)) + ".")
    parts += map(_plain, machine.notes)
    if machine.tune:
        parts.append(_tuned(machine.tune))
    if machine.train:
        known = any(row["mfu"] is not None for row in machine.train.values())
        shares = ", share of the chip's published peak (MFU), peak memory" if known else ""
        parts.append(
            f"Training step: tokens/s, with the 95% interval of the median{shares}. The same model for all, with "
            "learned positions, by AdamW, without dropout."
        )
        head, rows = training_rows(machine)
        parts.append("\n".join(markdown_table(head, len(head) - 1, rows)))
        parts += against_nanogpt(machine) + repaid(machine)
    if machine.side_by_side:
        parts.append(_side_by_side(machine.side_by_side))
    if machine.contexts and machine.memory:
        title, head, rows = inside.contexts_table(machine.memory, machine.contexts, machine.tried)
        parts.append(f"{title} (the capstone in bfloat16, {COUNTED}).")
        parts.append("\n".join(markdown_table(head, len(head) - 1, rows)))
    parts += [part for race in machine.races for part in _race(race)]
    links = {"every row": every_row} | pictures
    parts.append("More: " + ", ".join(f"[{name}]({path})" for name, path in links.items()) + ".")
    return "\n\n".join([*parts, _plain(_measured_by(machine))])


def full_table(machine: Machine) -> str:
    """Every row that was measured, as Markdown."""
    parts = [f"# {_plain(machine.device)}", _plain(_measured_by(machine))]
    if machine.rows:
        head = "case|pass|provider|time|20-80%|TFLOP/s|GB/s|of floor|host|memory|remark".split("|")
        parts.append("\n".join(markdown_table(head, 0, map(_full_row, machine.rows.values()))))
    if machine.train:
        head = ["training step", "T", "batch", "dtype", "a step", "tokens/s", "MFU", "memory", "first step", "why not"]
        parts.append("\n".join(markdown_table(head, 0, map(_full_training_row, machine.train.values()))))
    if machine.side_by_side:
        parts.append(_side_by_side(machine.side_by_side))
    if machine.tune:
        head = ["entry", "before", "time", "tuned", "time", "times as fast"]
        told = "The kernel alone with a cold cache, a time for each shape that it was tuned on."
        parts += ["## Tuning", told, "\n".join(markdown_table(head, 1, map(_tuning_row, machine.tune)))]
    if machine.stages:
        said = [(stage, *item) for stage, of in machine.stages.items() for item in of.items()]
        parts += ["## Tests", "\n".join(f"- {stage}, {name}: {_plain(_said(value))}" for stage, name, value in said)]
    for title, head, rows in inside.tables(machine):
        parts += [f"## {_plain(title)}", "\n".join(markdown_table(head, 0, rows))]
    return "\n\n".join(parts) + "\n"


def _said(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _full_row(row: Row) -> list[str]:
    case = [row["case"], row["which"], title_of(row)]
    if row["median"] is None:
        return [*case, row["status"], *[""] * 6, row.get("reason", "")]
    return [
        *case,
        duration(row["median"]),
        f"{duration(row['p20'])} to {duration(row['p80'])}",
        f"{row['flops_per_s'] / 1e12:.3g}" if row["flops_per_s"] else "",
        digits(row["bytes_per_s"] / 1e9),
        f"{row['fraction']:.0%}",
        duration(row["host"]) if row["host"] else "",
        f"{row['peak_bytes'] / 2**20:,.1f} MiB" if row["peak_bytes"] is not None else "",
        row.get("reason", ""),
    ]


def _full_training_row(row: Row) -> list[str]:
    case = [row["label"], row["context_length"], row["batch_size"], row.get("dtype", "")]
    if row["tokens_per_s"] is None:
        return [*case, row["status"], *[""] * 4, row.get("reason", "")]
    peak = f"{row['peak_bytes'] / 2**30:.2f} GiB" if row["peak_bytes"] else ""
    step, first = (duration(row[key]) if row.get(key) else "" for key in ("step_s", "first_step_s"))
    return [*case, step, f"{row['tokens_per_s']:,.0f}", _percent(row["mfu"]), peak, first, row.get("reason", "")]


def with_part(text: str, part: str, path: Path) -> str:
    """`text` with `part` between the markers. Raises UserError unless each marker is there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(
            f"{path} needs the lines {BEGIN} and {END} once each, in this order; add them where the table goes."
        )
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n\n{part}\n\n{text[text.index(END) :]}"


def report(paths: Sequence[Path], out: Path, readme: Path, say: Callable[[str], None] = print) -> None:
    """Figures into `out`, every row into a file a device beside it, and the README's part. A fault in what was given
    is found before anything is written."""
    machines = read(paths, say)
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{readme} could not be read ({error}); name the README by --readme.") from None
    with_part(text, "", readme)
    parts = [EXPLAINED]
    for machine in machines:
        pictures = {}
        for name, draw in figures(machine).items():
            with sheet():
                write_atomically(out / name, partial(save_png, draw()))
            pictures[name.removesuffix(f"-{machine.slug}.png").replace("_", "-")] = _from(readme, out / name)
            say(f"{out / name}")
        every_row = out.parent / f"{machine.slug}.md"
        _write(every_row, full_table(machine))
        say(f"{every_row}")
        parts.append(readme_part(machine, _from(readme, every_row), pictures))
    _write(readme, with_part(text, "\n\n".join(parts), readme))
    say(f"{readme}: the part between the markers is new")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _from(readme: Path, path: Path) -> str:
    return Path(os.path.relpath(path.resolve(), readme.resolve().parent)).as_posix()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", nargs="+", type=Path, help="files that python -m bench.gpu has written")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/results/figures"), help="for figures; tables of all rows go beside it"
    )
    parser.add_argument(
        "--readme", type=Path, default=Path("README.md"), help="its part between the markers is rewritten"
    )
    options = parser.parse_args(arguments)
    try:
        report(options.results, options.out, options.readme)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
