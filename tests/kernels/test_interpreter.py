"""bfloat16 in Triton's interpreter behaves as PyTorch's, which behaves as the hardware."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from kernels import fused, interpreter

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="about the interpreter")
assert fused  # importing it mends the interpreter


def test_rounding_is_to_the_nearest_even_for_every_pattern_of_the_bits_dropped():
    high = np.array([0x0000, 0x0001, 0x3F80, 0x3F81, 0x7F7F, 0x8000, 0xBF81, 0xFF7F], dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values = (high[:, None] | low).view(np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(interpreter.narrow(values), expected)


def test_infinities_and_nans_survive_both_ways():
    values = np.array([np.inf, -np.inf, np.nan, -np.nan], dtype=np.float32)
    values = np.concatenate([values, np.array([0x7F800001], dtype=np.uint32).view(np.float32)])
    back = interpreter.widen(interpreter.narrow(values))
    assert np.array_equal(back, values, equal_nan=True)


@triton.jit
def _product(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    a = tl.load(a_ptr + rows * SIZE + columns)
    b = tl.load(b_ptr + rows * SIZE + columns)
    tl.store(out_ptr + rows * SIZE + columns, tl.dot(a, b).to(tl.bfloat16))


def test_a_dot_multiplies_values_and_a_cast_rounds():
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.empty_like(a)
    _product[(1,)](a, b, out, 16)
    assert torch.equal(out, (a.float() @ b.float()).bfloat16())


@triton.jit
def _sum_of_rows(x_ptr, out_ptr, n, SIZE: tl.constexpr):
    total = tl.zeros((SIZE,), tl.float32)
    for row in range(tl.load(n)):
        total += tl.load(x_ptr + row * SIZE + tl.arange(0, SIZE)).to(tl.float32)
    tl.store(out_ptr + tl.arange(0, SIZE), total)


def test_a_loop_may_be_bounded_by_a_number_that_was_loaded():
    x, out = torch.ones(3, 16, dtype=torch.bfloat16), torch.empty(16)
    _sum_of_rows[(1,)](x, out, torch.tensor(3), 16)
    assert torch.equal(out, torch.full((16,), 3.0))


def test_mending_twice_changes_nothing():
    before = triton.runtime.interpreter.InterpreterBuilder.create_dot
    interpreter.mend()
    assert triton.runtime.interpreter.InterpreterBuilder.create_dot is before


@triton.jit
def _doubled(x):
    return x * 2


@triton.jit
def _doubled_often(out_ptr, times):
    x = tl.load(out_ptr)
    for _ in range(times):
        x = _doubled(x)
    tl.store(out_ptr, x)


def test_the_language_is_looked_through_once_a_launch_and_put_back(monkeypatch):
    """And not at every call of a device function, of which an attention kernel has hundreds."""
    looked, stock = [], triton.runtime.interpreter._patch_builtin
    monkeypatch.setattr(triton.runtime.interpreter, "_patch_builtin", lambda *a: looked.append(a[0]) or stock(*a))
    counts = []
    for times in (1, 9):
        looked.clear()
        out = torch.ones(1)
        _doubled_often[(1,)](out, times)
        assert out.item() == 2**times and tl.core.is_builtin(tl.load)
        counts.append(len(looked))
    assert counts[0] == counts[1] > 0
