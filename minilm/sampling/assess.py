"""What a course's notebook calls: what one model writes, at several temperatures, and how good it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minilm.decoding import Sampling
from minilm.errors import UserError
from minilm.model import GPT
from minilm.sampling import quality
from minilm.sampling.samples import TEMPERATURES

PROMPTS = ("The ", "To be or ", "In the beginning ")
NEW_TOKENS = 150
DISTINCT_WORDS = 20  # most texts of 150 characters have so many


def assess_generation_quality(
    model: nn.Module,
    decode_fn: Callable[[list[int]], str],
    device: str | torch.device = "cpu",
    encode_fn: Callable[[str], Sequence[int]] | None = None,
    *,
    prompts: Sequence[str] = PROMPTS,
    temperatures: Sequence[float] = TEMPERATURES,
    max_new_tokens: int = NEW_TOKENS,
    samples: int = 7,
    seed: int = 0,
) -> dict[str, Any]:
    """Prints what a model writes after each prompt at each temperature, with the share of repeated 4-grams and of
    distinct words and pairs (see quality.py), and returns all of it.

    model: one that load_run() gave, or any module that takes token ids (B, T) int64 and returns logits (B, T, V), alone
    or first in a tuple; it is given no more tokens at a time than its context_length or block_size, where it or its
    config has one. decode_fn takes a list of ids, encode_fn a text; without it the model's own tokenizer encodes, and
    what that does not know is replaced. samples: texts judged for each prompt; the first of them is printed.

    Returned: prompts, temperatures, max_new_tokens, samples (a list of prompt, temperature, text without the prompt)
    and figures (one dict a temperature; each figure has value, low, high and n). Raises UserError where nothing encodes
    the prompts.
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    if encode_fn is None and tokenizer is None:
        raise UserError("Nothing encodes the prompts: give encode_fn, or a model that load_run() loaded.")
    contexts = {p: _encoded(p, encode_fn or (lambda text: tokenizer.encode(text, "replace"))) for p in prompts}
    known = tokenizer.vocab_size if tokenizer is not None else None  # a padded vocabulary has ids that no text has
    shown, figures = [], []
    for temperature in temperatures:
        texts = []
        print(f"===== temperature {temperature:g}")
        for number, (prompt, context) in enumerate(contexts.items()):
            generator = torch.Generator(device).manual_seed(seed + number)
            rows = torch.tensor([context] * samples, device=device)
            written = _continued(model.to(device), rows, max_new_tokens, temperature, generator)[:, len(context) :]
            ids = [[i for i in row if known is None or i < known] for row in written.tolist()]
            own = [decode_fn(row) for row in ids]
            texts += own
            shown.append({"prompt": prompt, "temperature": temperature, "text": own[0]})
            print(f"--- {prompt!r}\n{prompt}{own[0]}\n")
        found = quality.summary(quality.tally(texts, DISTINCT_WORDS), seed)
        figures.append({"temperature": temperature, **found})
        print(" · ".join(_told(name, row) for name, row in found.items()) + "\n")
    return {
        "prompts": list(prompts),
        "temperatures": list(temperatures),
        "max_new_tokens": max_new_tokens,
        "samples": shown,
        "figures": figures,
    }


def _encoded(prompt: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
    try:
        ids = encode(prompt)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"encode_fn could not encode the prompt {prompt!r} ({error!r}); give other prompts.") from None
    ids = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids).reshape(-1).astype(np.int64).tolist()
    if not ids:
        raise UserError(f"encode_fn gave no token for the prompt {prompt!r}; a model needs one to go on from.")
    return ids


@torch.no_grad()
def _continued(model: nn.Module, tokens: Tensor, more: int, temperature: float, generator: torch.Generator) -> Tensor:
    if isinstance(model, GPT):
        return model.generate(tokens, more, temperature, generator=generator)
    training, window, sampling = model.training, _window(model), Sampling(temperature=temperature)
    model.eval()
    try:
        for _ in range(more):
            out = model(tokens if window is None else tokens[:, -window:])
            logits = out[0] if isinstance(out, tuple) else out
            tokens = torch.cat((tokens, sampling.draw(logits[:, -1].float(), generator=generator)), dim=1)
    finally:
        model.train(training)
    return tokens


def _window(model: nn.Module) -> int | None:
    """How many tokens a model can be given, where it says so."""
    for holder in (getattr(model, "config", None), model):
        for name in ("context_length", "block_size"):
            length = getattr(holder, name, None)
            if isinstance(length, int) and length > 0:
                return length
    return None


def _told(name: str, row: dict[str, Any]) -> str:
    if row["value"] is None:
        return f"{name} not known"
    between = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{name} {row['value']:.3f}{between}"
