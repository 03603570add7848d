"""What a training reached, on the terminal: the model between the models that only count and what is possible."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from minilm.report.runs import Run


def print_summary(run: Run, console: Console) -> None:
    """Validation loss of the model, of n-gram models fitted on as much text, and of the source itself where known."""
    if run.best is None:
        return
    table = Table(title=f"On held-out {run.source}", title_justify="left", box=None, padding=(0, 2))
    table.add_column("")
    table.add_column(f"nats/{run.unit}", justify="right")
    table.add_column("bits/byte", justify="right")
    for row in run.baselines.get("orders", []):
        table.add_row(
            f"{row['order']}-gram", f"{row['nats_per_token']:.4f}", f"{row['bits_per_byte']:.4f}", style="dim"
        )
    for name, row in {"best": run.best, "final": run.eval_rows[-1]}.items():
        label = f"this model, {name} (step {row['step']})"
        table.add_row(label, f"{row['val_loss']:.4f}", f"{row['val_bpb']:.4f}", style="bold" if name == "best" else "")
    if run.floor is not None:
        bits = run.bits_per_byte(run.floor)
        table.add_row("the source itself: no model can do better", f"{run.floor:.4f}", f"{bits:.4f}", style="dim")
    console.print(table)
    if run.samples:
        console.print("A sample:", style="dim")
        console.print(run.samples[-1][1][0]["text"].strip(), highlight=False, markup=False)
