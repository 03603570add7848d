"""The search: what is timed, chosen, and written. Where there is no GPU a stand-in tells the times."""

import dataclasses
import json
import math
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from click.testing import CliRunner

from kernels import fused, tune, tune_compiling
from kernels.fused import tuning
from kernels.tune_compiling import Compiled, OutOfTime
from kernels.tune_problems import problems

pytestmark = pytest.mark.usefixtures("user_folder")
CPU = torch.device("cpu")
GPU = torch.cuda.is_available()


@pytest.fixture
def problem():
    """SwiGLU's forward on little calls."""
    whole = next(p for p in problems() if p.op == "swiglu_forward")
    return dataclasses.replace(whole, checks=((24, (3, 5)),), timings=((24, (4,)), (40, (4,))))


def config(block, warps=4):
    return {"BLOCK": block, "num_warps": warps, "num_stages": 1}


def timer(milliseconds):
    """Times of a call by the configuration in force."""
    return lambda call, repeats: milliseconds[tuning.lookup("swiglu_forward", CPU, torch.bfloat16, width=24)["BLOCK"]]


def screen(problem, milliseconds, device=CPU):
    candidates = [(config(block), Compiled()) for block in milliseconds]
    return tune.screen(problem, device, candidates, timer(milliseconds))


def search(problem, milliseconds):
    return tune.decide(screen(problem, milliseconds), CPU, timer(milliseconds))


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_the_fastest_configuration_is_chosen_and_its_gain_is_told(problem):
    outcome = search(problem, {512: 3.0, 1024: 2.0, 2048: 1.0})
    assert outcome.before == config(1024)
    assert outcome.chosen == config(2048)
    assert outcome.before_ms == [2.0, 2.0]
    assert outcome.speedup == pytest.approx(2.0)


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_the_present_configuration_stays_unless_it_is_beaten_by_more_than_the_noise(problem):
    outcome = search(problem, {1024: 1.0, 2048: 0.99})
    assert outcome.chosen == outcome.before == config(1024)
    assert outcome.speedup == 1.0
    assert search(problem, {1024: 1.0, 2048: 0.97}).chosen == config(2048)


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
@pytest.mark.parametrize("kind", ["wrong", "other bits", "not finite"])
def test_a_wrong_or_fickle_candidate_is_refused_however_fast(kind, problem, monkeypatch):
    swiglu, calls = fused.swiglu, []

    def broken(x):
        y = swiglu(x)
        if tuning.lookup("swiglu_forward", CPU, x.dtype, width=24)["BLOCK"] == 2048:
            calls.append(1)
            nudge = {"wrong": 1.05, "other bits": 1 + len(calls) % 2 * 2**-7, "not finite": math.inf}[kind]
            y = y * nudge
        return y

    monkeypatch.setattr(fused, "swiglu", broken)
    outcome = search(problem, {1024: 1.0, 2048: 0.1})
    assert outcome.chosen == config(1024)
    (refused, reason), *_ = outcome.refused
    assert refused == config(2048)
    assert reason.startswith(
        "wrong: " + {"wrong": "error", "other bits": "other bits", "not finite": "not finite"}[kind]
    )


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_of_a_wrong_finalist_the_next_fastest_takes_the_place(problem, monkeypatch):
    swiglu, judged = fused.swiglu, set()

    def broken(x):
        block = tuning.lookup("swiglu_forward", CPU, x.dtype, width=24)["BLOCK"]
        judged.add(block)
        return swiglu(x) * (1.05 if block in (2048, 4096) else 1)

    times = {64: 9.0, 128: 0.7, 256: 0.6, 512: 0.4, 1024: 1.0, 2048: 0.3, 4096: 0.1, 8192: 0.5}
    screened = screen(problem, times)
    assert [c["BLOCK"] for c in screened.ranked[:3]] == [4096, 2048, 512]
    monkeypatch.setattr(fused, "swiglu", broken)
    outcome = tune.decide(screened, CPU, timer(times))
    assert outcome.chosen == config(512)
    assert {c["BLOCK"] for c, _ in outcome.refused} == {2048, 4096}
    assert 64 not in judged, "only finalists are judged"


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_candidates_that_are_refused_or_the_same_machine_code_are_not_timed(problem):
    timed = []
    candidates = [
        (config(512), Compiled("spills 3 times")),
        (config(1024), Compiled("", "a")),
        (config(1024) | {"num_stages": 2}, Compiled("", "a")),
        (config(1024, 8), Compiled("", "a")),  # as much code, and more threads to run it
        (config(2048), Compiled("", "b")),
    ]
    screened = tune.screen(problem, CPU, candidates, lambda call, repeats: timed.append(call) or 1.0)
    assert screened.ranked == [config(1024), config(1024, 8), config(2048)]
    assert len(timed) == screened.outcome.timed == 3
    assert screened.outcome.refused == [(config(512), "spills 3 times")]


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_when_the_time_is_over_nothing_more_is_timed(problem):
    until = time.monotonic() + 0.05

    def slow(call, repeats):
        time.sleep(0.03)
        return 1.0

    with pytest.raises(OutOfTime):
        tune.screen(problem, CPU, ((config(1024), Compiled()) for _ in range(1000)), slow, until)
    with pytest.raises(OutOfTime):
        tune.decide(screen(problem, {1024: 1.0, 2048: 0.5}), CPU, slow, until)
    with pytest.raises(OutOfTime):  # no finalist but the present configuration, which needs no judging
        tune.decide(screen(problem, {1024: 1.0}), CPU, slow, until)


