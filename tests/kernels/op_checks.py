"""What the tests of the row-wise operations share: running one, judging it, forcing small tiles, faking a GPU."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from error_rule import assert_close_by_rule
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton import knobs
from triton.runtime.interpreter import interpreter_builder

from kernels.fused import tuning

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def outputs_and_gradients(op: Callable, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """All outputs of op(*inputs), then the gradient of each input. Strides of inputs and upstream are kept."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = op(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, list(upstream))]


def assert_agrees(fused: Callable, reference: Callable, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> None:
    """Outputs and gradients of `fused` within the error rule, and in the dtypes of the reference."""
    got = outputs_and_gradients(fused, inputs, upstream)
    plain = partial(outputs_and_gradients, reference, inputs, upstream)
    exact = outputs_and_gradients(reference, [x.double() for x in inputs], [g.double() for g in upstream])
    names = [f"output {i}" for i in range(len(upstream))] + [f"gradient of input {i}" for i in range(len(inputs))]
    assert_close_by_rule(got, plain, exact, names)


def small_after_the_first(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, 1) in float64: 1, and then quarters of the dtype's last place of 1. A sum of many that is rounded to 16 bits
    after each is the first alone."""
    sizes = torch.full((n, 1), torch.finfo(dtype).eps / 4, dtype=torch.float64, device=device)
    sizes[0] = 1
    return sizes


def assert_same_bits_twice(op: Callable, inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> None:
    first, second = (outputs_and_gradients(op, inputs, upstream) for _ in range(2))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"result {i} differs between two runs"


def force_config(monkeypatch: pytest.MonkeyPatch, **constants: int) -> None:
    """Replaces constants of every launch configuration that has them, so that a small test crosses their borders."""
    lookup = tuning.lookup

    def smaller(*args, **kwargs):
        config = lookup(*args, **kwargs)
        return {name: constants.get(name, value) for name, value in config.items()}

    monkeypatch.setattr(tuning, "lookup", smaller)


def assert_compiles_whole(op: Callable, inputs: Sequence[Tensor]) -> None:
    """torch.compile(fullgraph=True) traces `op`: on fake CUDA tensors, and with its backward.

    The backward is traced on fake CUDA tensors too where there is a GPU. Elsewhere a fake CPU tensor stands in:
    autograd asks the driver about a CUDA tensor, and PyTorch's CPU-only builds abort the process.
    """
    for device, with_grad in (("cuda", False), ("cuda" if torch.cuda.is_available() else "cpu", True)):
        torch._dynamo.reset()
        with FakeTensorMode():
            fakes = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in inputs]
            fakes = [x.requires_grad_(with_grad and x.is_floating_point()) for x in fakes]
            output = torch.compile(op, fullgraph=True, backend="aot_eager")(*fakes)
            outputs = output if isinstance(output, tuple) else (output,)
            assert all(y.device.type == device for y in outputs)
            if with_grad:
                torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
                assert all(x.grad.shape == x.shape for x in fakes if x.requires_grad)


def cuda_autocast_dtypes(op: Callable, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[torch.dtype]:
    """The dtypes that op(*inputs) gives on a GPU under autocast to `dtype`, found with fake tensors, on any machine."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), torch.no_grad():
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        with torch.autocast("cuda", dtype=dtype):
            output = op(*(torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs))
    return [y.dtype for y in (output if isinstance(output, tuple) else (output,))]


def fresh(seed: int, shape: Sequence[int], dtype: torch.dtype, device: str, mean: float = 0.0) -> Tensor:
    """Normally distributed numbers, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + mean).to(device, dtype)


@pytest.fixture
def far_memory(tmp_path: Path) -> Tensor:
    """2^32 + 2^20 float16 zeros in a sparse file, for tensors that begin at index 2^31.

    An offset past 2^31 lands in it, and so does one that has wrapped around in 32 bits: a test fails, not the process.
    """
    if not knobs.runtime.interpret:
        pytest.skip("host memory; needs the interpreter")
    return torch.from_file(str(tmp_path / "far"), shared=True, size=2**32 + 2**20, dtype=torch.float16)


def run_program(kernel, program: int, *args, **constants) -> None:
    """Interprets one program of a kernel, whatever its number: those before it need not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter_builder, "set_grid_idx", lambda *_: None)
        patch.setattr(interpreter_builder, "grid_idx", (program, 0, 0))
        kernel[(1,)](*args, **constants)
