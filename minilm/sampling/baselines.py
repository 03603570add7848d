"""What models that only count would reach on the same text: the bar a transformer has to clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minilm.corpus.dataset import prepared
from minilm.errors import UserError
from minilm.training.journal import METRICS, read_config, read_rows, write_json

BASELINES = "baselines.json"
ORDERS = range(1, 7)
SMOOTHING = "interpolated modified Kneser-Ney"


def write_baselines(run: Path) -> dict[str, Any]:
    """Fit n-gram models of orders 1 to 6 on as much training text as the run has seen, score them on the same
    validation split, and write RUN/baselines.json. Raises UserError where ids are too many to count (see ngram.py)."""
    from minilm.corpus import ngram

    config = read_config(run)
    data = prepared(config.data)
    rows = [row for row in read_rows(run / METRICS) if "loss" in row] if (run / METRICS).exists() else []
    if not rows:
        raise UserError(f"{run} has no training steps yet; n-gram models are fitted on as much text as it has seen.")
    fitted = min(rows[-1]["tokens"], len(data.train))
    results = ngram.baselines(data.train[:fitted], data.val, data.vocab_size, ORDERS)
    content = {
        "smoothing": SMOOTHING,
        "fitted_on_tokens": fitted,
        "orders": [{**row, "bits_per_byte": data.bits_per_byte(row["nats_per_token"])} for row in results],
    }
    write_json(run / BASELINES, content)
    return content