def test_what_is_timed_is_the_kernel_configured_as_it_was_launched(problem):
    if GPU:
        pytest.skip("interpreted")
    replays = tune._replays(problem, CPU, problem.timings)
    assert len(replays) == 2
    for replay in replays:
        (launch,) = replay.args[0]
        assert launch.args[0].__name__ == "_swiglu_forward"
        out = launch.args[3]
        before = out.clone()
        out.zero_()
        replay()
        assert torch.equal(out, before)


def test_a_kernel_is_timed_with_the_second_stage_that_its_programs_make_necessary():
    """Else more programs, each with a sum of its own, would seem to cost nothing."""
    if GPU:
        pytest.skip("interpreted")
    for op, expected in (
        ("layer_norm_backward", ["_norm_backward", "_sum_partials"]),
        ("layer_norm_sum_partials", ["_norm_backward", "_sum_partials"]),
        ("decode", ["_decode_kernel", "_merge_kernel"]),
    ):
        problem = next(p for p in problems() if p.op == op)
        call = (64, (40,)) if op.startswith("layer_norm") else (64, (1, 1, 200))
        (replay,) = tune._replays(problem, CPU, [call])
        assert [launch.args[0].__name__ for launch in replay.args[0]] == expected


def test_a_table_written_by_tuning_is_read_and_keeps_every_other_entry(problem, user_folder):
    ops = {p.op for p in problems()}
    before = {str(p): p.present(CPU) for p in problems()}
    outcome = tune.Outcome(problem, config(1024), config(2048, 8))
    path = user_folder / "default.json"
    tune.write(path, "default", CPU, [outcome])
    assert tuning.lookup("swiglu_forward", CPU, torch.float16, width=99) == config(2048, 8)
    assert tuning.lookup("swiglu_forward", CPU, torch.float32, width=99) == config(1024)
    assert set(tuning.read_table(path)) == {"swiglu_forward"}
    assert json.loads(path.read_text())["measured"]["torch"] == torch.__version__
    for p in problems():
        if str(p) != str(problem):
            assert p.present(CPU) == before[str(p)], p
    for op in ops:  # a table of all ops says for every class what was said before
        tune.write(path, "default", CPU, [tune.Outcome(p, {}, before[str(p)]) for p in problems() if p.op == op])
    assert {str(p): p.present(CPU) for p in problems()} == before


