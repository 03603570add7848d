"""Tuning: what is refused, what is chosen, what is written. Where there is no GPU a stand-in tells the times."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from click.testing import CliRunner

from kernels import fused, tune
from kernels.fused import tuning

CPU = torch.device("cpu")
GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    """A user's folder of this test alone, empty at first."""
    monkeypatch.setenv("MINILM_DATA", str(tmp_path))
    tuning.forget()
    yield tmp_path / "tuned"
    tuning.forget()


@pytest.fixture
def problem():
    """SwiGLU's forward on little calls."""
    whole = next(p for p in tune.problems() if p.op == "swiglu_forward")
    return dataclasses.replace(whole, checks=((24, (3, 5)),), timings=((24, (4,)), (40, (4,))))


def config(block, warps=4):
    return {"BLOCK": block, "num_warps": warps, "num_stages": 1}


def timer(milliseconds):
    """Times of a call by the configuration in force."""
    return lambda call: milliseconds[tuning.lookup("swiglu_forward", CPU, torch.bfloat16, width=24)["BLOCK"]]


def search(problem, milliseconds, device=CPU):
    return tune.search(problem, device, [config(block) for block in milliseconds], timer(milliseconds))


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


def test_the_kernel_that_is_timed_is_the_one_configured_alone_and_as_launched(problem):
    if GPU:
        pytest.skip("interpreted")
    with tune._replays(problem, CPU) as replays:
        assert len(replays) == 2
        for replay in replays:
            assert replay.args[0].__name__ == "_swiglu_forward"
            out = replay.args[3]
            before = out.clone()
            out.zero_()
            replay()
            assert torch.equal(out, before)


def test_every_problem_names_a_kernel_that_its_operation_launches(monkeypatch):
    """... and configurations that a table may hold."""
    if GPU:
        pytest.skip("interpreted")
    for p in {(p.op): p for p in tune.problems()}.values():
        small = dataclasses.replace(p, timings=p.checks[:1])
        kernel = type(vars(fused.attention)["_forward_kernel"])
        monkeypatch.setattr(kernel, "run", lambda *args, **kwargs: None)  # nothing need run to be recorded
        with tune._replays(small, CPU) as replays:
            assert len(replays) == 1
        for candidate in p.candidates:
            assert tuning._entry_fault(p.entry(candidate)) is None


def test_a_table_written_by_tuning_is_read_and_keeps_every_other_entry(problem, user_folder):
    ops = {p.op for p in tune.problems()}
    before = {str(p): p.present(CPU) for p in tune.problems()}
    outcome = tune.Outcome(problem, config(1024), config(2048, 8))
    path = user_folder / "default.json"
    tune.write(path, "default", CPU, [outcome])
    assert tuning.lookup("swiglu_forward", CPU, torch.float16, width=99) == config(2048, 8)
    assert tuning.lookup("swiglu_forward", CPU, torch.float32, width=99) == config(1024)
    assert set(tuning.read_table(path)) == {"swiglu_forward"}
    for p in tune.problems():
        if str(p) != str(problem):
            assert p.present(CPU) == before[str(p)], p
    for op in ops:  # a table of all ops says for every class what was said before
        tune.write(path, "default", CPU, [tune.Outcome(p, {}, before[str(p)]) for p in tune.problems() if p.op == op])
    assert {str(p): p.present(CPU) for p in tune.problems()} == before


def test_the_bounds_of_the_committed_tables_are_bounds_of_problems():
    """Else a tuned entry would be put over a finer committed one, on shapes that nobody measured."""
    for path in tuning.COMMITTED.glob("*.json"):
        for op, entries in tuning.read_table(path).items():
            bounds = {(p.max_width, p.max_length) for p in tune.problems() if p.op == op}
            for entry in entries:
                assert (entry["max_width"], entry["max_length"]) in bounds, (path.name, op, entry)


def test_the_machine_code_of_a_candidate_that_spills_is_refused_without_a_gpu(tmp_path):
    program = (
        "import json; from kernels import tune; p = tune.problems()[0]\n"
        "c = lambda m, n, w: {'BLOCK_M': m, 'BLOCK_N': n, 'num_warps': w, 'num_stages': 3}\n"
        "print(json.dumps([p.op, tune.compiles(p, 90, c(128, 128, 4)), tune.compiles(p, 90, c(64, 64, 4))]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    op, spilling, good = json.loads(done.stdout)
    assert op == "attention_forward"
    assert spilling.startswith("spills")
    assert good == ""


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


@pytest.mark.gpu
def test_tuning_writes_a_table_that_later_lookups_use(user_folder):
    path, (outcome, *_) = tune.tune(ops=["swiglu_forward"], minutes=1)
    assert path.parent == user_folder
    device = torch.device("cuda", torch.cuda.current_device())
    assert outcome.problem.present(device) == outcome.chosen
