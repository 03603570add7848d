"""`minilm budget`: the calculators of minilm.studies.budget, told in a terminal."""

from __future__ import annotations

from rich.console import Console

from minilm.config import PRESETS, build
from minilm.errors import UserError
from minilm.hardware import PEAK_TFLOPS
from minilm.report.words import count, duration, size
from minilm.studies.budget import kv_cache_bytes, splits, training_memory, training_seconds
from minilm.studies.design import parameters
from minilm.training.progress import facts_table

VOCABULARY = 96  # of a preset by character, where no data say otherwise


def tell_budget(
    params: float | None,
    flops: float | None,
    tokens: float | None,
    chip: str,
    mfu: float,
    preset: str | None,
    console: Console | None = None,
) -> None:
    """Raises UserError for anything but exactly one of params, flops and tokens, an unknown chip or preset."""
    console = console or Console()
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset is {preset!r}; there are {', '.join(PRESETS)}.")
    config = build(preset, {"model": {"vocab_size": _vocabulary(preset)}}) if preset else None
    if config and (params, flops, tokens) == (None, None, None):
        params = parameters(config)["total"]
    if chip not in PEAK_TFLOPS:
        raise UserError(f"--chip is {chip!r}; the known ones are {', '.join(PEAK_TFLOPS)}.")
    for split in splits(params, flops, tokens):
        hours = training_seconds(split.flops, PEAK_TFLOPS[chip] * 1e12, mfu)
        console.print(
            facts_table(
                {
                    "by": split.rule,
                    "parameters": count(split.params),
                    "tokens": f"{count(split.tokens)}, {split.tokens_per_parameter:.3g} a parameter",
                    "compute": f"{split.flops:.3g} FLOP",
                    "time": f"{duration(hours)} on one {chip} at {mfu:.0%} MFU",
                }
            ),
            "",
            highlight=False,
        )
    if config:
        m, counts = config.model, parameters(config)
        memory = training_memory(counts["total"])
        cache = kv_cache_bytes(m.n_layers, m.n_kv_heads, m.head_dim, m.context_length)
        console.print(
            facts_table(
                {
                    preset: f"{counts['total']:,} parameters with a vocabulary of {m.vocab_size:,}",
                    "training": f"{size(memory.total)} for weights, gradients and moments ({memory.policy}); "
                    "activations come on top",
                    "cache": f"{size(cache)} of keys and values for one sequence of {m.context_length:,}, 16 bits",
                }
            ),
            highlight=False,
        )


def _vocabulary(preset: str) -> int:
    return PRESETS[preset].get("data", {}).get("vocab_size", VOCABULARY)
