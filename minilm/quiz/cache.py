"""Question 4: the KV cache, what is kept and why, and how many bytes that is for a given model."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, cast

from minilm.quiz.grading import Evidence, Free, Number, Part, Question, choice, tell

AINSLIE = "Ainslie et al. 2023, section 2"
MIB = 2**20
CLOSE = 1e-12  # between two float64 computations of the same small thing


@dataclass(frozen=True)
class Drawn:
    """A model of which the cache is asked. Its bytes go by minilm.studies.budget.kv_cache_bytes."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context: int
    batch: int

    def mib(self, n_kv_heads: int) -> float:
        from minilm.studies.budget import kv_cache_bytes

        return kv_cache_bytes(self.n_layers, n_kv_heads, self.head_dim, self.context, self.batch, "bfloat16") / MIB


def kv_cache(rng: random.Random) -> Question:
    heads = rng.choice((40, 56, 48))
    m = Drawn(
        n_layers=rng.choice((12, 24, 36)),
        n_heads=heads,
        n_kv_heads=heads // rng.choice((4, 8)),
        head_dim=rng.choice((64, 128)),
        context=rng.choice((2048, 4096, 8192)),
        batch=rng.choice((3, 5, 6)),
    )
    full, grouped = m.mib(m.n_heads), m.mib(m.n_kv_heads)
    T = rng.choice((99, 199, 499, 999))
    setting = (
        f"A model of {m.n_layers} layers, {m.n_heads} heads of width {m.head_dim}, bfloat16 (2 bytes a number), serves "
        f"{m.batch} sequences of {m.context:,} tokens. 1 MiB = 2^20 bytes."
    )
    parts: tuple[Part, ...] = (
        choice(
            rng,
            "the keys and values of every token so far, in every layer",
            [
                (
                    "the queries, keys and values of every token so far",
                    "No later token ever reads an old query: only the newest row of Q is needed.",
                ),
                (
                    "the attention weights of every token so far",
                    "They belong to old queries. A new token needs weights of its own, from all keys.",
                ),
                (
                    "the keys and values of the last layer",
                    "Each layer attends to its own keys and values, so each keeps its own.",
                ),
                (
                    "the output of the last layer for every token so far",
                    "That helps no new query: layers read K and V.",
                ),
            ],
            id="4a",
            topic="what a KV cache keeps",
            prompt="What does a KV cache keep between two new tokens?",
            why="One row of Q is new; it meets all K and weighs all V, in each layer (Shazeer 2019, section 2.4).",
        ),
        Number(
            id="4b",
            topic="bytes of a KV cache",
            prompt="How large is its KV cache, with a key-value head for each head?",
            answer=full,
            unit="MiB",
            mistakes=(
                (full / 2, "Keys and values: two tensors a layer. (Or: two bytes a number.)"),
                (full / m.n_layers, f"That is one layer; there are {m.n_layers}."),
                (full / m.batch, f"That is one sequence; there are {m.batch}."),
                (full / m.n_heads, "That is one head."),
                (full * 1.5, "Queries are not kept: 2 tensors a layer, not 3."),
                (full * 8, "In bits, perhaps? Bytes were asked."),
                (full * MIB, "In MiB, not bytes: divide by 2^20."),
                (full * MIB / 1e6, "1 MiB is 2^20 bytes, not 10^6."),
                (full / 1024, "That is in GiB."),
            ),
            why=f"2 (K, V) x {m.n_layers} layers x {m.n_heads} heads x {m.head_dim} x {m.context} tokens x {m.batch} "
            f"sequences x 2 bytes = {tell(full * MIB)} bytes (Pope et al. 2022).",
        ),
        Number(
            id="4c",
            topic="grouped queries",
            prompt=f"How large with grouped queries: {m.n_kv_heads} key-value heads for the {m.n_heads} query heads?",
            answer=grouped,
            unit="MiB",
            mistakes=(
                (full, "That is the size before: only key-value heads are kept, however many queries share them."),
                (
                    full / m.n_kv_heads,
                    f"Divide by the size of a group, {m.n_heads // m.n_kv_heads}, not by the groups.",
                ),
                (grouped / 2, "Keys and values both are kept, grouped or not."),
                (full / m.n_heads, "That is one key-value head for all: multi-query attention (Shazeer 2019)."),
            ),
            why=f"The cache goes with the key-value heads: {m.n_heads} / {m.n_kv_heads} = {m.n_heads // m.n_kv_heads} "
            f"times smaller ({AINSLIE}).",
        ),
        Number(
            id="4d",
            topic="work that a cache saves",
            prompt=f"A model writes {T} tokens; pass t sees t tokens. Without a cache each pass runs all t through the "
            "model, with one only the newest. How many times as many token positions does it run without?",
            answer=(T + 1) / 2,
            mistakes=(
                (T * (T + 1) / 2, f"That is the count without a cache; with one it is {T}. Their ratio was asked."),
                (T, "The passes get longer one by one: on average they see half as many."),
                (T * T, "Passes see 1, 2, ... T tokens, not T each; and the ratio was asked."),
                (2.0, "The saving grows with the length: 1 + 2 + ... + T against T."),
            ),
            why=f"(1 + 2 + ... + {T}) / {T} = ({T} + 1)/2 = {(T + 1) / 2:g}: quadratic work becomes linear.",
        ),
        Free(
            id="4e",
            topic="why a KV cache works, and its price",
            prompt="Why may old keys and values be reused unchanged, and what does the cache cost?",
            why="Decoding is bound by reading the cache, hence fewer key-value heads (Shazeer 2019, section 2.4.1; "
            f"{AINSLIE}).",
            model="Under the causal mask a token's keys and values depend on itself and earlier tokens only, so a new "
            "token changes none of them. The price is memory that grows with layers, key-value heads, width, "
            "length and batch, and all of it is read for every new token: decoding is bound by memory bandwidth. "
            "Grouped queries make it smaller.",
            points=(
                (
                    "causal: a new token changes no earlier key or value",
                    "The mask is the reason: old rows cannot move.",
                ),
                ("memory grows with length (and layers, heads, batch)", "The cache grows linearly with the text."),
                (
                    "each step reads the whole cache: bandwidth is the limit",
                    "Each new token reads the whole cache once.",
                ),
            ),
        ),
    )
    seed = rng.randrange(2**31)
    return Question(4, "The KV cache", parts, lambda: _verify(m, seed), setting)


