"""Causal attention, packed and of q, k, v apart: the project's backends against PyTorch's and other people's."""

from bench.cases import attention_cases
from bench.conftest import DEVICE, contests


@contests(attention_cases(DEVICE))
def bench_attention(measured, case, which, provider):
    measured(case, which, provider)
