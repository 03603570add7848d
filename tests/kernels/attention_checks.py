"""Inputs for attention, and what it is held against."""

from functools import partial

import pytest
import torch
from error_rule import assert_close_by_rule
from op_checks import small_after_the_first

pytest.importorskip("triton")

from kernels import reference
from kernels.fused import attention

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SEED = -(2**62) + 12345  # both halves of its 64 bits matter


def draw(shapes, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]


def with_gradients(op, inputs, dtype, upstream, **options):
    """The output of op and the gradients of its inputs, all computed in dtype."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = op(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(dtype))]


def hold_the_rule(inputs, dtype, upstream, **options):
    """Inputs and upstream are rounded to dtype first: all three computations start from the same numbers."""
    inputs, upstream = [x.to(dtype) for x in inputs], upstream.to(dtype)
    fused = with_gradients(attention.causal_attention, inputs, dtype, upstream, **options)
    plain = partial(with_gradients, reference.causal_attention, inputs, dtype, upstream, **options)
    ref64 = with_gradients(reference.causal_attention, inputs, torch.float64, upstream, **options)
    assert_close_by_rule(fused, plain, ref64, ("out", "dq", "dk", "dv"))


def small_after_the_first_tile(what, dtype, Tq, Tk):
    """q (1, 1, Tq, 16) and k, v (1, 1, Tk, 16). The "values" (or "weights") of the first 16 keys are 1, all others a
    quarter of the dtype's last place of 1. To be called with a scale of 1."""
    size = small_after_the_first(Tk // 16, dtype, "cpu").repeat_interleave(16, 0)
    q, k, v = (torch.zeros(1, 1, T, 16, dtype=torch.float64) for T in (Tq, Tk, Tk))
    q[..., 0] = 1
    if what == "values":
        v += size
    else:  # v is 0 for the first keys, so that the sum of weights alone begins with the large one
        k[..., :1] = size.log()
        v[:, :, 16:] = 1
    return q, k, v


def heads_of(B, H, Hkv, Tq, Tk, D, device, seed=0):
    return draw([(B, H, Tq, D), (B, Hkv, Tk, D), (B, Hkv, Tk, D), (B, H, Tq, D)], device, seed)


def packed(n_heads, n_kv_heads, module=attention):
    return lambda qkv, **options: module.causal_attention_packed(qkv, n_heads, n_kv_heads, **options)
