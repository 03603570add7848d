"""Benchmarks: nothing wrong gets a time, and who fails, is slow or needs much memory costs no other its own."""

import contextlib
import itertools
import re
import types
from pathlib import Path

import pytest
import torch

from bench import cases, contest, timing
from bench.peers import Provider, Unsupported, providers
from kernels import aten, reference
from tests.bench.small_cases import CPU, SMALL, small
from tests.children import python

ROOT = Path(__file__).resolve().parents[2]


def measure(case, *entrants, which=None, **options):
    every = [Provider(name, "minilm", lambda _, function=function: function) for name, function in entrants]
    found = contest.measure(case, CPU, every, which or case.passes, 0.01, **options)
    return {(r.provider, r.which): r for r in found}


@small
def test_every_case_is_measured_by_every_backend_on_this_machine(case):
    rows = contest.measure(case, CPU, providers(case.op, CPU), case.passes, 0.01)
    assert [(r.which, r.provider, r.status) for r in rows] == [
        (which, name, "ok") for which in case.passes for name in ("reference", "torch")
    ]
    for row in rows:
        assert row.p20 <= row.median <= row.p80
        assert row.fraction == pytest.approx(row.floor / row.median)
        assert row.version


@pytest.mark.parametrize("fault", ["output", "gradient", "not finite", "one element"])
def test_a_wrong_result_is_called_wrong_and_has_no_time(fault):
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            y = reference.swiglu(x)
            y[-1, -1] += {"output": 0.0, "not finite": float("nan"), "one element": 1e-3}.get(fault, 0.0)
            return y * 1.001 if fault == "output" else y

        @staticmethod
        def backward(ctx, dy):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                (dx,) = torch.autograd.grad(reference.swiglu(x), x, dy)
            return dx * 1.001 if fault == "gradient" else dx

    rows = measure(SMALL["swiglu"], ("right", reference.swiglu), ("planted", Off.apply))
    for which in cases.PASSES:
        row = rows["planted", which]
        assert row.status == "wrong"
        assert row.reason.startswith("gradient 0" if fault == "gradient" else "output 0")
        assert (row.median, row.p20, row.fraction, row.bytes_per_s, row.rounds) == (None, None, None, None, ())
        assert rows["right", which].status == "ok"


@pytest.mark.parametrize(
    ("name", "last"), [("attention", (-1, slice(None), slice(-8, None))), ("attention_apart", (-1, -1))]
)
def test_an_error_in_the_last_head_of_a_large_case_is_found(name, last, monkeypatch):
    monkeypatch.setattr(cases, "JUDGED_WEIGHTS", 0)
    case = SMALL[name]
    right = getattr(reference, case.op)

    def off(*inputs):
        y = right(*inputs)
        mark = torch.zeros_like(y)
        mark[last] = 1e-3
        return y + mark

    rows = measure(case, ("off", off), ("right", right))
    assert (rows["off", "forward"].status, rows["right", "forward"].status) == ("wrong", "ok")
    assert rows["right", "backward"].status == "ok"
    assert case.judged(case.inputs(CPU))[0].shape == ((1, 16, 3 * 8) if name == "attention" else (1, 1, 16, 8))


def absent(*_):
    raise Unsupported("needs a newer chip")


def exhausted(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def failing(*_):
    raise RuntimeError("no kernel image\nand much more")


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (absent, "absent", "needs a newer chip"),
        (exhausted, "out of memory", "in the first call"),
        (failing, "failed", "RuntimeError: no kernel image"),
    ],
)
def test_who_cannot_take_part_is_a_row_and_stops_nobody(function, status, reason):
    rows = measure(SMALL["swiglu"], ("planted", function), ("right", aten.swiglu), which=["both"])
    assert (rows["planted", "both"].status, rows["planted", "both"].reason) == (status, reason)
    assert rows["planted", "both"].median is None
    assert rows["right", "both"].median > 0


