"""Multi-head attention, rightly and in each of the ways it is commonly got wrong, so that a wrong answer can be named.

x (B, T, C), w_qkv (3C, C) as queries | keys | values, w_out (C, C), no bias; H heads of width D = C / H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor


def multi_head_attention(x: Tensor, w_qkv: Tensor, w_out: Tensor, n_heads: int) -> Tensor:
    B, T, C = x.shape
    D = C // n_heads
    q, k, v = (x @ w_qkv.T).chunk(3, dim=-1)  # (B, T, C) each
    q, k, v = (t.view(B, T, n_heads, D).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(dim=-1)
    y = (weights @ v).transpose(1, 2).reshape(B, T, C)
    return y @ w_out.T


# what is wrong: (option of flawed(), its value), and the hint
FLAWS: dict[str, tuple[tuple[str, str], str]] = {
    "no scale": (("scale", "none"), "The scores are not divided by √D, D = C / H being the width of a head."),
    "scale of the model": (
        ("scale", "model"),
        "The scores are divided by √C, the model's width; it is √D, a head's width.",
    ),
    "scale without root": (("scale", "square"), "The scores are divided by D; it is its square root, √D."),
    "scale upside down": (("scale", "inverse"), "The scores are multiplied by √D instead of divided."),
    "scale of the heads": (
        ("scale", "heads"),
        "The scores are divided by √H, the number of heads; it is √D, a head's width.",
    ),
    "scale of the time": (("scale", "time"), "The scores are divided by √T, the length; it is √D, a head's width."),
    "no mask": (("mask", "none"), "There is no causal mask: tokens look at later ones. Set those scores to -∞."),
    "mask hides the token": (
        ("mask", "strict"),
        "The mask is off by one: a token must see itself. Hide keys from the diagonal's right on, triu(1).",
    ),
    "mask shows the next": (
        ("mask", "loose"),
        "The mask is off by one: each token sees the next one, which it is to predict. Hide triu(1), not triu(2).",
    ),
    "mask reversed": (("mask", "reversed"), "The mask is the wrong way round: it hides the past and shows the future."),
    "mask after softmax": (
        ("mask", "after"),
        "The mask comes after the softmax, so a row's weights no longer sum to 1. Set scores to -∞ before it.",
    ),
    "mask with zeros": (
        ("mask", "zero"),
        "Hidden scores are set to 0, and e^0 = 1 still counts. Set them to -∞ before the softmax.",
    ),
    "softmax over queries": (
        ("axis", "queries"),
        "The softmax runs over the queries, dim=-2; it is over the keys, dim=-1.",
    ),
    "softmax over heads": (("axis", "heads"), "The softmax runs over the heads, dim=1; it is over the keys, dim=-1."),
    "softmax over the batch": (
        ("axis", "batch"),
        "The softmax runs over the batch, dim=0; it is over the keys, dim=-1.",
    ),
    "no softmax": (("axis", "none"), "There is no softmax: weights are the scores themselves."),
    "heads not split": (
        ("split", "none"),
        "The heads are not split: one head of width C works here. View (B, T, C) as (B, T, H, D), then transpose.",
    ),
    "heads split across time": (
        ("split", "view"),
        "Heads are split wrongly: view(B, H, T, D) mixes time and width. View as (B, T, H, D), then transpose(1, 2).",
    ),
    "heads split interleaved": (
        ("split", "interleaved"),
        "Heads are split wrongly: (B, T, D, H) gives a head every H-th column; it has D neighbours: (B, T, H, D).",
    ),
    "heads merged across time": (
        ("merge", "view"),
        "Heads are merged wrongly: reshaping (B, H, T, D) mixes time and heads. First transpose(1, 2), then reshape.",
    ),
    "heads merged interleaved": (
        ("merge", "interleaved"),
        "Heads are merged wrongly: their columns are interleaved. From (B, T, H, D) reshape to (B, T, C).",
    ),
    "scores transposed": (
        ("order", "kqv"),
        "The scores are K Qᵀ: rows must be queries, columns keys. A transpose is wrong, or q and k are exchanged.",
    ),
    "keys and values exchanged": (
        ("order", "qvk"),
        "Keys and values are exchanged: w_qkv holds q, k, v in this order.",
    ),
    "queries and values exchanged": (
        ("order", "vkq"),
        "Queries and values are exchanged: w_qkv holds q, k, v in this order.",
    ),
    "w_qkv turned by one": (("order", "kvq"), "Queries, keys and values are mixed up: w_qkv holds them in this order."),
    "w_qkv turned by two": (("order", "vqk"), "Queries, keys and values are mixed up: w_qkv holds them in this order."),
    "w_qkv interleaved": (
        ("order", "by head"),
        "q, k and v are taken head by head; the first C rows of w_qkv are all queries, then all keys, then all values.",
    ),
    "w_qkv reshaped": (
        ("order", "reshaped"),
        "w_qkv is reshaped to (C, 3C), which scrambles it; transpose it: x @ w_qkv.T.",
    ),
    "no output projection": (("out", "none"), "The output projection is missing: end with y @ w_out.T."),
    "output projection transposed": (
        ("out", "transposed"),
        "The output projection has a wrong transpose: y @ w_out.T.",
    ),
    "residual added": (("out", "residual"), "x is added: the residual connection belongs to the block around this."),
}

SCALES = {
    "right": lambda T, C, H: (C // H) ** -0.5,
    "none": lambda T, C, H: 1.0,
    "model": lambda T, C, H: C**-0.5,
    "square": lambda T, C, H: 1 / (C // H),
    "inverse": lambda T, C, H: (C // H) ** 0.5,
    "heads": lambda T, C, H: H**-0.5,
    "time": lambda T, C, H: T**-0.5,
}
REACH = {"right": 1, "strict": 0, "loose": 2, "after": 1, "zero": 1}  # the diagonal from which keys are hidden
AXES = {"right": -1, "queries": -2, "heads": 1, "batch": 0}


def flawed(
    x: Tensor,
    w_qkv: Tensor,
    w_out: Tensor,
    n_heads: int,
    *,
    scale: str = "right",
    mask: str = "right",
    axis: str = "right",
    split: str = "right",
    merge: str = "right",
    order: str = "qkv",
    out: str = "right",
    hidden: float = -math.inf,
) -> Tensor:
    """multi_head_attention with the flaws that are named; hidden is what masked scores are set to."""
    B, T, C = x.shape
    factor = SCALES[scale](T, C, n_heads)
    H = 1 if split == "none" else n_heads
    q, k, v = (_split(t, H, split) for t in _project(x, w_qkv, n_heads, order))
    scores = q @ k.transpose(-2, -1) * factor
    if mask == "none":
        later = torch.zeros(T, T, dtype=torch.bool)
    elif mask == "reversed":
        later = torch.ones(T, T, dtype=torch.bool).tril(-1)
    else:
        later = torch.ones(T, T, dtype=torch.bool).triu(REACH[mask])
    if mask != "after":
        scores = scores.masked_fill(later, 0.0 if mask == "zero" or axis == "none" else hidden)
    weights = scores if axis == "none" else scores.softmax(dim=AXES[axis])
    if mask == "after":
        weights = weights.masked_fill(later, 0.0)
    y = _merge(weights @ v, B, T, C, merge)
    return {"right": y @ w_out.T, "none": y, "transposed": y @ w_out, "residual": x + y @ w_out.T}[out]


def _project(x: Tensor, w_qkv: Tensor, n_heads: int, order: str) -> tuple[Tensor, ...]:
    B, T, C = x.shape
    if order == "by head":
        by_head = (x @ w_qkv.T).view(B, T, n_heads, 3, C // n_heads)
        return tuple(by_head[:, :, :, i].reshape(B, T, C) for i in range(3))
    if order == "reshaped":
        return (x @ w_qkv.reshape(C, 3 * C)).chunk(3, dim=-1)
    named = dict(zip(order, (x @ w_qkv.T).chunk(3, dim=-1), strict=True))
    return named["q"], named["k"], named["v"]


def _split(t: Tensor, H: int, how: str) -> Tensor:
    B, T, C = t.shape
    if how == "view":
        return t.reshape(B, H, T, C // H)
    if how == "interleaved":
        return t.reshape(B, T, C // H, H).permute(0, 3, 1, 2)
    return t.reshape(B, T, H, C // H).transpose(1, 2)


def _merge(y: Tensor, B: int, T: int, C: int, how: str) -> Tensor:
    if how == "view":
        return y.reshape(B, T, C)
    if how == "interleaved":
        return y.permute(0, 2, 3, 1).reshape(B, T, C)
    return y.transpose(1, 2).reshape(B, T, C)


def wrong_ways() -> Iterator[tuple[dict[str, str], str]]:
    """Options of flawed() with the hint for them: one flaw each, then two together."""
    for (option, value), hint in FLAWS.values():
        yield {option: value}, hint
    for ((a, one), hint), ((b, other), further) in combinations(FLAWS.values(), 2):
        if a != b:
            yield {a: one, b: other}, f"Two things at once. {hint} {further}"
