"""What every fused operation has in common: an operator below autograd and a Function on top of it."""

import sys

import pytest
import torch
import triton
from torch.autograd import forward_ad

import kernels.fused as fused
from kernels import reference
from kernels.backend import OPS
from kernels.fused.operators import cdiv, differentiable, next_power_of_2, operator
from tests.children import python


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


def cubed():
    def compute(x: torch.Tensor) -> torch.Tensor:
        return x**3

    return differentiable(
        "test_of_a_gradient",
        compute,
        torch.empty_like,
        lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        lambda ctx, dy: 3 * ctx.saved_tensors[0] ** 2 * dy,
    )


def test_the_gradient_is_the_same_eager_compiled_and_of_the_operator_itself():
    cube, x = cubed(), torch.tensor(2.0, requires_grad=True)
    for call in (cube, torch.compile(cube, backend="aot_eager", fullgraph=True), torch.ops.minilm.test_of_a_gradient):
        assert torch.autograd.grad(call(x), x)[0] == 12
        with pytest.raises(RuntimeError, match="second derivative|double backward"):
            torch.autograd.grad(torch.autograd.grad(call(x), x, create_graph=True), x)
    torch.library.opcheck(torch.ops.minilm.test_of_a_gradient.default, (x,))


def test_an_eager_call_goes_round_what_pytorch_does_for_a_registered_gradient():
    """The reason for all this: the gradient that is registered with the dispatcher is not entered."""
    cube, x = cubed(), torch.tensor(2.0, requires_grad=True)
    entered = []

    def look(frame, event, _):
        if event == "call" and frame.f_code.co_name == "registered":
            entered.append(frame.f_code.co_filename)

    for call, goes in ((cube, False), (torch.ops.minilm.test_of_a_gradient.default, True)):
        entered.clear()
        sys.setprofile(look)
        try:
            call(x)
        finally:
            sys.setprofile(None)
        assert bool(entered) == goes, entered


