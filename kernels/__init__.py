"""The operations a small GPT spends its time in, in three interchangeable implementations.

    import kernels
    ops = kernels.select("auto")            # or "reference", "torch", "triton"
    y = ops.causal_attention(q, k, v)

Importing this package needs neither Triton nor a GPU, and loads no PyTorch until an operation is selected.

In somebody else's model: kernels.patch(model), kernels.unpatch(model), kernels.register_with_transformers().
"""

from typing import TYPE_CHECKING, Any

from kernels.backend import BACKENDS, Backend, BackendUnavailable, available, explain, select

if TYPE_CHECKING:
    from kernels.attention_interface import register_with_transformers
    from kernels.patching import Patch, patch, unpatch

_WHERE = {
    "Patch": "kernels.patching",
    "patch": "kernels.patching",
    "register_with_transformers": "kernels.attention_interface",
    "unpatch": "kernels.patching",
}
__all__ = [
    "BACKENDS",
    "Backend",
    "BackendUnavailable",
    "Patch",
    "available",
    "explain",
    "patch",
    "register_with_transformers",
    "select",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:  # these load PyTorch
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'kernels' has no attribute {name!r}")
