"""Who is measured: the project's three backends, and what else a user could pick, each with its version.

A provider makes, for a case, a function of the case's inputs. Peers are optional: one that is not installed, or cannot
do the case, raises Unsupported with the reason, which becomes its row in the table.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from bench.cases import Attention, Case
from kernels import reference
from kernels.reference import unpack_heads

OURS = ("reference", "torch", "triton")  # a wrong one is a fault of the project, a wrong peer is a finding
LONGEST_PLAIN = 1024  # sequence that the reference's attention is timed at: beyond, a call takes most of a case's time
COMPILES = "it compiles each one anew, which takes longest"
WRITES_WEIGHTS = "it writes every weight to memory, which takes longest"


class Unsupported(Exception):
    """Why a provider has no part in a case, for the table."""


@dataclass(frozen=True)
class Provider:
    """package: the distribution whose version is told. make: from a case to a function of its inputs. first: in so many
    cases of an operation it takes part, None for all. why: it takes part in no more.
    """

    name: str
    package: str
    make: Callable[[Case], Callable[..., Any]]
    first: int | None = None
    why: str = COMPILES

    @property
    def version(self) -> str:
        """Of what was measured, or "" where it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""


def providers(op: str, device: torch.device) -> list[Provider]:
    """Everyone who could have a part in `op`, the project's own backends first. On a CPU: reference and torch."""
    own = [Provider(name, "minilm", _own(name, op)) for name in ("reference", "torch")]
    if device.type != "cuda":  # interpreted Triton is for tests, its time says nothing
        return own
    own.append(Provider("triton", "minilm", _own("triton", op)))
    return [*own, Provider("compiled", "torch", _compiled, first=2), *PEERS.get(op, ())]


def _own(name: str, op: str) -> Callable[[Case], Callable[..., Any]]:
    def make(case: Case) -> Callable[..., Any]:
        if name == "reference" and isinstance(case, Attention) and case.T > LONGEST_PLAIN:
            held = case.kept_by_reference / 2**30
            raise Unsupported(f"would hold {held:,.3g} GiB of attention weights; timed up to T = {LONGEST_PLAIN}")
        try:
            return getattr(kernels.select(name, "cuda" if torch.cuda.is_available() else "cpu"), op)
        except kernels.BackendUnavailable as error:
            raise Unsupported(str(error)) from None

    return make


def _compiled(case: Case) -> Callable[..., Any]:
    """torch.compile of the reference, for this shape."""
    return torch.compile(getattr(reference, case.op), fullgraph=True, dynamic=False)


def _imported(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"not installed ({error})") from None


# --- attention: of q, k, v (B, H, T, D) apart, or as views of the packed projection and back to (B, T, H·D) -----------


