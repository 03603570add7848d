"""What a model is worth at some step: its mean loss over the whole validation split, and a text that it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from minilm.corpus.dataset import Dataset
from minilm.model import GPT
from minilm.training.distributed import Team

BATCH_TOKENS = 16_384  # scored at a time
SAMPLE_TOKENS = 400


@torch.no_grad()
def evaluate(
    model: GPT,
    tokens: np.ndarray,
    max_tokens: int = 0,
    team: Team | None = None,
    cut: Callable[[], bool] | None = None,
) -> float | None:
    """Mean nats a token over `tokens` cut into windows of the model's context that do not overlap.

    Every token but the first is predicted exactly once, the shorter last window's too. With max_tokens, about so many
    are scored, in windows spaced evenly. The model is called as it is, never compiled, so that no number depends on
    how the training ran. team: processes that take turns with the batches; what each adds up to and in which order they
    are summed stays the same, so the number does too, to its last bit. cut: asked before every batch; where it says so,
    None is returned.
    """
    team = team or Team()
    T, device = model.config.context_length, model.head.weight.device
    training = model.training
    model.eval()
    starts = np.arange(0, len(tokens) - 1, T)
    if max_tokens and len(starts) * T > max_tokens:
        starts = starts[:: -(-len(starts) * T // max_tokens)]
    full = starts[starts + T < len(tokens)]
    rows = min(max(1, BATCH_TOKENS // T), max(1, len(full)))
    batches: list[Any] = [full[i : i + rows] for i in range(0, len(full), rows)]
    batches += [[s] for s in starts[len(full) :]]
    sums = torch.zeros(len(batches), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    scored = 0
    for number, batch in enumerate(batches):
        if cut is not None and cut():
            model.train(training)
            return None
        window = min(T, len(tokens) - 1 - int(batch[-1]))
        scored += len(batch) * window
        whose = number % team.size
        # a sharded model computes only where all of its processes do: those left over in the last round help
        if whose != team.rank and not (number == len(batches) - 1 and team.rank > whose):
            continue
        windows = tokens[np.asarray(batch)[:, None] + np.arange(window + 1)].astype(np.int64)
        ids = torch.from_numpy(windows).to(device)
        loss = model(ids[:, :-1], ids[:, 1:])
        if whose == team.rank:
            sums[number] = loss.to(sums.device).double() * ids[:, 1:].numel()
    model.train(training)
    return team.add(sums).cpu().cumsum(0)[-1].item() / scored  # one after another


def sample(model: GPT, data: Dataset, temperature: float, seed: int) -> dict[str, Any]:
    """A text of SAMPLE_TOKENS tokens from nothing, and how it was drawn: a row of RUN/samples."""
    device = model.head.weight.device
    start = data.tokenizer.beginning()
    generator = torch.Generator(device).manual_seed(seed)
    out = model.generate(
        torch.tensor(start[None].tolist(), device=device), SAMPLE_TOKENS, temperature, generator=generator
    )
    known = [i for i in out[0, len(start) :].tolist() if i < data.vocab_size]  # not of a padded vocabulary
    how = {"prompt": "", "temperature": temperature, "top_k": None, "top_p": None, "seed": seed}
    return {**how, "text": data.tokenizer.decode(known)}
