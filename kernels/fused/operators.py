"""How a launcher becomes an operator of PyTorch, with a gradient, at little cost to the host.

To torch.compile, to export, to dispatch modes and to tensors without data it is an operator like those of
torch.library.custom_op: one node that nobody looks into, with autograd registered. An eager call goes to the
autograd.Function itself instead, for what PyTorch does around a registered gradient at every call costs the host more
than the launch: LOG.md has the times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

# A library an operator, which lives as long as it: what is defined again, in a notebook that reloads what was edited,
# takes the place of what was.
_libraries: dict[str, torch.library.Library] = globals().get("_libraries", {})

NO_SECOND_DERIVATIVE = "the fused kernels have no second derivative; use the reference backend for one"
NO_FORWARD_MODE = (
    "the fused kernels have no forward-mode derivative (torch.func.jvp, jacfwd, hessian); use the reference backend, "
    "or torch.func.grad, vjp or jacrev"
)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv, which serves kernels too, costs the host ten times as much."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is at least n; as triton.next_power_of_2, for as much less."""
    return 1 << (n - 1).bit_length()


def operator(name: str, launch: Callable, fake: Callable) -> torch._ops.OpOverload:
    """torch.ops.minilm.<name>.default, with the schema of launch's annotations and no gradient.

    launch: makes new tensors of its arguments and changes none of them, on any device. fake: as launch, for tensors
    without data: the shapes, strides and dtypes that launch would return.
    """
    if name in _libraries:
        _libraries.pop(name)._destroy()
    if not hasattr(torch.ops.minilm, name):  # else this package was imported before, and forgotten: it is the same
        library = _libraries[name] = torch.library.Library("minilm", "FRAGMENT")
        library.define(name + torch.library.infer_schema(launch, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
        library.impl(name, launch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"minilm::{name}", fake, lib=library)
    return getattr(torch.ops.minilm, name).default


def _refuse_forward_mode(ctx: Any, *tangents: Any) -> Any:
    raise RuntimeError(NO_FORWARD_MODE)


class _Last(torch.autograd.Function):
    """(n, *tensors) to the first n of them, gradients, as they are; no derivative goes through it to any tensor."""

    generate_vmap_rule = True
    jvp = staticmethod(_refuse_forward_mode)

    @staticmethod
    def forward(n: int, *tensors: Any) -> Any:
        return tuple(None if x is None else x.view_as(x) for x in tensors[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def differentiable(name: str, launch: Callable, fake: Callable, save: Callable, differentiate: Callable) -> Callable:
    """The operator, with a gradient: save(ctx, inputs, output) keeps what differentiate(ctx, *gradients) needs.

    A gradient is None where nothing uses that output; differentiate returns one, or None, for each input. It has no
    derivative of its own, and no operator has a forward mode: RuntimeError from create_graph=True, from a derivative of
    torch.func.grad, and from torch.func.jvp, jacfwd and hessian and torch.autograd.forward_ad.
    """
    op = operator(name, launch, fake)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)  # else zeros are made for outputs that nothing uses
        save(ctx, inputs, output)

    def forward(ctx: Any, *inputs: Any) -> Any:  # apart from setup_context, PyTorch would look up a signature a call
        with torch._C._AutoDispatchBelowADInplaceOrView():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        return differentiate(ctx, *gradients)

    def transformed_backward(ctx: Any, *gradients: Any) -> Any:
        found = differentiate(ctx, *gradients)
        found = found if isinstance(found, tuple) else (found,)
        return _Last.apply(len(found), *found, *gradients, *ctx.saved_tensors)

    function = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(forward),
            "backward": staticmethod(backward),
            "jvp": staticmethod(_refuse_forward_mode),
        },
    )
    # For torch.func, which wants the halves of forward apart and always asks for a graph of the gradient.
    transformed = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(lambda *inputs: op(*inputs)),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(transformed_backward),
            "jvp": staticmethod(_refuse_forward_mode),
            "generate_vmap_rule": True,
        },
    )

    def registered(*inputs: Any) -> Any:
        if forward_ad._current_level >= 0:  # torch.library.register_autograd would drop the tangents in silence
            for x in inputs:
                if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                    raise RuntimeError(NO_FORWARD_MODE)
        return function.apply(*inputs)

    if name in _libraries:
        _libraries[name].impl(name, registered, "Autograd")

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*inputs)
        if torch._C._are_functorch_transforms_active():
            if any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ()):
                raise RuntimeError(NO_FORWARD_MODE)
            return transformed.apply(*inputs)
        return function.apply(*inputs)

    return call
