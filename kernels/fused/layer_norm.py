"""LayerNorm and RMSNorm, alone and after a residual addition, forward and backward. One code for all four.

    s = x + residual                      in the dtype of the residual; s = x where there is none
    mean = Σ s / C                        0 for RMSNorm
    rstd = 1 / sqrt(Σ (s - mean)² / C + eps)
    y = (s - mean) · rstd · weight + bias

x, residual, s, y (..., C); weight, bias (C,). All arithmetic is float32, and mean and rstd stay float32 between the
passes. Backward, with x̂ = (s - mean) · rstd and g = dy · weight:

    ds = (g - x̂ · Σ g x̂ / C - Σ g / C) · rstd + (the gradient that arrives at s itself)
    dweight = Σ over rows of dy · x̂,  dbias = Σ over rows of dy

The second sum over g is absent for RMSNorm. ds is the gradient of both x and the residual. The sums over rows are
taken in two stages, in an order fixed by the table of kernels.fused.tuning: no atomics, the same bits on every run.
(Ba et al. 2016; Zhang and Sennrich 2019.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_norm
from kernels.fused import tuning
from kernels.fused.autocast import autocasts_to_float32
from kernels.fused.operators import cdiv, differentiable, next_power_of_2, operator
from kernels.fused.rows import check_dtypes, fold_rows, row_offset

MAX_WIDTH = 16_384  # a row must fit into the registers of one program
FUSED_WEIGHT_GRADS = 8192  # a wider row and two running sums of that width do not fit without spilling


# --- kernels: ROWS whole rows a program at a time ---------------------------------------------------------------------

VARYING = ("n_rows", "n_programs", "n_partials")  # from batch to batch: not worth a compilation of their own


@triton.jit(do_not_specialize=VARYING)
def _norm_forward(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, total_ptr, mean_ptr, rstd_ptr,
    n_rows, n_inner, x_outer, x_inner, residual_outer, residual_inner, eps,
    C: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
    CENTRED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    mask = (row < n_rows)[:, None] & (c < C)[None, :]
    dense = row[:, None] * C + c[None, :]

    at = row_offset(row, n_inner, x_outer, x_inner)
    x = tl.load(x_ptr + at[:, None] + c[None, :], mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = row_offset(row, n_inner, residual_outer, residual_inner)
        x += tl.load(residual_ptr + at[:, None] + c[None, :], mask, other=0.0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + dense, total, mask)
        x = total.to(tl.float32)  # what is normalised is what the next layer adds to, rounding included
    if CENTRED:
        mean = tl.sum(x, 1) / C
        tl.store(mean_ptr + row, mean, row < n_rows)
        x = tl.where(mask, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
    tl.store(rstd_ptr + row, rstd, row < n_rows)

    y = x * rstd[:, None] * tl.load(weight_ptr + c, c < C, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + c, c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + dense, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=VARYING)
def _norm_backward(
    dy_ptr, dtotal_ptr, s_ptr, weight_ptr, mean_ptr, rstd_ptr, ds_ptr, partials_ptr,
    n_rows, n_inner, n_programs, dy_outer, dy_inner, dtotal_outer, dtotal_inner, s_outer, s_inner,
    C: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
    CENTRED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DTOTAL: tl.constexpr, WEIGHT_GRADS: tl.constexpr,
):  # fmt: skip
    """ds of every n_programs-th block of rows, and the sums of dweight and dbias over those rows."""
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    weight = tl.load(weight_ptr + c, c < C, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_C,), tl.float32)
    dbias = tl.zeros((BLOCK_C,), tl.float32)
    for block in range(program, tl.cdiv(n_rows, ROWS), n_programs):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < n_rows)[:, None] & (c < C)[None, :]
        at = row_offset(row, n_inner, dy_outer, dy_inner)
        dy = tl.load(dy_ptr + at[:, None] + c[None, :], mask, other=0.0).to(tl.float32)
        at = row_offset(row, n_inner, s_outer, s_inner)
        normed = tl.load(s_ptr + at[:, None] + c[None, :], mask, other=0.0).to(tl.float32)
        if CENTRED:
            normed -= tl.load(mean_ptr + row, row < n_rows, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, row < n_rows, other=0.0)[:, None]
        normed *= rstd
        if WEIGHT_GRADS:
            dweight += tl.sum(dy * normed, 0)
            if HAS_BIAS:
                dbias += tl.sum(dy, 0)
        g = dy * weight[None, :]
        ds = g - normed * (tl.sum(g * normed, 1) / C)[:, None]
        if CENTRED:
            ds -= (tl.sum(g, 1) / C)[:, None]
        ds *= rstd
        if HAS_DTOTAL:
            at = row_offset(row, n_inner, dtotal_outer, dtotal_inner)
            ds += tl.load(dtotal_ptr + at[:, None] + c[None, :], mask, other=0.0).to(tl.float32)
        tl.store(ds_ptr + row[:, None] * C + c[None, :], ds.to(ds_ptr.dtype.element_ty), mask)
    if WEIGHT_GRADS:
        tl.store(partials_ptr + program.to(tl.int64) * C + c, dweight, c < C)
        if HAS_BIAS:
            tl.store(partials_ptr + (n_programs + program).to(tl.int64) * C + c, dbias, c < C)


@triton.jit(do_not_specialize=VARYING)
def _norm_weight_grads(
    dy_ptr, s_ptr, mean_ptr, rstd_ptr, partials_ptr,
    n_rows, n_inner, dy_outer, dy_inner, s_outer, s_inner,
    C: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, CENTRED: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The sums that _norm_backward leaves out for wide rows: BLOCK_C columns of every n_programs-th block of rows."""
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    dweight = tl.zeros((BLOCK_C,), tl.float32)
    dbias = tl.zeros((BLOCK_C,), tl.float32)
    for block in range(program, tl.cdiv(n_rows, ROWS), n_programs):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < n_rows)[:, None] & (c < C)[None, :]
        at = row_offset(row, n_inner, dy_outer, dy_inner)
        dy = tl.load(dy_ptr + at[:, None] + c[None, :], mask, other=0.0).to(tl.float32)
        at = row_offset(row, n_inner, s_outer, s_inner)
        normed = tl.load(s_ptr + at[:, None] + c[None, :], mask, other=0.0).to(tl.float32)
        if CENTRED:
            normed -= tl.load(mean_ptr + row, row < n_rows, other=0.0)[:, None]
        normed *= tl.load(rstd_ptr + row, row < n_rows, other=0.0)[:, None]
        dweight += tl.sum(dy * normed, 0)
        if HAS_BIAS:
            dbias += tl.sum(dy, 0)
    tl.store(partials_ptr + program.to(tl.int64) * C + c, dweight, c < C)
    if HAS_BIAS:
        tl.store(partials_ptr + (n_programs + program).to(tl.int64) * C + c, dbias, c < C)


