"""LayerNorm and RMSNorm as kernels: the reference's values and gradients, whatever shape, stride and dtype comes in."""

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
    small_after_the_first,
)

from kernels import fused, reference
from kernels.fused.rows import fold_rows

module = importlib.import_module("kernels.fused.layer_norm")  # the package's attribute of this name is the operation

OPS = ["layer_norm", "layer_norm without bias", "add_layer_norm", "rms_norm", "add_rms_norm"]


def both(op: str, eps: float = 1e-5):
    name = op.split()[0]
    return partial(getattr(fused, name), eps=eps), partial(getattr(reference, name), eps=eps)


def eps_for(width: int) -> float:
    """With a few elements a row and a small eps, the gradient of x is all cancellation and says nothing."""
    return 1e-5 if width >= 16 else 1.0


def case(op: str, shape, dtype, device, param_dtype=torch.float32, mean=0.0):
    """Inputs and upstream gradients of an operation."""
    n_x = 2 if op.startswith("add") else 1
    n_params = 2 if op in ("layer_norm", "add_layer_norm") else 1
    inputs = [fresh(i, shape, dtype, device, mean) for i in range(n_x)]
    inputs += [fresh(10 + i, shape[-1:], param_dtype, device, 1.0 - i) for i in range(n_params)]
    return inputs, [fresh(20 + i, shape, dtype, device) for i in range(n_x)]


