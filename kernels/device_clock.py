"""What a call takes on a GPU: the device's own time, with a cold L2 cache.

The device is held back by a sleep until the host has launched all of a call, for else a call of several short kernels
would be as long as the host takes to launch them. The tuner and the benches time by this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import torch

TRIES = 4  # of a call, each with a longer hold
SHORTEST_HOLD, LONGEST_HOLD = 20e-6, 0.1  # seconds


class Clock(Protocol):
    """What Held needs of a device: all of it queued, nothing waited for."""

    def flush(self) -> None: ...
    def sleep(self, seconds: float) -> None: ...
    def event(self) -> Any: ...  # a point in the queue, as torch.cuda.Event


class Held:
    """Times calls on a device that sleeps until the host has launched them; host: seconds a call by name."""

    def __init__(self, clock: Clock, host: Mapping[str, float]):
        self.clock = clock
        self.hold = {name: max(2 * seconds, SHORTEST_HOLD) for name, seconds in host.items()}

    def once(self, name: str, call: Callable[[], object]) -> tuple[float, bool]:
        """(seconds on the device, whether the host was late). A round in which it was is done again, held longer."""
        for _ in range(TRIES):
            begin, end = self.clock.event(), self.clock.event()
            self.clock.flush()
            self.clock.sleep(self.hold[name])
            begin.record()
            call()
            end.record()
            late = begin.query()  # the device is past the sleep: it may have waited for the host since
            end.synchronize()
            if not late or self.hold[name] >= LONGEST_HOLD:
                break
            self.hold[name] = min(4 * self.hold[name], LONGEST_HOLD)
        return begin.elapsed_time(end) * 1e-3, late


class CudaClock:
    """A GPU. Its L2 cache is flushed by reading: what was written would be written back while a call is timed."""

    def __init__(self, device: torch.device):
        cached = torch.cuda.get_device_properties(device).L2_cache_size
        self.filler = torch.zeros(2 * cached // 4, dtype=torch.float32, device=device)
        begin, end = self.event(), self.event()
        for cycles in (10_000, 10_000_000):  # the first warms up
            begin.record()
            torch.cuda._sleep(cycles)
            end.record()
        end.synchronize()
        self.cycles_per_s = cycles / (begin.elapsed_time(end) * 1e-3)

    def flush(self) -> None:
        self.filler.sum()

    def sleep(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * self.cycles_per_s))

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)


@lru_cache
def device_clock(device: torch.device) -> CudaClock:
    return CudaClock(device)
