"""The output projection and its cross-entropy in one operation that never holds the (N, V) logits whole.

    logits = hidden weightᵀ
    loss = Σ over rows that count of (log Σ_v exp logits_v - logits_target) / (number of rows that count)
    dlogits_v = softmax(logits)_v - [v = target]         before the division by that number

hidden (N, C); weight (V, C); targets (N,). Rows are taken in chunks. The logits of a chunk (one matrix product) are
turned into losses and, in place, into dlogits; two more products make of those the chunk's rows of the gradient of
hidden and its share of that of weight, summed in float32. Gradients are thus ready when the forward ends; the
backward only scales them, by the incoming gradient over the number of rows that count. That scale is kept out of
dlogits, which in float16 would lose everything below 6e-8 · N.

Rows of the logits lie a multiple of 64 elements apart whatever V is, so that the kernel moves 128 bits at a time for
V = 50257 too; the matrix libraries ask more for their best, that V itself be a multiple of 8, and get a weight that is
padded by rows of zeros. Nothing is asked of the device: no value ever comes back to the host.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from kernels.arguments import check_loss
from kernels.fused import tuning
from kernels.fused.autocast import autocast_dtype
from kernels.fused.operators import cdiv, differentiable, operator
from kernels.fused.rows import check_dtypes

CHUNK_LOGITS = 2**27  # alive together by default: 256 MiB in 16 bits. See default_chunk.


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _logits(row_ptr, start, V: tl.constexpr, PADDED: tl.constexpr, BLOCK_V: tl.constexpr, TAIL: tl.constexpr):
    """Columns from `start` on, and their logits; of the last block -inf from V on, whatever the padding holds."""
    v = start + tl.arange(0, BLOCK_V)
    if TAIL:  # loads are masked by PADDED, whose alignment keeps them wide, values by V
        x = tl.load(row_ptr + v, v < PADDED, other=0.0).to(tl.float32)
        x = tl.where(v < V, x, float("-inf"))
    else:
        x = tl.load(row_ptr + v).to(tl.float32)
    return v, x


@triton.jit
def _loss_and_dlogits(
    logits_ptr, targets_ptr, losses_ptr, target_stride, ignore_index,
    V: tl.constexpr, PADDED: tl.constexpr, BLOCK_V: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """One row a program. What is done for every logit decides the time: masks in the last block alone, the test for
    the target in its own block alone, and exponentials in base 2, which is the one that the hardware has."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * PADDED
    target = tl.load(targets_ptr + row * target_stride)
    WHOLE: tl.constexpr = V // BLOCK_V * BLOCK_V
    if target == ignore_index:
        tl.store(losses_ptr + row, 0.0)
        if GRADIENT:
            for start in range(0, PADDED, BLOCK_V):
                v = start + tl.arange(0, BLOCK_V)
                tl.store(row_ptr + v, tl.zeros((BLOCK_V,), logits_ptr.dtype.element_ty), v < PADDED)
    else:
        known = (target >= 0) & (target < V)
        at_target = tl.load(row_ptr + target, known, other=float("nan")).to(tl.float32)
        largest = tl.full((), float("-inf"), tl.float32)
        shift = tl.full((), 0.0, tl.float32)
        totals = tl.zeros((BLOCK_V,), tl.float32)  # Σ exp(logits - shift) so far, of every BLOCK_V-th column
        for TAIL in tl.static_range(2):
            for start in range(WHOLE if TAIL else 0, V if TAIL else WHOLE, BLOCK_V):
                _, x = _logits(row_ptr, start, V, PADDED, BLOCK_V, TAIL)
                previous = largest
                largest = tl.maximum(largest, tl.max(x, 0))
                shift = tl.where(largest == float("-inf"), 0.0, largest)  # -inf - -inf would be NaN
                totals = totals * tl.exp2((previous - shift) * LOG2_E) + tl.exp2((x - shift) * LOG2_E)
        total = tl.sum(totals, 0)
        # never log total + shift: rounded to the size of the logits, it would lose the digits that count
        tl.store(losses_ptr + row, tl.log(total) - (at_target - shift))
        if GRADIENT:
            inverse = tl.where(known, 1.0 / total, float("nan"))
            for TAIL in tl.static_range(2):
                for start in range(WHOLE if TAIL else 0, V if TAIL else WHOLE, BLOCK_V):
                    v, x = _logits(row_ptr, start, V, PADDED, BLOCK_V, TAIL)
                    dlogits = tl.exp2((x - shift) * LOG2_E) * inverse
                    if (target >= start) & (target < start + BLOCK_V):
                        dlogits -= tl.where(v == target, 1.0, 0.0)
                    dlogits = dlogits.to(logits_ptr.dtype.element_ty)
                    if TAIL:
                        tl.store(row_ptr + v, dlogits, v < PADDED)
                    else:
                        tl.store(row_ptr + v, dlogits)


