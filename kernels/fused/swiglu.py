"""SwiGLU's activation, forward and backward, from one packed projection or from two tensors apart.

    out = silu(gate) · up,  silu(g) = g · σ(g)
    dup = dout · silu(gate),  dgate = dout · up · σ(gate) · (1 + gate · (1 - σ(gate)))

Packed: gate_up (..., 2F) holds gate | up, and so does its gradient; nothing is split or joined in memory, the kernels
are given the two halves as views. Arithmetic is float32. Nothing but the inputs is kept for the backward: σ is
calculated again, because reading it back would cost more than the exponential. (Shazeer 2020, equation 5.)
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_swiglu, check_swiglu_unpacked
from kernels.fused import tuning
from kernels.fused.operators import cdiv, differentiable, operator
from kernels.fused.rows import check_dtypes, fold_rows, row_offset

# --- kernels: flat programs over BLOCK elements of rows of F, whatever their number of rows ---------------------------


@triton.jit
def _row_and_column(F: tl.constexpr, BLOCK: tl.constexpr):
    """Of each of this program's elements. One 64-bit division a program, 32-bit ones by a constant an element."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    row = start // F
    offset = (start - row * F).to(tl.int32) + tl.arange(0, BLOCK)
    return row + offset // F, offset % F


@triton.jit(do_not_specialize=["n_rows"])
def _swiglu_forward(
    gate_ptr, up_ptr, out_ptr, n_rows, n_inner, gate_outer, gate_inner, up_outer, up_inner,
    F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, c = _row_and_column(F, BLOCK)
    mask = row < n_rows
    gate = tl.load(gate_ptr + row_offset(row, n_inner, gate_outer, gate_inner) + c, mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row_offset(row, n_inner, up_outer, up_inner) + c, mask, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * F + c, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["n_rows"])
def _swiglu_backward(
    dout_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, n_rows, n_inner,
    dout_outer, dout_inner, gate_outer, gate_inner, up_outer, up_inner, dgate_stride, dup_stride,
    F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, c = _row_and_column(F, BLOCK)
    mask = row < n_rows
    dout = tl.load(dout_ptr + row_offset(row, n_inner, dout_outer, dout_inner) + c, mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row_offset(row, n_inner, gate_outer, gate_inner) + c, mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row_offset(row, n_inner, up_outer, up_inner) + c, mask, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    silu = gate * sigma
    dgate = dout * up * (sigma + silu * (1 - sigma))
    tl.store(dgate_ptr + row * dgate_stride + c, dgate.to(dgate_ptr.dtype.element_ty), mask)
    tl.store(dup_ptr + row * dup_stride + c, (dout * silu).to(dup_ptr.dtype.element_ty), mask)


# --- launchers --------------------------------------------------------------------------------------------------------


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    out = gate.new_empty(gate.shape)
    if out.numel() > 0:
        F, n_rows = gate.shape[-1], gate[..., 0].numel()
        n_inner, (gate, up) = fold_rows(gate, up)
        config = tuning.lookup("swiglu_forward", gate.device, gate.dtype, width=F, length=n_rows)
        with tuning.device_guard(gate):
            _swiglu_forward[(cdiv(out.numel(), config["BLOCK"]),)](
                gate, up, out, n_rows, n_inner, *gate.stride()[:2], *up.stride()[:2], F=F, **config
            )
    return out


def _backward(dout: Tensor, gate: Tensor, up: Tensor, dgate: Tensor, dup: Tensor) -> None:
    """Fills dgate and dup, whose rows are evenly spaced."""
    if dgate.numel() > 0:
        F, n_rows = gate.shape[-1], gate[..., 0].numel()
        n_inner, (dout, gate, up) = fold_rows(dout, gate, up)
        dgate, dup = dgate.view(n_rows, F), dup.view(n_rows, F)
        config = tuning.lookup("swiglu_backward", gate.device, gate.dtype, width=F, length=n_rows)
        with tuning.device_guard(gate):
            _swiglu_backward[(cdiv(dgate.numel(), config["BLOCK"]),)](
                dout, gate, up, dgate, dup, n_rows, n_inner,
                *dout.stride()[:2], *gate.stride()[:2], *up.stride()[:2], dgate.stride(0), dup.stride(0), F=F, **config,
            )  # fmt: skip


# --- registration and autograd: packed --------------------------------------------------------------------------------


def _launch_packed(gate_up: Tensor) -> Tensor:
    return _forward(*gate_up.chunk(2, dim=-1))


def _launch_packed_backward(dout: Tensor, gate_up: Tensor) -> Tensor:
    dgate_up = gate_up.new_empty(gate_up.shape)
    _backward(dout, *gate_up.chunk(2, dim=-1), *dgate_up.chunk(2, dim=-1))
    return dgate_up


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


_packed_backward = operator("swiglu_backward", _launch_packed_backward, lambda _, x: x.new_empty(x.shape))
_packed = differentiable(
    "swiglu",
    _launch_packed,
    lambda x: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)),
    _save,
    lambda ctx, dout: _packed_backward(dout, *ctx.saved_tensors),
)

# --- registration and autograd: gate and up apart ---------------------------------------------------------------------


def _launch_unpacked_backward(dout: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = _empty_gradients(dout, gate, up)
    _backward(dout, gate, up, dgate, dup)
    return dgate, dup


def _empty_gradients(dout: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


_unpacked_backward = operator("swiglu_unpacked_backward", _launch_unpacked_backward, _empty_gradients)
_unpacked = differentiable(
    "swiglu_unpacked",
    _forward,
    lambda gate, up: gate.new_empty(gate.shape),
    _save,
    lambda ctx, dout: _unpacked_backward(dout, *ctx.saved_tensors),
)

# --- public -----------------------------------------------------------------------------------------------------------


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, equation 5). gate_up (..., 2F) as gate | up; returns (..., F) in its dtype.

    gate_up: float32, float16 or bfloat16, of any strides (a last one other than 1 costs a copy). Raises ValueError
    for an odd width and for other dtypes.
    """
    check_swiglu(gate_up)
    check_dtypes("swiglu", gate_up)
    return _packed(gate_up)


def swiglu_unpacked(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up for gate and up apart, each (..., F); in the dtype of gate. Otherwise as swiglu."""
    check_swiglu_unpacked(gate, up)
    check_dtypes("swiglu_unpacked", gate, up)
    return _unpacked(gate, up) if gate.ndim else _unpacked(gate[None], up[None])[0]