@triton.jit(do_not_specialize=VARYING)
def _sum_partials(
    partials_ptr, dweight_ptr, dbias_ptr, n_partials, C: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr
):
    """The second stage: column sums of (1 or 2, n_partials, C), first to dweight, then to dbias."""
    which = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for start in range(0, n_partials, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < n_partials)[:, None] & (c < C)[None, :]
        at = (which * n_partials + row).to(tl.int64) * C
        sums += tl.load(partials_ptr + at[:, None] + c[None, :], mask, other=0.0)
    total = tl.sum(sums, 0)
    if which == 0:
        tl.store(dweight_ptr + c, total.to(dweight_ptr.dtype.element_ty), c < C)
    else:
        tl.store(dbias_ptr + c, total.to(dbias_ptr.dtype.element_ty), c < C)


# --- launchers --------------------------------------------------------------------------------------------------------


def _launch_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, centred: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y, total, mean, rstd = _empty_outputs(x, residual, weight, bias, eps, centred, out_dtype)
    C, n_rows = x.shape[-1], x[..., 0].numel()
    if n_rows == 0:
        return y, total, mean, rstd
    n_inner, (x, *rest) = fold_rows(*(t for t in (x, residual) if t is not None))
    residual = rest[0] if rest else None
    config = tuning.lookup("layer_norm_forward", x.device, x.dtype, width=C, length=n_rows)
    with tuning.device_guard(x):
        _norm_forward[(cdiv(n_rows, config["ROWS"]),)](
            x, residual, weight.contiguous(), None if bias is None else bias.contiguous(), y, total, mean, rstd,
            n_rows, n_inner, *_row_strides(x), *_row_strides(residual), eps,
            C=C, BLOCK_C=next_power_of_2(C),
            CENTRED=centred, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, **config,
        )  # fmt: skip
    return y, total, mean, rstd


