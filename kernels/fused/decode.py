"""Attention of one new query a sequence against a cache of keys and values: what generation spends its time on.

    out = softmax(q kᵀ · scale) v        over the first lengths[b] rows of the cache

q, out (B, H, 1, D); k_cache, v_cache (B, Hkv, S, D), head h reading cache head h // (H / Hkv); lengths (B,) of 0 to S,
and zeros come out where the length is 0. What lies past a length is never read. The work is to read the cache once, so
the heads of a group share what is read, and the keys of a sequence are split among programs until the chip is full:
each sums its part relative to its own largest score, and a second kernel merges the parts, which stays exact where
they differ by any size and where a part is empty. (Dao et al. 2023, Flash-Decoding; Milakov and Gimelshein 2018.)

Where the splits lie depends on S, B and Hkv, never on the lengths: nothing is asked of the device, and a captured
graph serves every length. There is no backward.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_decode
from kernels.fused import tuning
from kernels.fused.operators import cdiv, differentiable, next_power_of_2
from kernels.fused.tiles import head_offset, load_tile

LOG2_E = math.log2(math.e)
MAX_WIDTH = 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
VARYING = ("H", "S", "n_splits", "split_keys")  # change from call to call: not worth a compilation of their own


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=VARYING)
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, m_ptr, l_ptr,
    stride_qb, stride_qh, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt, stride_ob, stride_oh,
    H, S, n_splits, split_keys, scale_log2,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGNED: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr, RISING: tl.constexpr, MERGED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One split of one cache head: the rows of a tile are the GROUP query heads that share it.

    Writes out (B, H, D) where there is one split (MERGED). Else, in float32, the sums of weights times values as parts
    (B, H, n_splits, D), m, the largest score before scaling, and l, the sum of weights (B, H, n_splits).
    """
    split = tl.program_id(0) % n_splits
    kv_head = tl.program_id(0) // n_splits
    b, h_kv = kv_head // (H // GROUP), kv_head % (H // GROUP)
    k_ptr += head_offset(b, h_kv, stride_kb, stride_kh, ALIGNED)
    v_ptr += head_offset(b, h_kv, stride_vb, stride_vh, ALIGNED)

    member = tl.arange(0, BLOCK_G)
    columns = tl.arange(0, BLOCK_D)
    head = h_kv * GROUP + member
    inside = (member < GROUP)[:, None] & (columns < D)[None, :]
    at = tl.cast(b, tl.int64) * stride_qb + head.to(tl.int64)[:, None] * stride_qh + columns[None, :]
    q = tl.load(q_ptr + at, mask=inside, other=0.0)

    start = split * split_keys
    length = tl.load(lengths_ptr + b).to(tl.int32)
    end = tl.minimum(tl.minimum(start + split_keys, S), length)
    acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    for start_n in tl.range(start, end, BLOCK_N):
        k = load_tile(k_ptr, stride_kt, start_n, end, BLOCK_N, D, BLOCK_D, INDEX, True)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_G, BLOCK_N)
        if not RISING:  # the scale is negative: scale_log2 is its size
            s = -s
        s = tl.where((start_n + tl.arange(0, BLOCK_N) < end)[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # of scores that are all -inf: -inf - -inf is NaN
        p = tl.exp2((s - shift[:, None]) * scale_log2)  # scaled last: nothing is rounded to the size of the scores
        alpha = tl.exp2((m - shift) * scale_log2)
        l = l * alpha + tl.sum(p, 1)
        v = load_tile(v_ptr, stride_vt, start_n, end, BLOCK_N, D, BLOCK_D, INDEX, True)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new
    row = tl.cast(b, tl.int64) * H + head
    if MERGED:
        at = tl.cast(b, tl.int64) * stride_ob + head.to(tl.int64)[:, None] * stride_oh + columns[None, :]
        acc = acc / tl.where(length > 0, l, 1.0)[:, None]  # zeros where the length is 0
        tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        at = row * n_splits + split
        tl.store(out_ptr + at[:, None] * D + columns[None, :], acc, mask=inside)
        tl.store(m_ptr + at, m, mask=member < GROUP)
        tl.store(l_ptr + at, l, mask=member < GROUP)


@triton.jit(do_not_specialize=VARYING)
def _merge_kernel(
    parts_ptr, m_ptr, l_ptr, lengths_ptr, out_ptr, stride_ob, stride_oh, H, n_splits, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """out = Σ w · part / Σ w · l over the splits of one head, w = 2^((m - largest m) · scale); 0 if the length is."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in tl.range(0, n_splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        m = tl.load(m_ptr + row * n_splits + split, mask=split < n_splits, other=float("-inf"))
        l = tl.load(l_ptr + row * n_splits + split, mask=split < n_splits, other=0.0)
        before = largest
        largest = tl.maximum(largest, tl.max(m, 0))
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        weight = tl.exp2((m - shift) * scale_log2)
        rescale = tl.exp2((before - shift) * scale_log2)
        inside = (split < n_splits)[:, None] & (columns < D)[None, :]
        parts = tl.load(parts_ptr + (row * n_splits + split)[:, None] * D + columns[None, :], mask=inside, other=0.0)
        acc = acc * rescale + tl.sum(weight[:, None] * parts, 0)
        total = total * rescale + tl.sum(weight * l, 0)
    total = tl.where(tl.load(lengths_ptr + row // H) > 0, total, 1.0)
    at = row // H * stride_ob + row % H * stride_oh + columns
    tl.store(out_ptr + at, (acc / total).to(out_ptr.dtype.element_ty), mask=columns < D)


# --- launcher ---------------------------------------------------------------------------------------------------------


def splits_of(S: int, cache_heads: int, programs: int, block: int) -> tuple[int, int]:
    """(number of splits, keys of a split): about `programs` programs in all, each of whole blocks of keys.

    S: rows of the cache; cache_heads: B·Hkv, which programs there are without splitting.
    """
    wanted = max(1, min(cdiv(programs, cache_heads), cdiv(S, block)))
    keys = cdiv(cdiv(S, wanted), block) * block
    return cdiv(S, keys), keys


def _launch(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    out = _new_output(q)
    (B, H, _, D), (_, Hkv, S, _) = q.shape, k.shape
    if out.numel() == 0 or S == 0:
        return out.zero_()
    dtype = "tf32" if q.dtype == torch.float32 and _tf32_allowed() else q.dtype
    config = dict(tuning.lookup("decode", q.device, dtype, width=D, length=S))
    n_splits, split_keys = splits_of(S, B * Hkv, config.pop("PROGRAMS"), config["BLOCK_N"])
    BLOCK_D = max(16, next_power_of_2(D))
    strides = [*q.stride()[:2], *k.stride()[:3], *v.stride()[:3]]
    scale_log2 = max(abs(scale) * LOG2_E, torch.finfo(torch.float32).tiny)  # never 0, for -inf · 0 is NaN
    lengths = lengths.contiguous()
    parts = m = l = None
    if n_splits > 1:
        parts = q.new_empty((B, H, n_splits, D), dtype=torch.float32)
        m, l = q.new_empty((2, B, H, n_splits), dtype=torch.float32)
    with tuning.device_guard(q):
        _decode_kernel[(B * Hkv * n_splits,)](
            q, k, v, lengths, out if parts is None else parts, m, l, *strides, *out.stride()[:2],
            H, S, n_splits, split_keys, scale_log2,
            GROUP=H // Hkv, BLOCK_G=max(16, next_power_of_2(H // Hkv)), D=D, BLOCK_D=BLOCK_D,
            ALIGNED=not any(stride % 8 for stride in strides[2:]),
            INDEX=tl.int64 if max(strides[4], strides[7]) * config["BLOCK_N"] > 2**31 - 1 else tl.int32,
            PRECISION="tf32" if dtype == "tf32" else "ieee", RISING=scale >= 0, MERGED=parts is None, **config,
        )  # fmt: skip
        if parts is not None:
            config = tuning.lookup("decode_merge", q.device, q.dtype, width=D, length=n_splits)
            _merge_kernel[(B * H,)](
                parts, m, l, lengths, out, *out.stride()[:2], H, n_splits, scale_log2, D=D, BLOCK_D=BLOCK_D, **config
            )
    return out


def _tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _new_output(q: Tensor) -> Tensor:
    """(B, H, 1, D), lying in memory as (B, 1, H, D), which the output projection reads with no copy."""
    B, H, _, D = q.shape
    return q.new_empty(B, 1, H, D).transpose(1, 2)


def _refuse(ctx, *_):
    raise RuntimeError("decode_attention has no gradient: it is for generation; train through causal_attention")


_decode = differentiable(
    "decode_attention", _launch, lambda q, *_: _new_output(q), lambda ctx, inputs, output: None, _refuse
)


# --- public -----------------------------------------------------------------------------------------------------------


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, scale: float | None = None
) -> Tensor:
    """kernels.reference.decode_attention, fused: q (B, H, 1, D) against caches (B, Hkv, S, D) to (B, H, 1, D).

    lengths (B,) int32 or int64 on the device of q; a length above S counts as S. Any strides with the last 1. Raises
    ValueError for shapes that do not go together, for other dtypes than float16, bfloat16 and float32 or a mixture, for
    a width above 256 and for a last stride other than 1.
    """
    check_decode(q, k_cache, v_cache, lengths)
    D = q.shape[-1]
    if q.dtype not in DTYPES or not q.dtype == k_cache.dtype == v_cache.dtype:
        raise ValueError(
            f"q is {q.dtype}, k_cache {k_cache.dtype} and v_cache {v_cache.dtype}; all must be one of float16, "
            "bfloat16, float32"
        )
    if D > MAX_WIDTH:
        raise ValueError(f"heads are {D} wide; the Triton kernels reach {MAX_WIDTH}, use the torch backend")
    for name, x in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        if x.stride(-1) != 1 and D > 1:
            raise ValueError(f"the last stride of {name} is {x.stride(-1)}; it must be 1, make {name} contiguous first")
    return _decode(q, k_cache, v_cache, lengths, 1 / math.sqrt(D) if scale is None else scale)
