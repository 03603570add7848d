"""One case, everyone who can do it, side by side: first judged, then timed. A wrong result never gets a time.

The judge is kernels.error_rule: twice the error of plain PyTorch in the same dtype is allowed. Plain PyTorch is the
reference's composed operations, or PyTorch's own operator where that errs more (see Case.pytorch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bench import timing
from bench.cases import Case
from bench.peers import Provider, Unsupported
from kernels.error_rule import judge

OK, WRONG, ABSENT, MEMORY, FAILED = "ok", "wrong", "absent", "out of memory", "failed"


@dataclass
class Row:
    """One provider at one pass of a case. Seconds, bytes, FLOP/s; what was not measured is None, and status says why.

    fraction: of the floor, which is the larger of arithmetic over the machine's matrix rate and traffic over its copy
    bandwidth, both measured in the same run; 1 is as fast as the machine can be.
    """

    case: str
    op: str
    shape: dict[str, int]
    dtype: str
    which: str
    provider: str
    version: str
    status: str
    reason: str = ""
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    host: float | None = None
    floor: float | None = None
    fraction: float | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    peak_bytes: int | None = None
    rounds: tuple[float, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the single rounds are left out."""
        return {name: value for name, value in asdict(self).items() if name != "rounds"}


@lru_cache
def floors(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(FLOP/s of a large product, bytes/s of a large copy) on this machine, measured once a process."""
    return timing.matmul_rate(device, dtype), timing.copy_bandwidth(device)


def measure(
    case: Case, device: torch.device, providers: Sequence[Provider], which: Iterable[str], seconds: float = 1.0
) -> list[Row]:
    """Rows of the passes `which`, a provider each. Running out of memory is a result, and so is a peer's failure."""
    torch._dynamo.reset()  # what other cases compiled counts against the limit of recompilations
    inputs = case.inputs(device)
    upstream = case.upstream(_shapes(case, inputs))
    entrants: dict[str, Callable[..., Any]] = {}
    stopped: dict[str, tuple[str, str]] = {}
    for provider in providers:
        status, reason, function = _enter(provider, case, inputs, upstream)
        if status == OK:
            entrants[provider.name] = function
        else:
            stopped[provider.name] = status, reason
    rows = []
    for one in which:
        calls = {name: _call(case, function, inputs, upstream, one) for name, function in entrants.items()}
        calls, unable = _able(calls, device)
        times = timing.in_turn(calls, device, seconds) if calls else {}
        for provider in providers:
            row = Row(str(case), case.op, case.shape, case.dtype, one, provider.name, provider.version, OK)
            row.status, row.reason = (stopped | unable).get(provider.name, (OK, ""))
            if provider.name in times:
                _fill(row, case, device, times[provider.name], timing.peak_bytes(calls[provider.name], device))
            rows.append(row)
    return rows


def _shapes(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Empty outputs: the reference on meta tensors, which costs nothing."""
    with torch.no_grad():
        outputs = case.reference(*(x.detach().to("meta") for x in inputs))
    return [torch.empty(y.shape, dtype=y.dtype, device=inputs[0].device) for y in outputs]


def _enter(
    provider: Provider, case: Case, inputs: Sequence[Tensor], upstream: Sequence[Tensor]
) -> tuple[str, str, Callable[..., Any] | None]:
    """Whether a provider may be timed: (status, reason, its function)."""
    try:
        function = provider.make(case)
        got = case.judged(_results(case.call(function, inputs), inputs, upstream))
    except Unsupported as error:
        return ABSENT, str(error), None
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return MEMORY, "in the first call", None
    except Exception as error:  # of a stranger's code, anything can come
        if "an illegal memory access" in str(error):
            raise  # nothing on this device can be trusted any more
        return FAILED, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200], None
    exact = _right(case.reference, case, inputs, upstream, torch.float64)
    plains = [_right(case.reference, case, inputs, upstream, case.torch_dtype)]
    if own := _right(case.pytorch, case, inputs, upstream, case.torch_dtype):
        plains.append(own)
    for index, (result, right, *plain) in enumerate(zip(got, exact, *plains, strict=True)):
        if all(faults := [judge(result, p, right).fault for p in plain]):
            name = f"output {index}" if index < len(upstream) else f"gradient {index - len(upstream)}"
            return WRONG, f"{name}: {faults[-1]}", None
    return OK, "", function


def _results(outputs: Sequence[Tensor], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad(outputs, leaves, upstream) if leaves else ()
    return [*(y.detach() for y in outputs), *gradients]


def _right(
    function: Callable[..., tuple[Tensor, ...] | None], case: Case, inputs: Sequence[Tensor],
    upstream: Sequence[Tensor], dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """Outputs and gradients by `function` in `dtype`, of the part that is judged; none where it gives None."""
    parts = [
        part.detach().to(dtype).requires_grad_(x.requires_grad)
        for x, part in zip(inputs, case.judged(inputs), strict=True)
    ]
    if (outputs := function(*parts)) is None:
        return []
    above = [u.to(y.dtype) for u, y in zip(case.judged(upstream), outputs, strict=True)]
    return _results(outputs, parts, above)


def _call(
    case: Case, function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor], which: str
) -> Callable[[], Any]:
    """A pass as a function of no argument."""
    leaves = [x for x in inputs if x.requires_grad]
    if which == "forward":
        return lambda: case.call(function, inputs)
    if which == "both":
        return lambda: torch.autograd.grad(case.call(function, inputs), leaves, upstream)
    made: list[tuple[Tensor, ...]] = []

    def backward() -> Any:
        if not made:
            made.append(case.call(function, inputs))
        return torch.autograd.grad(made[0], leaves, upstream, retain_graph=True)

    return backward


def _able(
    calls: dict[str, Callable[[], Any]], device: torch.device
) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """The calls that can be made, and why the others cannot."""
    unable = {}
    for name, call in calls.items():
        try:
            call()
            timing.synchronize(device)
        except torch.OutOfMemoryError:
            unable[name] = MEMORY, "when called again"
            torch.cuda.empty_cache()
        except RuntimeError as error:
            unable[name] = FAILED, str(error).strip().splitlines()[0][:200]
    return {name: call for name, call in calls.items() if name not in unable}, unable


def _fill(row: Row, case: Case, device: torch.device, times: timing.Times, peak: int | None) -> None:
    flops, traffic = case.work(row.which)
    rate, bandwidth = floors(device, case.torch_dtype)
    row.rounds, row.median, row.host = times.rounds, times.median, times.host
    row.p20, row.p80 = times.percentile(20), times.percentile(80)
    row.floor = max(flops / rate, traffic / bandwidth)
    row.fraction = row.floor / row.median
    row.flops_per_s, row.bytes_per_s = flops / row.median, traffic / row.median
    row.peak_bytes = peak
