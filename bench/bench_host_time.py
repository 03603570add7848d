"""What a fused operation costs the host, forward and backward: Python, PyTorch's dispatch and its autograd.

The tensors are small and the Triton kernels are not launched at all, which on a GPU adds some 10 to 20 us each: so this
runs on any machine that has Triton. Beside them PyTorch's own operators at the same size, whose arithmetic, done here
by the CPU, is in their time (as that of cross-entropy's matrix products is in both). A step of a small model calls 50
of these; where they take longer than the kernels, the GPU waits.
"""

import importlib

import pytest
import torch

from bench import timing

jit = pytest.importorskip("triton.runtime.jit", reason="needs Triton, which exists for Linux only")
CPU = torch.device("cpu")
CALLS = 20  # a round
B, T, H, D, F, V = 2, 8, 2, 16, 64, 96


def operations():
    """name -> (the call, given a backend's module, its inputs)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.bfloat16):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    x, residual, qkv, gate_up = (draw(B, T, width) for width in (H * D, H * D, 3 * H * D, 2 * F))
    weight, bias, hidden, head = (*(draw(H * D, dtype=torch.float32) for _ in "wb"), draw(B * T, H * D), draw(V, H * D))
    targets = torch.randint(V, (B * T,), generator=generator)
    return {
        "causal_attention_packed": (lambda ops: ops.causal_attention_packed(qkv, H), [qkv]),
        "add_layer_norm": (lambda ops: ops.add_layer_norm(x, residual, weight, bias), [x, residual, weight, bias]),
        "swiglu": (lambda ops: ops.swiglu(gate_up), [gate_up]),
        "linear_cross_entropy": (lambda ops: ops.linear_cross_entropy(hidden, head, targets), [hidden, head]),
    }


OPERATIONS = operations()
PROVIDERS = {"triton": "kernels.fused", "torch": "kernels.aten"}


@pytest.fixture(scope="module")
def host_rounds(seconds):
    """Seconds by operation and pass, then by provider, measured in turns; no kernel is launched."""
    if not isinstance(importlib.import_module("kernels.fused.swiglu")._swiglu_forward, jit.JITFunction):
        pytest.skip("TRITON_INTERPRET is set: there would be nothing but the interpreter's time")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit.JITFunction, "run", lambda *_, **__: None)
        for name, (call, inputs) in OPERATIONS.items():
            for which in ("forward", "both"):
                calls = {p: repeat(call, inputs, importlib.import_module(PROVIDERS[p]), which) for p in PROVIDERS}
                if seconds is None:
                    found[name, which] = {p: [] for p in PROVIDERS if calls[p]() is None}
                    continue
                times = timing.in_turn(calls, CPU, seconds)
                found[name, which] = {p: [t / CALLS for t in times[p].rounds] for p in PROVIDERS}
    return found


def repeat(call, inputs, ops, which):
    outputs = call(ops)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = [torch.ones_like(y) for y in outputs]

    def calls():
        for _ in range(CALLS):
            y = call(ops)
            if which == "both":
                torch.autograd.grad(y, inputs, gradients if isinstance(y, tuple) else gradients[0])

    return calls


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("which", ["forward", "both"])
@pytest.mark.parametrize("operation", OPERATIONS)
def bench_host_time(benchmark, replay, host_rounds, operation, which, provider):
    benchmark.group = f"host time: {operation} {which}"
    replay(host_rounds[operation, which][provider])