def _verify(m: Drawn, seed: int) -> list[Evidence]:
    return [_same_row(seed), _old_rows_stay(seed), _bytes(m)]


def _same_row(seed: int) -> Evidence:
    import torch

    from kernels.reference import causal_attention, decode_attention

    B, H, Hkv, T, S, D = 2, 4, 2, 6, 9, 8
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, T, D, generator=g, dtype=torch.float64)
    k, v = (torch.randn(B, Hkv, T, D, generator=g, dtype=torch.float64) for _ in range(2))
    k_cache, v_cache = (torch.full((B, Hkv, S, D), math.nan, dtype=torch.float64) for _ in range(2))
    k_cache[:, :, :T], v_cache[:, :, :T] = k, v
    decoded = decode_attention(q[:, :, -1:], k_cache, v_cache, torch.full((B,), T))
    off = (decoded - causal_attention(q, k, v)[:, :, -1:]).abs().max().item()
    return Evidence(
        "One query row against the cache (decode_attention) is the last row of full attention (causal_attention).",
        (
            f"{H} query heads share {Hkv} key-value heads; {T} of {S} places filled, the rest NaN",
            f"largest difference  {off:.1e}",
        ),
        off < CLOSE,
    )


def _old_rows_stay(seed: int) -> Evidence:
    import torch

    import kernels
    from kernels.reference import unpack_heads
    from minilm.config import ModelConfig
    from minilm.model import GPT

    T, V, heads, n_layers = 7, 13, 2, 3
    config = ModelConfig(n_layers=n_layers, n_heads=heads, d_model=16, vocab_size=V, context_length=T)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config, kernels.select("reference")).double().use(kernels.select("reference"), torch.float64).eval()
        tokens = torch.randint(V, (1, T))
    kept: list[torch.Tensor] = []
    hooks = [
        b.attention.qkv.register_forward_hook(lambda _m, _i, out: kept.append(out)) for b in cast(Any, model.blocks)
    ]
    with torch.no_grad():
        model(tokens[:, :-1])
        model(tokens)
    for hook in hooks:
        hook.remove()
    rows = []
    for layer in range(n_layers):
        _, *before = unpack_heads(kept[layer], heads)
        _, *after = unpack_heads(kept[n_layers + layer], heads)
        rows.append([(b - a[:, :, :-1]).abs().max().item() for b, a in zip(before, after, strict=True)])
    return Evidence(
        f"A token is added to {T - 1} in a random {n_layers}-layer GPT: the keys and values of those stay as they "
        "were (to rounding: a longer matrix product sums in another order).",
        tuple(f"layer {n + 1}   keys moved by {k:.0e}   values by {v:.0e}" for n, (k, v) in enumerate(rows)),
        max(map(max, rows)) < CLOSE,
    )


def _bytes(m: Drawn) -> Evidence:
    import torch

    lines, holds = [f"{'key-value heads':34}{'kv_cache_bytes':>14}   real tensors, counted"], True
    for name, kv in (
        ("every head its own", m.n_heads),
        (f"grouped, {m.n_heads // m.n_kv_heads} queries a head", m.n_kv_heads),
        ("one for all (multi-query)", 1),
    ):
        # on the meta device a tensor has a shape and no memory
        one = torch.empty(m.batch, kv, m.context, m.head_dim, dtype=torch.bfloat16, device="meta")
        counted = sum(2 * one.numel() * one.element_size() for _ in range(m.n_layers)) / MIB
        holds &= counted == m.mib(kv)
        lines.append(f"{kv:3} {name:30}{m.mib(kv):10,.1f} MiB{counted:12,.1f} MiB")
    return Evidence("Its bytes are those of two tensors (B, Hkv, T, D) a layer.", tuple(lines), holds)
