"""Decoding: how a GPT goes on with token ids, one token at a time, with or without a cache of keys and values.

Shapes: B sequences, T tokens of the longest beginning, S context length, V vocabulary. Sequences of one batch may begin
with different numbers of tokens: they stand at the left and what fills their rows up is never attended to, for a token
sees only what is before it. Nothing here reads a value back from the device, so a GPU is never waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Model = Any  # a minilm.model.GPT: model.py imports this file, not the other way round


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits. The settings act in the order in which they stand here.

    repetition_penalty: logits of tokens that the text holds already are divided by it where positive and multiplied
        where negative (Keskar et al. 2019, section 4.1); 1 does nothing.
    temperature: logits are divided by it; 0 is greedy: the likeliest token, whatever else is set.
    top_k: only the k likeliest tokens. top_p: the smallest set of likeliest ones whose probability reaches p (Holtzman
        et al. 2020). min_p: those at least min_p times as likely as the likeliest (Nguyen et al. 2024).
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        limits: dict[str, tuple[str, Callable[[float], bool]]] = {
            "repetition_penalty": ("from 0.01 to 100, 1 being none", lambda x: 0.01 <= x <= 100),
            "temperature": ("at least 0, 0 being greedy", lambda x: x >= 0),
            "top_k": ("at least 1", lambda x: x >= 1),
            "top_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
            "min_p": ("at least 0 and at most 1", lambda x: 0 <= x <= 1),
        }
        for name, (limit, holds) in limits.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise ValueError(f"The {name.replace('_', ' ')} is {value}; it must be a number {limit}.")

    def draw(self, logits: Tensor, seen: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One token a row, (B, 1) int64, from logits (B, V); seen (B, V) bool: the tokens that the text holds."""
        if self.repetition_penalty != 1 and seen is not None:
            penalised = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = torch.where(seen, penalised, logits)
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        logits = logits - logits.amax(dim=-1, keepdim=True)  # the likeliest is 0 at any temperature
        logits = logits * min(1 / self.temperature, 1e30)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            p = ordered.softmax(dim=-1)
            dropped = p.cumsum(dim=-1) - p >= self.top_p  # likelier tokens reach it without this one
            dropped[:, 0] = False
            logits = logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -math.inf)
        if self.min_p is not None and self.min_p > 0:
            logits = logits.masked_fill(logits < math.log(self.min_p), -math.inf)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)


class KVCache:
    """Keys and values of what a GPT has read: (n_layers, B, Hkv, S, D) each, of which lengths (B,) int64 are filled.

    Shapes and addresses never change, so that a decoding step can be compiled, or captured in a CUDA graph.
    """

    def __init__(self, model: Model, batch_size: int):
        c, device = model.config, model.head.weight.device
        shape = (c.n_layers, batch_size, c.n_kv_heads, c.context_length, c.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(2))
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def bytes_per_token(self) -> int:
        """What one token of one sequence takes."""
        n_layers, _, heads, _, head_dim = self.keys.shape
        return 2 * n_layers * heads * head_dim * self.keys.element_size()


def step(model: Model, token: Tensor, cache: KVCache) -> Tensor:
    """Logits (B, V) after one more token (B, 1) for each sequence; the cache has it then. All shapes are static."""
    logits = model.head(model.hidden(token, cache)[:, -1])
    cache.lengths += 1
    return logits


def compiled_step(model: Model) -> Callable[[Model, Tensor, KVCache], Tensor]:
    """step() through torch.compile; on a GPU as a CUDA graph. It is compiled when first called, in some seconds."""
    graph = model.head.weight.device.type == "cuda"
    compiled = torch.compile(step, fullgraph=True, dynamic=False, mode="reduce-overhead" if graph else None)

    def run(model: Model, token: Tensor, cache: KVCache) -> Tensor:
        for tensor in (cache.keys, cache.values, cache.lengths):
            torch._dynamo.mark_static_address(tensor)  # else a graph would copy the cache in and out for every token
        if graph:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(model, token.clone(), cache).clone()  # a graph's output is overwritten by its next replay

    return run