def _launch_backward(
    dy: Tensor, dtotal: Tensor | None, s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    bias_dtype: torch.dtype | None, weight_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    ds, dweight, dbias = _empty_gradients(dy, dtotal, s, weight, mean, rstd, bias_dtype, weight_grads)
    C, n_rows = s.shape[-1], s[..., 0].numel()
    if n_rows == 0:
        return ds, dweight.zero_(), dbias.zero_()
    n_inner, (dy, s, *rest) = fold_rows(*(t for t in (dy, s, dtotal) if t is not None))
    dtotal = rest[0] if rest else None
    shape = {"C": C, "CENTRED": mean.numel() > 0, "HAS_BIAS": bias_dtype is not None}
    config = dict(tuning.lookup("layer_norm_backward", s.device, s.dtype, width=C, length=n_rows))
    n_partials = min(config.pop("PROGRAMS"), cdiv(n_rows, config["ROWS"]))
    fused = weight_grads and C <= FUSED_WEIGHT_GRADS
    partials = s.new_empty((1 + shape["HAS_BIAS"], n_partials, C) if fused else 0, dtype=torch.float32)
    with tuning.device_guard(s):
        _norm_backward[(n_partials,)](
            dy, dtotal, s, weight.contiguous(), mean, rstd, ds, partials,
            n_rows, n_inner, n_partials, *_row_strides(dy), *_row_strides(dtotal), *_row_strides(s),
            BLOCK_C=next_power_of_2(C), HAS_DTOTAL=dtotal is not None, WEIGHT_GRADS=fused, **shape, **config,
        )  # fmt: skip
        if not weight_grads:
            return ds, dweight, dbias
        if not fused:
            config = dict(tuning.lookup("layer_norm_weight_grads", s.device, s.dtype, width=C, length=n_rows))
            n_partials = min(config.pop("PROGRAMS"), cdiv(n_rows, config["ROWS"]))
            partials = s.new_empty((1 + shape["HAS_BIAS"], n_partials, C), dtype=torch.float32)
            _norm_weight_grads[(n_partials, cdiv(C, config["BLOCK_C"]))](
                dy, s, mean, rstd, partials, n_rows, n_inner, *_row_strides(dy), *_row_strides(s), **shape, **config
            )
        config = tuning.lookup("layer_norm_sum_partials", s.device, torch.float32, width=C, length=n_partials)
        _sum_partials[(cdiv(C, config["BLOCK_C"]), len(partials))](partials, dweight, dbias, n_partials, C=C, **config)
    return ds, dweight, dbias


def _row_strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else x.stride()[:2]


def _empty_outputs(x, residual, weight, bias, eps, centred, out_dtype):
    """y, total, mean and rstd before the kernel has run; what is not wanted has no elements."""
    n_rows = x.shape[:-1].numel()
    total = x.new_empty(0) if residual is None else residual.new_empty(x.shape)
    mean, rstd = (x.new_empty(n, dtype=torch.float32) for n in (n_rows if centred else 0, n_rows))
    return x.new_empty(x.shape, dtype=out_dtype), total, mean, rstd


def _empty_gradients(dy, dtotal, s, weight, mean, rstd, bias_dtype, weight_grads):
    """ds, dweight and dbias before the kernels have run; what is not wanted has no elements."""
    dweight = weight.new_empty(weight.shape if weight_grads else 0)
    dbias = weight.new_empty(weight.shape if weight_grads and bias_dtype else 0, dtype=bias_dtype)
    return s.new_empty(s.shape), dweight, dbias


# --- registration and autograd ----------------------------------------------------------------------------------------

_backward = operator("layer_norm_backward", _launch_backward, _empty_gradients)


def _save(ctx, inputs, output):
    x, residual, weight, bias, *_ = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x if residual is None else total, weight, mean, rstd)
    ctx.x_dtype, ctx.residual, ctx.bias_dtype = x.dtype, residual is not None, None if bias is None else bias.dtype


def _differentiate(ctx, dy, dtotal, dmean, drstd):
    _, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    s, weight, mean, rstd = ctx.saved_tensors
    dweight = dbias = None
    if dy is None:  # only x + residual was used
        ds = dtotal
    else:
        dtotal = dtotal if ctx.residual else None
        ds, dweight, dbias = _backward(dy, dtotal, s, weight, mean, rstd, ctx.bias_dtype, needs_weight or needs_bias)
    return (
        None if ds is None else ds.to(ctx.x_dtype),
        ds if ctx.residual else None,
        dweight if needs_weight else None,
        dbias if needs_bias else None,
        None, None, None,
    )  # fmt: skip


_forward = differentiable("layer_norm", _launch_forward, _empty_outputs, _save, _differentiate)


# --- public -----------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias over the last dimension (Ba et al. 2016), in the dtype of x.

    x (..., C) float32, float16 or bfloat16, of any strides (a last one other than 1 costs a copy); weight, bias (C,)
    in any of these dtypes. Under CUDA autocast the result is float32, as PyTorch's own is. Raises ValueError above
    C = 16,384, for other dtypes and for shapes that do not go together.
    """
    return _norm("layer_norm", x, weight, bias, eps, centred=True)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) with s = x + residual in the dtype of residual, in one pass over memory. As layer_norm."""
    return _norm("add_layer_norm", x, weight, bias, eps, residual, centred=True)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019). As layer_norm."""
    return _norm("rms_norm", x, weight, None, eps, centred=False)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual in the dtype of residual, in one pass over memory. As layer_norm."""
    return _norm("add_rms_norm", x, weight, None, eps, residual, centred=False)


def _norm(op: str, x, weight, bias, eps: float, *residual: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    check_norm(op, x, weight, bias, *residual)
    check_dtypes(op, x, *residual, weight, bias)
    C = x.shape[-1]
    if not 0 < C <= MAX_WIDTH:
        raise ValueError(f"{op} over a width of {C}; the fused kernel takes 1 to {MAX_WIDTH}, the other backends any")
    dtype = residual[0].dtype if residual else x.dtype
    if autocasts_to_float32(x):
        dtype = torch.float32
    y, total, *_ = _forward(x, residual[0] if residual else None, weight, bias, eps, centred, dtype)
    return y, total
