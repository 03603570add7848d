"""Every operation as its equation reads. Short, obvious, slow: the definition that all else is tested against.

B batch, H heads, Hkv key-value heads, T time, D head width, C model width, F feed-forward width, V vocabulary,
N = B·T tokens. Sums and statistics are taken in at least float32 whatever the inputs, in float64 for float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import (
    check_attention,
    check_decode,
    check_loss,
    check_norm,
    check_packed,
    check_swiglu,
    check_swiglu_unpacked,
)
from kernels.dropout import keep_mask


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale + causal mask) v (Vaswani et al. 2017, equation 1).

    q (B, H, Tq, D); k, v (B, Hkv, Tk, D) with Hkv a divisor of H (grouped queries: head h reads h // (H / Hkv));
    Tq <= Tk, q being the last Tq rows. scale: 1/sqrt(D) unless given. Returns (B, H, Tq, D) in the dtype of q.
    With dropout_p > 0 attention weights are dropped by kernels.dropout's mask for dropout_seed, and the rest are
    divided by 1 - dropout_p. Raises ValueError when Tq > Tk, H is no multiple of Hkv, or the seed is missing.
    """
    check_attention(q, k, v, dropout_p, dropout_seed)
    B, H, Tq, D = q.shape
    Tk = k.shape[2]
    k, v = (x.repeat_interleave(H // k.shape[1], dim=1) for x in (k, v))  # (B, H, Tk, D)
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(D) if scale is None else scale)  # (B, H, Tq, Tk)
    rows = torch.arange(Tk - Tq, Tk, device=q.device)
    columns = torch.arange(Tk, device=q.device)
    scores = scores.masked_fill(columns > rows[:, None], -math.inf)
    weights = _wide(scores).softmax(dim=-1)
    if dropout_p > 0:
        mask = keep_mask(dropout_p, dropout_seed, B * H, rows, columns)  # type: ignore[arg-type]  # checked above
        keep = mask.view(B, H, Tq, Tk)
        weights = weights * keep / (1 - dropout_p)
    return weights.to(q.dtype) @ v


def causal_attention_packed(qkv: Tensor, n_heads: int, n_kv_heads: int | None = None, **options) -> Tensor:
    """causal_attention over a packed projection: qkv (B, T, (H + 2·Hkv)·D) as q | k | v; returns (B, T, H·D)."""
    q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)
    return causal_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, scale: float | None = None
) -> Tensor:
    """Attention of one new query row against a cache of keys and values of which `lengths` are filled.

    q (B, H, 1, D); k_cache, v_cache (B, Hkv, S, D); lengths (B,) integers in 0..S. Returns (B, H, 1, D), zero where
    the length is 0.
    """
    check_decode(q, k_cache, v_cache, lengths)
    H, D = q.shape[1], q.shape[3]
    k, v = (x.repeat_interleave(H // k_cache.shape[1], dim=1) for x in (k_cache, v_cache))
    filled = torch.arange(k.shape[2], device=q.device) < lengths[:, None]  # (B, S)
    filled = filled[:, None, None, :]
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(D) if scale is None else scale)  # (B, H, 1, S)
    weights = _wide(scores).masked_fill(~filled, -math.inf).softmax(dim=-1)
    weights = weights.masked_fill(~filled, 0.0)  # an empty cache gives 0/0 above
    v = v.masked_fill(~filled.transpose(-2, -1), 0.0)  # what lies past the length may be anything, NaN included
    return weights.to(q.dtype) @ v


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias over the last dimension (Ba et al. 2016), in the dtype of x.

    x (..., C); weight, bias (C,) in any floating dtype. The variance is the biased one.
    """
    check_norm("layer_norm", x, weight, bias)
    wide = _wide(x)
    mean = wide.mean(dim=-1, keepdim=True)
    var = (wide - mean).square().mean(dim=-1, keepdim=True)
    y = (wide - mean) * torch.rsqrt(var + eps) * weight
    return (y if bias is None else y + bias).to(x.dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) with s = x + residual, both in the dtype of residual. x, residual (..., C)."""
    check_norm("add_layer_norm", x, weight, bias, residual)
    total = (residual + x).to(residual.dtype)
    return layer_norm(total, weight, bias, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019), in the dtype of x."""
    check_norm("rms_norm", x, weight, None)
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual, both in the dtype of residual. x, residual (..., C)."""
    check_norm("add_rms_norm", x, weight, None, residual)
    total = (residual + x).to(residual.dtype)
    return rms_norm(total, weight, eps), total


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, equation 5). gate_up (..., 2F) as gate | up; returns (..., F)."""
    check_swiglu(gate_up)
    return swiglu_unpacked(*gate_up.chunk(2, dim=-1))


def swiglu_unpacked(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up for gate and up apart, each (..., F)."""
    check_swiglu_unpacked(gate, up)
    gate_, up_ = _wide(gate), _wide(up)
    return (gate_ * torch.sigmoid(gate_) * up_).to(gate.dtype)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk: int | None = None
) -> Tensor:
    """Mean of -log softmax(hidden weightᵀ)[target] over the targets that count, as a 0-d tensor of at least float32.

    hidden (N, C); weight (V, C); targets (N,) int64, of which those equal to ignore_index do not count. With none
    that counts the loss is 0 and so is every gradient. chunk bounds the rows whose logits are alive together; in this
    plain version only where no gradient is wanted.

    A target that is neither in 0..V-1 nor ignore_index raises IndexError here and in the torch backend on a CPU; on a
    GPU PyTorch's loss ends with a device-side assertion. The triton backend, which asks the device nothing, makes the
    loss and every gradient NaN.
    """
    check_loss(hidden, weight, targets, chunk)
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for h, t in zip(hidden.split(chunk or len(hidden)), targets.split(chunk or len(targets)), strict=True):
        logits = _wide(h @ weight.T)  # (chunk, V)
        total = total + F.cross_entropy(logits, t, ignore_index=ignore_index, reduction="sum")
    return total / (targets != ignore_index).sum().clamp(min=1)


def unpack_heads(qkv: Tensor, n_heads: int, n_kv_heads: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Views q (B, H, T, D), k, v (B, Hkv, T, D) into a packed projection (B, T, (H + 2·Hkv)·D). Copies nothing."""
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    check_packed(qkv, n_heads, n_kv_heads)
    # The split comes before the swap of T and heads, for in the backward pass the gradients of the parts are then put
    # together in the order of qkv. After it they would be put together as (B, H + 2·Hkv, T, D), and copied once more.
    parts = qkv.unflatten(-1, (n_heads + 2 * n_kv_heads, -1)).split((n_heads, n_kv_heads, n_kv_heads), dim=2)
    q, k, v = (x.transpose(1, 2) for x in parts)
    return q, k, v


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """A view (B, H, T, D) into (B, T, H·D)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
