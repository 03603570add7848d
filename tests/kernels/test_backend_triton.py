"""The Triton backend as a whole: it has every operation, called as the reference is."""

import inspect
import os

import pytest
from triton import knobs

from kernels import fused, reference
from kernels.backend import OPS
from tests.children import python


def test_it_has_every_operation_and_nothing_else():
    assert sorted(fused.__all__) == sorted(OPS)
    assert all(callable(getattr(fused, op)) for op in OPS)


def arguments(function) -> list[tuple]:
    """Names, kinds and defaults; the reference's **options are the keyword arguments of its causal_attention."""
    found = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            found += [a for a in arguments(reference.causal_attention) if a[1] is p.KEYWORD_ONLY]
        else:
            found.append((p.name, p.kind, p.default))
    return found


@pytest.mark.parametrize("op", OPS)
def test_every_operation_is_called_as_the_reference_is(op):
    assert arguments(getattr(fused, op)) == arguments(getattr(reference, op))


ONE_COMPILATION = """
import torch
from kernels import fused, machine_code

with machine_code.compiled_launches(90) as launches:
    for T in (1, 5, 16, 37):
        x = torch.ones(1, T, 64, dtype=torch.bfloat16, requires_grad=True)
        w = torch.ones(64, requires_grad=True)
        normed, total = fused.add_layer_norm(x, x, w, w)
        torch.autograd.grad((normed, total), (x, w), (normed, total))
        gate_up = torch.ones(1, T, 128, dtype=torch.bfloat16, requires_grad=True)
        out = fused.swiglu(gate_up)
        torch.autograd.grad(out, gate_up, out)
        hidden = torch.ones(T, 64, dtype=torch.bfloat16, requires_grad=True)
        loss = fused.linear_cross_entropy(hidden, torch.ones(65, 64, dtype=torch.bfloat16), torch.zeros(T).long())
        torch.autograd.grad(loss, hidden)
found = {}
for kernel in launches:
    found.setdefault(kernel.metadata.name, set()).add(kernel.hash)
print(len(found), max(map(len, found.values())), sum(".f64" in kernel.asm["ptx"] for kernel in launches))
"""


def test_one_compilation_serves_every_length_and_none_calculates_in_float64():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    out = python("-c", ONE_COMPILATION, env=environment, check=True).stdout
    assert out.split() == ["7", "1", "0"]


@pytest.mark.skipif(not knobs.runtime.interpret, reason="needs the interpreter")
def test_bfloat16_is_right_in_the_interpreter_without_anyone_asking():
    """In a process of its own, where nothing but kernels.fused is imported. Truncation changes every second value."""
    code = (
        "import torch; from kernels import fused, reference;"
        "x = torch.randn(4, 64).bfloat16(); w = torch.ones(64);"
        "print((fused.rms_norm(x, w) != reference.rms_norm(x, w)).float().mean().item())"
    )
    out = python("-c", code, check=True).stdout
    assert float(out) < 0.05