@triton.jit
def _scale(x_ptr, out_ptr, dloss_ptr, n_valid_ptr, n, BLOCK: tl.constexpr):
    """out = x · dloss / n_valid. In PyTorch's own product a 0-d float32 factor is first rounded to x's dtype."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(dloss_ptr).to(tl.float32) / tl.load(n_valid_ptr).to(tl.float32)
    x = tl.load(x_ptr + i, i < n).to(tl.float32)
    tl.store(out_ptr + i, (x * factor).to(out_ptr.dtype.element_ty), i < n)


# --- launchers --------------------------------------------------------------------------------------------------------


def default_chunk(vocab_size: int) -> int:
    """Rows of a chunk where the caller names none: as many as make 2^27 logits, in steps of 128 and at least 128.

    Every chunk reads and writes the (V, C) float32 gradient of the weight once. Next to its three products that costs
    355 / rows of their time (derived for 798 TFLOP/s and 3.0 TB/s): 14% for the 2560 rows of V = 50257. Fewer rows
    would save memory and lose time, more the reverse.
    """
    return max(CHUNK_LOGITS // vocab_size // 128 * 128, 128)


def _launch_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, chunk: int | None, dtype: torch.dtype,
    hidden_grad: bool, weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """loss, the number of rows that count, and the gradients of their sum; all products are taken in `dtype`."""
    _, _, dhidden, dweight = _empty_outputs(
        hidden, weight, targets, ignore_index, chunk, dtype, hidden_grad, weight_grad
    )
    N, V = len(hidden), len(weight)
    losses = hidden.new_empty(N, dtype=torch.float32)
    chunk = min(chunk or default_chunk(V), max(N, 1))
    padded = cdiv(V, 64) * 64
    buffer = hidden.new_empty((chunk, padded), dtype=dtype)
    config = tuning.lookup("cross_entropy", hidden.device, dtype, width=padded, length=N)
    total = dweight
    with tuning.device_guard(hidden):
        weight = weight.to(dtype)
        columns = V
        if V % 8 and N:
            columns, weight = padded, pad(weight, (0, 0, 0, padded - V))
            total = dweight.new_empty((padded, weight.shape[1]) if weight_grad else 0)
        if N == 0:
            dweight.zero_()
        for start in range(0, N, chunk):
            h = hidden[start : start + chunk].to(dtype)
            t = targets[start : start + chunk]
            logits = torch.mm(h, weight.t(), out=buffer[: len(h), :columns])
            _loss_and_dlogits[(len(h),)](
                buffer, t, losses[start : start + chunk], t.stride(0), ignore_index,
                V=V, PADDED=padded, GRADIENT=hidden_grad or weight_grad, **config,
            )  # fmt: skip
            if hidden_grad:
                torch.mm(logits, weight, out=dhidden[start : start + chunk])
            if weight_grad:
                _add_product(total, logits.t(), h, first=start == 0)
        n_valid = (targets != ignore_index).sum().clamp(min=1)
        return losses.sum() / n_valid, n_valid, dhidden, total[:V]


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a b with float32 sums, for a float32 total and a and b of any dtype; first: total = a b."""
    beta = 0 if first else 1  # 0: what total holds, NaN included, is not read
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype), beta=beta)  # out_dtype exists on CUDA only


