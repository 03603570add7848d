"""SwiGLU as kernels, packed and apart: the reference's values and gradients for any shape, stride and dtype."""

import importlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import (
    DTYPES,
    assert_agrees,
    assert_compiles_whole,
    assert_same_bits_twice,
    cuda_autocast_dtypes,
    far_memory,  # noqa: F401
    force_config,
    fresh,
    run_program,
)

from kernels import fused, reference

module = importlib.import_module("kernels.fused.swiglu")  # the package's attribute of this name is the operation

OPS = {"packed": (fused.swiglu, reference.swiglu), "apart": (fused.swiglu_unpacked, reference.swiglu_unpacked)}


def case(form: str, shape, dtype, device):
    """Inputs and upstream gradient; `shape` is that of the result."""
    make = partial(fresh, dtype=dtype, device=device)
    if form == "packed":
        return [3 * make(0, (*shape[:-1], 2 * shape[-1]))], [make(9, shape)]
    return [3 * make(0, shape), make(1, shape)], [make(9, shape)]


@pytest.mark.parametrize("shape", [(1, 1), (4, 7), (5, 1365), (2, 3, 512), (3, 1024)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", OPS)
def test_values_and_gradients_keep_the_error_rule(form, dtype, shape, device, nan_filled_empties):
    assert_agrees(*OPS[form], *case(form, shape, dtype, device))


@settings(max_examples=30, derandomize=True)
@given(
    form=st.sampled_from(list(OPS)),
    leading=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    width=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
)
def test_values_and_gradients_keep_the_error_rule_on_drawn_shapes(form, leading, width, dtype, device):
    assert_agrees(*OPS[form], *case(form, (*leading, width), dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gates_give_zero_or_pass_the_value_and_never_nan(dtype, device):
    largest = torch.finfo(dtype).max
    gate = torch.tensor([-largest, -1e4, -100.0, -0.0, 0.0, 100.0, 1e4, largest], device=device).to(dtype)
    up = torch.full_like(gate, 0.5)
    assert_agrees(*OPS["apart"], [gate, up], [torch.ones_like(gate)])
    assert fused.swiglu_unpacked(gate, up).tolist()[:2] == [0.0, 0.0]


def test_gate_and_up_of_two_dtypes_give_that_of_the_gate(device):
    (gate, up), (dout,) = case("apart", (3, 40), torch.float32, device)
    assert_agrees(*OPS["apart"], [gate.bfloat16(), up], [dout.bfloat16()])


@pytest.mark.parametrize(
    "layout",
    [
        lambda make: make((2, 8, 48))[:, 2:5],
        lambda make: make((2, 3, 100))[..., 7:55],
        lambda make: make((3, 2, 48)).transpose(0, 1),
        lambda make: make((1, 1, 48)).expand(2, 3, 48),
        lambda make: make((48, 3, 2)).transpose(0, 2),
    ],
    ids=["a slice in time", "columns of a wider tensor", "time before batch", "one row for all", "transposed"],
)
def test_inputs_and_upstream_gradients_of_any_stride(layout, device):
    x, dout = (layout(partial(fresh, i, dtype=torch.float32, device=device)) for i in range(2))
    assert_agrees(*OPS["packed"], [x], [dout[..., :24]])
    assert_agrees(*OPS["apart"], [x, dout], [dout])
    assert_agrees(*OPS["packed"], [x], [dout[:1, :1, :1].expand(2, 3, 24)])


def test_the_halves_of_a_packed_projection_are_not_copied(device, monkeypatch):
    seen = []
    forward = module._forward
    monkeypatch.setattr(module, "_forward", lambda gate, up: seen.append((gate, up)) or forward(gate, up))
    x = fresh(0, (3, 40), torch.float32, device)
    fused.swiglu(x)
    assert [(t.data_ptr(), t.stride()) for t in seen[0]] == [(x.data_ptr() + 80 * i, (40, 1)) for i in range(2)]


@pytest.mark.parametrize("form", OPS)
def test_the_inputs_are_left_as_they_were(form, device):
    inputs, upstream = case(form, (3, 40), torch.float32, device)
    before = [x.clone() for x in (*inputs, *upstream)]
    assert_same_bits_twice(OPS[form][0], inputs, upstream)
    assert all(torch.equal(a, b) for a, b in zip(before, (*inputs, *upstream), strict=True))


def test_blocks_that_start_and_end_in_the_middle_of_rows(device, monkeypatch, nan_filled_empties):
    force_config(monkeypatch, BLOCK=16)
    for width in (1, 5, 16, 21):
        assert_agrees(*OPS["packed"], *case("packed", (7, width), torch.float32, device))


def test_no_rows_at_all(device):
    x = torch.ones(0, 3, 8, device=device, requires_grad=True)
    fused.swiglu(x).sum().backward()
    assert x.grad.shape == (0, 3, 8)


def test_what_is_no_gate_and_up_is_refused_in_one_sentence(device):
    with pytest.raises(ValueError, match="width of 7"):
        fused.swiglu(torch.ones(2, 7, device=device))
    with pytest.raises(ValueError, match="shapes must be equal"):
        fused.swiglu_unpacked(torch.ones(2, 8, device=device), torch.ones(1, 8, device=device))
    with pytest.raises(ValueError, match="float64"):
        fused.swiglu(torch.ones(2, 8, device=device, dtype=torch.float64))


@pytest.mark.parametrize("form", OPS)
def test_a_second_backward_raises(form, device):
    inputs, upstream = case(form, (3, 20), torch.float32, device)
    leaves = [x.requires_grad_() for x in inputs]
    y = OPS[form][0](*leaves)
    y.backward(*upstream)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(*upstream)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(OPS[form][0](*leaves), leaves, *upstream, create_graph=True)


@pytest.mark.parametrize("form", OPS)
def test_a_change_in_place_of_what_the_backward_needs_raises(form, device):
    inputs, upstream = case(form, (3, 20), torch.float32, device)
    y = OPS[form][0](*(x.requires_grad_() for x in inputs))
    with torch.no_grad():
        inputs[-1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(*upstream)


@pytest.mark.parametrize("form", OPS)
def test_torch_compile_traces_it_whole(form):
    assert_compiles_whole(OPS[form][0], case(form, (2, 3, 64), torch.bfloat16, "cpu")[0])


@pytest.mark.parametrize("form", OPS)
def test_opcheck(form, device):
    inputs, upstream = case(form, (3, 16), torch.bfloat16, device)
    name = "swiglu" if form == "packed" else "swiglu_unpacked"
    torch.library.opcheck(getattr(torch.ops.minilm, name).default, tuple(x.clone().requires_grad_() for x in inputs))
    torch.library.opcheck(getattr(torch.ops.minilm, name + "_backward").default, (*upstream, *inputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_gives_the_dtype_of_pytorchs_own_operations(dtype):
    inputs, _ = case("apart", (3, 16), dtype, "cpu")
    ours = cuda_autocast_dtypes(fused.swiglu_unpacked, inputs, torch.bfloat16)
    assert ours == cuda_autocast_dtypes(lambda gate, up: F.silu(gate) * up, inputs, torch.bfloat16) == [dtype]


def test_rows_may_lie_more_than_2_to_the_31_elements_apart(far_memory):  # noqa: F811
    apart = far_memory.as_strided((3, 24), (2**30, 1), 2**31)
    x = fresh(0, (3, 24), torch.float16, "cpu")
    apart.copy_(x)
    for near, far in (((x,), (apart,)), ((x[:, :12], x[:, 12:]), (apart[:, :12], apart[:, 12:]))):
        op = torch.ops.minilm.swiglu if len(near) == 1 else torch.ops.minilm.swiglu_unpacked
        backward = torch.ops.minilm.swiglu_backward if len(near) == 1 else torch.ops.minilm.swiglu_unpacked_backward
        assert torch.equal(op(*near), op(*far))
        for a, b in zip(backward(near[0][:, :12], *near), backward(far[0][:, :12], *far), strict=True):
            assert torch.equal(a, b)


def test_results_may_pass_2_to_the_31_elements(far_memory):  # noqa: F811
    width = 1000
    program = 2**31 // 1024 + 1
    start = program * 1024
    n_rows = start // width + 1  # the program's elements run to the end of the last row, and beyond
    gate, up = (fresh(i, (1, width), torch.float16, "cpu") for i in range(2))
    end = n_rows * width
    out = far_memory[2**31 :]
    run_program(module._swiglu_forward, program, gate, up, out, n_rows, 1, 0, 0, 0, 0, F=width, BLOCK=1024)
    expected = fused.swiglu_unpacked(gate, up)[0, start % width :]
    assert torch.equal(out[start:end], expected) and not out[end : end + 1024].any()

    dgate = far_memory[2**31 :]
    dup = torch.empty(2048, dtype=torch.float16)
    run_program(
        module._swiglu_backward, program, up, gate, up, dgate, dup, n_rows, 1, 0, 0, 0, 0, 0, 0, width, 0,
        F=width, BLOCK=1024,
    )  # fmt: skip
    expected, _ = torch.ops.minilm.swiglu_unpacked_backward(up, gate, up)
    assert torch.equal(dgate[start:end], expected[0, start % width :])