@pytest.mark.parametrize(
    ("shape", "float32_parameters"),
    [((1, 1), True), ((5, 65), False), ((2, 3, 512), True), ((3, 1000), False)],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_values_and_gradients_keep_the_error_rule(op, dtype, shape, float32_parameters, device, nan_filled_empties):
    param_dtype = torch.float32 if float32_parameters else dtype
    assert_agrees(*both(op, eps_for(shape[-1])), *case(op, shape, dtype, device, param_dtype))


@settings(max_examples=30, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    leading=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    width=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    mean=st.sampled_from([0.0, -3.0, 50.0]),
)
def test_values_and_gradients_keep_the_error_rule_on_drawn_shapes(op, leading, width, dtype, mean, device):
    assert_agrees(*both(op, eps_for(width)), *case(op, (*leading, width), dtype, device, mean=mean))


@pytest.mark.parametrize(("op", "width"), [("add_layer_norm", 8193), ("rms_norm", module.MAX_WIDTH)])
def test_wide_rows_keep_the_error_rule(op, width, device, monkeypatch, nan_filled_empties):
    force_config(monkeypatch, BLOCK_C=4096)  # fewer programs: the interpreter's time
    assert_agrees(*both(op), *case(op, (3, width), torch.float32, device))


@pytest.mark.parametrize(("dtype", "mean"), [(torch.float32, 1e4), (torch.float16, 500.0), (torch.bfloat16, 60.0)])
def test_a_mean_far_above_the_deviation_costs_no_more_than_in_plain_pytorch(dtype, mean, device):
    assert_agrees(*both("layer_norm"), *case("layer_norm", (9, 384), dtype, device, mean=mean))


@pytest.mark.parametrize("rows", [1, 8, 37])
def test_weight_gradients_sum_every_row_whatever_the_number_of_programs(rows, device, monkeypatch, nan_filled_empties):
    force_config(monkeypatch, ROWS=2, PROGRAMS=4, BLOCK_C=16)
    assert_agrees(*both("add_layer_norm"), *case("add_layer_norm", (rows, 40), torch.float32, device))
    monkeypatch.setattr(module, "FUSED_WEIGHT_GRADS", 1)
    assert_agrees(*both("add_layer_norm"), *case("add_layer_norm", (rows, 40), torch.float32, device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("programs", [1, 33])
@pytest.mark.parametrize("wide", [False, True])
def test_what_each_of_many_rows_adds_to_a_weight_gradient_is_not_lost_to_rounding(
    wide, programs, dtype, device, monkeypatch
):
    """By one program, whose sum they are, or by one each, whose sums are added up in the second stage."""
    force_config(monkeypatch, ROWS=1, PROGRAMS=programs, BLOCK_C=16)
    if wide:
        monkeypatch.setattr(module, "FUSED_WEIGHT_GRADS", 1)
    (x, *parameters), (upstream,) = case("layer_norm", (1, 16), torch.float64, device, torch.float64)
    inputs = [x.expand(33, 16), *parameters]
    upstream = upstream * small_after_the_first(33, dtype, device)
    assert_agrees(*both("layer_norm"), [t.to(dtype) for t in inputs], [upstream.to(dtype)])


@pytest.mark.parametrize("op", ["add_layer_norm", "rms_norm"])
def test_two_runs_give_the_same_bits(op, device, monkeypatch):
    force_config(monkeypatch, PROGRAMS=4)
    assert_same_bits_twice(both(op)[0], *case(op, (33, 72), torch.bfloat16, device))


STRIDED = {
    "a slice in time": lambda make: make((2, 8, 24))[:, 2:5],
    "columns of a wider tensor": lambda make: make((2, 3, 60))[..., 7:31],
    "time before batch": lambda make: make((3, 2, 24)).transpose(0, 1),
    "one row for all": lambda make: make((1, 1, 24)).expand(2, 3, 24),
    "heads of a packed projection": lambda make: make((2, 3, 4 * 24)).view(2, 3, 4, 24)[:, :, 1:3],
    "every second row": lambda make: make((2, 6, 24))[:, ::2],
}


@pytest.mark.parametrize("layout", STRIDED)
def test_rows_are_read_where_they_lie(layout, device):
    x, residual = (STRIDED[layout](partial(fresh, i, dtype=torch.float32, device=device)) for i in range(2))
    assert [view.data_ptr() for view in fold_rows(x, residual)[1]] == [x.data_ptr(), residual.data_ptr()]
    inputs, upstream = case("add_layer_norm", tuple(x.shape), torch.float32, device)
    assert_agrees(*both("add_layer_norm"), [x, residual, *inputs[2:]], upstream)
    assert_agrees(*both("add_layer_norm"), inputs, [x, residual])  # as upstream gradients
    assert_agrees(*both("layer_norm"), [x, *inputs[2:]], [residual])


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),  # last stride not 1
        lambda x: x[:1, :1, :1].expand(x.shape),  # what .sum() sends back
        lambda x: x[..., :1].expand(x.shape),
        lambda x: x[None].expand(2, *x.shape).permute(2, 0, 1, 3)[:, 0],
    ],
    ids=["transposed", "one number", "one number a row", "permuted"],
)
def test_upstream_gradients_and_inputs_of_any_stride(layout, device):
    inputs, upstream = case("add_layer_norm", (2, 3, 24), torch.float32, device)
    inputs, upstream = [layout(x) if x.ndim == 3 else x for x in inputs], [layout(g) for g in upstream]
    assert_agrees(*both("add_layer_norm"), inputs, upstream)


def test_leading_strides_that_do_not_fold_are_copied_not_misread(device):
    x = fresh(0, (2, 5, 3, 24), torch.float32, device).transpose(1, 2)  # (2, 3, 5, 24), heads before time
    inputs, upstream = case("layer_norm", tuple(x.shape), torch.float32, device)
    assert_agrees(*both("layer_norm"), [x, *inputs[1:]], [upstream[0]])


@pytest.mark.parametrize("op", ["add_layer_norm", "add_rms_norm"])
@pytest.mark.parametrize("used", ["normed", "total"])
def test_gradients_when_only_one_result_is_used(op, used, device):
    inputs, upstream = case(op, (4, 20), torch.float32, device)
    fused_op, reference_op = both(op)

    def one(function, *args):
        return function(*args)[0 if used == "normed" else 1]

    x, residual = (t.requires_grad_() for t in inputs[:2])
    one(fused_op, x, residual, *inputs[2:]).backward(upstream[0])
    assert x.grad.data_ptr() != residual.grad.data_ptr()  # one may be changed in place without the other
    if used == "normed":
        assert_agrees(partial(one, fused_op), partial(one, reference_op), [t.detach() for t in inputs], upstream[:1])
    else:
        assert torch.equal(x.grad, upstream[0]) and torch.equal(residual.grad, upstream[0])


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("residual_dtype", DTYPES)
def test_a_residual_stream_of_another_dtype(x_dtype, residual_dtype, device):
    inputs, _ = case("add_layer_norm", (4, 48), x_dtype, device)
    inputs[1] = inputs[1].to(residual_dtype)
    upstream = [fresh(20 + i, (4, 48), residual_dtype, device) for i in range(2)]
    assert_agrees(*both("add_layer_norm"), inputs, upstream)


