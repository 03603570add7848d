"""The error rule: what plain PyTorch errs by hangs on no single order of its sums, and nothing worse passes by that."""

import math

import pytest
import torch
from attention_checks import with_gradients
from op_checks import DTYPES, fresh, outputs_and_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import error_rule, reference
from kernels.error_rule import ORDERS, Judge

aten = torch.ops.aten
FROM_FIRST, FROM_LAST = ORDERS[1:3]
TARGETS = torch.tensor([3, -100, 6])
REFERENCES = {
    "attention": (reference.causal_attention, [(2, 4, 5, 8), (2, 2, 9, 8), (2, 2, 9, 8)]),
    "attention with dropout": (
        lambda q, k, v: reference.causal_attention(q, k, v, dropout_p=0.3, dropout_seed=1),
        [(1, 2, 9, 8)] * 3,
    ),
    "decode": (
        lambda q, k, v: reference.decode_attention(q, k, v, torch.tensor([5, 0], device=q.device)),
        [(2, 4, 1, 8), (2, 2, 9, 8), (2, 2, 9, 8)],
    ),
    "layer_norm": (reference.layer_norm, [(3, 2, 8), (8,), (8,)]),
    "add_rms_norm": (reference.add_rms_norm, [(3, 2, 8), (3, 2, 8), (8,)]),
    "swiglu": (reference.swiglu, [(3, 8)]),
    "cross_entropy": (
        lambda h, w: reference.linear_cross_entropy(h, w, TARGETS.to(h.device)),
        [(3, 8), (12, 8)],
    ),
    "linear": (torch.nn.functional.linear, [(3, 8), (5, 8), (5,)]),
}


def inputs_of(shapes, dtype, device):
    return [fresh(i, shape, dtype, device) for i, shape in enumerate(shapes)]


def run(name, dtype, device):
    """Outputs and gradients, of the same inputs whatever the dtype."""
    op, shapes = REFERENCES[name]
    inputs = [x.to(dtype) for x in inputs_of(shapes, torch.bfloat16, device)]
    outputs = op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return outputs_and_gradients(op, inputs, [fresh(9, y.shape, torch.bfloat16, device).to(y.dtype) for y in outputs])


@pytest.mark.parametrize("order", ORDERS[1:], ids=["from the first", "from the last", "5/4", "6/4", "7/4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_every_order_gives_the_same_sums_in_the_same_dtypes(name, dtype, order, device):
    exact, plain = run(name, torch.float64, device), run(name, dtype, device)
    with order:
        found = run(name, dtype, device)
    for x, y, right in zip(found, plain, exact, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(x.double(), right, rtol=4 * eps, atol=8 * eps * right.abs().max().item())


@pytest.mark.parametrize("name", REFERENCES)
def test_no_product_of_the_references_is_left_in_the_order_of_the_library(name, device):
    """Of what reaches the library only these add along something: an operator that is new here must be put in order if
    it is a product, or named here."""
    along_a_row = {
        aten.sum, aten.mean, aten._softmax, aten._softmax_backward_data, aten._log_softmax, aten.nll_loss_forward,
        aten._log_softmax_backward_data,
    }  # fmt: skip
    moves = {aten._to_copy, aten._unsafe_view, aten.new_zeros, aten.gather, aten.nll_loss_backward, aten.where}
    left = set()

    class Library(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            added = [x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()]
            if added and not func.is_view and torch.Tag.pointwise not in func.tags:
                left.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    with Library(), FROM_FIRST:
        run(name, torch.float32, device)
    assert left <= moves | along_a_row
    with Library():
        run(name, torch.float32, device)
    products = {"attention", "attention with dropout", "decode", "cross_entropy", "linear"}
    assert (not left <= moves | along_a_row) == (name in products)


@pytest.mark.parametrize(("order", "expected"), [(FROM_FIRST, 0.0), (FROM_LAST, 1.0)], ids=["first", "last"])
def test_a_product_is_added_from_the_first_term_or_from_the_last_and_a_row_as_ever(order, expected, device):
    """1 is lost beside 1e8 in float32; whoever adds by halves, or in more digits, finds something else."""
    terms = torch.tensor([1.0, 1e8, -1e8], device=device)
    ones = torch.ones(3, device=device)
    zero = torch.zeros(1, 1, device=device)
    with order:
        found = [
            (terms[None] @ ones[:, None])[0, 0],
            (ones[None, None] @ terms[None, :, None])[0, 0, 0],
            torch.addmm(zero, terms[None], ones[:, None])[0, 0],
        ]
        row = terms.sum()
    assert [x.item() for x in found] == [expected] * 3 and row == terms.sum()


def in_sixteen_bits(a, b):
    """A product whose accumulator has the dtype of its inputs."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for i in range(a.shape[-1]):
        total = total + a[..., i, None] * b[..., i, None, :]
    return total


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_accumulator_of_16_bits_is_refused_in_every_order(dtype, device):
    a, b = fresh(0, (8, 256), dtype, device), fresh(1, (256, 8), dtype, device)
    judge = Judge(lambda: [a @ b], [a.double() @ b.double()])
    assert judge([in_sixteen_bits(a, b)])[0].fault and not judge([(a.float() @ b.float()).to(dtype)])[0].fault
    with FROM_FIRST:
        assert not judge([a @ b])[0].fault


def test_another_order_is_computed_once_and_only_where_the_librarys_refuses(device):
    """Of float32 products added one after another, judged by a library that happens to err by nothing."""
    a, b = fresh(0, (8, 2048), torch.float32, device), fresh(1, (2048, 8), torch.float32, device)
    exact, calls = a.double() @ b.double(), []

    def plain():
        calls.append(len(calls))
        return [exact.float() if len(calls) == 1 else a @ b]

    judge = Judge(plain, [exact])
    assert not judge([exact.float()])[0].fault and calls == [0]
    with FROM_FIRST:
        slow = a @ b
    assert error_rule.judge(slow, exact.float(), exact).fault
    for _ in range(2):
        assert not judge([slow])[0].fault and calls == [0, 1]
    verdict = judge([slow * (1 + 1e-3)])[0]
    assert verdict.fault and verdict.allowed >= judge([slow])[0].allowed and len(calls) == len(ORDERS)
    assert "not finite" in judge([slow * math.nan])[0].fault and judge([slow[:4]])[0].fault.startswith("shape")


def test_products_added_one_after_another_pass_and_a_scale_that_is_off_does_not(device):
    """As tl.dot adds in float32, whatever the library does; and 1e-3 in one factor is seen all the same."""
    inputs = inputs_of([(1, 1, 20, 128)] * 4, torch.float32, device)
    *inputs, upstream = inputs
    exact = with_gradients(reference.causal_attention, inputs, torch.float64, upstream)
    judge = Judge(lambda: with_gradients(reference.causal_attention, inputs, torch.float32, upstream), exact)
    with FROM_LAST:
        ours = with_gradients(reference.causal_attention, inputs, torch.float32, upstream)
    assert not any(j.fault for j in judge(ours))
    scale = 128**-0.5 * (1 + 1e-3)
    off = with_gradients(reference.causal_attention, inputs, torch.float32, upstream, scale=scale)
    assert all(j.fault for j in judge(off))
