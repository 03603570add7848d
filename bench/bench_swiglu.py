"""SwiGLU of a packed projection."""

from bench.cases import swiglu_cases
from bench.conftest import DEVICE, contests


@contests(swiglu_cases(DEVICE))
def bench_swiglu(measured, case, which, provider):
    measured(case, which, provider)
