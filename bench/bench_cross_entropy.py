"""The output projection and its cross-entropy in one operation, forward and backward."""

from bench.cases import cross_entropy_cases
from bench.conftest import DEVICE, contests


@contests(cross_entropy_cases(DEVICE))
def bench_cross_entropy(measured, case, which, provider):
    measured(case, which, provider)