TWICE = {
    "attention": (lambda q: fused.causal_attention(q, q, q), (1, 2, 20, 16)),
    "norm": (lambda x: fused.add_rms_norm(x, x, x[0, 0])[0], (1, 2, 16)),
    "swiglu": (lambda x: fused.swiglu_unpacked(x, x), (3, 16)),
    "cross-entropy": (lambda w: fused.linear_cross_entropy(w, w, torch.arange(5, device=w.device)), (5, 16)),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_tensor_given_twice_has_the_sum_of_both_gradients_compiled_too(name, device):
    call, shape = TWICE[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    torch._dynamo.reset()
    eager, compiled = (
        torch.autograd.grad(f(x).sum(), x)[0] for f in (call, torch.compile(call, backend="aot_eager", fullgraph=True))
    )
    assert eager.any() and torch.equal(eager, compiled)


def of_every_operation(device):
    """(name, function of one tensor, that tensor): every operation, in the way that torch.func would see it."""
    draw = torch.Generator().manual_seed(0)
    new = lambda *shape: torch.randn(shape, generator=draw).to(device)  # noqa: E731
    w, k, v = new(16), new(1, 2, 20, 16), new(1, 2, 20, 16)
    weight, targets = new(7, 16), torch.tensor([1, 3], device=device)
    return [
        ("causal_attention", lambda m, x: m.causal_attention(x, k, v), new(1, 2, 20, 16)),
        ("causal_attention_packed", lambda m, x: m.causal_attention_packed(x, 1), new(1, 20, 48)),
        ("layer_norm", lambda m, x: m.layer_norm(x, w, w), new(2, 16)),
        ("add_layer_norm", lambda m, x: m.add_layer_norm(x, x, w)[0], new(2, 16)),
        ("rms_norm", lambda m, x: m.rms_norm(x, w), new(2, 16)),
        ("add_rms_norm", lambda m, x: m.add_rms_norm(x, x, w)[1], new(2, 16)),
        ("swiglu", lambda m, x: m.swiglu(x), new(2, 16)),
        ("swiglu_unpacked", lambda m, x: m.swiglu_unpacked(x, x), new(2, 16)),
        ("linear_cross_entropy", lambda m, x: m.linear_cross_entropy(x, weight, targets), new(2, 16)),
    ]


NAMES = [name for name, *_ in of_every_operation("cpu")]


def test_every_operation_with_a_gradient_is_here():
    assert set(NAMES) == set(OPS) - {"decode_attention"}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_of_torch_func_are_those_of_the_reference(name, device):
    """grad, jacrev, and one for each of a batch: vmap of both."""
    _, call, x = of_every_operation(device)[NAMES.index(name)]
    scalar = lambda module: lambda x: call(module, x).square().sum()  # noqa: E731
    several = torch.stack([x, 2 * x, -x])
    for transform, at in (
        (lambda f: torch.func.grad(f), x),
        (lambda f: torch.func.jacrev(f), x),
        (lambda f: torch.vmap(f), several),
        (lambda f: torch.vmap(torch.func.grad(f)), several),
    ):
        ours, theirs = (transform(scalar(module))(at) for module in (fused, reference))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def forward_ad_of(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x)))


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_derivative_is_refused_and_never_zero(name, device):
    """Forward mode, and a derivative of a derivative, in all ways that PyTorch has of asking for them."""
    _, call, x = of_every_operation(device)[NAMES.index(name)]
    f = lambda x: call(fused, x)  # noqa: E731
    scalar = lambda x: f(x).square().sum()  # noqa: E731
    for ask in (
        lambda: torch.func.jvp(f, (x,), (x,)),
        lambda: torch.func.jacfwd(f)(x),
        lambda: torch.func.hessian(scalar)(x),
        lambda: torch.func.linearize(f, x)[1](x),
        lambda: torch.func.jvp(torch.vmap(f), (x[None],), (x[None],)),
        lambda: forward_ad_of(f, x),
        lambda: forward_ad_of(f, x.clone().requires_grad_()),
    ):
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            ask()
    leaf = x.clone().requires_grad_()
    for ask in (
        lambda: torch.autograd.grad(scalar(leaf), leaf, create_graph=True),
        lambda: torch.func.grad(lambda x: torch.func.grad(scalar)(x).sum())(x),
        lambda: torch.func.grad(scalar)(leaf).sum().backward(),
    ):
        with pytest.raises(RuntimeError, match="no second derivative"):
            ask()


def test_decoding_has_no_derivative_of_any_kind(device):
    q, cache = torch.ones(1, 1, 1, 16, device=device), torch.ones(1, 1, 4, 16, device=device)
    f = lambda q: fused.decode_attention(q, cache, cache, torch.tensor([4], device=device))  # noqa: E731
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(f, (q,), (q,))
    with pytest.raises(RuntimeError, match="decode_attention has no gradient"):
        torch.func.grad(lambda q: f(q).sum())(q)


def test_an_operator_called_by_its_own_name_refuses_forward_mode_too(device):
    x = torch.ones(2, 8, device=device)
    for call in (torch.ops.minilm.swiglu, torch.compile(fused.swiglu, backend="aot_eager")):
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            torch.func.jvp(call, (x,), (x,))


def test_what_comes_out_of_frozen_inputs_can_be_changed_in_place(device):
    q, factor = torch.randn(1, 2, 20, 16, device=device), torch.tensor(2.0, device=device, requires_grad=True)
    out = fused.causal_attention(q, q, q)
    expected = out.sum()
    out.mul_(factor).sum().backward()
    torch.testing.assert_close(factor.grad, expected)


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


def test_the_package_can_be_imported_forgotten_and_imported_again(device):
    program = """
import sys, torch
import kernels.fused as first
for name in [name for name in sys.modules if name.split(".")[0] == "kernels"]:
    del sys.modules[name]
import kernels.fused as second
x = torch.randn(3, 8, device=sys.argv[1], requires_grad=True)
grads = [torch.autograd.grad(module.swiglu(x).sum(), x)[0] for module in (first, second)]
print(second is not first and torch.equal(*grads))
"""
    run = python("-c", program, device)
    assert run.stdout.strip() == "True", run.stderr[-2000:]
