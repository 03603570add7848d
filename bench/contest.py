"""One case, everyone who can do it, side by side: first judged (bench/judging.py), then timed. A wrong result never
gets a time.
"""

from __future__ import annotations

import contextlib
import gc
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from bench import timing
from bench.cases import Case
from bench.judging import Right
from bench.peers import Provider, Unsupported

OK, WRONG, ABSENT, MEMORY, FAILED = "ok", "wrong", "absent", "out of memory", "failed"
JUDGE, TURNS = "the reference", "all in turns"  # who is at work where it is no single provider
ROUNDS = 20  # that the quick ones shall have, whoever is slow beside them
SLOW = 4.0  # times the seconds of the quickest
FITS = 0.8  # of the free memory: the rest is lost between blocks
LOST = (
    "illegal memory access", "misaligned address", "device-side assert", "launch failure", "illegal instruction",
    "invalid program counter", "invalid address space", "hardware stack error", "uncorrectable",
)  # fmt: skip


@dataclass
class Row:
    """One provider at one pass of a case. Seconds, bytes, FLOP/s; what was not measured is None, and status says why.

    reason: why there is no time, or how it was measured if not like the others. fraction: of the floor, which is the
    larger of arithmetic over the machine's matrix rate and traffic over its copy bandwidth, both measured in the same
    run; 1 is as fast as the machine can be. peak_bytes: beyond what is there before the pass, so that of a backward
    pass does not contain what the forward pass kept for it.
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


def lost(error: Exception) -> bool:
    """Whether nothing on this device can be trusted any more. A kernel fails after its launch has returned, so what
    was raised may not tell; the device is asked as well."""
    if isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in LOST):
        return True
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
    return False


def status_of(error: Exception) -> tuple[str, str]:
    """(status, reason) of what somebody raised. Raises it again where the device is lost: then the process must end,
    for nothing that it measures would mean anything."""
    if isinstance(error, torch.OutOfMemoryError) or re.search(r"out of memory|ALLOC_FAILED", str(error)):
        return MEMORY, ""
    if lost(error):
        raise error
    words = next(iter(str(error).strip().splitlines()), "")
    return FAILED, f"{type(error).__name__}: {words}"[:200]


def clear(device: torch.device) -> None:
    """Give back what nothing holds any more. Not to be called while an exception does."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@lru_cache
def floors(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(FLOP/s of a large product, bytes/s of a large copy) on this machine, measured once a process."""
    return timing.matmul_rate(device, dtype), timing.copy_bandwidth(device)


Key = tuple[str, str]  # provider, pass
Watch = Callable[[str], AbstractContextManager[Any]]


def measure(
    case: Case,
    device: torch.device,
    providers: Sequence[Provider],
    which: Iterable[str],
    seconds: float | None = 1.0,
    left_out: Mapping[str, tuple[str, str]] | None = None,
    watch: Watch = contextlib.nullcontext,
    alone: bool = False,
) -> list[Row]:
    """Rows of the passes `which`, a provider each. Running out of memory is a result, and so is a peer's failure.

    seconds: of timing for each pass; None: each is called and judged, and nothing is timed. left_out: (status, reason)
    of those who are not to be called. watch: gives a context in which one provider is at work, by name, or JUDGE, or
    TURNS; it is left by an exception only if the device is lost, which goes through. alone: nobody takes turns.
    """
    which = list(which)
    torch._dynamo.reset()  # what other cases compiled counts against the limit of recompilations, and holds memory
    clear(device)
    stopped = dict(left_out or {})
    if all(p.name in stopped for p in providers):
        return [_row(case, p, one, *stopped[p.name]) for one in which for p in providers]
    with watch(JUDGE):
        try:
            inputs = case.inputs(device)
            upstream = case.upstream(_shapes(case, inputs))
            right = Right(case, inputs, upstream)
        except Exception as error:
            status, reason = status_of(error)
            return [
                _row(case, p, one, status, f"the reference: {reason}".rstrip(": ")) for one in which for p in providers
            ]
    entrants: dict[str, Entrant] = {}
    for provider in providers:
        if provider.name not in stopped:
            with watch(provider.name):
                status, reason, entrant = _enter(provider, case, inputs, upstream, right, "backward" in which)
            if entrant is not None:
                entrants[provider.name] = entrant
            else:
                stopped[provider.name] = status, reason
                clear(device)
    del right
    contest = Contest(entrants, device, (seconds or 0.0) * len(which), watch, alone)
    if seconds is not None:
        contest.run(which)
    rows = []
    for one in which:
        for provider in providers:
            key = (provider.name, one)
            status, reason = stopped.get(provider.name) or contest.stopped.get(key, (OK, contest.notes.get(key, "")))
            row = _row(case, provider, one, status, reason)
            if key in contest.times:
                _fill(row, case, device, contest.times[key], contest.weights[key].peak)
            rows.append(row)
    return rows


def _row(case: Case, provider: Provider, which: str, status: str, reason: str = "") -> Row:
    return Row(str(case), case.op, case.shape, case.dtype, which, provider.name, provider.version, status, reason)


def _shapes(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Empty outputs: the reference on meta tensors, which costs nothing."""
    with torch.no_grad():
        outputs = case.reference(*(x.detach().to("meta") for x in inputs))
    return [torch.empty(y.shape, dtype=y.dtype, device=inputs[0].device) for y in outputs]


class Entrant:
    """One implementation on the inputs of a case. repeats: whether one graph gives its gradients more than once."""

    def __init__(self, case: Case, function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor]):
        self.case, self.function, self.inputs, self.upstream = case, function, inputs, upstream
        self.leaves = [x for x in inputs if x.requires_grad]
        self.repeats = True
        self.graph: tuple[Tensor, ...] | None = None

    def forward(self) -> tuple[Tensor, ...]:
        return self.case.call(self.function, self.inputs)

    def gradients(self, outputs: tuple[Tensor, ...], keep: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, self.leaves, self.upstream, retain_graph=keep) if self.leaves else ()

    def both(self) -> tuple[Tensor, ...]:
        return self.gradients(self.forward())

    def backward(self) -> tuple[Tensor, ...]:
        """Of a graph that is kept from call to call, until `graph` is None again."""
        if self.graph is None:
            self.graph = self.forward()
        return self.gradients(self.graph, keep=True)

    def results(self) -> list[Tensor]:
        outputs = self.forward()
        return [*(y.detach() for y in outputs), *self.gradients(outputs)]

    def try_again(self, right: Right) -> None:
        """Find whether the second backward of a graph is as right as the first: some overwrite what they saved, and
        what torch.compile makes may refuse."""
        try:
            self.backward()
            again = self.backward()
            self.repeats = not right.fault([*(y.detach() for y in self.graph or ()), *again])
        except Exception as error:
            status_of(error)
            self.repeats = False
        self.graph = None


