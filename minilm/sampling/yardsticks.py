"""What generated texts are held against: held-out text of the same length, and what an n-gram model writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from minilm.corpus import ngram
from minilm.corpus.dataset import Dataset
from minilm.corpus.tokenizer import Tokenizer
from minilm.model import GPT
from minilm.sampling.quality import SEARCHED, mean_row

NGRAM_ORDER = 5
NGRAM_SCORED = 200_000  # held-out tokens
HELD_OUT_TEXTS, ENOUGH = 100, 20
STORY_CHARACTERS = 4000  # no story of the source is as long; what goes on longer is not judged
WINDOWS = 64  # of held-out text, of which the spread of a loss is told
BLOCK = 1 << 18  # tokens decoded at a time
Writer = Callable[[np.ndarray, int], np.ndarray]  # (B, T) token ids and how many more -> (B, T + more)


def decoded(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """Ids of a padded vocabulary, which no text has, are passed over."""
    ids = np.asarray(ids)
    return tokenizer.decode(ids[ids < tokenizer.vocab_size])


def beginning_of(data: Dataset) -> np.ndarray:
    """The ids after which a document begins: fables are told apart by a blank line whatever the tokenizer."""
    if data.meta["source"] == "fables":
        return data.tokenizer.encode("\n\n", "replace")
    return data.tokenizer.beginning()


def training_text(data: Dataset) -> str:
    """As much of its beginning as is searched."""
    parts, length = [], 0
    for start in range(0, len(data.train), BLOCK):
        parts.append(data.tokenizer.decode(data.train[start : start + BLOCK].tolist()))
        length += len(parts[-1])
        if length >= SEARCHED:
            break
    return "".join(parts)[:SEARCHED]


def held_out_starts(data: Dataset, length: int) -> list[int]:
    """Where texts of `length` tokens begin in the validation split: with documents if there are enough, as generated
    texts do, else anywhere before a word."""
    last = len(data.val) - length
    begins = [p for p in document_starts(data) if p <= last]
    if len(begins) < ENOUGH:
        begins = [p for p in (_word_start(data, p) for p in range(0, last + 1, length)) if p <= last]
    return spread(begins)


def document_starts(data: Dataset) -> list[int]:
    """Where documents begin in the validation split, the first of them at 0."""
    tokens, mark = data.val, beginning_of(data).astype(data.val.dtype)
    after = (int(p) + 1 for p in np.flatnonzero(tokens[:-1] == mark[-1]))
    return [0, *(p for p in after if p >= len(mark) and np.array_equal(tokens[p - len(mark) : p], mark))]


def spread(places: list[int]) -> list[int]:
    """HELD_OUT_TEXTS of the places, or all, evenly and the same every time."""
    if not places:
        return []
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, HELD_OUT_TEXTS).astype(int))]


def _word_start(data: Dataset, position: int) -> int:
    for p in range(position, min(position + 200, len(data.val))):
        before = data.tokenizer.decode([int(data.val[p - 1])]) if p else " "
        if before[-1:].isspace() or data.tokenizer.decode([int(data.val[p])])[:1].isspace():
            return p
    return position


def fit_ngram(data: Dataset, tokens: int) -> tuple[ngram.NGram, int]:
    """Of order NGRAM_ORDER, or the highest that the vocabulary allows, on the first `tokens` of the training split;
    and how many those were."""
    order = next(n for n in range(NGRAM_ORDER, 0, -1) if data.vocab_size**n <= 2**64)
    fitted = max(order, min(tokens, len(data.train), SEARCHED))
    return ngram.fit(data.train[:fitted], order, data.vocab_size), fitted


def ngram_writer(model: ngram.NGram, temperature: float, seed: int) -> Writer:
    random = np.random.default_rng(seed)

    def next_token(context: np.ndarray) -> int:
        p = model.probabilities(context)
        if temperature == 0:
            return int(p.argmax())
        p = np.exp(np.log(p / p.max()) / temperature)
        return int(min(np.searchsorted(p.cumsum(), random.random() * p.sum(), side="right"), len(p) - 1))

    def write(rows: np.ndarray, more: int) -> np.ndarray:
        out = np.concatenate((rows, np.zeros((len(rows), more), rows.dtype)), axis=1)
        for row in out:
            for at in range(rows.shape[1], len(row)):
                row[at] = next_token(row[max(0, at - model.order + 1) : at])
        return out

    return write


def model_writer(model: GPT, temperature: float, seed: int) -> Writer:
    """All rows in one call, with the cache of keys and values."""
    device = model.head.weight.device
    generator = torch.Generator(device).manual_seed(seed)

    def write(rows: np.ndarray, more: int) -> np.ndarray:
        tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
        return model.generate(tokens, more, temperature, generator=generator).cpu().numpy()

    return write


def written(write: Writer, start: np.ndarray, count: int, length: int) -> np.ndarray:
    """`count` texts after `start`, (count, length) ids."""
    return write(np.tile(start, (count, 1)), length)[:, len(start) :]


def stories(write: Writer, tokenizer: Tokenizer, start: np.ndarray, ids: np.ndarray) -> list[str]:
    """Of generated texts (count, length), each gone on with while its first story is in order and has not ended."""
    from minilm.corpus import fables

    step, rows = ids.shape[1], {i: row for i, row in enumerate(np.concatenate((np.tile(start, (len(ids), 1)), ids), 1))}
    texts = [""] * len(ids)
    while rows:
        for i, row in list(rows.items()):
            texts[i] = decoded(tokenizer, row[len(start) :])
            if fables.read(texts[i]).accepted is not None or len(row) > STORY_CHARACTERS:
                del rows[i]
        if rows:
            longer = write(np.array(list(rows.values())), step)
            rows = dict(zip(rows, longer, strict=True))
    return texts


@torch.no_grad()
def bits_per_byte(model: GPT, data: Dataset, recorded: float | None, scored_tokens: int) -> dict:
    """The run's own evaluation where it made one at this step, else the mean of WINDOWS windows of the held-out text.

    The interval is from the spread of those windows, over as many as were scored (scored_tokens, 0 for all).
    """
    device, tokens = model.head.weight.device, data.val
    T = min(model.config.context_length, len(tokens) - 1)
    starts = np.unique(np.linspace(0, len(tokens) - 1 - T, WINDOWS).astype(int))
    losses = []
    for start in starts:
        ids = torch.from_numpy(tokens[start : start + T + 1].astype(np.int64)).to(device)[None]
        losses.append(F.cross_entropy(model(ids[:, :-1])[0].float(), ids[0, 1:]).item())
    spread = [data.bits_per_byte(loss) for loss in losses]
    if recorded is None:
        return mean_row(spread) | {"by": f"{len(starts)} windows"}
    windows = (scored_tokens or len(tokens)) / T
    return mean_row(spread, count=max(1.0, windows), value=recorded) | {"by": "the run's evaluation"}


def ngram_bits_per_byte(model: ngram.NGram, data: Dataset, window: int) -> dict:
    nats = -np.log(model.token_probabilities(data.val[:NGRAM_SCORED]))
    whole = nats[: len(nats) // window * window].reshape(-1, window).mean(axis=1) if len(nats) >= window else nats
    mean = data.bits_per_byte(float(nats.mean()))
    return mean_row([data.bits_per_byte(float(loss)) for loss in whole], value=mean)