def window_start(n: int, context_length: int) -> int:
    """Where the window of a text of n tokens begins: 0 while it fits the context, then on by quarters of it."""
    quarter = max(1, context_length // 4)
    return -(-max(0, n - context_length) // quarter) * quarter


class Decoder:
    """Sequences that a model is writing.

    Past the context length S the model sees a window of the last tokens: when it is full it begins anew with its last
    three quarters, encoded again, so that positions are those the model was trained on. Without a cache the same
    windows are encoded whole for each token; the texts are the same.

    tokens (B, T + max_new_tokens) int64 holds them; row i has counts[i] so far, and zeros after them.

    context (B, T) int64; lengths: how many of a row's tokens count, 1 to T each (all, where not given). next_step:
    step() or what compiled_step() gives.
    """

    def __init__(
        self,
        model: Model,
        context: Tensor,
        max_new_tokens: int,
        lengths: Sequence[int] | None = None,
        cache: bool = True,
        next_step: Callable[[Model, Tensor, KVCache], Tensor] = step,
    ):
        B, T = context.shape
        counts = [T] * B if lengths is None else [int(n) for n in lengths]
        if min(counts, default=0) < 1:
            raise ValueError("the context is empty: a model needs one token to go on from")
        if len(counts) != B or max(counts) > T:
            raise ValueError(f"lengths are {counts} for a context of {B} x {T} tokens; give one of 1 to {T} for each")
        self.model, self.counts, self.left, self.next_step = model, counts, max_new_tokens, next_step
        self.ends = torch.tensor(counts, device=context.device)[:, None]  # the same counts, on the device
        filled = torch.arange(T, device=context.device) < self.ends
        self.tokens = torch.cat((context.where(filled, 0), context.new_zeros(B, max_new_tokens)), dim=1)
        self.cache: KVCache | Any = KVCache(model, B) if cache else None
        self.starts = [-1] * B  # of the windows that the cache holds

    def logits(self) -> Tensor:
        """Of each sequence's next token, (B, V) float32."""
        starts = [window_start(n, self.model.config.context_length) for n in self.counts]
        every = range(len(starts))
        anew = [i for i in every if self.cache is None or starts[i] != self.starts[i]]
        self.starts = starts
        if not anew:
            last = self.tokens.gather(1, self.ends - 1)
            return self.next_step(self.model, last, self.cache).float()
        logits = self.tokens.new_empty((len(starts), len(self.model.head.weight)), dtype=torch.float32)
        going_on = [i for i in every if i not in anew]
        if going_on:  # all take the step, for its shape is static; what it gives the others is written over below
            last = self.tokens.gather(1, self.ends - 1)
            self.cache.lengths[anew] = 0
            logits = self.next_step(self.model, last, self.cache).float()
        logits[anew] = self._read_windows(anew)
        return logits

    def _read_windows(self, rows: list[int]) -> Tensor:
        """Encode the whole windows of some sequences, into the cache where there is one: logits (len(rows), V)."""
        device, sizes = self.tokens.device, [self.counts[i] - self.starts[i] for i in rows]
        starts = torch.tensor([self.starts[i] for i in rows], device=device)[:, None]
        at = (starts + torch.arange(max(sizes), device=device)).clamp(max=self.tokens.shape[1] - 1)
        cache, all_rows = self.cache, len(rows) == len(self.counts)
        if cache is not None:
            cache.lengths[rows] = 0
            cache = cache if all_rows else KVCache(self.model, len(rows))
        hidden = self.model.hidden(self.tokens[rows].gather(1, at), cache)
        filled = torch.tensor(sizes, device=device)
        if cache is not None:
            if not all_rows:
                self.cache.keys[:, rows], self.cache.values[:, rows] = cache.keys, cache.values
            self.cache.lengths[rows] = filled
        return self.model.head(hidden[torch.arange(len(rows), device=device), filled - 1]).float()

    def append(self, token: Tensor) -> None:
        """One more token (B, 1) for each sequence."""
        self.tokens.scatter_(1, self.ends, token)
        self.ends += 1
        self.left -= 1
        self.counts = [n + 1 for n in self.counts]

    @torch.no_grad()
    def write(self, sampling: Sampling, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """New tokens, (B, 1) each, as soon as they are drawn; the model is in evaluation mode meanwhile."""
        training = self.model.training
        self.model.eval()
        try:
            seen = self.seen() if sampling.repetition_penalty != 1 else None
            while self.left:
                token = sampling.draw(self.logits(), seen, generator)
                self.append(token)
                if seen is not None:
                    seen.scatter_(1, token, True)
                yield token
        finally:
            self.model.train(training)

    def seen(self) -> Tensor:
        """Which tokens the sequences hold, (B, V) bool."""
        table = torch.zeros(
            len(self.counts), self.model.head.weight.shape[0], dtype=torch.bool, device=self.ends.device
        )
        for row, n in enumerate(self.counts):
            table[row, self.tokens[row, :n]] = True
        return table
