"""The report of a scaling study: scaling.html, scaling.md, scaling.json, capstone_scaling_curve.png and figures/*.png,
from what minilm.studies.ladder.analyse() returns. Nothing is judged here: intervals and refusals are the fit's own.

The page is one file that asks for nothing else, and the same result gives the same bytes.
"""

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from minilm.errors import UserError
from minilm.report import scaling_words as said
from minilm.report import words
from minilm.report.canvas import DARK, LIGHT, svg
from minilm.report.page import environment
from minilm.report.plates import Plate, save_plate
from minilm.report.scaling_figures import curve_plate, fit_of, isoflop_plate, law_plate
from minilm.report.scaling_panels import amount, half_width, law_of, replicated
from minilm.studies.budget import REFIT, ChinchillaLaw
from minilm.studies.power_law import PowerLaw
from minilm.studies.scaling import COUNTS, KAPLAN_ALPHA, TOKENS_PER_PARAMETER
from minilm.training.journal import write_json

FIGURES = "figures"
COLUMNS_ON_TERMINAL = 7  # the sizes without their other counts
Result = dict[str, Any]
Shown = dict[str, Any]


def write_scaling(result: Result, out: Path) -> Path:
    """Writes the report into `out`, beside any other, and returns the path of scaling.html.

    result: of minilm.studies.ladder.analyse(). Raises UserError where `out` cannot be written.
    """
    plates = {"curve": curve_plate(result), "law": law_plate(result), "isoflop": isoflop_plate(result)}
    page = page_of(result, plates)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in (out / FIGURES).glob("scaling_*.png"):  # of an earlier report, with figures that this one has not
            old.unlink()
        for plate in filter(None, plates.values()):
            path = out / _file(plate)
            path.parent.mkdir(exist_ok=True)
            save_plate(plate, path)
        write_json(out / "scaling.json", result)
        for name in ("scaling.html", "scaling.md"):
            text = environment(name).get_template(name).render(page)
            (out / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"The report cannot be written to {out} ({error.strerror}); name another folder.") from None
    return out / "scaling.html"


def print_scaling(result: Result, console: Console) -> None:
    """The answer, the sizes, both forms and what they are read against, on a terminal."""
    fit = fit_of(result)
    _say(console, said.verdict(fit), style="bold")
    for reason in fit["refusals"]:
        _say(console, f"- {reason}")
    _say(console, said.descriptive(fit, result["law"] is not None))
    for table in (_sizes(result), _forms(fit)):
        _tabulate(console, table)
    for sentence in (said.floor(fit), " ".join(said.kaplan(fit)), fit["tokens_note"]):
        if sentence:
            console.print()
            _say(console, sentence)
    for section in (_law(result, None), _isoflop(result, None)):
        if section:
            console.print()
            _say(console, section["title"], style="bold")
            for sentence in (*section["refusals"], *section["sentences"]):
                _say(console, f"- {sentence}")
            _tabulate(console, section["table"])
    for warning in fit["warnings"]:
        _say(console, f"Warning: {warning}", style="yellow")


def page_of(result: Result, plates: dict[str, Plate | None]) -> Shown:
    """Everything that the templates say."""
    fit = fit_of(result)
    return {
        "light": LIGHT,
        "dark": DARK,
        "title": f"Scaling on {result['source']}",
        "verdict": said.verdict(fit),
        "reasons": fit["refusals"],
        "descriptive": said.descriptive(fit, result["law"] is not None),
        "key_figures": _key_figures(fit),
        "curve": _plate(plates["curve"]),
        "sizes": _sizes(result),
        "sizes_note": said.sizes_note(fit),
        "forms": _forms(fit),
        "forms_note": said.forms_note(fit),
        "floor": said.floor(fit),
        "kaplan": said.kaplan(fit),
        "kaplan_why": said.kaplan_why(fit, result["points"], result["source"]),
        "tokens_note": fit["tokens_note"],
        "law": _law(result, plates["law"]),
        "isoflop": _isoflop(result, plates["isoflop"]),
        "warnings": fit["warnings"],
        "fitted": said.how_fitted(fit),
        "trials": result["trials"],
        "runs": _runs(result),
    }


