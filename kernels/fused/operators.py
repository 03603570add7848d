"""How a launcher becomes an operator of PyTorch: one call to torch.compile, which does not look inside, and little work
for the host.

torch.library.custom_op and its register_autograd promise the same for any function. What they check at every call costs
the host more than the launch itself (LOG.md has the times), so the parts are put together by hand: here the operator,
below autograd, and in each file an autograd.Function that calls it, which eager PyTorch and the compiler both take.
"""

import functools
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
    """torch.ops.minilm.<name>.default, with the schema of launch's annotations.

    launch: makes new tensors of its arguments and changes none of them; on any device, below autograd. fake: as launch,
    for tensors without data: the shapes, strides and dtypes that launch would return. Below autograd means: called
    directly, and not through the autograd.Function of its file, the result has no gradient.
    """
    if name in _libraries:
        _libraries.pop(name)._destroy()
    library = _libraries[name] = torch.library.Library("minilm", "FRAGMENT")
    library.define(name + torch.library.infer_schema(launch, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    library.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"minilm::{name}", fake, lib=library)
    return getattr(torch.ops.minilm, name).default


def once_differentiable(backward: Callable) -> Callable:
    """The backward of an autograd.Function that has no derivative of its own: asking for one raises RuntimeError.

    PyTorch's decorator of this name leaves terms of a second derivative out where the incoming gradient has none.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("the fused kernels have no second derivative (create_graph=True); use the reference's")
        return backward(ctx, *gradients)

    return once
