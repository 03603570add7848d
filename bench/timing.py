"""Time and memory of calls, measured side by side.

On a GPU: the device's own time by events, each call begun with a cold L2 cache, after the chip is warm. The device is
held back by a sleep until the host has launched all of a call, for else a call of several short kernels would be as
long as the host takes to launch them. On a CPU, and for whole training steps, whose user waits for the host too: wall
time, caches as the call before left them. Calls that are compared take turns, in an order that rotates, so that
whatever drifts (clocks, temperature, neighbours) drifts for all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats

from kernels.device_clock import Held, device_clock

Call = Callable[[], object]
LEAST = 6  # rounds: the least and the largest of fewer are no 95% interval of their median


@dataclass(frozen=True)
class Times:
    """Seconds of one call, a round each, and the host's own seconds a call (GPU only; elsewhere they are the same).

    late: in how many rounds the host was not done launching when the device began, so that gaps may be in the time.
    """

    rounds: tuple[float, ...]
    host: float | None = None
    late: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def percentile(self, p: int) -> float:
        """By linear interpolation between rounds."""
        return (
            statistics.quantiles(self.rounds, n=100, method="inclusive")[p - 1] if len(self.rounds) > 1 else self.median
        )


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """(low, high) around the median by order statistics, whatever the distribution: at least `level`, where there are
    values enough; else the least and the largest."""
    ordered = sorted(values)
    rank = max(int(stats.binom.ppf((1 - level) / 2, len(ordered), 0.5)) - 1, 0)
    return ordered[rank], ordered[-1 - rank]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    calls: Mapping[str, Call], device: torch.device, seconds: float, rounds: int | None = None, wall: bool = False
) -> dict[str, Times]:
    """Times of every call, over as many rounds as fit into about `seconds` (LEAST to 200), or over `rounds`.

    wall: the seconds until the device is done, the host's included, also on a GPU. Each call has been made twice before
    it is timed; what it raises goes through.
    """
    names = list(calls)
    by_device = device.type == "cuda" and not wall
    if device.type == "cuda":
        warm_up(device)
    costs = [_seconds_of(calls[name], device) for name in names for _ in (0, 1)][1::2]
    own = {name: _host_seconds(calls[name], device) for name in names} if by_device else {}
    once = Held(device_clock(device), own).once if by_device else lambda name, call: (_seconds_of(call, device), False)
    spent = sum(costs) + 3 * sum(own.values()) + 1e-4 * len(own)  # held and flushed
    rounds = rounds or min(max(int(seconds / max(spent, 1e-9)), LEAST), 200)
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            found[name].append(once(name, calls[name]))
    return {
        name: Times(tuple(t for t, _ in found[name]), own.get(name), sum(late for _, late in found[name]))
        for name in names
    }


def _seconds_of(call: Call, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def start(device: torch.device) -> None:
    """Have a device's libraries loaded, and their workspaces allocated, before what comes first is charged for them."""
    if device.type == "cuda":
        x = torch.ones(256, 256, device=device, dtype=torch.bfloat16, requires_grad=True)
        (x @ x).sum().backward()
        synchronize(device)


_warm: set[torch.device] = set()


def warm_up(device: torch.device) -> None:
    """Keep the chip busy until its clocks have risen: half a second at first, then a tenth after whatever pause."""
    a = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    end = time.perf_counter() + (0.1 if device in _warm else 0.5)
    _warm.add(device)
    while time.perf_counter() < end:
        for _ in range(20):
            a @ a
        synchronize(device)


def _host_seconds(call: Call, device: torch.device, repeats: int = 20) -> float:
    """How long the host is busy with a call, not waiting for the device: the median of single calls."""
    found = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    synchronize(device)
    return statistics.median(found)


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Device memory that a call takes at its peak beyond what is there before it; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = call()
    synchronize(device)
    del kept
    return torch.cuda.max_memory_allocated(device) - before


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of a large tensor reads and writes: the floor of what is bound by memory."""
    size = 2**30 if device.type == "cuda" else 2**27  # well above any cache
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(in_turn({"copy": lambda: target.copy_(source)}, device, 0.5)["copy"].rounds)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large product of random matrices in `dtype`."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(in_turn({"product": lambda: a @ b}, device, 0.5)["product"].rounds)
