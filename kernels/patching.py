"""The operations of this package in somebody else's model, and out again.

    handle = kernels.patch(model)        # or: with kernels.patch(model, "triton", ops=("attention",)): ...
    handle.undo()                        # or: kernels.unpatch(model)

Modules stay where they are, with their parameters, hooks and classes: only what they compute with changes, by a forward
set on the instance, so state dicts, optimizers and device maps know nothing of it. Attention of Hugging Face models
changes by the name under which transformers looks it up (kernels/attention_interface.py).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from kernels.attention_interface import implementation_name, register_with_transformers
from kernels.backend import Backend, select

SWAPPABLE = ("layer_norm", "rms_norm", "swiglu", "attention")
MARK = "_kernels_op"  # on a forward of ours: which operation it calls
BEFORE = "_kernels_attention_before"  # on a Hugging Face model: the name of the attention it had

Forward = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Patch:
    """What patch() has changed. As a context manager it changes it back at the end.

    swapped: how many modules by operation, such as {"layer_norm": 25, "attention": 12}. left: of what kind of module it
    is and why, for each that looks like an operation of ours and is not.
    """

    model: nn.Module
    backend: str
    swapped: dict[str, int]
    left: tuple[str, ...] = field(default=())

    def undo(self) -> None:
        """As unpatch(model)."""
        unpatch(self.model)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        swapped = ", ".join(f"{n} x {op}" for op, n in self.swapped.items())
        return f"{swapped} by {self.backend}" + "".join(f"; left: {reason}" for reason in self.left)


def patch(model: nn.Module, name: str = "auto", ops: Sequence[str] = SWAPPABLE) -> Patch:
    """Let `model` compute with the backend `name`; returns a handle that tells what was swapped and undoes it.

    ops, any of: "layer_norm" (torch.nn.LayerNorm), "rms_norm" (torch.nn.RMSNorm, and the RMSNorm of Hugging Face's
    Llama and Mistral), "swiglu" (the MLPs of those two) and "attention" (Hugging Face models that look their attention
    up in AttentionInterface, such as GPT-2, Llama and Mistral: see kernels.register_with_transformers). name: as in
    kernels.select, "auto" being decided for the device that the model is on now.

    State dicts keep their keys and tensors. Logits and gradients stay within kernels.error_rule, dropout of attention
    weights apart, which is drawn from another generator. A config object that two models share is changed for both;
    torch.nn.DataParallel, whose replicas would compute with the original's weights, is not for patched models.
    Raises ValueError for an unknown op, where there is nothing to swap, and for a module that has a forward set on the
    instance already (an earlier patch, or accelerate's hooks); BackendUnavailable as kernels.select.
    """
    if unknown := [op for op in ops if op not in SWAPPABLE]:
        raise ValueError(f"ops names {unknown[0]!r}; there are {', '.join(SWAPPABLE)}")
    device = next((p.device for p in model.parameters()), None)
    backend = select(name, device)
    left: list[str] = []
    found = [(module, *which) for module in model.modules() if (which := _operation_of(module, backend, ops, left))]
    for module, op, _ in found:
        if "forward" in vars(module):
            raise ValueError(
                f"a {type(module).__name__} ({op}) has a forward set on the instance already, by an earlier patch or "
                "by another library; undo that first"
            )
    attending = _attending_models(model, left) if "attention" in ops else []
    if any(BEFORE in vars(each) for each in attending):
        raise ValueError("the attention of this model is patched already; kernels.unpatch(model) first")
    if not found and not attending:
        reasons = f": {'; '.join(dict.fromkeys(left))}" if left else ""
        raise ValueError(f"nothing in this {type(model).__name__} can be swapped for {', '.join(ops)}{reasons}")

    if attending:
        register_with_transformers()
    for module, op, forward in found:
        setattr(forward, MARK, op)
        module.forward = MethodType(forward, module)
    swapped = Counter(op for _, op, _ in found)
    for each in attending:
        setattr(each, BEFORE, each.config._attn_implementation)
    for each in attending:
        each.set_attn_implementation(implementation_name(backend.name))
    if attentions := {id(part) for each in attending for part in each.modules() if "is_causal" in vars(part)}:
        swapped["attention"] = len(attentions)
    return Patch(model, backend.name, dict(swapped), tuple(dict.fromkeys(left)))


def unpatch(model: nn.Module) -> None:
    """Give every module in `model` that patch() changed what it had before, to the bit. Nothing to undo is no error."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if hasattr(getattr(forward, "__func__", None), MARK):
            del module.forward
    for module in model.modules():  # a model before its parts, whose own choice then counts
        if BEFORE in vars(module):
            module.set_attn_implementation(getattr(module, BEFORE))  # type: ignore[operator]
            delattr(module, BEFORE)


# --- norms and MLPs ---------------------------------------------------------------------------------------------------


def _operation_of(
    module: nn.Module, ops: Backend, wanted: Sequence[str], left: list[str]
) -> tuple[str, Forward] | None:
    """The op and the forward that would compute `module`, or None; known by the very forward that it has now."""
    kind = type(module)
    if kind.forward is nn.LayerNorm.forward and "layer_norm" in wanted:
        if reason := _not_one_row_with_weights(module):
            left.append(f"{kind.__name__} {reason}")
            return None
        return "layer_norm", lambda self, x: ops.layer_norm(x, self.weight, self.bias, self.eps)
    if kind.forward is nn.RMSNorm.forward and "rms_norm" in wanted:
        if reason := _not_one_row_with_weights(module):
            left.append(f"{kind.__name__} {reason}")
            return None
        return "rms_norm", lambda self, x: ops.rms_norm(
            x, self.weight, _accumulation_eps(x) if self.eps is None else self.eps
        )
    if _is_from_transformers(kind, "RMSNorm") and "rms_norm" in wanted:
        return "rms_norm", lambda self, x: ops.rms_norm(
            x.to(torch.promote_types(x.dtype, self.weight.dtype)), self.weight, self.variance_epsilon
        )
    if _is_from_transformers(kind, "MLP") and "swiglu" in wanted:
        if type(module.act_fn).__name__ not in ("SiLUActivation", "SiLU"):
            left.append(f"{kind.__name__} with {type(module.act_fn).__name__} for SiLU")
            return None
        return "swiglu", lambda self, x: self.down_proj(ops.swiglu_unpacked(self.gate_proj(x), self.up_proj(x)))
    return None


def _accumulation_eps(x: Tensor) -> float:
    """What PyTorch takes where an RMSNorm has no eps: that of the dtype it sums in, whatever its page says."""
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps


def _not_one_row_with_weights(norm: Any) -> str:
    if norm.weight is None:
        return "without weights"
    return f"over {len(norm.normalized_shape)} dimensions" if len(norm.normalized_shape) > 1 else ""


def _is_from_transformers(kind: type, suffix: str) -> bool:
    """By name, as transformers need not be installed; others of the same attributes compute other things (Gemma's)."""
    return any(
        kind.__name__ == f"{family}{suffix}"
        and kind.__module__ == f"transformers.models.{family.lower()}.modeling_{family.lower()}"
        for family in ("Llama", "Mistral")
    )


# --- attention --------------------------------------------------------------------------------------------------------


def _attending_models(model: nn.Module, left: list[str]) -> list[Any]:
    """The Hugging Face models in `model`, outermost first, whose attention goes through transformers' interface."""
    transformers = sys.modules.get("transformers")  # where it was never imported, no module is one of its models
    if transformers is None:
        return []
    found = []
    for module in model.modules():
        if isinstance(module, transformers.PreTrainedModel):
            if getattr(module, "_supports_attention_backend", False):
                found.append(module)
            else:
                left.append(f"attention of {type(module).__name__}, which transformers does not let others compute")
    return found
