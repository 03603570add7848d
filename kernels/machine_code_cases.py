"""What kernels.machine_code compiles: representative calls of every fused operation, forward and backward.

A case is a function of no argument that runs a public operation on small CPU tensors. Together they reach every entry
of every committed tuning table, which a test holds.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels import fused

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def _attention(width: int, dtype: torch.dtype, length: int, dropout_p: float, precision: str) -> None:
    """Packed: eight query heads in four groups."""
    with _matmul_precision(precision):
        qkv = torch.zeros(1, length, 16 * width, dtype=dtype, requires_grad=True)
        out = fused.causal_attention_packed(qkv, 8, 4, dropout_p=dropout_p, dropout_seed=0)
        torch.autograd.grad(out, qkv, torch.zeros_like(out))


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _decode(width: int, dtype: torch.dtype, group: int, length: int, precision: str = "highest") -> None:
    """One sequence of two cache heads: split where the cache is long."""
    q = torch.zeros(1, 2 * group, 1, width, dtype=dtype)
    cache = torch.zeros(2, 1, 2, length, width, dtype=dtype)
    with _matmul_precision(precision):
        fused.decode_attention(q, *cache, torch.full((1,), length))


def _layer_norm(width: int, dtype: torch.dtype) -> None:
    x, residual = (torch.ones(64, width, dtype=dtype, requires_grad=True) for _ in range(2))
    weight, bias = (torch.ones(width, requires_grad=True) for _ in range(2))
    normed, total = fused.add_layer_norm(x, residual, weight, bias)
    torch.autograd.grad((normed, total), (x, residual, weight, bias), (normed, total))
    normed = fused.rms_norm(x, weight)
    torch.autograd.grad(normed, (x, weight), normed)


def _swiglu(width: int, dtype: torch.dtype, packed: bool) -> None:
    x = torch.ones(64, 2 * width, dtype=dtype, requires_grad=True)
    out = fused.swiglu(x) if packed else fused.swiglu_unpacked(*(half.contiguous() for half in x.chunk(2, -1)))
    torch.autograd.grad(out, x, torch.ones_like(out))


def _cross_entropy(vocab_size: int, dtype: torch.dtype) -> None:
    hidden = torch.ones(16, 64, dtype=dtype, requires_grad=True)
    weight = torch.ones(vocab_size, 64, dtype=dtype, requires_grad=True)
    loss = fused.linear_cross_entropy(hidden, weight, torch.zeros(16, dtype=torch.int64))
    torch.autograd.grad(loss, (hidden, weight))
    with torch.no_grad():
        fused.linear_cross_entropy(hidden, weight, torch.zeros(16, dtype=torch.int64))


def _attention_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    every = (16, 32, 40, 64, 80, 96, 128, 256)
    for note, widths, dtypes, length, dropout_p, precision in (
        ("", every, (BF16, FP16), 1024, 0.0, "highest"),
        (", 256 keys", (64,), (BF16,), 256, 0.0, "highest"),  # tuning finds an entry for each class of lengths
        (", 512 keys", (16, 32, 64, 128, 256), (BF16, FP16), 512, 0.0, "highest"),
        (", 2048 keys", (64,), (BF16,), 2048, 0.0, "highest"),
        (", ragged", (64, 128), (BF16,), 1000, 0.0, "highest"),
        (", dropout", (16, 32, 64, 128, 256), (BF16,), 1024, 0.1, "highest"),
        ("", (16, 32, 64, 128, 256), (FP32,), 1024, 0.0, "highest"),
        (" as tf32", (16, 32, 64, 128, 256), (FP32,), 1024, 0.0, "high"),
    ):
        for dtype in dtypes:
            for width in widths:
                yield f"{_label(width, dtype)}{note}", partial(_attention, width, dtype, length, dropout_p, precision)


def _label(width: int, dtype: torch.dtype) -> str:
    return f"width {width}, {str(dtype).removeprefix('torch.')}"


CASES: dict[str, dict[str, Callable[[], None]]] = {
    "attention": dict(_attention_cases()),
    "cross_entropy": {
        _label(vocab_size, dtype): partial(_cross_entropy, vocab_size, dtype)
        for vocab_size in (65, 1000, 4096, 50257)
        for dtype in (BF16, FP16, FP32)
    },
    "decode": {
        f"{_label(width, dtype)}, groups of {group}, {length} keys": partial(_decode, width, dtype, group, length)
        for width in (16, 64, 80, 128, 256)
        for dtype in (BF16, FP16, FP32)
        for group, length in ((1, 4096), (8, 4096), (1, 16))
    }
    | {f"{_label(width, FP32)} as tf32": partial(_decode, width, FP32, 1, 4096, "high") for width in (64, 128, 256)},
    "layer_norm": {
        _label(width, dtype): partial(_layer_norm, width, dtype)
        for width in (64, 128, 256, 512, 1000, 1024, 2048, 4096, 8192, 16_384)
        for dtype in (BF16, FP16, FP32)
    },
    "swiglu": {
        f"{_label(width, dtype)}{'' if packed else ', unpacked'}": partial(_swiglu, width, dtype, packed)
        for width, packed in ((512, True), (1024, True), (2048, True), (2048, False))
        for dtype in (BF16, FP16, FP32)
    },
}
