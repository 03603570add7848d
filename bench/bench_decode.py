"""Attention of one query against a cache of keys and values."""

from bench.cases import decode_cases
from bench.conftest import DEVICE, contests


@contests(decode_cases(DEVICE))
def bench_decode(measured, case, which, provider):
    measured(case, which, provider)
