"""An operation of this project in an nn.Module of your own, its output and gradients checked against the equation.

python kernel_in_your_module.py                      # the backend that suits this machine
python kernel_in_your_module.py --kernels triton     # on an NVIDIA GPU, or anywhere with TRITON_INTERPRET=1
"""

import argparse
import copy
import sys

import torch
from torch import Tensor, nn

import kernels
from kernels.error_rule import Judge


class GatedBlock(nn.Module):
    """x + down(silu(gate) · up), with gate | up made from rms_norm(x): the MLP half of a Llama block, x (B, T, C)."""

    def __init__(self, width: int, hidden: int, ops: kernels.Backend):
        super().__init__()
        self.ops = ops
        self.norm = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ops.rms_norm(x, self.norm)  # (B, T, C)
        return x + self.down(self.ops.swiglu(self.gate_up(normed)))  # (B, T, 2F) -> (B, T, F) -> (B, T, C)


def output_and_gradients(block: GatedBlock, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = block(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y))
    return {"output": y.detach(), "x": x.grad, **{name: p.grad for name, p in block.named_parameters()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default="auto", choices=["auto", *kernels.BACKENDS])
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        ops = kernels.select(options.kernels, device)
    except kernels.BackendUnavailable as error:
        sys.exit(str(error))
    torch.manual_seed(0)
    fused = GatedBlock(options.width, 2 * options.width, ops).to(device)
    x = torch.randn(4, 16, options.width, device=device)

    # The same weights through the plain equations, in the same dtype and in float64. Ours may err twice as much as the
    # plain ones do: kernels/error_rule.py.
    plain, exact = copy.deepcopy(fused), copy.deepcopy(fused).double()
    plain.ops = exact.ops = kernels.select("reference")
    found, truth = output_and_gradients(fused, x), output_and_gradients(exact, x.double())
    judge = Judge(lambda: list(output_and_gradients(copy.deepcopy(plain), x).values()), list(truth.values()))

    print(f"{ops.name} kernels on {device}\n{'':14}{'error':>12}{'allowed':>12}")
    faults = 0
    for name, verdict in zip(found, judge(list(found.values())), strict=True):
        faults += verdict.fault is not None
        print(f"{name:14}{verdict.error:12.1e}{verdict.allowed:12.1e}  {verdict.fault or 'ok'}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
