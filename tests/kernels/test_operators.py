"""What every fused operation has in common: an operator below autograd and a Function on top of it."""

import sys

import pytest
import torch
import triton

import kernels.fused as fused
from kernels.fused.operators import cdiv, next_power_of_2, once_differentiable, operator


def test_rounding_up_is_that_of_triton():
    for n in range(1, 70):
        assert next_power_of_2(n) == triton.next_power_of_2(n)
        for block in range(1, 20):
            assert cdiv(n, block) == triton.cdiv(n, block)


def test_an_operator_has_the_schema_of_its_launcher_and_what_the_fake_says():
    def launch(x: torch.Tensor, scale: float, shift: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return x * scale, x.new_zeros(3)

    op = operator("test_of_an_operator", launch, lambda x, *_: (torch.empty_like(x), x.new_empty(3)))
    assert str(op._schema).endswith("(Tensor x, float scale, Tensor? shift) -> (Tensor, Tensor)")
    torch.library.opcheck(op, (torch.ones(2, 5), 3.0, None))
    assert [y.shape for y in op(torch.empty(4, 7, device="meta"), 1.0, None)] == [(4, 7), (3,)]
    assert torch.equal(op(torch.ones(2), 3.0, None)[0], torch.full((2,), 3.0))


def test_what_is_defined_again_takes_the_place_of_what_was():
    """As in a notebook that reloads a file of kernels after each edit."""
    for factor in (2.0, 3.0):

        def launch(x: torch.Tensor, factor: float = factor) -> torch.Tensor:
            return x * factor

        op = operator("test_of_reloading", launch, lambda x, *_: torch.empty_like(x))
        assert torch.equal(op(torch.ones(2)), torch.full((2,), factor))
        assert op is torch.ops.minilm.test_of_reloading.default
        torch.library.opcheck(op, (torch.ones(2),))


def test_a_second_derivative_is_refused_even_where_the_incoming_gradient_has_none():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @once_differentiable
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * dy

    x = torch.tensor(2.0, requires_grad=True)
    assert torch.autograd.grad(Cube.apply(x), x)[0] == 12
    assert torch.autograd.grad(torch.compile(Cube.apply, backend="aot_eager", fullgraph=True)(x), x)[0] == 12
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(Cube.apply(x), x, create_graph=True)


@pytest.mark.parametrize("used", [0, 1], ids=["normed", "sum"])
def test_an_output_that_nothing_uses_costs_no_zeros(used, device, monkeypatch):
    """The gradient of add_layer_norm's other output arrives as None, and not as a tensor that was filled for it."""
    module = sys.modules["kernels.fused.layer_norm"]
    arrived = []
    monkeypatch.setattr(module, "_backward", lambda *args, real=module._backward: arrived.append(args) or real(*args))
    x, residual, weight, bias = (torch.randn(s, device=device, requires_grad=True) for s in ((3, 8), (3, 8), 8, 8))
    fused.add_layer_norm(x, residual, weight, bias)[used].sum().backward()
    if used == 0:
        ((_, dtotal, *_),) = arrived
        assert dtotal is None
    else:
        assert not arrived and weight.grad is None and torch.equal(x.grad, torch.ones_like(x))