def test_entries_behind_which_the_same_would_be_found_are_not_written():
    def entry(width, length, block, dtypes=("float16",)):
        return {"dtypes": list(dtypes), "max_width": width, "max_length": length, "config": {"BLOCK": block}}

    short, longer = entry(64, 256, 1), entry(64, None, 1)
    assert tune._needed([short, longer]) == [longer]
    assert tune._needed([short, entry(64, None, 2)]) == [short, entry(64, None, 2)]
    assert tune._needed([short, entry(64, 512, 2), longer]) == [short, entry(64, 512, 2), longer]
    assert tune._needed([entry(32, None, 1), short]) == [entry(32, None, 1), short]  # of a length that short has not
    assert tune._needed([short, entry(64, None, 1, ("float32",))]) == [short, entry(64, None, 1, ("float32",))]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "Tuning measures on an NVIDIA GPU"), (["--op", "nonsense"], "No operation to tune is called 'nonsense'")],
)
def test_what_cannot_be_tuned_is_refused_in_a_sentence(arguments, sentence):
    if GPU:
        pytest.skip("there is a GPU to tune on")
    from minilm.cli import cli
    from minilm.errors import UserError

    result = CliRunner().invoke(cli, ["tune", *arguments])
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)


@pytest.fixture
def pretended(monkeypatch, problem):
    """Tuning from end to end where there is no GPU: SwiGLU forward and backward; times from a table."""
    backward = next(p for p in problems() if p.op == "swiglu_backward")
    backward = dataclasses.replace(backward, checks=problem.checks, timings=problem.timings)
    small = tuple(config(block) for block in (512, 1024, 2048))
    both = [dataclasses.replace(p, candidates=small) for p in (problem, backward)]
    monkeypatch.setattr(tune, "problems", lambda *_: both)
    monkeypatch.setattr(tune, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(tune.torch, "device", lambda *_: CPU)
    monkeypatch.setattr(tune, "milliseconds", lambda call, repeats: call.args[0][0].keywords["BLOCK"] ** -0.5)

    class AtOnce:
        def __init__(self, *_):
            self.submitted = []

        def submit(self, urgency, problem, arch, config, calls):
            self.submitted.append((problem.op, tuple(calls)))
            future = Future()
            future.set_result(Compiled())
            return future

        def close(self):
            pass

    monkeypatch.setattr(tune_compiling, "Compilers", AtOnce)
    return both


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_each_outcome_is_told_and_written_at_once_and_what_is_finished_is_skipped(pretended, tmp_path):
    forward, backward = map(str, pretended)
    path, heard = tmp_path / "default.json", []

    def say(outcome):
        heard.append(("said", str(outcome.problem), outcome.chosen["BLOCK"]))
        assert outcome.problem.op in tuning.read_table(path)

    tune.tune(path, say=say, begin=lambda key: heard.append(("begun", key)))
    assert heard == [
        ("begun", forward),
        ("begun", backward),  # while the finalists of the first are compiled
        ("begun", forward + tune.FINALS),
        ("said", forward, 2048),
        ("begun", backward + tune.FINALS),
        ("said", backward, 2048),
    ]
    heard.clear()
    tune.tune(path, say=say, begin=lambda key: heard.append(("begun", key)), skip={forward})
    assert [what for what in heard if what[0] == "said"] == [("said", backward, 2048)]
    assert tuning.read_table(path)["swiglu_forward"][0]["config"]["BLOCK"] == 2048


@pytest.mark.skipif(GPU, reason="the stand-in measures on a CPU")
def test_minutes_are_a_limit_and_what_is_finished_by_then_is_kept(pretended, tmp_path, monkeypatch):
    quick = tune.milliseconds
    monkeypatch.setattr(tune, "milliseconds", lambda *args: time.sleep(0.02) or quick(*args))
    path, outcomes = tune.tune(tmp_path / "default.json", minutes=0.001)
    assert outcomes == [] and not path.exists()


@pytest.mark.gpu
def test_tuning_writes_a_table_that_later_lookups_use(user_folder):
    path, (outcome, *_) = tune.tune(ops=["swiglu_forward"], minutes=1)
    assert path.parent == user_folder
    device = torch.device("cuda", torch.cuda.current_device())
    assert outcome.problem.present(device) == outcome.chosen
