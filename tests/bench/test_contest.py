"""Benchmarks: nothing wrong gets a time, what is compared takes turns, and a slower one is seen to be slower."""

import contextlib
import dataclasses
import itertools
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from bench import cases, contest, peers, timing
from bench.peers import Provider, Unsupported, providers
from kernels import aten, reference

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "attention": cases.Attention("float32", 2, 3, 16, 8),
    "attention_apart": cases.AttentionApart("float32", 2, 3, 16, 8),
    "layer_norm": cases.LayerNorm("float32", 12, 32),
    "add_layer_norm": cases.AddLayerNorm("float32", 12, 32),
    "add_rms_norm": cases.AddRMSNorm("float32", 12, 32),
    "rms_norm": cases.RMSNorm("float32", 12, 32),
    "swiglu": cases.SwiGLU("float32", 12, 24),
    "cross_entropy": cases.CrossEntropy("float32", 12, 16, 40),
    "decode": cases.Decode("float32", 2, 3, 16, 8),
}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)


def measure(case, *entrants, which=None, **options):
    every = [Provider(name, "minilm", lambda _, function=function: function) for name, function in entrants]
    found = contest.measure(case, CPU, every, which or case.passes, 0.01, **options)
    return {(r.provider, r.which): r for r in found}


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    """By counting: of medians of 15 draws, about 19 in 20 intervals hold the true median, and no fewer."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 15, generator=generator).exp().tolist()
    covered = sum(low <= 1.0 <= high for low, high in map(timing.median_interval, draws)) / len(draws)
    assert 0.95 <= covered < 0.99
    assert timing.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


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


def test_published_attention_is_of_tensors_that_flash_attention_takes_without_a_copy():
    case = SMALL["attention_apart"]
    inputs = case.inputs(CPU)
    (above,) = case.upstream(case.reference(*inputs))
    assert all(x.is_leaf and x.requires_grad for x in inputs) and len(inputs) == 3 and not above.requires_grad
    for x in (*inputs, above):
        assert x.shape == (2, 3, 16, 8) and x.transpose(1, 2).is_contiguous()
    assert len({x.sum().item() for x in inputs}) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["attention", "attention_apart"])
def test_the_reference_is_not_timed_at_lengths_where_it_would_hold_too_much_and_tells_how_much(
    name, dtype, monkeypatch
):
    case = dataclasses.replace(SMALL[name], dtype=dtype)
    kept = {}

    def keep(x):
        if x.numel() == 2 * 3 * 16 * 16:  # an attention weight each
            kept[x.untyped_storage().data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = case.reference(*case.inputs(CPU))
    assert case.kept_by_reference == sum(kept.values()) and outputs[0].requires_grad
    every = [p for p in providers(case.op, CPU) if p.name in ("reference", "torch")]
    monkeypatch.setattr(peers, "LONGEST_PLAIN", 16)
    assert {row.status for row in contest.measure(case, CPU, every, ["both"], 0.01)} == {"ok"}
    monkeypatch.setattr(peers, "LONGEST_PLAIN", 15)
    plain, fused = contest.measure(case, CPU, every, ["both"], 0.01)
    assert (plain.status, plain.median, fused.status) == ("absent", None, "ok")
    assert plain.reason == f"would hold {sum(kept.values()) / 2**30:.3g} GiB of attention weights; timed up to T = 15"


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


class Overwrites(torch.autograd.Function):
    """Right once: the gradient is written over what was saved."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.detach().clone()
        return reference.swiglu(x)

    @staticmethod
    def backward(ctx, dy):
        x = ctx.kept.clone().requires_grad_()
        with torch.enable_grad():
            (dx,) = torch.autograd.grad(reference.swiglu(x), x, dy)
        return ctx.kept.copy_(dx)


class Once(torch.autograd.Function):
    """Refuses a second time."""

    @staticmethod
    def forward(ctx, x):
        ctx.x, ctx.done = x.detach(), False
        return reference.swiglu(x)

    @staticmethod
    def backward(ctx, dy):
        if ctx.done:
            raise RuntimeError("only once")
        ctx.done = True
        time.sleep(0.002)
        x = ctx.x.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(reference.swiglu(x), x, dy)[0]


