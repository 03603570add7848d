"""The switch: one bundle of functions a transformer calls, and three implementations of it.

Every backend has the same functions with the same signatures, shapes and meaning; kernels/reference.py is the
definition. A model holds a Backend and calls through it, so changing the backend changes speed and memory only.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

BACKENDS = ("reference", "torch", "triton")
MODULES = {"reference": "kernels.reference", "torch": "kernels.aten", "triton": "kernels.fused"}


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message is one sentence for the person."""


@dataclass(frozen=True)
class Backend:
    """The operations of a transformer. Shapes and errors: the function of the same name in kernels/reference.py."""

    name: str
    causal_attention: Callable[..., Any]
    causal_attention_packed: Callable[..., Any]
    decode_attention: Callable[..., Any]
    layer_norm: Callable[..., Any]
    add_layer_norm: Callable[..., Any]
    rms_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    swiglu: Callable[..., Any]
    swiglu_unpacked: Callable[..., Any]
    linear_cross_entropy: Callable[..., Any]


OPS = tuple(field.name for field in fields(Backend) if field.name != "name")


def interpreted() -> bool:
    """Whether Triton kernels would run in Triton's interpreter: on any device, exactly, and very slowly."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _why_not_triton(device: Any) -> str | None:
    """None if Triton kernels can be compiled for `device`, else the reason, as the end of a sentence."""
    if importlib.util.find_spec("triton") is None:
        return "the triton package is not installed (it exists for Linux only)"
    if interpreted():
        return "TRITON_INTERPRET is set, and interpreted kernels are for tests"
    import torch

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more and the device is {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 or more and this GPU has {major}.{minor}"
    return None


def explain(name: str = "auto", device: Any = None) -> tuple[str, str]:
    """The backend that `name` stands for on `device`, and why, in words: ("torch", "auto: ...").

    Raises BackendUnavailable when a backend asked for by name cannot run, ValueError for an unknown name.
    """
    if name in ("reference", "torch"):
        return name, "asked for by name"
    reason = _why_not_triton(device)
    if name == "auto":
        if reason is None:
            return "triton", "auto: an NVIDIA GPU of compute capability 8.0 or more is present"
        return "torch", f"auto: not triton, because {reason}"
    if name == "triton":
        if interpreted() and importlib.util.find_spec("triton") is not None:
            return name, "asked for by name; interpreted, because TRITON_INTERPRET is set: right, and very slow"
        if reason is not None:
            raise BackendUnavailable(
                f"--kernels triton cannot run here: {reason}; use --kernels torch, reference or auto, or set "
                "TRITON_INTERPRET=1 to run the kernels slowly on any machine."
            )
        return name, "asked for by name"
    raise ValueError(f"kernels is {name!r}; it must be one of auto, {', '.join(BACKENDS)}")


def select(name: str = "auto", device: Any = None) -> Backend:
    """The Backend for `name` ("auto", "reference", "torch", "triton") on `device` (a torch device or its name).

    "auto" is triton on an NVIDIA GPU of compute capability 8.0 or more, torch elsewhere. Raises as explain() does.
    """
    name, _ = explain(name, device)
    module = importlib.import_module(MODULES[name])
    return Backend(name, **{op: getattr(module, op) for op in OPS})


def available(device: Any = None) -> tuple[str, ...]:
    """The names of the backends that can run on `device`."""
    return BACKENDS if interpreted() or _why_not_triton(device) is None else BACKENDS[:2]