def _empty_outputs(hidden, weight, targets, ignore_index, chunk, dtype, hidden_grad, weight_grad):
    loss = hidden.new_empty((), dtype=torch.float32)
    dhidden = hidden.new_empty(hidden.shape if hidden_grad else 0, dtype=dtype)
    dweight = weight.new_empty(weight.shape if weight_grad else 0, dtype=torch.float32)
    return loss, targets.new_empty(()), dhidden, dweight


def _launch_backward(
    dloss: Tensor, n_valid: Tensor, dhidden: Tensor, dweight: Tensor, hidden_dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scaled = _empty_gradients(dloss, n_valid, dhidden, dweight, hidden_dtype, weight_dtype)
    for x, out in zip((dhidden, dweight), scaled, strict=True):
        if x.numel() > 0:
            config = tuning.lookup("cross_entropy_scale", x.device, x.dtype, width=x.shape[1], length=x.shape[0])
            with tuning.device_guard(x):
                _scale[(cdiv(x.numel(), config["BLOCK"]),)](x, out, dloss, n_valid, x.numel(), **config)
    return scaled


def _empty_gradients(dloss, n_valid, dhidden, dweight, hidden_dtype, weight_dtype):
    return dhidden.new_empty(dhidden.shape, dtype=hidden_dtype), dweight.new_empty(dweight.shape, dtype=weight_dtype)


# --- registration and autograd ----------------------------------------------------------------------------------------

_backward = operator("linear_cross_entropy_backward", _launch_backward, _empty_gradients)


def _save(ctx, inputs, output):
    hidden, weight, *_ = inputs
    _, n_valid, dhidden, dweight = output
    ctx.mark_non_differentiable(n_valid, dhidden, dweight)
    ctx.save_for_backward(n_valid, dhidden, dweight)
    ctx.dtypes = hidden.dtype, weight.dtype


def _differentiate(ctx, dloss, *_):
    gradients = _backward(dloss, *ctx.saved_tensors, *ctx.dtypes)
    wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad[:2], strict=True))
    return *wanted, *(None,) * 6


_forward = differentiable("linear_cross_entropy", _launch_forward, _empty_outputs, _save, _differentiate)


# --- public -----------------------------------------------------------------------------------------------------------


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk: int | None = None
) -> Tensor:
    """Mean of -log softmax(hidden weightᵀ)[target] over the targets that count, as a 0-d float32 tensor, in nats.

    hidden (N, C), weight (V, C): both float32, both float16 or both bfloat16; under autocast any of these, and the
    products are taken in autocast's dtype. targets (N,) int64, of which those equal to ignore_index do not count; with
    none that counts the loss is 0 and so is every gradient. Any other target outside 0..V-1 makes the loss and every
    gradient NaN and reads nothing out of bounds: asking the device would stall every step, so targets are checked where
    data is opened.
    chunk: rows whose logits are alive together, default_chunk(V) unless given. Without a gradient to come
    (torch.no_grad, frozen inputs) only the loss is calculated. Raises ValueError for shapes and dtypes that do not go
    together.
    """
    check_loss(hidden, weight, targets, chunk)
    check_dtypes("linear_cross_entropy", hidden, weight)
    dtype = autocast_dtype(hidden) or hidden.dtype
    if hidden.dtype != weight.dtype and autocast_dtype(hidden) is None:
        raise ValueError(f"linear_cross_entropy of {dtype} and {weight.dtype}; without autocast both must be the same")
    graph = torch.is_grad_enabled()
    loss, *_ = _forward(
        hidden, weight, targets, ignore_index, chunk, dtype, graph and hidden.requires_grad,
        graph and weight.requires_grad,
    )  # fmt: skip
    return loss
