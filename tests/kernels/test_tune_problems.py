"""What can be tuned: every entry of the tables, by the kernels that its operation launches."""

import pytest
import torch

pytest.importorskip("triton")

from kernels import fused, machine_code, tune
from kernels.fused import tuning
from kernels.tune_problems import HALF, KERNELS, problems

pytestmark = pytest.mark.usefixtures("user_folder")
CPU = torch.device("cpu")
GPU = torch.cuda.is_available()


def test_every_problem_names_a_kernel_that_its_operation_launches(monkeypatch):
    """... and configurations that a table may hold."""
    if GPU:
        pytest.skip("interpreted")
    for p in {(p.op): p for p in problems()}.values():
        kernel = type(vars(fused.attention)["_forward_kernel"])
        monkeypatch.setattr(kernel, "run", lambda *args, **kwargs: None)  # nothing need run to be recorded
        (replay,) = tune._replays(p, CPU, p.checks[:1])
        assert KERNELS[p.op][0] in [launch.args[0].__name__ for launch in replay.args[0]]
        for candidate in p.candidates:
            assert tuning._entry_fault(p.entry(candidate)) is None


def test_the_bounds_of_the_committed_tables_are_bounds_of_problems():
    """Else a tuned entry would be put over a finer committed one, on shapes that nobody measured."""
    for path in tuning.COMMITTED.glob("*.json"):
        for op, entries in tuning.read_table(path).items():
            bounds = {(p.max_width, p.max_length) for p in problems() if p.op == op}
            for entry in entries:
                assert (entry["max_width"], entry["max_length"]) in bounds, (path.name, op, entry)


def test_what_the_capstone_launches_is_tuned_first_and_single_precision_last():
    found = problems()
    ops = {"attention_forward", "attention_backward_q", "attention_backward_kv"}
    assert {p.op for p in found[:3]} == ops
    assert {(p.max_width, p.max_length, p.dtypes) for p in found[:3]} == {(64, 256, HALF)}
    dtypes = [p.dtypes for p in found if p.op != "layer_norm_sum_partials"]  # whose sums are always float32
    assert dtypes == sorted(dtypes, key=lambda d: d != HALF)
    assert len({str(p) for p in found}) == len(found)
    assert any("TMA" in c for c in found[0].candidates)
    assert not any("TMA" in c for p in problems(tma=False) for c in p.candidates)


def test_what_tuning_may_write_is_reached_by_the_cases_of_the_machine_code(user_folder, monkeypatch):
    """Else the test that they reach every committed entry would fail after `minilm tune --commit`."""
    if GPU:
        pytest.skip("interpreted")
    names, ops = {}, {}
    for number, p in enumerate(sorted(problems(), key=lambda p: (p.max_width or 2**20, p.max_length or 2**20)), 1):
        names[number] = str(p)
        ops.setdefault(p.op, []).append(p.entry({**p.present(CPU), "maxnreg": number}))
    tuning.write_table(user_folder / "default.json", "default", ops)
    tuning.forget()
    kernel = type(vars(fused.attention)["_forward_kernel"])
    monkeypatch.setattr(kernel, "run", lambda *args, **kwargs: None)
    lookup, seen = tuning.lookup, set()
    monkeypatch.setattr(tuning, "lookup", lambda *a, **k: seen.add(lookup(*a, **k)["maxnreg"]) or lookup(*a, **k))
    for case in machine_code.cases().values():
        case()
    assert [names[number] for number in names.keys() - seen] == []
