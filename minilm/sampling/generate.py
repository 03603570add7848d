"""Text from a run: load a checkpoint with any kernels, encode the prompts, decode what comes as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import kernels
from minilm import hardware
from minilm.corpus.tokenizer import Tokenizer, load_tokenizer
from minilm.decoding import Decoder, Sampling, compiled_step, step
from minilm.errors import UserError
from minilm.model import GPT, Linear
from minilm.training import checkpoint
from minilm.training.journal import check_folder


def load_run(
    run: Path, which: str = "best", kernels_name: str = "auto", device_name: str = "auto", dtype: str = "float32"
) -> tuple[GPT, Tokenizer]:
    """The model of a run at the checkpoint "best", "last" or a step, ready to generate, and its tokenizer, which is
    also model.tokenizer. In half precision the matrices are stored so too: they are what decoding has to read.

    Raises UserError for what is missing, damaged or does not fit together.
    """
    device = hardware.resolve_device(device_name)
    ops = kernels.select(kernels_name, device)
    check_folder(run)
    if not run.is_dir():
        raise UserError(f"There is no run folder {run}; name one that minilm train wrote.")
    if not (run / "config.json").exists():
        raise UserError(f"{run} is not a run folder, for it has no config.json; name one that minilm train wrote.")
    path = checkpoint.find(run, which)
    state = checkpoint.load(path, device)
    config = checkpoint.config_of(state, path).model
    tokenizer = load_tokenizer(run / "tokenizer.json")
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{run}/tokenizer.json has {tokenizer.vocab_size} tokens and the model {config.vocab_size}.")
    with torch.device(device):
        model = GPT(config, ops, hardware.resolve_dtype(dtype, device))
    checkpoint.load_weights(model, state, path)
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.data = module.weight.data.to(model.dtype)
    model.tokenizer = tokenizer
    return model.eval(), tokenizer


class Writer:
    """Texts that a model is writing, one for each prompt, all at once.

    Iterating gives, for each token drawn, what every text gained: "" where it ended or where its last token ends within
    a character. A text ends before the first of the strings `stop` that it would hold, or after max_new_tokens. An
    empty prompt begins a new document (see Tokenizer.beginning). seed None: from the clock.

    texts, ends: what was written so far and the stop string that ended it, or None. tokens, seconds: drawn for texts
    that had not ended, and how long that took, both after the first token, which reads the prompt.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompts: Sequence[str] = ("",),
        max_new_tokens: int = 500,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        unknown: str = "error",
        compiled: bool = False,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.sampling, self.stop = sampling or Sampling(temperature=0.8), [s for s in stop if s]
        self.tokens, self.seconds = 0, 0.0
        device = model.head.weight.device
        self._generator = torch.Generator(device)
        _ = self._generator.seed() if seed is None else self._generator.manual_seed(seed)
        ids = [(tokenizer.encode(p, unknown) if p else tokenizer.beginning()).tolist() for p in prompts]
        lengths = [len(row) for row in ids]
        context = torch.zeros(len(ids), max(lengths), dtype=torch.int64)
        for row, known in enumerate(ids):
            context[row, : len(known)] = torch.tensor(known)
        next_step = compiled_step(model) if compiled else step
        self._decoder = Decoder(model, context.to(device), max_new_tokens, lengths, next_step=next_step)
        self._rows = [_Row(tokenizer, self.stop) for _ in prompts]

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self._rows]

    @property
    def ends(self) -> list[str | None]:
        return [row.ended_by for row in self._rows]

    def __iter__(self) -> Iterator[list[str]]:
        began = None
        for token in self._decoder.write(self.sampling, self._generator):
            writing = sum(row.ended_by is None for row in self._rows)
            pieces = [row.push(int(i)) for row, i in zip(self._rows, token[:, 0].tolist(), strict=True)]
            now = time.perf_counter()
            if began is None:
                began = now
            else:
                self.tokens, self.seconds = self.tokens + writing, now - began
            yield pieces
            if all(row.ended_by is not None for row in self._rows):
                return
        yield [row.finish() for row in self._rows]

    def speed(self) -> str:
        """Tokens a second in words, and on a GPU how near they come to what its memory's bandwidth allows: each step
        reads every matrix once, and the keys and values of every sequence."""
        if not self.seconds:
            return ""
        words = f"{self.tokens / self.seconds:,.0f} tokens/s"
        bandwidth = hardware.memory_bandwidth(self.model.head.weight.device)
        if bandwidth is None:
            return words
        steps = self.tokens / len(self._rows)
        return (
            words + f", {bandwidth_share(self._decoder, steps, self.seconds, bandwidth):.0%} of the memory's bandwidth"
        )


def bandwidth_share(decoder: Decoder, steps: float, seconds: float, bandwidth: float) -> float:
    """Bytes that decoding steps must read over what the device's memory could have given in that time.

    bandwidth in bytes/s. The cache counts as it is filled on average.
    """
    model, S = decoder.model, decoder.model.config.context_length
    matrices = sum(m.weight.nbytes for m in model.modules() if isinstance(m, Linear))
    filled = sum(min(n - steps / 2, S) for n in decoder.counts)
    return (matrices + filled * decoder.cache.bytes_per_token()) * steps / seconds / bandwidth


class _Row:
    """One text as it grows: whole characters only, and nothing that may turn out to begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self.text = ""
        self.ended_by: str | None = None
        self._vocab_size, self._decode, self._stop, self._held = tokenizer.vocab_size, tokenizer.incremental(), stop, ""

    def push(self, token: int) -> str:
        """What the text gains by a token. A padded vocabulary has ids that no text has: they give nothing."""
        if self.ended_by is not None or token >= self._vocab_size:
            return ""
        return self._gain(self._decode(token), last=False)

    def finish(self) -> str:
        """What was held back, when no token follows."""
        return "" if self.ended_by is not None else self._gain(self._decode(None), last=True)

    def _gain(self, new: str, last: bool) -> str:
        held = self._held + new
        found = [(held.find(s), s) for s in self._stop if s in held]
        if found:
            at, self.ended_by = min(found)
            gained, self._held = held[:at], ""
        else:
            begun = 0 if last else max((_overlap(held, s) for s in self._stop), default=0)
            gained, self._held = held[: len(held) - begun], held[len(held) - begun :]
        self.text += gained
        return gained


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def sampling_of(**settings: Any) -> Sampling:
    """Sampling, with a UserError for what it refuses."""
    try:
        return Sampling(**settings)
    except ValueError as error:
        raise UserError(str(error)) from None


def unescaped(text: str) -> str:
    """A line end and a tab as people type them in one line: \\n and \\t; \\\\ is a backslash."""
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\t", "\t") for piece in pieces)
