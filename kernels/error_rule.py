"""The error rule by which every fused operation is judged: it may err twice as much as plain PyTorch in its dtype.

The judge is kernels.reference in float64. What is allowed is relative to what the dtype costs anyone on these very
inputs, so one rule serves every dtype, width and length, and nobody widens it by hand (the rule of FlashAttention's
own tests, Dao 2023).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Judgement:
    """error and allowed: largest deviations over a tensor; fault: what is wrong, in words, or None."""

    error: float
    allowed: float
    fault: str | None


def judge(fused: Tensor, plain: Tensor, ref64: Tensor) -> Judgement:
    """max |fused - ref64| <= 2 · max |plain - ref64| + floor, with floor = 2 · eps · max |ref64|, or 1e-6 if that is 0.

    fused, plain: the same shape and dtype, whose eps counts; plain is the reference in that dtype. ref64: the same
    shape in float64. A value that is not finite is at fault, unless ref64 is not finite at that very place.
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
