"""What every backend asks of the shapes it is given, so that the switch changes no error either.

Each raises ValueError with one sentence. They look at shapes and dtypes, never at values: no device is waited for, and
torch.compile turns them into guards.
"""

from numbers import Integral

import torch
from torch import Tensor

INTEGERS = (torch.int32, torch.int64)
SEEDS = "it must be an integer of 64 bits or a 0-d int64 tensor"


def check_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_seed: int | Tensor | None) -> None:
    """q (B, H, Tq, D); k, v (B, Hkv, Tk, D), Hkv a divisor of H, Tq <= Tk."""
    together = q.ndim == k.ndim == 4 and k.shape == v.shape
    if not together or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not go together: "
            "q is (B, H, Tq, D), k and v (B, Hkv, Tk, D)"
        )
    _check_heads(q.shape[1], k.shape[1], q.shape[-1])
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries against {k.shape[2]} keys: queries are the last rows of the keys")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and below 1")
    if dropout_p > 0:
        _check_seed(dropout_seed)


def _check_heads(n_heads: int, n_kv_heads: int, width: int) -> None:
    if n_heads < 1 or n_kv_heads < 1 or width < 1:
        raise ValueError(f"{n_heads} query and {n_kv_heads} key-value heads of width {width}; each is at least 1")
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} query heads are no multiple of {n_kv_heads} key-value heads")


def _check_seed(seed: int | Tensor | None) -> None:
    if seed is None:
        raise ValueError("dropout_p is above 0 and dropout_seed is missing; the mask is a function of the seed")
    if isinstance(seed, Tensor):
        if seed.ndim or seed.dtype not in INTEGERS:
            raise ValueError(f"dropout_seed is {seed.dtype} of shape {tuple(seed.shape)}; {SEEDS}")
    elif not (isinstance(seed, int) or isinstance(seed, Integral)) or not -(2**63) <= seed < 2**63:  # noqa: SIM101 (for torch.compile)
        raise ValueError(f"dropout_seed is {seed!r}; {SEEDS}")


def check_packed(qkv: Tensor, n_heads: int, n_kv_heads: int) -> None:
    """qkv (B, T, (H + 2·Hkv)·D)."""
    if qkv.ndim != 3:
        raise ValueError(f"a packed projection is (B, T, width), not {tuple(qkv.shape)}")
    if n_heads < 1 or n_kv_heads < 1 or qkv.shape[-1] % (n_heads + 2 * n_kv_heads):
        raise ValueError(
            f"packed width {qkv.shape[-1]} is no multiple of {n_heads} query and 2 x {n_kv_heads} key-value heads"
        )


def check_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> None:
    """q (B, H, 1, D); k_cache, v_cache (B, Hkv, S, D); lengths (B,) of integers."""
    together = q.ndim == k_cache.ndim == 4 and q.shape[2] == 1 and k_cache.shape == v_cache.shape
    if not together or q.shape[0] != k_cache.shape[0] or q.shape[3] != k_cache.shape[3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k_cache {tuple(k_cache.shape)} and v_cache {tuple(v_cache.shape)} do not go "
            "together: q is (B, H, 1, D), the caches (B, Hkv, S, D)"
        )
    _check_heads(q.shape[1], k_cache.shape[1], q.shape[3])
    if lengths.shape != q.shape[:1] or lengths.dtype not in INTEGERS:
        raise ValueError(
            f"lengths are {lengths.dtype} of shape {tuple(lengths.shape)}; they must be int32 or int64 of shape "
            f"({q.shape[0]},)"
        )


def check_norm(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, *residual: Tensor) -> None:
    """x (..., C); weight, bias (C,); a residual of the shape of x."""
    if x.ndim == 0:
        raise ValueError(f"{op} of a 0-d tensor; it wants (..., C), a last dimension to normalise over")
    for other in residual:
        if not isinstance(other, Tensor) or other.shape != x.shape:
            given = f"residual {tuple(other.shape)}" if isinstance(other, Tensor) else f"residual {other}"
            raise ValueError(f"{op} of x {tuple(x.shape)} and {given}; the shapes must be equal")
    C = x.shape[-1]
    if weight is None or weight.shape != (C,) or (bias is not None and bias.shape != (C,)):
        raise ValueError(f"{op} over a width of {C} wants weight and bias of shape ({C},)")


def check_swiglu(gate_up: Tensor) -> None:
    """gate_up (..., 2F)."""
    if gate_up.ndim == 0 or gate_up.shape[-1] % 2:
        width = f"a width of {gate_up.shape[-1]}" if gate_up.ndim else "a 0-d tensor"
        raise ValueError(f"swiglu of {width}: gate and up side by side make an even one")


def check_swiglu_unpacked(gate: Tensor, up: Tensor) -> None:
    """gate and up of one shape."""
    if gate.shape != up.shape:
        raise ValueError(f"swiglu of gate {tuple(gate.shape)} and up {tuple(up.shape)}; the shapes must be equal")


def check_loss(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None) -> None:
    """hidden (N, C); weight (V, C); targets (N,) int64; chunk at least 1 or None."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        shapes = (tuple(x.shape) for x in (hidden, weight, targets))
        raise ValueError("linear_cross_entropy takes (N, C), (V, C) and (N,), not {}, {} and {}".format(*shapes))
    if weight.shape[0] < 1:
        raise ValueError("linear_cross_entropy over a vocabulary of 0; it wants at least 1 token")
    if targets.dtype != torch.int64:
        raise ValueError(f"linear_cross_entropy takes int64 targets, not {targets.dtype}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 row, or None for the default")
