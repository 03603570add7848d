"""The error rule of every kernel test: a fused operation may err twice as much as plain PyTorch in the same dtype.

The judge is the reference in float64. The allowance is relative to what that dtype costs anyone on these inputs, so it
is the same rule for every dtype, width and length, and nobody widens it by hand (it is the rule of FlashAttention's
own tests, Dao 2023).
"""

import torch
from torch import Tensor


def assert_close_by_rule(fused: Tensor, plain_same_dtype: Tensor, ref64: Tensor, name: str) -> None:
    """max |fused - ref64| <= 2 · max |plain - ref64| + floor, with floor = 2 · eps · max |ref64|, or 1e-6 if that is 0.

    fused, plain_same_dtype: the same shape and dtype, whose eps counts. ref64: the same shape in float64. Fails on any
    value that is not finite, unless ref64 is not finite at that very place.
    """
    assert ref64.dtype == torch.float64, f"{name}: the reference is {ref64.dtype}, not float64"
    assert fused.shape == ref64.shape, f"{name}: shape {tuple(fused.shape)}, expected {tuple(ref64.shape)}"
    assert fused.dtype == plain_same_dtype.dtype, f"{name}: {fused.dtype}, plain PyTorch gives {plain_same_dtype.dtype}"
    if ref64.numel() == 0:
        return
    assert torch.equal(fused.isfinite(), ref64.isfinite()), f"{name}: not finite where the reference is, or vice versa"

    def largest(x: Tensor) -> float:
        return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max().item()  # where plain overflowed: no allowance

    error, plain_error = largest(fused - ref64), largest(plain_same_dtype - ref64)
    floor = 2 * torch.finfo(fused.dtype).eps * largest(ref64) or 1e-6
    allowed = 2 * plain_error + floor
    assert error <= allowed, (
        f"{name}: error {error:.3e}, allowed {allowed:.3e} (plain PyTorch errs by {plain_error:.3e})"
    )
