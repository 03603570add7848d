"""The error rule of kernels.error_rule as an assertion."""

from torch import Tensor

from kernels.error_rule import judge


def assert_close_by_rule(fused: Tensor, plain_same_dtype: Tensor, ref64: Tensor, name: str) -> None:
    fault = judge(fused, plain_same_dtype, ref64).fault
    assert fault is None, f"{name}: {fault}"