def _attention(case: Case, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`attend`, of q, k, v (B, H, T, D), for the inputs of the case."""
    if case.op == "causal_attention":
        return attend
    return lambda qkv, n_heads: attend(*unpack_heads(qkv, n_heads)).transpose(1, 2).flatten(2)


def _pinned(backend: SDPBackend) -> Callable[[Case], Callable[..., Any]]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return lambda case: _attention(case, attend)


def _flex(case: Case) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, case.T, case.T, device="cuda")
    return _attention(case, torch.compile(lambda q, k, v: flex_attention(q, k, v, block_mask=mask), dynamic=False))


def _flash_attn(module: str, packed: bool = True, **options: Any) -> Callable[[Case], Callable[..., Any]]:
    """FlashAttention, which takes (B, T, H, D). packed: it has a function that takes the projection as it is, and
    writes its gradient without a copy."""

    def make(case: Case) -> Callable[..., Any]:
        if packed and case.op == "causal_attention_packed":
            whole = _imported(module, "flash_attn_qkvpacked_func")
            return lambda qkv, n_heads: _first(
                whole(qkv.unflatten(-1, (3, n_heads, -1)), causal=True, **options)
            ).flatten(2)
        function = _imported(module, "flash_attn_func")

        def attend(*heads: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in heads)
            return _first(function(q, k, v, causal=True, **options)).transpose(1, 2)

        return _attention(case, attend)

    return make


def _first(outputs: Tensor | tuple[Any, ...]) -> Tensor:
    """Some versions return the statistics of the softmax beside the output."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


# --- decode: every sequence of a case is as long as the cache, so that attention without a mask is right --------------


def _whole_cache(*backends: SDPBackend) -> Callable[[Case], Callable[..., Any]]:
    def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        with sdpa_kernel(list(backends)):
            return F.scaled_dot_product_attention(q, k, v)

    return lambda case: attend if backends else lambda q, k, v, lengths: F.scaled_dot_product_attention(q, k, v)


# --- norms, SwiGLU, cross-entropy -------------------------------------------------------------------------------------


def _liger(name: str) -> Callable[..., Any]:
    return _imported("liger_kernel.transformers.functional", name)


def _liger_layer_norm(case: Case) -> Callable[..., Any]:
    norm = _liger("liger_layer_norm")
    return lambda x, weight, bias: norm(x, weight, bias, 1e-5)


def _liger_rms_norm(case: Case) -> Callable[..., Any]:
    norm = _liger("liger_rms_norm")
    return lambda x, weight: norm(x, weight, 1e-5, in_place=False)  # in place it overwrites what arrives from above


def _liger_add_rms_norm(case: Case) -> Callable[..., Any]:
    norm = _liger("liger_fused_add_rms_norm")
    return lambda x, residual, weight: norm(x, residual, weight, 1e-5, in_place=False)


def _liger_swiglu(case: Case) -> Callable[..., Any]:
    """Of gate and up side by side, where Liger has that; else of copies of the two, which its backward overwrites."""
    try:
        return _imported("liger_kernel.ops", "LigerFusedGateUpSiLUMulFunction").apply
    except Unsupported:
        swiglu = _liger("liger_swiglu")
        return lambda gate_up: swiglu(*gate_up.chunk(2, dim=-1))


def _liger_cross_entropy(**options: Any) -> Callable[[Case], Callable[..., Any]]:
    def make(case: Case) -> Callable[..., Any]:
        loss = _liger("liger_fused_linear_cross_entropy")
        return lambda hidden, weight, targets: loss(hidden, weight, targets, **options)

    return make


def _quack_rms_norm(case: Case) -> Callable[..., Any]:
    norm = _imported("quack", "rmsnorm")
    return lambda x, weight: norm(x, weight, eps=1e-5)


def _quack_add_rms_norm(case: Case) -> Callable[..., Any]:
    norm = _imported("quack", "rmsnorm")
    return lambda x, residual, weight: norm(x, weight, residual=residual, eps=1e-5, prenorm=True)


def _quack_cross_entropy(case: Case) -> Callable[..., Any]:
    loss = _imported("quack.linear_cross_entropy", "chunked_linear_cross_entropy")
    return lambda hidden, weight, targets: loss(hidden, weight, targets, tuned=False)  # tuning takes minutes


ATTENTION = [
    Provider("sdpa-flash", "torch", _pinned(SDPBackend.FLASH_ATTENTION)),
    Provider("sdpa-cudnn", "torch", _pinned(SDPBackend.CUDNN_ATTENTION)),
    Provider("sdpa-efficient", "torch", _pinned(SDPBackend.EFFICIENT_ATTENTION)),
    Provider("sdpa-math", "torch", _pinned(SDPBackend.MATH), first=1, why=WRITES_WEIGHTS),
    Provider("flex", "torch", _flex, first=3),
    Provider("flash-attn", "flash-attn", _flash_attn("flash_attn")),
    Provider("flash-attn-3", "flash-attn-3", _flash_attn("flash_attn_interface")),
    Provider("flash-attn-3 deterministic", "flash-attn-3", _flash_attn("flash_attn_interface", deterministic=True)),
    Provider("flash-attn-4", "flash-attn-4", _flash_attn("flash_attn.cute", packed=False)),
    Provider(
        "flash-attn-4 deterministic", "flash-attn-4", _flash_attn("flash_attn.cute", packed=False, deterministic=True)
    ),
]
PEERS = {
    "causal_attention_packed": ATTENTION,
    "causal_attention": ATTENTION,
    "layer_norm": [Provider("liger", "liger-kernel", _liger_layer_norm)],
    "rms_norm": [
        Provider("liger", "liger-kernel", _liger_rms_norm),
        Provider("quack", "quack-kernels", _quack_rms_norm),
    ],
    "add_rms_norm": [
        Provider("liger", "liger-kernel", _liger_add_rms_norm),
        Provider("quack", "quack-kernels", _quack_add_rms_norm),
    ],
    "swiglu": [Provider("liger", "liger-kernel", _liger_swiglu)],
    "linear_cross_entropy": [
        Provider("liger", "liger-kernel", _liger_cross_entropy()),
        Provider("liger float32", "liger-kernel", _liger_cross_entropy(accum_dtype=torch.float32)),
        Provider("quack", "quack-kernels", _quack_cross_entropy),
    ],
    "decode_attention": [
        Provider("sdpa", "torch", _whole_cache()),
        Provider("sdpa-flash", "torch", _whole_cache(SDPBackend.FLASH_ATTENTION)),
        Provider("sdpa-cudnn", "torch", _whole_cache(SDPBackend.CUDNN_ATTENTION)),
        Provider("sdpa-efficient", "torch", _whole_cache(SDPBackend.EFFICIENT_ATTENTION)),
    ],
}
