"""Causal attention in tiles, forward and backward, without ever holding the (T, T) weights.

    S = q kᵀ · scale,  P = softmax(S + causal mask),  Z = keep mask / (1 - dropout_p),  out = (P ∘ Z) v
    dv = (P ∘ Z)ᵀ do,  dS = P ∘ (do vᵀ ∘ Z - delta),  delta = rowsum(do ∘ out),  dq = dS k · scale,  dk = dSᵀ q · scale

q, out (B, H, Tq, D); k, v (B, Hkv, Tk, D), head h reading key-value head h // (H / Hkv); Tq <= Tk, q being the last Tq
rows. float16, bfloat16 or float32; any strides but the last, which is 1. Products are accumulated in float32 and the
softmax is float32 throughout, in base 2, which is the exponential the hardware has. The forward saves
lse (B, H, Tq) = log2 of the sum of 2^(S · log2 e) along each row, from which the backward makes P again.

Online softmax: Milakov and Gimelshein 2018; tiles and recomputation: Dao 2023 (FlashAttention-2), algorithms 1 and 2.
Every element of a gradient has one program that sums it in one order (dq by rows; dk, dv by columns, the heads of a
group in turn), so results are the same bits at every run.
"""

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import dropout
from kernels.arguments import check_attention
from kernels.fused import tuning
from kernels.fused.autocast import autocast_dtype
from kernels.fused.operators import cdiv, differentiable, next_power_of_2, operator
from kernels.fused.tiles import (
    dropout_keeps,
    dropout_row_keys,
    head_offset,
    load_tile,
    next_tile,
    place_of_head,
    store_tile,
    tile_descriptor,
)  # fmt: skip
from kernels.reference import split_heads, unpack_heads

LOG2_E = math.log2(math.e)
MAX_WIDTH = 256
MAX_BLOCK = 256  # rows of a tile
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
VARYING = ("H", "Tq", "Tk", "dropout_threshold")  # change from call to call: not worth a compilation of their own


# --- kernels ---------------------------------------------------------------------------------------------------------
#
# A program owns BLOCK_M query rows or BLOCK_N key rows of one head. Programs of one head are neighbours, so that they
# find its other tensors in the L2 cache, and start with the longest rows (or columns), so that the last to run are
# short. All are on grid x: y and z end at 65,535.