@pytest.mark.parametrize("which", [cases.PASSES, ("backward",)], ids=["all", "backward"])
@pytest.mark.parametrize("function", [Overwrites, Once])
def test_a_backward_that_is_right_once_a_graph_is_forward_and_backward_less_forward(function, which):
    rows = measure(SMALL["swiglu"], ("planted", function.apply), ("right", aten.swiglu), which=which)
    row = rows["planted", "backward"]
    assert row.status == "ok" and row.reason == "forward and backward less forward, for its backward runs once a graph"
    assert row.median > (0.002 if function is Once else 0)
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


def test_who_is_slow_takes_no_rounds_from_the_quick():
    given = {(name, "forward"): contest.Weight(cost) for name, cost in (("a", 1.0), ("b", 2.0), ("c", 9.0))}
    quick, slow = [("a", "forward"), ("b", "forward")], [("c", "forward")]
    assert contest.groups(given, float("inf"), 100.0) == [quick, slow]
    assert contest.groups(given, float("inf"), 12.0 * contest.ROUNDS) == [quick + slow]


class Launched(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@small
def test_a_call_that_is_timed_does_what_the_implementation_does_and_nothing_else(case):
    inputs = case.inputs(CPU)
    with Launched() as launched:
        case.call(lambda *given: given[0], inputs)
    assert launched.names == []


def test_what_the_capstone_uses_comes_first_and_nothing_twice():
    ordered = list(map(str, cases.in_order(torch.device("cuda"))))
    assert len(set(ordered)) == len(ordered) == sum(len(f(torch.device("cuda"))) for f in cases.CASES.values())
    assert ordered[:4] == [
        *(f"causal_attention_packed B=64 H=8 T={T} D=64 bfloat16" for T in (256, 512, 1024)),
        "add_layer_norm rows=16384 width=512 bfloat16",
    ]
    first = sum(cases.FIRST.values())
    for early in ("rms_norm rows=65536 width=512", "swiglu rows=16384 width=2048", "linear_cross_entropy rows=16384"):
        assert any(early in case for case in ordered[:first]), early
    for published in ("layer_norm rows=4096 width=1024 float32", "swiglu rows=8192 width=3072 bfloat16"):
        assert published in ordered[first:]
    apart = [case for case in ordered if case.startswith("causal_attention ")]
    assert apart[:3] == [
        f"causal_attention B={B} H={H} T={T} D={D} bfloat16"
        for B, H, T, D in ((16, 32, 1024, 64), (16, 16, 1024, 128), (4, 32, 4096, 64))
    ]
    assert not {*apart} & {*ordered[:first]}


def test_plain_attention_over_the_whole_cache_decodes():
    case = SMALL["decode"]
    (plain,) = (p for p in peers.PEERS[case.op] if p.name == "sdpa")
    assert [row.status for row in contest.measure(case, CPU, [plain], case.passes, 0.01)] == ["ok"]


def attend(q, k, v, causal, deterministic=False):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    assert causal and deterministic in (True, False)
    return reference.causal_attention(q, k, v).transpose(1, 2)


def loss(input, weight, target, accum_dtype=None):
    assert accum_dtype in (None, torch.float32)
    return reference.linear_cross_entropy(input, weight, target)


def residual_first(x, weight=None, bias=None, residual=None, eps=1e-6, prenorm=False):
    return reference.add_rms_norm(x, residual, weight, eps) if prenorm else reference.rms_norm(x, weight, eps)


def packed(qkv, softmax_scale=None, causal=False, deterministic=False):
    return attend(*qkv.unbind(2), causal, deterministic)


def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert not in_place
    return reference.rms_norm(X, W, eps)


def liger_add_rms_norm(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert not in_place
    return reference.add_rms_norm(X, R, W, eps)


def apart(q, k, v, causal=False, deterministic=False):
    assert all(x.shape == (2, 16, 3, 8) for x in (q, k, v))
    return attend(q, k, v, causal, deterministic)


MODULES = {  # as flash-attn 2.8 and 3.0, flash-attn-4 4.0, liger-kernel 0.8.5 and quack-kernels 0.6.5 have them
    "flash_attn": {"flash_attn_qkvpacked_func": packed, "flash_attn_func": apart},
    "flash_attn_interface": {"flash_attn_qkvpacked_func": packed, "flash_attn_func": apart},
    "flash_attn.cute": {"flash_attn_func": apart},
    "liger_kernel.ops": {"LigerFusedGateUpSiLUMulFunction": types.SimpleNamespace(apply=reference.swiglu)},
    "liger_kernel.transformers.functional": {
        "liger_layer_norm": reference.layer_norm,
        "liger_rms_norm": liger_rms_norm,
        "liger_fused_add_rms_norm": liger_add_rms_norm,
        "liger_fused_linear_cross_entropy": loss,
    },
    "quack": {"rmsnorm": residual_first},
    "quack.linear_cross_entropy": {
        "chunked_linear_cross_entropy": lambda x, weight, target, tuned=True: loss(x, weight, target)
    },
}


ANSWERS = [(name, False) for name in SMALL] + [("attention", True), ("attention_apart", True)]


@pytest.mark.parametrize(("name", "statistics"), ANSWERS)
def test_peers_are_given_what_they_take_and_take_part(name, statistics, monkeypatch):
    """Versions of FlashAttention differ in whether they return the statistics of the softmax beside the output."""
    case = SMALL[name]
    for name, functions in MODULES.items():
        module = types.ModuleType(name)
        vars(module).update(functions)
        if statistics:
            vars(module).update({n: lambda *a, f=f, **o: (f(*a, **o), None) for n, f in functions.items()})
        monkeypatch.setitem(sys.modules, name, module)
    theirs = [p for p in peers.PEERS.get(case.op, ()) if p.package != "torch"]
    rows = contest.measure(case, CPU, theirs, case.passes, 0.01)
    assert [(row.provider, row.status) for row in rows] == [(p.name, "ok") for _ in case.passes for p in theirs]


def test_peers_that_are_not_installed_are_absent_and_say_so(monkeypatch):
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for case in SMALL.values():
        theirs = [p for p in peers.PEERS.get(case.op, ()) if p.package != "torch"]
        for row in contest.measure(case, CPU, theirs, ["both"], 0.01) if theirs else ():
            assert row.status == "absent" and row.reason.startswith("not installed")


def test_calls_take_turns_in_an_order_that_rotates():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = timing.in_turn(calls, CPU, 0.0, rounds=6)
    assert "".join(order[6:]) == "abcbcacababcbcacab"
    assert {len(t.rounds) for t in times.values()} == {6}


def test_a_planted_slow_down_is_seen():
    times = timing.in_turn({"fast": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.004)}, CPU, 0.1)
    assert 1.4 < times["slow"].median / times["fast"].median < 2.6


@small
def test_the_least_traffic_of_a_forward_pass_is_what_goes_in_and_comes_out(case):
    inputs = case.inputs(CPU)
    outputs = case.reference(*inputs)
    activations = [x for x in [*inputs, *outputs] if x.ndim > 1]
    traffic = sum(x.numel() * x.element_size() for x in activations)
    if case.op == "linear_cross_entropy":  # both gradients too, and each input twice
        assert case.work("both")[1] == pytest.approx(3 * traffic)
    else:
        assert case.work("forward")[1] == pytest.approx(traffic, rel=0.07)  # and a number or two a row


def test_pytest_reports_a_planted_wrong_backend_and_gives_it_no_time(tmp_path):
    (tmp_path / "planted.py").write_text(
        "from kernels import aten\nright = aten.swiglu\naten.swiglu = lambda x: right(x) * 1.001\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench/bench_swiglu.py",
        "--benchmark-only",
        "-p",
        "planted",
        "-k",
        "forward",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "wrong: output 0: error" in done.stdout
    torch_line = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["torch"])
    assert torch_line.split() == ["torch", "wrong"]
