"""The error rule by which every fused operation is judged: it may err twice as much as plain PyTorch in its dtype.

The judge is kernels.reference in float64. What is allowed is relative to what the dtype costs anyone on these very
inputs, so one rule serves every dtype, width and length, and nobody widens it by hand (the rule of FlashAttention's
own tests, Dao 2023).

How much plain PyTorch errs also hangs on how a library happens to add up the products of matrices: in which order,
which differs between machines, and on what factor, for a partial sum is rounded as coarsely as its power of two. What
counts is therefore the largest error over six ways to take the same sums: as the library adds, one product after
another from the first, and from the last, and as the library adds 5/4, 6/4 and 7/4 of every term. All but the first are
only computed where it refuses: they can allow more, never less. Sums along a row, as in norms and softmax, stay the
library's: kernels add them by halves too, and one after another would allow anything.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Judgement:
    """error and allowed: largest deviations over a tensor; fault: what is wrong, in words, or None."""

    error: float
    allowed: float
    fault: str | None


def judge(fused: Tensor, plain: Tensor, ref64: Tensor) -> Judgement:
    """max |fused - ref64| <= 2 · max |plain - ref64| + floor, with floor = 2 · eps · max |ref64|, or 1e-6 if that is 0.

    The rule for one order of plain's sums; Judge is the whole of it. fused, plain: the same shape and dtype, whose eps
    counts; plain is the reference in that dtype. ref64: the same shape in float64. A value that is not finite is at
    fault, unless ref64 is not finite at that very place.
    """
    if ref64.dtype != torch.float64:
        raise ValueError(f"the reference is {ref64.dtype}, not float64")
    if fused.shape != ref64.shape:
        return Judgement(float("nan"), 0.0, f"shape {tuple(fused.shape)}, expected {tuple(ref64.shape)}")
    if fused.dtype != plain.dtype:
        return Judgement(float("nan"), 0.0, f"{fused.dtype}, plain PyTorch gives {plain.dtype}")
    if ref64.numel() == 0:
        return Judgement(0.0, 0.0, None)
    error, plain_error = _largest(fused - ref64), _largest(plain - ref64)
    allowed = 2 * plain_error + (2 * torch.finfo(fused.dtype).eps * _largest(ref64) or 1e-6)
    fault = None
    if not torch.equal(fused.isfinite(), ref64.isfinite()):
        fault = "not finite where the reference is, or vice versa"
    elif error > allowed:
        fault = f"error {error:.3e}, allowed {allowed:.3e} (plain PyTorch errs by {plain_error:.3e})"
    return Judgement(error, allowed, fault)


def _largest(x: Tensor) -> float:
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max().item()  # where plain overflowed: no allowance


class Judge:
    """The rule, for all who compute the same tensors, outputs and gradients; each tensor is judged by itself.

    plain: computes them by the reference in the dtype of who is judged, the same whenever it is called. It is called
    at once, and again in the other orders when a tensor first errs by more than is allowed. ref64: them in float64.
    orders: fewer of ORDERS is a stricter rule, where sums are so long that the others would take minutes.
    """

    def __init__(self, plain: Callable[[], Sequence[Tensor]], ref64: Sequence[Tensor], orders: int | None = None):
        self._plain, self._ref64, self._orders = plain, list(ref64), ORDERS[:orders]
        self._found = [plain()]  # by order, as far as they were needed

    def __call__(self, fused: Sequence[Tensor]) -> list[Judgement]:
        """A judgement a tensor: by the order in which plain errs most there, of those that it took."""
        by_order = []
        for i, order in enumerate(self._orders):
            if i == len(self._found):
                with order:
                    self._found.append(self._plain())
            by_order.append([judge(*tensors) for tensors in zip(fused, self._found[i], self._ref64, strict=True)])
            found = [max(judgements, key=lambda j: j.allowed) for judgements in zip(*by_order, strict=True)]
            if not any(j.error > j.allowed for j in found):
                break
        return found


class _Products(TorchDispatchMode):
    """Where it is in force, `product` takes the products of matrices: those of kernels.reference, of its gradients and
    of linear layers. Other operators are as ever.

    product(a, b): a (..., M, K), b (..., K, N), float32 where the inputs have 32 bits or fewer; the result is rounded
    to their dtype, as libraries and tensor cores do it.
    """

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.product = product

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == aten.addmm.default:
            with self:
                return _ADDMM(*args, **kwargs)
        if func in (aten.mm.default, aten.bmm.default):
            a, b = args
            return self.product(_wide(a), _wide(b)).to(a.dtype)
        return func(*args, **kwargs)


_ADDMM = get_decompositions([aten.addmm])[aten.addmm.default]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _one_after_another(a: Tensor, b: Tensor, step: int) -> Tensor:
    """A product is rounded before it is added, so that every machine finds the same."""
    columns, rows = a[..., None].unbind(-2), b[..., None, :].unbind(-3)  # (..., M, 1), (..., 1, N)
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for column, row in zip(columns[::step], rows[::step], strict=True):
        total += column * row
    return total


def _scaled(a: Tensor, b: Tensor, factor: float) -> Tensor:
    return (a * factor) @ b / factor


ORDERS: tuple[AbstractContextManager[Any], ...] = (
    contextlib.nullcontext(),
    *(_Products(partial(_one_after_another, step=step)) for step in (1, -1)),
    *(_Products(partial(_scaled, factor=factor)) for factor in (1.25, 1.5, 1.75)),
)