def _enter(
    provider: Provider, case: Case, inputs: Sequence[Tensor], upstream: Sequence[Tensor], right: Right, backward: bool
) -> tuple[str, str, Entrant | None]:
    """Whether a provider may be timed: (status, reason, entrant)."""
    try:
        entrant = Entrant(case, provider.make(case), inputs, upstream)
        if fault := right.fault(entrant.results()):
            return WRONG, fault, None
        if backward:
            entrant.try_again(right)
    except Unsupported as error:
        return ABSENT, str(error), None
    except Exception as error:  # of a stranger's code, anything can come
        status, reason = status_of(error)
        return status, reason or "in the first call", None
    return OK, "", entrant


@dataclass(frozen=True)
class Weight:
    """seconds: of one call, host and device. peak: bytes beyond what is there before the call, None on a CPU. held:
    bytes that stay between calls if it takes turns."""

    seconds: float
    peak: int | None = None
    held: int = 0


class Contest:
    """The timing of those who were right. By (provider, pass): weights; times; stopped, (status, reason) of what
    failed; notes, how it was timed if not in turns with all others."""

    def __init__(
        self, entrants: Mapping[str, Entrant], device: torch.device, seconds: float, watch: Watch, alone: bool
    ):
        self.entrants, self.device, self.seconds, self.watch, self.alone = entrants, device, seconds, watch, alone
        self.weights: dict[Key, Weight] = {}
        self.times: dict[Key, timing.Times] = {}
        self.stopped: dict[Key, tuple[str, str]] = {}
        self.notes: dict[Key, str] = {}

    def run(self, which: Sequence[str]) -> None:
        for name, entrant in self.entrants.items():
            apart = "backward" in which and not entrant.repeats
            with self.watch(name):
                for one in dict.fromkeys([*which, *(("forward", "both") if apart else ())]):
                    self._weigh(name, one)
        timed = {
            key: weight for key, weight in self.weights.items() if key[1] != "backward" or self.entrants[key[0]].repeats
        }
        for group in groups(timed, free_bytes(self.device), self.seconds, self.alone):
            self._time(group, timed.keys())
        for name, entrant in self.entrants.items():
            if "backward" in which and not entrant.repeats:
                self._subtract(name)

    def _weigh(self, name: str, which: str) -> None:
        """One call by itself: what it takes in time and memory."""
        entrant = self.entrants[name]
        call: Callable[[], Any] | None = None
        try:
            before = _allocated(self.device)
            call = getattr(entrant, which)
            if which == "backward":
                call = partial(entrant.gradients, entrant.forward())
            timing.synchronize(self.device)
            held, start = _allocated(self.device) - before, time.perf_counter()
            peak = timing.peak_bytes(call, self.device) if self.device.type == "cuda" else (call(), None)[1]
            self.weights[name, which] = Weight(time.perf_counter() - start, peak, held if which == "backward" else 0)
        except Exception as error:
            status, reason = status_of(error)
            self.stopped[name, which] = status, reason or "when called again"
        call = None  # and with it the graph
        if (name, which) in self.stopped:
            clear(self.device)

    def _time(self, group: Sequence[Key], every: Iterable[Key]) -> None:
        names = list(dict.fromkeys(name for name, _ in group))
        try:
            self._in_turn(group, names[0] if len(names) == 1 else TURNS)
        except Exception as error:
            status, reason = status_of(error)
            if len(names) == 1:
                self.stopped |= {key: (status, reason or "while it was timed") for key in group}
        for name in names:
            self.entrants[name].graph = None
        if not all(key in self.times for key in group):
            clear(self.device)
            if len(names) > 1:  # because of one of them: then each alone, so that the others have their times
                for name in names:
                    self._time([key for key in group if key[0] == name], every)
        if len(names) == 1 and {name for name, _ in every} != set(names):
            self.notes |= dict.fromkeys(group, "timed alone, not in turns")

    def _in_turn(self, group: Sequence[Key], who: str) -> None:
        at_work = who

        def named(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                nonlocal at_work
                at_work = name
                return call()

            return run

        calls = {f"{name} {one}": named(name, getattr(self.entrants[name], one)) for name, one in group}
        with self.watch(who):
            try:
                share = 1.0 if who == TURNS else 1 / len(self.entrants)
                found = timing.in_turn(calls, self.device, share * self.seconds)
            except Exception as error:
                if not lost(error):
                    failure = error
                else:
                    with self.watch(at_work):  # who is to be left out when this process is started again
                        raise
            else:
                failure = None
                self.times |= {key: found[f"{key[0]} {key[1]}"] for key in group}
        if failure is not None:
            raise failure

    def _subtract(self, name: str) -> None:
        """Backward of who cannot be asked twice: forward and backward less forward, round by round."""
        key, (both, forward) = (name, "backward"), ((name, "both"), (name, "forward"))
        for one in (both, forward):
            if one in self.stopped:
                self.stopped[key] = self.stopped[one]
        if key in self.stopped:
            return
        both_, forward_ = self.times[both], self.times[forward]
        rounds = tuple(b - f for b, f in zip(both_.rounds, forward_.rounds, strict=True))
        host = None if both_.host is None or forward_.host is None else both_.host - forward_.host
        times = timing.Times(rounds, host, both_.late + forward_.late)
        if times.median <= 0:
            self.stopped[key] = FAILED, "forward and backward took no longer than forward"
            return
        self.times[key] = times
        self.notes[key] = "forward and backward less forward, for its backward runs once a graph"


def groups(weights: Mapping[Key, Weight], free: float, seconds: float, alone: bool = False) -> list[list[Key]]:
    """Who takes turns with whom: all, if there is time for ROUNDS and all graphs fit into the `free` bytes at once.

    Else who is SLOW takes turns with the other slow ones; and where the graphs do not fit, their backward passes are
    timed one after another.
    """
    names = list(dict.fromkeys(name for name, _ in weights))
    if alone:
        return [[key for key in weights if key[0] == name] for name in names]
    cost = {name: sum(w.seconds for key, w in weights.items() if key[0] == name) for name in names}
    slow = {name for name in names if cost[name] > SLOW * min(cost.values())}
    if ROUNDS * sum(cost.values()) <= seconds:
        slow = set()
    found: list[list[Key]] = []
    for some in (set(names) - slow, slow):
        group = [key for key in weights if key[0] in some]
        need = sum(weights[key].held for key in group) + max((weights[key].peak or 0 for key in group), default=0)
        if need <= FITS * free:
            found.append(group)
        else:
            found.append([key for key in group if key[1] != "backward"])
            found += [[key] for key in group if key[1] == "backward"]
    return [group for group in found if group]


def free_bytes(device: torch.device) -> float:
    """What a tensor could take on a GPU: free there, or kept by PyTorch for its next tensors."""
    if device.type != "cuda":
        return float("inf")
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _fill(row: Row, case: Case, device: torch.device, times: timing.Times, peak: int | None) -> None:
    flops, traffic = case.work(row.which)
    rate, bandwidth = floors(device, case.torch_dtype)
    row.rounds, row.median, row.host = times.rounds, times.median, times.host
    row.p20, row.p80 = times.percentile(20), times.percentile(80)
    row.floor = max(flops / rate, traffic / bandwidth)
    row.fraction = row.floor / row.median
    row.flops_per_s, row.bytes_per_s = flops / row.median, traffic / row.median
    row.peak_bytes = peak
    if times.late:
        late = f"the host was late in {times.late} of {len(times.rounds)} rounds, so that there may be gaps in the time"
        row.reason = f"{row.reason}; {late}" if row.reason else late