class Watched:
    """Who has begun, and who has ended."""

    def __init__(self):
        self.begun, self.ended = [], []

    @contextlib.contextmanager
    def __call__(self, who):
        self.begun.append(who)
        yield
        self.ended.append(who)


def fails_at(call, error):
    """swiglu that raises at its call number `call`, and at no other."""
    count = itertools.count(1)

    def function(x):
        if next(count) == call:
            raise error
        return reference.swiglu(x)

    return function


LOST = [torch.AcceleratorError("CUDA error"), RuntimeError("Triton Error [CUDA]: misaligned address")]
CALLS = {"judged": 1, "weighed": 2, "in turns": 4}  # of a forward pass: whose call is which


@pytest.mark.parametrize("error", LOST, ids=["accelerator", "triton"])
@pytest.mark.parametrize("when", CALLS)
def test_a_lost_device_ends_everything_and_tells_who_was_at_work(when, error):
    watch = Watched()
    entrants = [("right", aten.swiglu), ("planted", fails_at(CALLS[when], error)), ("other", reference.swiglu)]
    with pytest.raises(type(error)):
        measure(SMALL["swiglu"], *entrants, which=["forward"], watch=watch)
    assert watch.begun[-1] == "planted"
    assert ("other" in watch.begun) == (when != "judged")
    assert watch.begun.count("planted") == watch.ended.count("planted") + 1


def test_a_fault_that_shows_only_later_is_seen_when_the_device_is_asked(monkeypatch):
    def synchronize(*_):
        raise RuntimeError("CUDA error: something new")

    assert not contest.lost(RuntimeError("a shape is wrong"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        contest.status_of(RuntimeError("a shape is wrong"))


@pytest.mark.parametrize(
    ("error", "status"), [(torch.OutOfMemoryError("no more"), "out of memory"), (ValueError("odd"), "failed")]
)
def test_who_fails_in_turns_takes_no_other_with_it(error, status):
    """At the fourth call, and then alone at the fifth."""
    count = itertools.count(1)

    def planted(x):
        if next(count) >= CALLS["in turns"]:
            raise error
        return reference.swiglu(x)

    rows = measure(SMALL["swiglu"], ("right", aten.swiglu), ("planted", planted), which=["forward"])
    row = rows["planted", "forward"]
    assert (row.status, row.median) == (status, None) and row.reason in ("while it was timed", "ValueError: odd")
    assert rows["right", "forward"].median > 0
    assert rows["right", "forward"].reason == "timed alone, not in turns"


def test_who_fails_in_turns_only_is_timed_alone():
    planted = fails_at(CALLS["in turns"], torch.OutOfMemoryError("no more"))
    rows = measure(SMALL["swiglu"], ("right", aten.swiglu), ("planted", planted), which=["forward"])
    assert {row.status for row in rows.values()} == {"ok"}
    assert {row.reason for row in rows.values()} == {"timed alone, not in turns"}


def test_the_reference_is_asked_once_a_case_however_many_take_part(monkeypatch):
    asked = []
    monkeypatch.setattr(cases.SwiGLU, "reference", lambda _, x: asked.append(x.dtype) or (reference.swiglu(x),))
    measure(SMALL["swiglu"], *((name, aten.swiglu) for name in "abc"))
    assert asked == [torch.float32, torch.float64, torch.float32]  # for the shapes, and as both judges


def test_a_reference_that_takes_too_much_memory_costs_the_case_only(monkeypatch):
    monkeypatch.setattr(cases.SwiGLU, "reference", exhausted)
    rows = measure(SMALL["swiglu"], ("right", aten.swiglu))
    assert {(r.status, r.reason, r.median) for r in rows.values()} == {("out of memory", "the reference", None)}


CLOCK = itertools.count()  # of which a look takes a tick; those of bench.timing are microseconds


def spend(ticks):
    next(itertools.islice(CLOCK, ticks, ticks), None)


class Overwrites(torch.autograd.Function):
    """Right once: the gradient is written over what was saved."""

    @staticmethod
    def forward(ctx, x):
        spend(1000)
        ctx.kept = x.detach().clone()
        return reference.swiglu(x)

    @staticmethod
    def backward(ctx, dy):
        spend(2000)
        x = ctx.kept.clone().requires_grad_()
        with torch.enable_grad():
            (dx,) = torch.autograd.grad(reference.swiglu(x), x, dy)
        return ctx.kept.copy_(dx)


class Once(torch.autograd.Function):
    """Refuses a second time."""

    @staticmethod
    def forward(ctx, x):
        spend(1000)
        ctx.x, ctx.done = x.detach(), False
        return reference.swiglu(x)

    @staticmethod
    def backward(ctx, dy):
        if ctx.done:
            raise RuntimeError("only once")
        ctx.done = True
        spend(2000)
        x = ctx.x.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(reference.swiglu(x), x, dy)[0]


@pytest.mark.parametrize("which", [cases.PASSES, ("backward",)], ids=["all", "backward"])
@pytest.mark.parametrize("function", [Overwrites, Once])
def test_a_backward_that_is_right_once_a_graph_is_forward_and_backward_less_forward(function, which, monkeypatch):
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: next(CLOCK) / 1e6))
    rows = measure(SMALL["swiglu"], ("planted", function.apply), ("right", aten.swiglu), which=which)
    row = rows["planted", "backward"]
    assert row.status == "ok" and row.reason == "forward and backward less forward, for its backward runs once a graph"
    assert row.median == pytest.approx(0.002, rel=0.01)
    assert "less" not in rows["right", "backward"].reason
    if "both" in which:
        both, forward = (rows["planted", one].rounds for one in ("both", "forward"))
        assert row.rounds == tuple(b - f for b, f in zip(both, forward, strict=True))


