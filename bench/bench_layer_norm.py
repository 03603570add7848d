"""LayerNorm and RMSNorm, alone and after a residual addition."""

from bench.cases import layer_norm_cases
from bench.conftest import DEVICE, contests


@contests(layer_norm_cases(DEVICE))
def bench_layer_norm(measured, case, which, provider):
    measured(case, which, provider)
