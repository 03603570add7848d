"""How a launcher becomes an operator of PyTorch, with a gradient, at little cost to the host.

To torch.compile, to export, to dispatch modes and to tensors without data it is an operator like those of
torch.library.custom_op: one node that nobody looks into, with autograd registered. An eager call goes through an
autograd.Function instead, for what PyTorch does around a registered gradient at every call costs the host more than the
launch itself: LOG.md has the times.
"""

from collections.abc import Callable
from typing import Any

import torch

# A library an operator, which lives as long as it: what is defined again, in a notebook that reloads what was edited,
# takes the place of what was.
_libraries: dict[str, torch.library.Library] = globals().get("_libraries", {})


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


def differentiable(name: str, launch: Callable, fake: Callable, save: Callable, differentiate: Callable) -> Callable:
    """The operator, with a gradient: save(ctx, inputs, output) keeps what differentiate(ctx, *gradients) needs.

    A gradient is None where nothing uses that output; differentiate returns one, or None, for each input. It has no
    derivative of its own: create_graph=True raises RuntimeError.
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
            raise RuntimeError("the fused kernels have no second derivative (create_graph=True); use the reference's")
        return differentiate(ctx, *gradients)

    if name in _libraries:
        library = _libraries[name]
        torch.library.register_autograd(f"minilm::{name}", backward, setup_context=setup_context, lib=library)
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(name, (torch.autograd.Function,), members)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return op(*inputs)
        return function.apply(*inputs)

    return call