def test_a_host_that_was_late_is_told_beside_the_time(monkeypatch):
    in_turn = timing.in_turn

    def late(*given):
        return {name: timing.Times(times.rounds, late=3) for name, times in in_turn(*given).items()}

    monkeypatch.setattr(timing, "in_turn", late)
    row = measure(SMALL["swiglu"], ("right", aten.swiglu), which=["forward"])["right", "forward"]
    assert row.reason.startswith("the host was late in 3 of ") and row.median > 0


def test_who_was_left_out_is_not_called():
    def planted(_):
        raise AssertionError

    rows = measure(
        SMALL["swiglu"], ("planted", planted), ("right", aten.swiglu), left_out={"planted": ("crashed", "before")}
    )
    assert {(r.status, r.reason) for (name, _), r in rows.items() if name == "planted"} == {("crashed", "before")}
    assert rows["right", "both"].median > 0


def weights(**bytes_held):
    """Of a second each, and as many bytes for the graph as for a call."""
    return {
        (name, one): contest.Weight(1.0, held, held if one == "backward" else 0)
        for name, held in bytes_held.items()
        for one in cases.PASSES
    }


def test_all_take_turns_where_all_graphs_fit_and_else_their_backward_passes_are_alone():
    given = weights(a=10, b=30)
    assert contest.groups(given, 70 / contest.FITS, 1.0) == [list(given)]
    together, *apart = contest.groups(given, 69 / contest.FITS, 1.0)
    assert together == [(name, one) for name in "ab" for one in ("forward", "both")]
    assert apart == [[("a", "backward")], [("b", "backward")]]
    assert contest.groups(given, float("inf"), 1.0, alone=True) == [[(n, one) for one in cases.PASSES] for n in "ab"]


