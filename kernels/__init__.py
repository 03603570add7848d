"""The operations a small GPT spends its time in, in three interchangeable implementations.

    import kernels
    ops = kernels.select("auto")            # or "reference", "torch", "triton"
    y = ops.causal_attention(q, k, v)

Importing this package needs neither Triton nor a GPU, and loads no PyTorch until an operation is selected.
"""

from kernels.backend import BACKENDS, Backend, BackendUnavailable, available, explain, select

__all__ = ["BACKENDS", "Backend", "BackendUnavailable", "available", "explain", "select"]
