"""The same operations through PyTorch's own fused operators. Shapes and meaning: kernels/reference.py."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels import reference
from kernels.arguments import check_attention, check_decode, check_loss, check_norm, check_swiglu, check_swiglu_unpacked
from kernels.reference import unpack_heads

# In bfloat16 on a CPU attention's parts are faster than PyTorch's fused operator up to this length. Forward and
# backward, 2048 rows of 4 heads of 32, one core with AMX: 22 against 5 ms at 64, 18 against 12 at 256, 24 against 20 at
# 512, 28 against 67 at 1024. In float32 the fused operator is faster at every length.
CPU_PARTS = 512


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
) -> Tensor:
    check_attention(q, k, v, dropout_p, dropout_seed)
    if dropout_p > 0:
        # scaled_dot_product_attention draws its own mask, which no other backend could draw again: the weights are
        # made explicit instead, so that the choice of kernels never changes the model that comes out.
        return reference.causal_attention(q, k, v, scale=scale, dropout_p=dropout_p, dropout_seed=dropout_seed)
    q, scale = _with_positive_scale(q, scale)
    Tq, Tk, grouped = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and Tk <= CPU_PARTS:
        return _attention_by_parts(q, k, v, scale)
    if Tq == Tk:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    mask = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)  # its is_causal aligns q with the first
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def _with_positive_scale(q: Tensor, scale: float | None) -> tuple[Tensor, float | None]:
    """q and a scale that is none or above 0, for the same scores: at others PyTorch's causal operator for CPUs gives
    NaN, masking before it scales."""
    if scale is None or scale > 0:
        return q, scale
    return (-q, -scale) if scale < 0 else (q * 0, 1.0)


def _attention_by_parts(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    Tq, Tk, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (k, v))
    mask = torch.full((Tq, Tk), -math.inf, dtype=q.dtype, device=q.device).triu(
        1 + Tk - Tq
    )  # cheaper added than filled
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1) + mask
    return scores.softmax(dim=-1) @ v


def causal_attention_packed(qkv: Tensor, n_heads: int, n_kv_heads: int | None = None, **options) -> Tensor:
    q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)
    return causal_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, scale: float | None = None
) -> Tensor:
    check_decode(q, k_cache, v_cache, lengths)
    q, scale = _with_positive_scale(q, scale)
    grouped = q.shape[1] != k_cache.shape[1]
    if q.device.type == "cpu" and not torch.compiler.is_compiling() and len(lengths):
        shortest, longest = (int(n) for n in lengths.aminmax())  # no device is waited for
        k_cache, v_cache = k_cache[:, :, :longest], v_cache[:, :, :longest]
        if shortest == longest > 0:
            return F.scaled_dot_product_attention(q, k_cache, v_cache, scale=scale, enable_gqa=grouped)
    filled = (torch.arange(k_cache.shape[2], device=q.device) < lengths[:, None])[:, None, None, :]
    v = v_cache.masked_fill(~filled.transpose(-2, -1), 0.0)  # 0 · NaN is NaN: what lies past the length may be anything
    k = k_cache.masked_fill(~filled.transpose(-2, -1), 0.0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=filled, scale=scale, enable_gqa=grouped)
    return out.masked_fill((lengths == 0)[:, None, None, None], 0.0)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    check_norm("layer_norm", x, weight, bias)
    if x.device.type != "cpu":  # CUDA's operator wants one dtype for all; the parameters are stored in float32
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    check_norm("add_layer_norm", x, weight, bias, residual)
    total = (residual + x).to(residual.dtype)
    return layer_norm(total, weight, bias, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    check_norm("rms_norm", x, weight, None)
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    check_norm("add_rms_norm", x, weight, None, residual)
    total = (residual + x).to(residual.dtype)
    return rms_norm(total, weight, eps), total


def swiglu(gate_up: Tensor) -> Tensor:
    check_swiglu(gate_up)
    return swiglu_unpacked(*gate_up.chunk(2, dim=-1))


def swiglu_unpacked(gate: Tensor, up: Tensor) -> Tensor:
    check_swiglu_unpacked(gate, up)
    return F.silu(gate) * up


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk: int | None = None
) -> Tensor:
    check_loss(hidden, weight, targets, chunk)
    valid = (targets != ignore_index).sum().clamp(min=1)
    if chunk is None or chunk >= len(hidden):
        return _summed_loss(hidden, weight, targets, ignore_index) / valid
    parts = [
        checkpoint(_summed_loss, h, weight, t, ignore_index, use_reentrant=False)  # logits are made again backward
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.stack(parts).sum() / valid


def _summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    logits = hidden @ weight.T  # (rows, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
