"""What is measured: operations with their shapes, what each has to compute and to move, and what is right.

A case knows its inputs, how to call a function of its operation on them, how much arithmetic and memory traffic a
pass cannot do without (each input read once, each output written once), and which part of the results the reference
is asked about: one head or all rows, judged in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference

PASSES = ("forward", "backward", "both")
JUDGED_WEIGHTS = 2**28  # of attention in float64: 2 GiB


@dataclass(frozen=True)
class Case:
    """One operation at one shape. `dtype` is the name of torch's."""

    op: ClassVar[str]
    passes: ClassVar[tuple[str, ...]] = PASSES
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    @property
    def shape(self) -> dict[str, int]:
        """The measures by name, in the order in which they are told."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def __str__(self) -> str:
        return " ".join([self.op, *(f"{name}={value}" for name, value in self.shape.items()), self.dtype])

    def inputs(self, device: torch.device) -> list[Tensor]:
        """In the dtype of the case, leaves that want gradients where there are any; integers as they are. All that an
        implementation is given is made here, so that no call makes it while it is timed."""
        raise NotImplementedError

    def work(self, which: str) -> tuple[float, float]:
        """(floating-point operations, bytes) of a pass."""
        raise NotImplementedError

    def call(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of an implementation."""
        return _as_tuple(function(*inputs))

    def upstream(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What arrives at the outputs from above: normally distributed, 1 for a loss."""
        return [
            torch.ones_like(y) if y.ndim == 0 else self._normal(y.device, *y.shape, seed=9).detach().to(y.dtype)
            for y in outputs
        ]

    def judged(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of inputs, outputs or gradients: the part that the reference is asked about; all, unless that is large."""
        return list(tensors)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The definition, of judged() inputs, in their dtype."""
        return self.call(getattr(reference, self.op), inputs)

    def pytorch(self, *inputs: Tensor) -> tuple[Tensor, ...] | None:
        """PyTorch's own operator, of judged() inputs, where it errs more than the reference in the same dtype."""
        return None

    def _normal(self, device: torch.device, *size: int, seed: int = 0) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(size, generator=generator, device=device).to(self.torch_dtype).requires_grad_()


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True)
class Attention(Case):
    """Causal, q, k, v (B, H, T, D) views of one packed projection (B, T, 3·H·D), as they lie in a model."""

    op: ClassVar[str] = "causal_attention_packed"
    B: int
    H: int
    T: int
    D: int

    def inputs(self, device: torch.device) -> list[Tensor]:
        return [self._normal(device, self.B, self.T, 3 * self.H * self.D)]

    def work(self, which: str) -> tuple[float, float]:
        """The causal half of 4·T²·D operations a head forward, two and a half times that backward (Dao 2023, 4.1)."""
        forward = 2.0 * self.B * self.H * self.T**2 * self.D
        tensor = self.B * self.H * self.T * self.D * self.itemsize
        statistics = self.B * self.H * self.T * 4
        flops = {"forward": 1.0, "backward": 2.5, "both": 3.5}[which] * forward
        return flops, {"forward": 4 * tensor + statistics, "backward": 8 * tensor + statistics}.get(
            which, 12 * tensor + 2 * statistics
        )

    def judged(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All heads of a small case; of others the last of the last sequence, which lies at the largest offsets."""
        if self.B * self.H * self.T**2 <= JUDGED_WEIGHTS:
            return list(tensors)
        return [x[-1:].unflatten(-1, (-1, self.H, self.D))[..., -1, :].flatten(2) for x in tensors]

    def call(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (qkv,) = inputs
        return (function(qkv, qkv.shape[-1] // (3 * self.D)),)

    @property
    def kept_by_reference(self) -> int:
        """Bytes of attention weights that the reference keeps for its backward pass: of each the softmax, in float32 at
        least, and beside it the same in the dtype of the case where that is another."""
        widest = torch.promote_types(self.torch_dtype, torch.float32)
        each = widest.itemsize + (self.itemsize if widest != self.torch_dtype else 0)
        return self.B * self.H * self.T**2 * each


@dataclass(frozen=True)
class AttentionApart(Attention):
    """Causal, q, k, v (B, H, T, D) apart, each lying in memory as (B, T, H, D), as published figures have it."""

    op: ClassVar[str] = "causal_attention"

    def inputs(self, device: torch.device) -> list[Tensor]:
        return [self._lying_by_time(device, seed).requires_grad_() for seed in range(3)]

    def upstream(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """It lies in memory as what arrives from an output projection does."""
        return [self._lying_by_time(y.device, seed=9) for y in outputs]

    def judged(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self.B * self.H * self.T**2 <= JUDGED_WEIGHTS:
            return list(tensors)
        return [x[-1:, -1:] for x in tensors]

    def call(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _as_tuple(function(*inputs))

    def _lying_by_time(self, device: torch.device, seed: int) -> Tensor:
        return self._normal(device, self.B, self.T, self.H, self.D, seed=seed).detach().transpose(1, 2)


@dataclass(frozen=True)
class LayerNorm(Case):
    op: ClassVar[str] = "layer_norm"
    rows: int
    width: int

    def inputs(self, device: torch.device) -> list[Tensor]:
        parameters = (self._normal(device, self.width, seed=seed) for seed in (1, 2))
        return [self._normal(device, self.rows, self.width), *parameters]

    def work(self, which: str) -> tuple[float, float]:
        tensor = self.rows * self.width * self.itemsize
        return 0.0, {"forward": 2, "backward": 3, "both": 5}[which] * tensor

    def pytorch(self, *inputs: Tensor) -> tuple[Tensor, ...] | None:
        """On a CPU it adds the gradient of the weight up row by row: four times the error of a sum by halves."""
        x, weight, bias = inputs
        return (F.layer_norm(x, weight.shape, weight, bias),)


@dataclass(frozen=True)
class AddLayerNorm(LayerNorm):
    """normed and x + residual from one pass."""

    op: ClassVar[str] = "add_layer_norm"

    def inputs(self, device: torch.device) -> list[Tensor]:
        x, weight, bias = super().inputs(device)
        return [x, self._normal(device, self.rows, self.width, seed=3), weight, bias]

    def work(self, which: str) -> tuple[float, float]:
        tensor = self.rows * self.width * self.itemsize
        return 0.0, {"forward": 4, "backward": 4, "both": 8}[which] * tensor

    def pytorch(self, *inputs: Tensor) -> tuple[Tensor, ...] | None:
        x, residual, weight, bias = inputs
        total = x + residual
        return F.layer_norm(total, weight.shape, weight, bias), total


@dataclass(frozen=True)
class RMSNorm(LayerNorm):
    op: ClassVar[str] = "rms_norm"

    def inputs(self, device: torch.device) -> list[Tensor]:
        return super().inputs(device)[:2]

    def pytorch(self, *inputs: Tensor) -> tuple[Tensor, ...] | None:
        x, weight = inputs
        return (F.rms_norm(x, weight.shape, weight, 1e-5),)


@dataclass(frozen=True)
class AddRMSNorm(AddLayerNorm):
    """normed and x + residual from one pass."""

    op: ClassVar[str] = "add_rms_norm"

    def inputs(self, device: torch.device) -> list[Tensor]:
        return super().inputs(device)[:3]

    def pytorch(self, *inputs: Tensor) -> tuple[Tensor, ...] | None:
        x, residual, weight = inputs
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, 1e-5), total


@dataclass(frozen=True)
class SwiGLU(Case):
    op: ClassVar[str] = "swiglu"
    rows: int
    width: int

    def inputs(self, device: torch.device) -> list[Tensor]:
        return [self._normal(device, self.rows, 2 * self.width)]

    def work(self, which: str) -> tuple[float, float]:
        tensor = self.rows * self.width * self.itemsize
        return 0.0, {"forward": 3, "backward": 5, "both": 8}[which] * tensor


@dataclass(frozen=True)
class CrossEntropy(Case):
    """Forward and backward together: implementations divide the work between them as they like."""

    op: ClassVar[str] = "linear_cross_entropy"
    passes: ClassVar[tuple[str, ...]] = ("both",)
    rows: int
    width: int
    vocab: int

    def inputs(self, device: torch.device) -> list[Tensor]:
        targets = torch.arange(self.rows, device=device) * 7919 % self.vocab
        return [
            self._normal(device, self.rows, self.width),
            self._normal(device, self.vocab, self.width, seed=1),
            targets,
        ]

    def work(self, which: str) -> tuple[float, float]:
        return 6.0 * self.rows * self.width * self.vocab, 3.0 * (self.rows + self.vocab) * self.width * self.itemsize


@dataclass(frozen=True)
class Decode(Case):
    """One query a sequence against a cache of T keys and values, all of which are filled."""

    op: ClassVar[str] = "decode_attention"
    passes: ClassVar[tuple[str, ...]] = ("forward",)
    B: int
    H: int
    T: int
    D: int

    def inputs(self, device: torch.device) -> list[Tensor]:
        cache = (self._normal(device, self.B, self.H, self.T, self.D, seed=seed).detach() for seed in (1, 2))
        lengths = torch.full((self.B,), self.T, device=device)
        return [self._normal(device, self.B, self.H, 1, self.D).detach(), *cache, lengths]

    def work(self, which: str) -> tuple[float, float]:
        cells = self.B * self.H * self.T * self.D
        return 4.0 * cells, 2.0 * cells * self.itemsize


def attention_cases(device: torch.device) -> list[Case]:
    """The capstone's heads as a model has them, packed; then published shapes, 16k tokens and 2048 channels a batch
    (Shah et al. 2024), with q, k, v apart."""
    if device.type != "cuda":
        return [Attention("float32", 4, 4, T, 32) for T in (64, 256)]
    capstone = [Attention("bfloat16", 64, 8, T, 64) for T in (256, 512, 1024, 128)]
    published = [
        AttentionApart("bfloat16", 16_384 // T, 2048 // D, T, D)
        for T in (1024, 4096, 512, 2048, 16_384, 8192)
        for D in (64, 128)
    ]
    return capstone + published


def layer_norm_cases(device: torch.device) -> list[Case]:
    """The capstone's width at 16k and 64k tokens, then published sizes and wider ones."""
    kinds = (AddLayerNorm, LayerNorm, AddRMSNorm, RMSNorm)
    if device.type != "cuda":
        return [kind("float32", 2048, 512) for kind in kinds]
    capstone = [kind("bfloat16", rows, 512) for rows in (16_384, 65_536) for kind in kinds]
    published = [*(RMSNorm("bfloat16", 32_768, width) for width in (512, 1024)), LayerNorm("float32", 4096, 1024)]
    wider = [(32_768, 1024), (16_384, 2048), (16_384, 4096), (16_384, 8192)]
    others = [kind("bfloat16", *size) for size in wider for kind in (AddLayerNorm, LayerNorm, RMSNorm)]
    return list(dict.fromkeys([*capstone, *published, *others]))


def swiglu_cases(device: torch.device) -> list[Case]:
    """The capstone's width at 16k and 64k tokens, then published sizes and others."""
    if device.type != "cuda":
        return [SwiGLU("float32", 1024, 1376)]
    capstone = [(16_384, 2048), (65_536, 2048)]
    published = [(8192, 2048), (8192, 3072)]
    others = [(16_384, 1368), (16_384, 4096), (16_384, 8192), (16_384, 16_384)]
    return [SwiGLU("bfloat16", *size) for size in (*capstone, *published, *others)]


def cross_entropy_cases(device: torch.device) -> list[Case]:
    if device.type != "cuda":
        return [CrossEntropy("float32", 512, 128, V) for V in (96, 4096)]
    return [
        CrossEntropy("bfloat16", *size)
        for size in ((16_384, 512, 96), (16_384, 512, 50_257), (16_384, 768, 50_257), (8192, 2048, 128_256))
    ]


def decode_cases(device: torch.device) -> list[Case]:
    if device.type != "cuda":
        return [Decode("float32", 4, 4, T, 32) for T in (128, 512)]
    return [Decode("bfloat16", B, 8, T, 64) for T in (1024, 16_384, 256, 4096) for B in (1, 64, 8)]


CASES: Mapping[str, Callable[[torch.device], list[Case]]] = {
    "attention": attention_cases,
    "layer_norm": layer_norm_cases,
    "swiglu": swiglu_cases,
    "cross_entropy": cross_entropy_cases,
    "decode": decode_cases,
}
FIRST = {"attention": 3, "layer_norm": 8, "cross_entropy": 2, "swiglu": 2, "decode": 3}  # what the capstone uses


def in_order(device: torch.device) -> list[Case]:
    """All cases: the FIRST of each family, then the others, families in turn, so that a run that is cut short has seen
    something of each."""
    lists = {name: CASES[name](device) for name in FIRST}
    first = [case for name, count in FIRST.items() for case in lists[name][:count]]
    others = [cases[FIRST[name] :] for name, cases in lists.items()]
    longest = max(map(len, others))
    return first + [found[i] for i in range(longest) for found in others if i < len(found)]
