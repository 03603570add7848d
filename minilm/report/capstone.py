"""The page of a capstone: report.html and report.md, from the run folder and the study folders that it holds.

It sets what the pages of the parts say, figures and all, and judges nothing. One file that asks for nothing else; the
same folders give the same bytes. Each part has a page of its own beside it, with more.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minilm.errors import UserError
from minilm.files import write_atomically
from minilm.report import ablation_views, capstone_words, scaling, words
from minilm.report.ablation import read_runs
from minilm.report.ablation_figures import plates_of
from minilm.report.canvas import DARK, LIGHT
from minilm.report.page import environment
from minilm.report.runs import read_run
from minilm.report.scaling_figures import curve_plate
from minilm.report.views import view_of
from minilm.studies.trials import Study
from minilm.training.journal import read_json

PLATES = {"ablation": ("forest", "loss_curves", "depth_width"), "kernels": ("kernels",)}
PAGE, MARKDOWN = "report.html", "report.md"


def write_capstone(out: Path, items: Sequence[dict[str, Any]], settings: Sequence[tuple[str, str]]) -> list[Path]:
    """Writes the page into `out`, which holds train/, ablation/, kernels/ and scaling/, and returns what was written.

    items: the checklist (name, found, text, file, sha256, remedy); settings: what the capstone was begun with. A part
    that is not there is left out. Raises UserError where there is no run or `out` cannot be written.
    """
    page = page_of(out, items, settings)
    written = []
    for name, template in ((PAGE, "capstone.html"), (MARKDOWN, "capstone.md")):
        text = environment(template).get_template(template).render(page)
        path = out / name
        write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8", newline="\n"))
        written.append(path)
    return written


def page_of(out: Path, items: Sequence[dict[str, Any]], settings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Everything that the templates say."""
    run = read_run(out / "train")
    studies = {name: _result(out / name / "result.json") for name in PLATES}
    ladder = _result(out / "scaling" / "scaling.json")
    found = sum(item["found"] for item in items)
    return {
        "light": LIGHT,
        "dark": DARK,
        "title": f"A small GPT on {run.source}, taken apart",
        "opening": capstone_words.opening(run, studies["ablation"], studies["kernels"], ladder),
        "key_figures": capstone_words.key_figures(run, studies["kernels"], ladder, found, len(items)),
        "view": view_of(run, "train", "r0"),
        "ablation": _study(out / "ablation", studies["ablation"], PLATES["ablation"]),
        "kernels": _study(out / "kernels", studies["kernels"], PLATES["kernels"]),
        "scaling": ladder and scaling.page_of(ladder, {"curve": curve_plate(ladder), "law": None, "isoflop": None}),
        "items": [_item(item) for item in items],
        "missing": len(items) - found,
        "chosen": settings,
    }


def _result(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except UserError:
        return None


def _study(path: Path, result: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any] | None:
    """The view of an ablation study with the named figures only, each on a page where its name is its own."""
    if result is None:
        return None
    study = Study(path)
    runs, lost = read_runs(result, {row["id"]: study.folder(row["id"]) for row in study.rows})
    plates = [plate for plate in plates_of(result, runs) if plate.name in names]
    view = ablation_views.page_of(result, plates, lost)
    for plate in view["plates"]:
        plate["png"] = f"{path.name}/{plate['png']}"
    return view


def _item(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": item["name"],
        "found": item["found"],
        "text": words.visible(item["text"]),
        "where": item["file"] + (f", SHA-256 {item['sha256'][:12]}" if item["sha256"] else ""),
        "remedy": item["remedy"],
    }