def _key_figures(fit: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, small print)"""
    law, sizes, reported = law_of(fit), fit["sizes"], fit["exponent"] is not None
    shown = []
    if reported:
        known = f"95% interval {said.interval(law.alpha_low, law.alpha_high)}"
        shown.append(("exponent", f"{law.alpha:.3f}", known))
    elif fit["slope"] is not None:
        shown.append(("descriptive slope", f"{fit['slope']:.3f}", "of log L on log N; no exponent is reported"))
    if reported and fit["form"] == "offset":
        shown.append(("fitted floor E", f"{law.E:.3f}", f"nats a token, {said.interval(law.E_low, law.E_high)}"))
    if fit["floor"] is not None:
        where = f", {'inside' if fit['floor_inside'] else 'outside'} E's interval" if reported else ""
        shown.append(("known floor", f"{fit['floor']:.3f}", f"nats a token, the source's entropy{where}"))
    if reported and fit["kaplan_ratio"] is not None:
        ratio = f"{fit['kaplan_ratio']:.2f} ×"
        shown.append(("of Kaplan's slope", ratio, f"{fit['slope']:.3f} against {KAPLAN_ALPHA}"))
    if sizes:
        decades = math.log10(sizes[-1]["n"] / sizes[0]["n"])
        shown.append(("sizes", str(len(sizes)), f"{said.span([s['n'] for s in sizes])}, {decades:.1f} decades"))
    ratios = [s["tokens_per_parameter"] for s in sizes if s["tokens_per_parameter"]]
    if ratios:
        shown.append(("tokens a parameter", said.span(ratios), f"about {TOKENS_PER_PARAMETER} is compute-optimal"))
    return shown


# --- tables -----------------------------------------------------------------------------------------------------------


def _sizes(result: Result) -> Shown:
    fit, named = fit_of(result), result["count"]
    others = [c for c in COUNTS if c != named and any(c in p["n_params"] for p in result["points"])]
    head = [f"N, {_hyphened(named)}", "runs", "loss, nats", "95% ±", "local slope", "alpha without it"]
    head += ["tokens a parameter", *map(_hyphened, others)]
    rows = []
    for size in fit["sizes"]:
        same = [p["n_params"] for p in result["points"] if p["n_params"][named] == size["n"]]
        kinds = [sorted({p[other] for p in same if other in p}) for other in others]
        half, ratio = half_width(fit, size), size["tokens_per_parameter"]
        row = [f"{size['n']:,}", str(size["seeds"]), f"{size['loss']:.4f}", "" if half is None else f"{half:.4f}"]
        row += [words.loss(size["slope"]), words.loss(size["without"]), "" if ratio is None else amount(ratio)]
        rows.append([*row, *(" or ".join(f"{value:,}" for value in kind) for kind in kinds)])
    told = [i for i in range(len(head)) if any(row[i] not in ("", words.NOT_KNOWN) for row in rows)]
    return {"title": "Sizes", "head": [head[i] for i in told], "rows": [[row[i] for i in told] for row in rows]}


def _forms(fit: dict[str, Any]) -> Shown:
    rows = []
    for key, name in (("offset", "E + a·N^-alpha"), ("pure", "a·N^-alpha, Kaplan's")):
        if fit[key]:
            law, known = PowerLaw(**fit[key]), replicated(fit)
            alpha = said.interval(law.alpha_low, law.alpha_high) if known else words.NOT_KNOWN
            floor = said.interval(law.E_low, law.E_high) if known else words.NOT_KNOWN
            E = [f"{law.E:.3f}", floor] if key == "offset" else ["none", ""]
            rows.append([name, f"{law.alpha:.3f}", alpha, *E, f"{law.a:.4g}"])
    head = ["form", "alpha", "95% interval", "E, nats a token", "95% interval", "a"]
    return {"title": "Both forms", "head": head, "rows": rows}


def _law(result: Result, plate: Plate | None) -> Shown | None:
    fit = result["law"]
    if fit is None:
        return None
    laws = []
    if fit["law"]:
        laws = [
            ("this ladder", ChinchillaLaw(**fit["law"])),
            ("Chinchilla's (Besiroglu et al. 2024)", REFIT),
        ]
    rows = [[name, *(f"{v:.4g}" for v in (w.E, w.A, w.B, w.alpha, w.beta))] for name, w in laws]
    return {
        "title": "Loss by size and data, L(N, D)",
        "sentences": said.law_sentences(fit, result["floor"]),
        "refusals": [f"No law is reported: {reason}" for reason in fit["refusals"]],
        "table": {"title": "", "head": ["law", "E", "A", "B", "alpha", "beta"], "rows": rows},
        "plate": plate and _plate(plate),
    }


def _isoflop(result: Result, plate: Plate | None) -> Shown | None:
    fit = result["isoflop"]
    if fit is None:
        return None
    rows = []
    for curve in fit["curves"]:
        row = [f"{curve['flops']:.3g}", str(curve["n_points"])]
        if curve["n"] is None:
            rows.append([*row, *[words.NOT_KNOWN] * 4])
        else:
            ratio = amount(curve["tokens"] / curve["n"])
            rows.append([*row, amount(curve["n"]), amount(curve["tokens"]), ratio, words.loss(curve["loss"])])
    head = ["FLOPs", "runs", "best N", "its tokens", "tokens a parameter", "loss there"]
    return {
        "title": "Loss at fixed compute, IsoFLOP",
        "sentences": said.isoflop_sentences(fit),
        "refusals": fit["refusals"],
        "table": {"title": "", "head": head, "rows": rows},
        "plate": plate and _plate(plate),
    }


def _runs(result: Result) -> Shown:
    rows = [
        [
            f"{p['n_params'][result['count']]:,}",
            "" if p["tokens"] is None else f"{p['tokens']:,.0f}",
            str(p["seed"]),
            "" if p["lr"] is None else f"{p['lr']:g}",
            said.loss_of(p),
        ]
        for p in result["points"]
    ]
    head = [f"N, {_hyphened(result['count'])}", "tokens", "seed", "learning rate", "validation loss"]
    return {"title": "Runs as fitted", "head": head, "rows": rows}


def _plate(plate: Plate) -> Shown:
    panels = [
        {
            "title": panel.title,
            "legend": panel.legend,
            "svg": Markup(svg(panel.draw, f"{plate.name}{i}", panel.label, height=panel.height, margins=panel.margins)),
        }
        for i, panel in enumerate(plate.panels)
    ]
    return {"title": plate.title, "note": plate.note, "png": _file(plate), "panels": panels}


def _file(plate: Plate) -> str:
    """The curve lies where a reader looks first."""
    return f"{plate.name}.png" if plate.name == "capstone_scaling_curve" else f"{FIGURES}/{plate.name}.png"


def _hyphened(count: str) -> str:
    return count.replace("non_", "non-").replace("_", " ")


def _say(console: Console, text: str, style: str = "") -> None:
    if text:
        console.print(text, style=style, markup=False, highlight=False)


def _tabulate(console: Console, table: Shown) -> None:
    if not table["rows"]:
        return
    shown = Table(title=table["title"] or None, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(table["head"][:COLUMNS_ON_TERMINAL]):
        shown.add_column(name, justify="left" if i == 0 else "right")
    for row in table["rows"]:
        shown.add_row(*row[:COLUMNS_ON_TERMINAL])
    console.print()
    console.print(shown)
