"""The error rule of kernels.error_rule as an assertion."""

from collections.abc import Callable, Sequence

from torch import Tensor

from kernels.error_rule import Judge


def assert_close_by_rule(
    fused: Sequence[Tensor], plain: Callable[[], Sequence[Tensor]], ref64: Sequence[Tensor], names: Sequence[str]
) -> None:
    for name, judgement in zip(names, Judge(plain, ref64)(fused), strict=True):
        assert judgement.fault is None, f"{name}: {judgement.fault}"