@triton.jit(do_not_specialize=VARYING)
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, k_tiles, v_tiles, out_ptr, lse_ptr, seed_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot,
    H, Tq, Tk, scale_log2, dropout_threshold, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, DROPOUT: tl.constexpr, BITS: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, RISING: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(Tq, BLOCK_M)
    head = tl.program_id(0) // n_blocks
    start_m = (n_blocks - 1 - tl.program_id(0) % n_blocks) * BLOCK_M
    b, h = head // H, head % H
    q_ptr += head_offset(b, h, stride_qb, stride_qh, ALIGNED)
    k_ptr += head_offset(b, h // GROUP, stride_kb, stride_kh, ALIGNED)
    v_ptr += head_offset(b, h // GROUP, stride_vb, stride_vh, ALIGNED)
    out_ptr += head_offset(b, h, stride_ob, stride_oh, ALIGNED)
    k_row, k_column = place_of_head(k_tiles, b, h // GROUP, stride_kb, stride_kh, stride_kt)
    v_row, v_column = place_of_head(v_tiles, b, h // GROUP, stride_vb, stride_vh, stride_vt)
    lse_ptr += head.to(tl.int64) * Tq

    offs_m = start_m + tl.arange(0, BLOCK_M)
    rows = Tk - Tq + offs_m  # positions in the sequence of the keys: row r sees columns 0 to r
    row_keys = dropout_row_keys(seed_ptr, head, rows) if DROPOUT else rows
    q = load_tile(q_ptr, stride_qt, start_m, Tq, BLOCK_M, D, BLOCK_D, INDEX, not EVEN)

    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    whole = (Tk - Tq + start_m + 1) // BLOCK_N * BLOCK_N  # every row sees all of the tiles before this column
    last = tl.minimum(Tk - Tq + start_m + BLOCK_M, Tk)
    for DIAGONAL in tl.static_range(2):  # the whole tiles without a mask, then those that the diagonal crosses
        for start_n in tl.range(whole if DIAGONAL else 0, last if DIAGONAL else whole, BLOCK_N):
            columns = start_n + tl.arange(0, BLOCK_N)
            k = next_tile(
                k_tiles, k_row, k_column, k_ptr, stride_kt, start_n, Tk, BLOCK_N, D, BLOCK_D, INDEX,
                DIAGONAL and not EVEN,
            )  # fmt: skip
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            if not RISING:  # the largest of s is not the largest of s · scale: scale before it is sought
                s = s * scale_log2
            factor = scale_log2 if RISING else 1.0
            if DIAGONAL:
                s = tl.where(columns[None, :] <= rows[:, None], s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * factor)
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # of scores that are all -inf: -inf - -inf is NaN
            p = tl.exp2(s * factor - shift[:, None])  # one fused multiply-add and one exponential an element
            alpha = tl.exp2(m - shift)
            l = l * alpha + tl.sum(p, 1)
            if DROPOUT:
                p = tl.where(dropout_keeps(row_keys[:, None], columns[None, :], dropout_threshold, BITS), p, 0.0)
            v = next_tile(
                v_tiles, v_row, v_column, v_ptr, stride_vt, start_n, Tk, BLOCK_N, D, BLOCK_D, INDEX,
                DIAGONAL and not EVEN,
            )  # fmt: skip
            acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
            m = m_new
    tl.store(lse_ptr + offs_m, m + tl.log2(l), mask=offs_m < Tq)
    store_tile(out_ptr, stride_ot, start_m, Tq, acc * (keep_scale / l)[:, None], BLOCK_M, D, BLOCK_D, INDEX)


@triton.jit(do_not_specialize=VARYING)
def _query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, k_tiles, v_tiles, out_ptr, do_ptr, lse_ptr, delta_ptr, row_keys_ptr, dq_ptr, seed_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot, stride_dob, stride_doh, stride_dot, stride_dqb, stride_dqh, stride_dqt,
    H, Tq, Tk, scale, scale_log2, dropout_threshold, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, DROPOUT: tl.constexpr, BITS: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(Tq, BLOCK_M)
    head = tl.program_id(0) // n_blocks
    start_m = (n_blocks - 1 - tl.program_id(0) % n_blocks) * BLOCK_M
    b, h = head // H, head % H
    q_ptr += head_offset(b, h, stride_qb, stride_qh, ALIGNED)
    k_ptr += head_offset(b, h // GROUP, stride_kb, stride_kh, ALIGNED)
    v_ptr += head_offset(b, h // GROUP, stride_vb, stride_vh, ALIGNED)
    out_ptr += head_offset(b, h, stride_ob, stride_oh, ALIGNED)
    do_ptr += head_offset(b, h, stride_dob, stride_doh, ALIGNED)
    dq_ptr += head_offset(b, h, stride_dqb, stride_dqh, ALIGNED)
    k_row, k_column = place_of_head(k_tiles, b, h // GROUP, stride_kb, stride_kh, stride_kt)
    v_row, v_column = place_of_head(v_tiles, b, h // GROUP, stride_vb, stride_vh, stride_vt)
    lse_ptr += head.to(tl.int64) * Tq
    delta_ptr += head.to(tl.int64) * Tq

    offs_m = start_m + tl.arange(0, BLOCK_M)
    rows = Tk - Tq + offs_m
    row_keys = dropout_row_keys(seed_ptr, head, rows) if DROPOUT else rows
    if DROPOUT:  # dK and dV read them: made anew for each of its tiles they would cost more than the products
        tl.store(row_keys_ptr + head.to(tl.int64) * Tq + offs_m, row_keys.to(tl.int32, bitcast=True), offs_m < Tq)
    do = load_tile(do_ptr, stride_dot, start_m, Tq, BLOCK_M, D, BLOCK_D, INDEX, not EVEN)
    out = load_tile(out_ptr, stride_ot, start_m, Tq, BLOCK_M, D, BLOCK_D, INDEX, not EVEN)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + offs_m, delta, mask=offs_m < Tq)
    lse = tl.load(lse_ptr + offs_m, mask=offs_m < Tq, other=0.0)
    q = load_tile(q_ptr, stride_qt, start_m, Tq, BLOCK_M, D, BLOCK_D, INDEX, not EVEN)

    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    whole = (Tk - Tq + start_m + 1) // BLOCK_N * BLOCK_N
    last = tl.minimum(Tk - Tq + start_m + BLOCK_M, Tk)
    for DIAGONAL in tl.static_range(2):
        for start_n in tl.range(whole if DIAGONAL else 0, last if DIAGONAL else whole, BLOCK_N):
            columns = start_n + tl.arange(0, BLOCK_N)
            k = next_tile(
                k_tiles, k_row, k_column, k_ptr, stride_kt, start_n, Tk, BLOCK_N, D, BLOCK_D, INDEX,
                DIAGONAL and not EVEN,
            )  # fmt: skip
            v = next_tile(
                v_tiles, v_row, v_column, v_ptr, stride_vt, start_n, Tk, BLOCK_N, D, BLOCK_D, INDEX,
                DIAGONAL and not EVEN,
            )  # fmt: skip
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            p = tl.exp2(s * scale_log2 - lse[:, None])
            if DIAGONAL:
                p = tl.where(columns[None, :] <= rows[:, None], p, 0.0)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            if DROPOUT:
                kept = dropout_keeps(row_keys[:, None], columns[None, :], dropout_threshold, BITS)
                dp = tl.where(kept, dp * keep_scale, 0.0)
            ds = p * (dp - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    store_tile(dq_ptr, stride_dqt, start_m, Tq, dq * scale, BLOCK_M, D, BLOCK_D, INDEX)


@triton.jit(do_not_specialize=VARYING)
def _key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, q_tiles, do_tiles, do_ptr, lse_ptr, delta_ptr, row_keys_ptr, dk_ptr, dv_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_dob, stride_doh, stride_dot, stride_dkb, stride_dkh, stride_dkt, stride_dvb, stride_dvh, stride_dvt,
    H, Tq, Tk, scale, scale_log2, dropout_threshold, keep_scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, DROPOUT: tl.constexpr, BITS: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(Tk, BLOCK_N)
    kv_head = tl.program_id(0) // n_blocks
    start_n = tl.program_id(0) % n_blocks * BLOCK_N
    b, h_kv = kv_head // (H // GROUP), kv_head % (H // GROUP)
    head = kv_head * GROUP  # the first of the group, whose heads are neighbours
    q_ptr += head_offset(b, h_kv * GROUP, stride_qb, stride_qh, ALIGNED)
    do_ptr += head_offset(b, h_kv * GROUP, stride_dob, stride_doh, ALIGNED)
    lse_ptr += head.to(tl.int64) * Tq
    delta_ptr += head.to(tl.int64) * Tq
    row_keys_ptr += head.to(tl.int64) * Tq
    k_ptr += head_offset(b, h_kv, stride_kb, stride_kh, ALIGNED)
    v_ptr += head_offset(b, h_kv, stride_vb, stride_vh, ALIGNED)
    dk_ptr += head_offset(b, h_kv, stride_dkb, stride_dkh, ALIGNED)
    dv_ptr += head_offset(b, h_kv, stride_dvb, stride_dvh, ALIGNED)

    columns = start_n + tl.arange(0, BLOCK_N)
    k = load_tile(k_ptr, stride_kt, start_n, Tk, BLOCK_N, D, BLOCK_D, INDEX, not EVEN)
    v = load_tile(v_ptr, stride_vt, start_n, Tk, BLOCK_N, D, BLOCK_D, INDEX, not EVEN)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    offset = Tk - Tq  # query row r stands at position offset + r and sees the columns up to there
    first = tl.maximum(start_n - offset, 0) // BLOCK_M * BLOCK_M
    whole = tl.cdiv(tl.maximum(start_n + BLOCK_N - 1 - offset, 0), BLOCK_M) * BLOCK_M  # from here on all is seen
    for DIAGONAL in tl.static_range(2):
        start = first if DIAGONAL else whole
        n_tiles = tl.cdiv(tl.maximum((tl.minimum(whole, Tq) if DIAGONAL else Tq) - start, 0), BLOCK_M)
        for turn in tl.range(0, n_tiles * GROUP):  # the heads of the group in one loop: two nested ones would spill
            member = turn // n_tiles if GROUP > 1 else 0
            start_m = start + (turn % n_tiles if GROUP > 1 else turn) * BLOCK_M
            offs_m = start_m + tl.arange(0, BLOCK_M)
            rows = offset + offs_m
            q_head = q_ptr + head_offset(0, member, 0, stride_qh, ALIGNED)
            do_head = do_ptr + head_offset(0, member, 0, stride_doh, ALIGNED)
            numbers = tl.cast(member, tl.int64) * Tq + offs_m
            row, column = place_of_head(q_tiles, b, h_kv * GROUP + member, stride_qb, stride_qh, stride_qt)
            q = next_tile(q_tiles, row, column, q_head, stride_qt, start_m, Tq, BLOCK_M, D, BLOCK_D, INDEX, not EVEN)
            row, column = place_of_head(do_tiles, b, h_kv * GROUP + member, stride_dob, stride_doh, stride_dot)
            do = next_tile(
                do_tiles, row, column, do_head, stride_dot, start_m, Tq, BLOCK_M, D, BLOCK_D, INDEX, not EVEN
            )
            if EVEN:  # masks in this loop would cost it half as many instructions again
                lse, delta = tl.load(lse_ptr + numbers), tl.load(delta_ptr + numbers)
            else:
                lse = tl.load(lse_ptr + numbers, mask=offs_m < Tq, other=float("inf"))  # past the end p is 2^-inf = 0
                delta = tl.load(delta_ptr + numbers, mask=offs_m < Tq, other=0.0)
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M): transposed, so that
            p = tl.exp2(s * scale_log2 - lse[None, :])  # p and ds are left operands and stay in registers
            if DIAGONAL:
                p = tl.where(columns[:, None] <= rows[None, :], p, 0.0)
            weights = p
            if DROPOUT:
                if EVEN:
                    row_keys = tl.load(row_keys_ptr + numbers)
                else:
                    row_keys = tl.load(row_keys_ptr + numbers, mask=offs_m < Tq, other=0)
                row_keys = row_keys.to(tl.uint32, bitcast=True)
                kept = dropout_keeps(row_keys[None, :], columns[:, None], dropout_threshold, BITS)
                weights = tl.where(kept, p, 0.0)
            dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            if DROPOUT:
                dp = tl.where(kept, dp * keep_scale, 0.0)
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    store_tile(dk_ptr, stride_dkt, start_n, Tk, dk * scale, BLOCK_N, D, BLOCK_D, INDEX)
    store_tile(dv_ptr, stride_dvt, start_n, Tk, dv * keep_scale, BLOCK_N, D, BLOCK_D, INDEX)


# --- launchers -------------------------------------------------------------------------------------------------------


def _launch_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, dropout_p: float, seed: Tensor | None
) -> None:
    B, H, Tq, D = q.shape
    if out.numel() == 0:
        return
    config = dict(tuning.lookup("attention_forward", q.device, _arithmetic(q.dtype), width=D, length=k.shape[2]))
    by_tma = config.pop("TMA", 0) and _even(q, k, config)
    tiles = (tile_descriptor(x, config["BLOCK_N"]) if by_tma else None for x in (k, v))
    with tuning.device_guard(q):
        _forward_kernel[(B * H * cdiv(Tq, config["BLOCK_M"]),)](
            q, k, v, *tiles, out, lse, seed, *_strides(q, k, v, out), **_settings(q, k, scale, dropout_p, q, k, v, out),
            EVEN=_even(q, k, config), RISING=scale > 0, **config,
        )  # fmt: skip


def _launch_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    scale: float, dropout_p: float, seed: Tensor | None,
) -> None:  # fmt: skip
    B, H, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    if k.numel() == 0:
        return
    if do.stride(-1) != 1:
        do = do.contiguous()
    delta = torch.empty_like(lse)
    row_keys = torch.empty_like(lse, dtype=torch.int32) if dropout_p > 0 else delta
    arithmetic = _arithmetic(q.dtype)
    settings = dict(_settings(q, k, scale, dropout_p, q, k, v, out, do, dq, dk, dv), scale=scale)
    with tuning.device_guard(q):
        if Tq:
            config = dict(tuning.lookup("attention_backward_q", q.device, arithmetic, width=D, length=Tk))
            by_tma = config.pop("TMA", 0) and _even(q, k, config)
            tiles = (tile_descriptor(x, config["BLOCK_N"]) if by_tma else None for x in (k, v))
            _query_gradient_kernel[(B * H * cdiv(Tq, config["BLOCK_M"]),)](
                q, k, v, *tiles, out, do, lse, delta, row_keys, dq, seed, *_strides(q, k, v, out, do, dq),
                EVEN=_even(q, k, config), **settings, **config,
            )  # fmt: skip
        config = dict(tuning.lookup("attention_backward_kv", q.device, arithmetic, width=D, length=Tk))
        by_tma = config.pop("TMA", 0) and _even(q, k, config)
        tiles = (tile_descriptor(x, config["BLOCK_M"]) if by_tma else None for x in (q, do))
        _key_gradient_kernel[(B * Hkv * cdiv(Tk, config["BLOCK_N"]),)](
            q, k, v, *tiles, do, lse, delta, row_keys, dk, dv, *_strides(q, k, v, do, dk, dv),
            EVEN=_even(q, k, config), **settings, **config,
        )  # fmt: skip


def _even(q: Tensor, k: Tensor, config: Mapping[str, int]) -> bool:
    """Whether tiles end where the sequences do, so that nothing needs a mask but the diagonal."""
    return q.shape[2] % config["BLOCK_M"] == 0 and k.shape[2] % config["BLOCK_N"] == 0


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _settings(q: Tensor, k: Tensor, scale: float, dropout_p: float, *tensors: Tensor) -> dict[str, object]:
    """The arguments that all three kernels share, by name."""
    (_, H, Tq, D), (_, Hkv, Tk, _) = q.shape, k.shape
    strides = _strides(*tensors)
    between_rows = max(strides[2::3])
    return {
        "H": H,
        "Tq": Tq,
        "Tk": Tk,
        "scale_log2": scale * LOG2_E,
        "dropout_threshold": dropout.threshold(dropout_p),
        "keep_scale": 1 / (1 - dropout_p),
        "GROUP": H // Hkv,
        "D": D,
        "BLOCK_D": max(16, next_power_of_2(D)),
        "DROPOUT": dropout_p > 0,
        "BITS": dropout.BITS,
        "ALIGNED": not any(stride % 8 for stride in strides),
        "INDEX": tl.int64 if between_rows * MAX_BLOCK > 2**31 - 1 else tl.int32,  # of the rows of one tile
        "PRECISION": "tf32" if _arithmetic(q.dtype) == "tf32" else "ieee",
    }


def _arithmetic(dtype: torch.dtype) -> torch.dtype | str:
    """What tl.dot multiplies in: dtype, or "tf32" where the user allowed PyTorch's own matrix products to."""
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else dtype


# --- autograd and registration ---------------------------------------------------------------------------------------
#
# Four operators: attention of separate and of packed tensors, and their backwards. What they return is made by
# functions that the fake implementations share, so that torch.compile sees the very strides that will come.


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q is {q.dtype}, k {k.dtype} and v {v.dtype}; all must be one of float16, bfloat16, float32")
    if q.shape[-1] > MAX_WIDTH:
        raise ValueError(f"heads are {q.shape[-1]} wide; the Triton kernels reach {MAX_WIDTH}, use the torch backend")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(f"the last stride of {name} is {x.stride(-1)}; it must be 1, make {name} contiguous first")


def _new_like(x: Tensor) -> Tensor:
    """Uninitialised, with the strides of x where x is dense, and a last stride of 1 always."""
    new = torch.empty_like(x)
    return new if new.stride(-1) == 1 else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _new_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """out (B, H, T, D), lying in memory as (B, T, H, D), which the output projection reads with no copy; and lse."""
    B, H, Tq, D = q.shape
    return q.new_empty(B, Tq, H, D).transpose(1, 2), q.new_empty(B, H, Tq, dtype=torch.float32)


def _launch_apart(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check_tensors(q, k, v)
    out, lse = _new_outputs(q)
    _launch_forward(q, k, v, out, lse, scale, dropout_p, seed)
    return out, lse


def _fake_apart(q, k, v, scale, dropout_p, seed):
    _check_tensors(q, k, v)
    return _new_outputs(q)


def _launch_apart_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = _new_like(q), _new_like(k), _new_like(v)
    _launch_backward(do, q, k, v, out, lse, dq, dk, dv, scale, dropout_p, seed)
    return dq, dk, dv


def _fake_apart_backward(do, q, k, v, *_):
    return _new_like(q), _new_like(k), _new_like(v)


def _launch_packed(
    qkv: Tensor, n_heads: int, n_kv_heads: int, scale: float, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)
    _check_tensors(q, k, v)
    out, lse = _new_outputs(q)
    _launch_forward(q, k, v, out, lse, scale, dropout_p, seed)
    return out.transpose(1, 2).flatten(2), lse


def _fake_packed(qkv, n_heads, n_kv_heads, scale, dropout_p, seed):
    q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)
    _check_tensors(q, k, v)
    out, lse = _new_outputs(q)
    return out.transpose(1, 2).flatten(2), lse


def _launch_packed_backward(
    do: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, n_heads: int, n_kv_heads: int, scale: float, dropout_p: float,
    seed: Tensor | None,
) -> Tensor:  # fmt: skip
    dqkv = _new_like(qkv)
    q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)
    dq, dk, dv = unpack_heads(dqkv, n_heads, n_kv_heads)
    do, out = split_heads(do, n_heads), split_heads(out, n_heads)
    _launch_backward(do, q, k, v, out, lse, dq, dk, dv, scale, dropout_p, seed)
    return dqkv


def _fake_packed_backward(do, qkv, *_):
    return _new_like(qkv)


_apart_backward = operator("causal_attention_backward", _launch_apart_backward, _fake_apart_backward)
_packed_backward = operator("causal_attention_packed_backward", _launch_packed_backward, _fake_packed_backward)


def _save_apart(ctx, inputs, output):
    q, k, v, ctx.scale, ctx.dropout_p, seed = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, seed)


def _differentiate_apart(ctx, do, _):
    q, k, v, out, lse, seed = ctx.saved_tensors
    return *_apart_backward(do, q, k, v, out, lse, ctx.scale, ctx.dropout_p, seed), None, None, None


def _save_packed(ctx, inputs, output):
    qkv, *ctx.settings, seed = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, out, lse, seed)


def _differentiate_packed(ctx, do, _):
    qkv, out, lse, seed = ctx.saved_tensors
    return _packed_backward(do, qkv, out, lse, *ctx.settings, seed), None, None, None, None, None


_apart = differentiable("causal_attention", _launch_apart, _fake_apart, _save_apart, _differentiate_apart)
_packed = differentiable("causal_attention_packed", _launch_packed, _fake_packed, _save_packed, _differentiate_packed)


# --- what a model calls ----------------------------------------------------------------------------------------------


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
) -> Tensor:
    """kernels.reference.causal_attention, fused: q (B, H, Tq, D), k, v (B, Hkv, Tk, D) to (B, H, Tq, D).

    The result lies in memory as (B, Tq, H, D). Under autocast the inputs are cast to its dtype, as PyTorch's own
    attention casts them. Raises ValueError as the reference does, and for another dtype than float16, bfloat16 and
    float32, a width above 256, or a last stride other than 1 (nothing is copied behind your back).
    """
    check_attention(q, k, v, dropout_p, dropout_seed)
    q, k, v = (_autocast(x) for x in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return _apart(q, k, v, scale, dropout_p, _seed_tensor(dropout_p, dropout_seed, q.device))[0]


def causal_attention_packed(
    qkv: Tensor,
    n_heads: int,
    n_kv_heads: int | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
) -> Tensor:
    """causal_attention over a packed projection: qkv (B, T, (H + 2·Hkv)·D) as q | k | v to (B, T, H·D).

    q, k and v are read where they lie, and the gradient of qkv is written as one tensor. Raises as causal_attention.
    """
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)
    check_attention(q, k, v, dropout_p, dropout_seed)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    seed = _seed_tensor(dropout_p, dropout_seed, qkv.device)
    return _packed(_autocast(qkv), n_heads, n_kv_heads, scale, dropout_p, seed)[0]


def _autocast(x: Tensor) -> Tensor:
    dtype = autocast_dtype(x)
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)


def _seed_tensor(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    """A 0-d int64 tensor that the kernels read on the device: a replayed graph uses whatever it then holds."""
    if dropout_p == 0:
        return None
    if isinstance(seed, Tensor):
        return seed.to(device, torch.int64)
    return torch.full((), seed, dtype=torch.int64, device=device)  # a fill, where a copy from the host would wait