def test_on_a_gpu_graphs_are_weighed_before_they_are_all_kept(monkeypatch):
    """Two graphs of 30 bytes and a call's 21 are more than FITS of the 100 that are free."""
    case, gpu, groups = SMALL["swiglu"], types.SimpleNamespace(type="cuda"), []
    inputs = case.inputs(CPU)
    upstream = case.upstream([reference.swiglu(inputs[0])])
    allocated = itertools.chain([0, 0, 5, 35, 0, 0, 0, 0, 5, 35, 0, 0], itertools.repeat(0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(allocated))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40, 80))
    monkeypatch.setattr(timing, "synchronize", lambda _: None)
    monkeypatch.setattr(timing, "peak_bytes", lambda call, _: (call(), 21)[1])

    def in_turn(calls, *_):
        groups.append([*calls])
        return {name: timing.Times((1.0,), 0.1) for name, call in calls.items() if call()}

    monkeypatch.setattr(timing, "in_turn", in_turn)
    entrants = {name: contest.Entrant(case, reference.swiglu, inputs, upstream) for name in "ab"}
    told = contest.Contest(entrants, gpu, 1.0, contextlib.nullcontext, False)
    told.run(cases.PASSES)
    assert {weight.held for key, weight in told.weights.items() if key[1] == "backward"} == {30}
    assert {weight.peak for weight in told.weights.values()} == {21}
    assert groups == [["a forward", "a both", "b forward", "b both"], ["a backward"], ["b backward"]]
    assert all(entrant.graph is None for entrant in entrants.values()) and contest.free_bytes(gpu) == 100
    assert told.notes == {(name, "backward"): "timed alone, not in turns" for name in "ab"}


def test_who_is_slow_takes_no_rounds_from_the_quick(monkeypatch):
    monkeypatch.setattr(contest, "SLOW", 4.0)
    given = {(name, "forward"): contest.Weight(cost) for name, cost in (("a", 1.0), ("b", 2.0), ("c", 9.0))}
    quick, slow = [("a", "forward"), ("b", "forward")], [("c", "forward")]
    assert contest.groups(given, float("inf"), 100.0) == [quick, slow]
    assert contest.groups(given, float("inf"), 12.0 * contest.ROUNDS) == [quick + slow]


def run_planted(folder, *arguments):
    """pytest as a person calls it, with folder/planted.py loaded before it."""
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return python("-m", "pytest", *arguments, "-p", "planted", cwd=ROOT, env=environment)


def test_with_benchmark_disable_each_runs_once_and_nothing_is_measured(tmp_path):
    """Planted: a clock that would end the test, and a backend that is wrong and is still found out."""
    (tmp_path / "planted.py").write_text(
        "from bench import timing\nfrom kernels import aten\n"
        "timing.in_turn = timing.floors = None\nright = aten.swiglu\naten.swiglu = lambda x: right(x) * 1.001\n"
    )
    files = ("bench/bench_swiglu.py", "bench/bench_host_time.py")
    chosen = ("--benchmark-disable", "-k", "forward and (swiglu-rows or swiglu-forward)")
    done = run_planted(tmp_path, *files, *chosen, "-v")
    verdicts = re.findall(r"(bench_\w+\[\S+-(\w+)\]) (PASSED|FAILED)", done.stdout)
    assert {verdict for _, provider, verdict in verdicts if provider == "reference"} == {"PASSED"}, done.stdout
    assert "FAILED" in {verdict for name, provider, verdict in verdicts if provider == "torch"}
    assert "wrong: output 0: error" in done.stdout and "Medians on" not in done.stdout


def test_pytest_reports_a_planted_wrong_backend_and_gives_it_no_time(tmp_path):
    (tmp_path / "planted.py").write_text(
        "from kernels import aten\nright = aten.swiglu\naten.swiglu = lambda x: right(x) * 1.001\n"
    )
    done = run_planted(tmp_path, "bench/bench_swiglu.py", "--benchmark-only", "-k", "forward")
    assert done.returncode == 1, done.stdout
    assert "wrong: output 0: error" in done.stdout
    torch_line = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["torch"])
    assert torch_line.split() == ["torch", "wrong"]