def test_frozen_parameters_and_inputs_get_no_gradient_and_cost_nothing(device, monkeypatch):
    (x, weight, bias), (dy,) = case("layer_norm", (4, 20), torch.float32, device)
    backward, asked = module._backward, []
    monkeypatch.setattr(module, "_backward", lambda *args: asked.append(args[-1]) or backward(*args))
    for frozen in ({0}, {1}, {2}, {1, 2}):
        leaves = [t.detach().requires_grad_(i not in frozen) for i, t in enumerate((x, weight, bias))]
        fused.layer_norm(*leaves).backward(dy)
        assert {i for i, t in enumerate(leaves) if t.grad is None} == frozen
    assert asked == [True, True, True, False]  # whether the sums over rows were made


def test_no_rows_at_all(device):
    leaves = [torch.ones(s, device=device, requires_grad=True) for s in ((0, 3, 8), (0, 3, 8), (8,), (8,))]
    normed, total = fused.add_layer_norm(*leaves)
    (normed.sum() + total.sum()).backward()
    assert normed.shape == total.shape == leaves[0].grad.shape == (0, 3, 8)
    assert not leaves[2].grad.any() and not leaves[3].grad.any()


def test_what_cannot_be_normalised_is_refused_in_one_sentence(device):
    w = torch.ones(8, device=device)
    wide = torch.ones(2, module.MAX_WIDTH + 1, device=device)
    for op, args, message in (
        (fused.layer_norm, (wide, wide[0]), "takes 1 to 16384"),
        (fused.layer_norm, (torch.ones(2, 8, device=device, dtype=torch.float64), w), "float64"),
        (fused.rms_norm, (torch.ones(2, 8, device=device), torch.ones(4, device=device)), r"shape \(8,\)"),
        (
            fused.add_rms_norm,
            (torch.ones(2, 8, device=device), torch.ones(8, device=device), w),
            "shapes must be equal",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            op(*args)


def test_a_second_backward_raises(device):
    inputs, upstream = case("layer_norm", (4, 20), torch.float32, device)
    x = inputs[0].requires_grad_()
    y = fused.layer_norm(*inputs)
    y.backward(upstream[0], retain_graph=True)
    first = x.grad.clone()
    y.backward(upstream[0])
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(upstream[0])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(fused.layer_norm(*inputs), x, upstream[0], create_graph=True)


@pytest.mark.parametrize("changed", ["x", "weight", "total"])
def test_a_change_in_place_of_what_the_backward_needs_raises(changed, device):
    inputs, _ = case("add_layer_norm", (4, 20), torch.float32, device)
    leaves = [t.requires_grad_() for t in inputs]
    if changed == "total":
        y, saved = fused.add_layer_norm(*leaves)
    else:
        y = fused.layer_norm(leaves[0], *leaves[2:])
        saved = leaves[0] if changed == "x" else leaves[2]
    with torch.no_grad():
        saved.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_torch_compile_traces_it_whole(op, device):
    assert_compiles_whole(both(op)[0], case(op, (2, 3, 64), torch.bfloat16, "cpu")[0])


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, device):
    inputs, _ = case(op, (3, 16), torch.bfloat16, device)
    x, weight = inputs[0].requires_grad_(), inputs[2 if op.startswith("add") else 1].requires_grad_()
    residual = inputs[1] if op.startswith("add") else None
    bias = inputs[-1] if op in ("layer_norm", "add_layer_norm") else None
    args = (x, residual, weight, bias, 1e-5, "layer" in op, x.dtype)
    torch.library.opcheck(torch.ops.minilm.layer_norm.default, args)
    with torch.no_grad():
        y, total, mean, rstd = torch.ops.minilm.layer_norm(*args)
    s, dtotal = (x, None) if residual is None else (total, y)
    args = (y, dtotal, s.detach(), weight.detach(), mean, rstd, None if bias is None else bias.dtype, op != "rms_norm")
    torch.library.opcheck(torch.ops.minilm.layer_norm_backward.default, args)


def test_autocast_gives_the_dtypes_of_pytorchs_own_norms(device):
    for dtype in DTYPES:
        inputs, _ = case("layer_norm", (3, 16), dtype, "cpu")
        for autocast_dtype in (torch.float16, torch.bfloat16):
            ours = cuda_autocast_dtypes(fused.layer_norm, inputs, autocast_dtype)
            theirs = cuda_autocast_dtypes(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), inputs, autocast_dtype)
            assert ours == theirs == [torch.float32]
            x, w, b = inputs
            assert cuda_autocast_dtypes(fused.rms_norm, [x, w], autocast_dtype) == [torch.float32]
            assert cuda_autocast_dtypes(fused.add_layer_norm, [x, x, w, b], autocast_dtype) == [torch.float32, dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_float32_result_of_lower_inputs_has_float32_accuracy(dtype, device, monkeypatch):
    monkeypatch.setattr(module, "autocasts_to_float32", lambda x: True)
    (x, weight, bias), _ = case("layer_norm", (4, 40), dtype, device)
    upstream = [fresh(20, (4, 40), torch.float32, device)]

    def widened(x, weight, bias):
        return reference.layer_norm(x.to(torch.promote_types(x.dtype, torch.float32)), weight, bias)

    assert_agrees(fused.layer_norm, widened, [x, weight, bias], upstream)


def test_rows_may_lie_more_than_2_to_the_31_elements_apart(far_memory):  # noqa: F811
    apart = far_memory.as_strided((3, 24), (2**30, 1), 2**31)
    x = fresh(0, (3, 24), torch.float16, "cpu")
    apart.copy_(x)
    (_, weight, bias), _ = case("layer_norm", (3, 24), torch.float16, "cpu")
    near, far = (outputs(x_, weight, bias, x_) for x_ in (x, apart))
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


def outputs(x, weight, bias, dy):
    """Forward and backward, the gradient being a tensor of the same strides as x."""
    y, _, mean, rstd = torch.ops.minilm.layer_norm(x, None, weight, bias, 1e-5, True, x.dtype)
    return y, *torch.ops.minilm.layer_norm_backward(dy, None, x, weight, mean, rstd, bias.dtype, True)


def test_results_may_pass_2_to_the_31_elements(far_memory):  # noqa: F811
    C, ROWS = 1024, 2
    program = 2**31 // (C * ROWS)
    n_rows = program * ROWS + 1  # the last program has one row and one beyond the end
    (row, weight, bias), (dy,) = case("layer_norm", (1, C), torch.float16, "cpu")
    mean, rstd = torch.empty(n_rows), torch.empty(n_rows)
    constants = {"C": C, "BLOCK_C": C, "ROWS": ROWS, "CENTRED": True, "HAS_BIAS": True}
    y = ds = far_memory[2**31 :]
    run_program(
        module._norm_forward, program, row, None, weight, bias, y, None, mean, rstd,
        n_rows, 1, 0, 0, 0, 0, 1e-5, HAS_RESIDUAL=False, **constants,
    )  # fmt: skip
    assert torch.equal(y[2**31 : 2**31 + C], fused.layer_norm(row, weight, bias)[0])
    assert not y[2**31 + C : 2**31 + 2 * C].any()

    run_program(
        module._norm_backward, program, dy, None, row, weight, mean, rstd, ds, None,
        n_rows, 1, program + 1, 0, 0, 0, 0, 0, 0, HAS_DTOTAL=False, WEIGHT_GRADS=False, **constants,
    )  # fmt: skip
    assert torch.equal(ds[2**31 : 2**31 + C], outputs(row, weight, bias, dy)[1][0])
