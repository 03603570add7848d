"""The report of an ablation study: report.html, report.md, table.csv, result.json and figures/*.png, from what
minilm.studies.ablation.analyse() returns. Nothing is judged here: verdicts, intervals and sentences are its own.

The page is one file that asks for nothing else, and the same result and runs give the same bytes.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minilm.errors import UserError
from minilm.report import words
from minilm.report.ablation_figures import PLATES, plates_of
from minilm.report.ablation_views import FIGURES, page_of, row_view
from minilm.report.ablation_words import Result, models_of, summary
from minilm.report.page import environment
from minilm.report.plates import save_plate
from minilm.report.runs import Run, read_run
from minilm.studies.design import CONTROL
from minilm.studies.trials import DIVERGED, FINISHED
from minilm.training.journal import write_json


def write_ablation(result: Result, out: Path, runs: Mapping[str, Path]) -> Path:
    """Writes the report into `out` and returns the path of report.html.

    result: of analyse(). runs: the run folder of each trial's id, for the curves; one that is missing or cannot be read
    is left out of the figures, and the page says so. Raises UserError where `out` cannot be written.
    """
    found, lost = read_runs(result, runs)
    plates = plates_of(result, found)
    page = page_of(result, plates, lost)
    try:
        (out / FIGURES).mkdir(parents=True, exist_ok=True)
        for name in PLATES:  # of an earlier report, whose figures this one may not have
            (out / FIGURES / f"{name}.png").unlink(missing_ok=True)
        for plate in plates:
            save_plate(plate, out / FIGURES / f"{plate.name}.png")
        write_json(out / "result.json", result)
        (out / "table.csv").write_text(_csv(result), encoding="utf-8", newline="")
        for name, template in (("report.html", "ablation.html"), ("report.md", "ablation.md")):
            text = environment(template).get_template(template).render(page)
            (out / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"The report cannot be written to {out} ({error.strerror}); name another folder.") from None
    return out / "report.html"


def read_runs(result: Result, runs: Mapping[str, Path]) -> tuple[dict[str, Run], list[str]]:
    """The runs that can be read, by trial; and the trials that ended but whose runs cannot."""
    found, lost = {}, []
    shown = {i for row in result["table"] for i in row["trials"]}
    for trial in result["trials"]:
        if trial["id"] not in shown or trial["status"] not in (FINISHED, DIVERGED):
            continue
        try:
            found[trial["id"]] = read_run(runs[trial["id"]])
        except (KeyError, UserError):
            lost.append(trial["id"])
    return found, lost


# --- table.csv and the terminal ---------------------------------------------------------------------------------------

_COUNTS = ("total", "non_embedding", "matrices_and_head", "embedding")


def _csv(result: Result) -> str:
    """A row an arm, numbers in full, nothing where nothing is known. The difference of A/A is its own comparison."""
    trials = {trial["id"]: trial for trial in result["trials"]}
    control = (result["comparison"] or {}).get("control") or {}
    tests = {row["trials"][-1]: row for row in (result["kernels"] or {"rows": []})["rows"]}
    rows = []
    for row in result["table"]:
        against = control if row["axis"] == CONTROL else None
        switch = tests.get(row["trials"][-1], {})
        same = switch.get("equivalence", {})
        rows.append(
            {
                "arm": row["arm"],
                "axis": row["axis"],
                "changes": "; ".join(f"{key}={value}" for key, value in row["changes"].items()),
                **{f"parameters_{key}": (row["parameters"] or {}).get(key) for key in _COUNTS},
                "parameters_matched": row["matched"],
                "flops": row["flops"],
                "tokens": row["tokens"],
                "learning_rate": trials[row["trials"][0]]["config"]["train"]["lr"],
                "seeds_finished": row["n"],
                "seeds_diverged": " ".join(map(str, row["diverged"])),
                "val_loss": row["mean"],
                "val_loss_low": row["low"],
                "val_loss_high": row["high"],
                "difference": against.get("difference") if against is not None else row["difference"],
                "difference_low": against.get("low") if against is not None else row["difference_low"],
                "difference_high": against.get("high") if against is not None else row["difference_high"],
                "p_adjusted": row["p"],
                "minimum_detectable": row["detectable"],
                "verdict": row["verdict"],
                "reason": row["reason"],
                "wall_seconds": row["wall"],
                "tokens_per_second": row["tokens_per_s"],
                "peak_bytes": row["peak_bytes"],
                "equivalence": same.get("verdict"),
                "equivalence_difference": same.get("difference"),
                "equivalence_low_90": same.get("low"),
                "equivalence_high_90": same.get("high"),
                "equivalence_p": same.get("p"),
                "largest_step_deviation": switch.get("largest_deviation"),
                "noise_floor": switch.get("noise"),
                "speedup": switch.get("speedup"),
                "memory_ratio": switch.get("memory_ratio"),
                "trials": " ".join(row["trials"]),
            }
        )
    written = io.StringIO()
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def print_ablation(result: Result, console: Console) -> None:
    """The verdicts, the findings and the warnings; fits a terminal of 80 columns."""
    table = Table(title=summary(result), title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("arm")
    for name in ("parameters", "loss", "seeds", "difference", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in models_of(result):
        view = row_view(row, result)
        verdict = Text(view["verdict"], style=_STYLES.get(view["verdict"], ""))
        notes = [*(["unmatched"] if view["unmatched"] else []), *filter(None, [view["lost"]])]
        verdict.append(f" ({', '.join(notes)})" if notes else "", style="dim")
        judged = ("", "") if view["kind"] == "base" else (view["half"] or view["difference"], view["p"])
        seen = (view["total"], view["loss"], str(view["n"]), *judged)
        table.add_row(Text(view["name"]), *seen, verdict)
    console.print(table)
    for finding in result["findings"]:
        console.print(Text(f"- {words.visible(finding['text'])}"), soft_wrap=True)
    for warning in result["warnings"]:
        console.print(Text(f"! {words.visible(warning)}", style="yellow"), soft_wrap=True)


_STYLES = {"better": "green", "worse": "red", "inconclusive": "dim"}
