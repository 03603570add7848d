"""Benchmarks: nothing wrong gets a time, what is compared takes turns, and a slower one is seen to be slower."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import cases, contest, timing
from bench.peers import Provider, Unsupported, providers
from kernels import aten, reference

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "attention": cases.Attention("float32", 2, 3, 16, 8),
    "layer_norm": cases.LayerNorm("float32", 12, 32),
    "add_layer_norm": cases.AddLayerNorm("float32", 12, 32),
    "rms_norm": cases.RMSNorm("float32", 12, 32),
    "swiglu": cases.SwiGLU("float32", 12, 24),
    "cross_entropy": cases.CrossEntropy("float32", 12, 16, 40),
    "decode": cases.Decode("float32", 2, 3, 16, 8),
}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)


def measure(case, *entrants, which=None):
    every = [Provider(name, "minilm", lambda _, function=function: function) for name, function in entrants]
    return {(r.provider, r.which): r for r in contest.measure(case, CPU, every, which or case.passes, 0.01)}


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


def test_an_error_in_the_last_head_of_a_large_case_is_found(monkeypatch):
    monkeypatch.setattr(cases, "JUDGED_WEIGHTS", 0)
    case = SMALL["attention"]

    def off(qkv, n_heads):
        y = reference.causal_attention_packed(qkv, n_heads)
        mark = torch.zeros_like(y)
        mark[-1, :, -case.D :] = 1e-3
        return y + mark

    rows = measure(case, ("off", off), ("right", reference.causal_attention_packed), which=["forward"])
    assert (rows["off", "forward"].status, rows["right", "forward"].status) == ("wrong", "ok")


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
