"""How the row-wise kernels see a tensor (..., C): as rows of C adjacent elements, wherever in memory each row lies.

Leading dimensions are folded into two, (outer, inner), so that a slice in time of a (B, T, C) tensor, its transpose
(T, B, C) or an expanded one is read where it is. Row r starts at (r // inner) · stride_outer + (r % inner) ·
stride_inner, counted in 64 bits. Where one stride describes all rows, inner is 1, which Triton's launcher folds into
the code as a constant: the division then costs nothing.
"""

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def row_offset(row, n_inner, stride_outer, stride_inner):
    """Where rows begin, in elements."""
    row = row.to(tl.int64)
    return (row // n_inner) * stride_outer + (row % n_inner) * stride_inner


def fold_rows(*tensors: Tensor) -> tuple[int, list[Tensor]]:
    """Non-empty tensors of one shape (..., C) as (outer, inner, C) with a last stride of 1; returns inner and them.

    Views, except for two cases that are copied once: a last stride other than 1 (a transposed or expanded gradient),
    and four or more dimensions whose leading strides do not fold into two.
    """
    if all(x.is_contiguous() for x in tensors):  # as nearly always: said again because the host has little time
        return 1, [x.view(-1, 1, x.shape[-1]) for x in tensors]
    tensors = [x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors]
    shape = tensors[0].shape
    inner = 1 if len(shape) < 3 or all(_one_stride(x) for x in tensors) else shape[-2]
    return inner, [x.reshape(-1, inner, shape[-1]) for x in tensors]


def _one_stride(x: Tensor) -> bool:
    sizes_strides = [(n, s) for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
    return all(s == n_ * s_ for (_, s), (n_, s_) in pairwise(sizes_strides))


def check_dtypes(op: str, *tensors: Tensor | None) -> None:
    """Raises ValueError for a dtype that the kernels do not take."""
    for x in tensors:
        if x is not None and x.dtype not in DTYPES:
            raise ValueError(f"{op} takes float32, float16 and bfloat16, not {x.dtype}; use the reference backend")
