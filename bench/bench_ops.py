"""Each operation, forward and backward, on every backend that can run here: pytest bench/ --benchmark-only.

Shapes are small enough for a CPU. Interpreted Triton kernels are never timed: that would measure the interpreter.
"""

import pytest
import torch

import kernels
from kernels.backend import interpreted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, T, H, D, F, V = 8, 128, 4, 32, 512, 96
C = H * D
OPS = {
    "causal_attention_packed": (lambda ops, x: ops.causal_attention_packed(x, H), [(B, T, 3 * C)]),
    "layer_norm": (lambda ops, x, w, b: ops.layer_norm(x, w, b), [(B, T, C), (C,), (C,)]),
    "add_layer_norm": (lambda ops, x, r, w, b: sum(ops.add_layer_norm(x, r, w, b)), [(B, T, C)] * 2 + [(C,)] * 2),
    "swiglu": (lambda ops, x: ops.swiglu(x), [(B, T, 2 * F)]),
    "linear_cross_entropy": (
        lambda ops, h, w: ops.linear_cross_entropy(h, w, torch.arange(B * T, device=DEVICE) % V),
        [(B * T, C), (V, C)],
    ),
}


def backends() -> list[str]:
    names = kernels.available(DEVICE)
    return [name for name in names if not (name == "triton" and interpreted())]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
def bench_forward_backward(benchmark, op, backend):
    call, shapes = OPS[op]
    ops = kernels.select(backend, DEVICE)
    inputs = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
    upstream = torch.randn_like(call(ops, *inputs))

    def forward_backward():
        torch.autograd.grad(call(ops, *inputs), inputs, upstream)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{op}, float32, {DEVICE}, forward + backward"
    benchmark(forward_backward)
