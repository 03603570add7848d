"""What is right in a case of the benches: the judge before whom everyone comes that is to be timed.

The rule is kernels.error_rule: twice the error of plain PyTorch in the same dtype is allowed. Plain PyTorch is the
reference's composed operations, or PyTorch's own operator where that errs more (see Case.pytorch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.cases import Case
from kernels.error_rule import Judge


class Right:
    """What is right in a case, computed once: in float64, and by plain PyTorch in the dtype of the case."""

    def __init__(self, case: Case, inputs: Sequence[Tensor], upstream: Sequence[Tensor]):
        self.case, self.outputs = case, len(upstream)
        self.exact = _right(case.reference, case, inputs, upstream, torch.float64)
        plain = partial(_right, case.reference, case, inputs, upstream, case.torch_dtype)
        orders = 1 if inputs[0].is_cuda else None  # the cases of a GPU are long, and in 16 bits the orders are as good
        self.judges = [Judge(plain, self.exact, orders)]
        if own := _right(case.pytorch, case, inputs, upstream, case.torch_dtype):
            self.judges.insert(0, Judge(lambda: own, self.exact))  # first, for it costs nothing more

    def fault(self, results: Sequence[Tensor]) -> str:
        """What is wrong with outputs and gradients; "" if nothing is."""
        got = self.case.judged(results)
        faults: dict[int, str] = {}  # of a tensor that no judge passes
        for number, judge in enumerate(self.judges):
            found = {index: j.fault for index, j in enumerate(judge(got)) if j.fault}
            faults = {index: fault for index, fault in found.items() if number == 0 or index in faults}
            if not faults:
                return ""
        index, fault = next(iter(faults.items()))
        return f"{f'output {index}' if index < self.outputs else f'gradient {index - self.outputs}'}: {fault}"


def _right(
    function: Callable[..., tuple[Tensor, ...] | None], case: Case, inputs: Sequence[Tensor],
    upstream: Sequence[Tensor], dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """Outputs and gradients by `function` in `dtype`, of the part that is judged; none where it gives None."""
    parts = [
        part.detach().to(dtype if x.is_floating_point() else x.dtype).requires_grad_(x.requires_grad)
        for x, part in zip(inputs, case.judged(inputs), strict=True)
    ]
    if (outputs := function(*parts)) is None:
        return []
    above = [u.to(y.dtype) for u, y in zip(case.judged(upstream), outputs, strict=True)]
    leaves = [x for x in parts if x.requires_grad]
    return [*(y.detach() for y in outputs), *(torch.autograd.grad(outputs, leaves, above) if leaves else ())]
