"""A stage goes on where it was: what is done stays, what crashed is named, what was stopped is taken again."""

import itertools
import json
import time
from pathlib import Path

import pytest
import torch

import kernels
from bench import gpu, inside, memory, steps, timing, worker
from bench.rows import Rows, entries
from tests.waiting import PATIENCE

CPU = torch.device("cpu")


def begun(path, *keys):
    """Keys that are begun, as by a worker that is then gone."""
    rows = Rows(path)
    for key in keys:
        next(rows.units("ops", [key], float("inf"), lambda _: []))
    return Rows(path)


def test_what_crashed_is_named_and_what_was_stopped_is_taken_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    for key in rows.units("ops", ["done"], float("inf"), lambda _: []):
        rows.write("ops", key, [{"x": 1}])
    begun(path, "stopped")
    begun(path, "crashed").crash()
    for _ in range(3):
        begun(path, "hangs")
    with path.open("a") as file:
        file.write('{"kind": "ops", "key": "cut')
    rows = Rows(path)
    assert rows.finished == {"done": [{"x": 1}]} and rows.crashed == {"crashed", "hangs"}
    keys = ["done", "stopped", "crashed", "hangs", "new"]
    assert list(rows.units("ops", keys, float("inf"), lambda key: [{"crashed": key}])) == ["stopped", "new"]
    assert Rows(path).finished == {"done": [{"x": 1}]} | {key: [{"crashed": key}] for key in ("crashed", "hangs")}
    assert list(Rows(path).units("ops", ["late"], time.time() - 1, lambda _: [])) == []


@pytest.fixture
def fake(monkeypatch):
    """Steps that do nothing; fake.fails(label, after, error): the one that raises once it was called so often."""

    class Fake:
        def __init__(self):
            self.prepared, self.failing = [], {}

        def fails(self, label, after, error):
            self.failing[label] = after, error

    fake = Fake()

    def prepare(entry, *_):
        calls = itertools.count()

        def step():
            after, error = fake.failing.get(str(entry), (float("inf"), None))
            if next(calls) >= after:
                raise error

        fake.prepared.append(str(entry))
        return step, 7

    monkeypatch.setattr(steps, "prepare", prepare)
    return fake


ENTRIES = [steps.Entry("torch", "off"), steps.Entry("torch", "on"), steps.Entry("reference", "off")]
ALONE = 1 + timing.LEAST + 2  # how often a step is called before turns begin, on a CPU


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no more"), ValueError("no")])
def test_one_that_fails_while_it_is_timed_takes_no_other_with_it(fake, error):
    fake.fails("torch compiled", 3, error)
    sound, failed, other = steps.measure("tiny", 8, 2, ENTRIES, CPU, 0.01)
    assert fake.prepared == [str(entry) for entry in ENTRIES]
    for row in (sound, other):
        assert (row.status, row.reason) == ("ok", "") and row.low <= row.step_s <= row.high
    assert failed.status != "ok" and failed.step_s is None
    assert failed.reason == ("while it was timed" if failed.status == "out of memory" else "ValueError: no")


def test_what_fails_in_turns_only_keeps_its_times_alone(fake):
    fake.fails("torch compiled", ALONE, ValueError("no"))
    rows = steps.measure("tiny", 8, 2, ENTRIES, CPU, 0.01)
    assert [(row.status, row.reason) for row in rows] == [("ok", ""), ("ok", steps.ALONE), ("ok", "")]
    assert all(row.step_s for row in rows)


def test_where_memory_does_not_hold_all_the_first_are_taken_in_turns(fake):
    fake.fails("torch eager", ALONE, torch.OutOfMemoryError("no more"))

    class Enough(dict):  # two fit
        def __delitem__(self, key):
            fake.failing.clear()
            super().__delitem__(key)

    size = steps.Size("tiny", 8, 2, CPU)
    size.steps = Enough()
    rows = [size.alone(entry) for entry in ENTRIES]
    size.in_turns(rows, 0.01)
    assert [row.reason for row in rows] == ["", "", steps.ALONE]


def test_every_way_to_train_has_its_line_before_the_next_is_prepared_and_then_another(fake, tmp_path):
    rows = Rows(tmp_path / "rows.jsonl")
    fake.fails("torch compiled", 0, RuntimeError("of the compiler"))
    worker.take(rows, ("tiny", 8, 2), ENTRIES, CPU, float("inf"), 0.01, None)
    lines = [line for line in entries(rows.path) if line["kind"] == "train"]
    found = [(line["key"], *(line["rows"][0][k] for k in ("status", "reason"))) for line in lines if line["rows"]]
    names = [f"tiny 8 x 2 {entry}" for entry in ENTRIES]
    alone = [(name, "ok", steps.ALONE) for name in names]
    alone[1] = names[1], "failed", "RuntimeError: of the compiler"
    assert found == [*alone, (names[0], "ok", ""), (names[2], "ok", "")]
    assert lines[-1]["key"].startswith("tiny 8 x 2 in turns: ") and not lines[-1]["rows"]
    last = json.loads(gpu.assemble(tmp_path, {"device": "d"}, {}).read_text())["train"]
    assert [(row["label"], row["reason"]) for row in last] == [
        ("torch eager", ""), ("torch compiled", "RuntimeError: of the compiler"), ("reference eager", "")
    ]  # fmt: skip
    prepared = len(fake.prepared)
    worker.take(Rows(rows.path), ("tiny", 8, 2), ENTRIES, CPU, float("inf"), 0.01, None)
    assert len(fake.prepared) == prepared  # nothing twice


def test_a_worker_killed_between_its_lines_loses_none_of_them(fake, tmp_path):
    """Killed while the second is prepared, then started again: the first is prepared anew for the turns only."""
    rows = Rows(tmp_path / "rows.jsonl")
    fake.fails("torch compiled", 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worker.take(rows, ("tiny", 8, 2), ENTRIES, CPU, float("inf"), 0.01, None)
    assert list(Rows(rows.path).finished) == ["tiny 8 x 2 torch eager"]
    Rows(rows.path).crash()
    fake.prepared.clear()
    fake.failing.clear()
    worker.take(Rows(rows.path), ("tiny", 8, 2), ENTRIES, CPU, float("inf"), 0.01, None)
    assert fake.prepared == ["reference eager", "torch eager"]
    found = {key: row["status"] for key, of in Rows(rows.path).finished.items() for row in of}
    assert list(found.values()) == ["ok", "crashed", "ok"]
    late = Rows(tmp_path / "late.jsonl")
    worker.take(late, ("tiny", 8, 2), ENTRIES, CPU, time.time() - 1, 0.01, None)
    assert late.finished == {}


def test_on_a_gpu_what_tells_most_comes_first_and_nothing_is_counted(monkeypatch, tmp_path):
    taken, cuda = [], torch.device("cuda")
    monkeypatch.setattr(kernels, "available", lambda _: ["reference", "torch", "triton"])
    monkeypatch.setattr(worker, "weigh", lambda *_: taken.append("counted"))
    monkeypatch.setattr(worker, "take_apart", lambda *_: taken.append("apart"))
    monkeypatch.setattr(worker, "try_contexts", lambda *_: taken.append("contexts"))
    monkeypatch.setattr(
        worker, "take", lambda _, size, chosen, *rest: taken.append((size[:2], [*map(str, chosen)], rest[2]))
    )
    worker.train(rows=Rows(tmp_path / "none"), device=cuda, until=1.0, seconds=1.0, nanogpt=Path("nanoGPT"))
    assert taken[0] == (("capstone", 256), list(steps.TELLING), 5.0) and taken[1] == "apart" and "counted" not in taken
    assert taken[2][0] == ("gpt2", 1024) and taken[2][1] == list(steps.TELLING[:6])
    at = taken.index("contexts")
    assert all(name.endswith(" captured") or name == "nanogpt eager" for _, names, _ in taken[3:at] for name in names)
    (size, names, seconds) = taken[-1]
    assert size == ("capstone", 256) and len(names) == 17 and seconds == 0


def test_a_size_has_the_vocabulary_of_its_preset_and_nanogpts_activation():
    sizes = {preset: (T, B) for preset, T, B in reversed(steps.sizes(torch.device("cuda")))}
    assert sizes == {"capstone": (256, 64), "gpt2": (1024, 12)}
    config = steps.config_of("gpt2", 1024, 12, CPU, comparable=True)
    assert (config.model.vocab_size, config.model.activation, config.model.position) == (16_384, "gelu", "learned")
    assert steps.config_of("gpt2", 1024, 12, CPU).model.activation == "gelu_tanh"
    assert steps.config_of("capstone", 256, 64, CPU).model.vocab_size == steps.VOCABULARY


def test_contexts_are_doubled_until_one_does_not_fit_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    asked = []

    def tried(row, *_):
        asked.append((row["kernels"], row["checkpoint_activations"], row["context_length"]))
        fits = row["context_length"] <= (4096 if row["checkpoint_activations"] else 2048)
        return row | {"status": "ok" if fits else "out of memory", "step_s": 0.1}

    monkeypatch.setattr(memory, "FIRST_TRIED", 1024)
    monkeypatch.setattr(memory, "tried", tried)
    monkeypatch.setattr(memory, "ways", lambda: [("reference", False), ("torch", True)])
    begun(tmp_path / "rows.jsonl", "reference at 2048").crash()
    rows = Rows(tmp_path / "rows.jsonl")
    worker.try_contexts(rows, CPU, float("inf"))
    assert asked == [("torch", True, T) for T in (1024, 2048, 4096, 8192)] + [("reference", False, 1024)]
    assert rows.finished["reference at 2048"][0]["status"] == "crashed"
    worker.try_contexts(Rows(rows.path), CPU, float("inf"))
    assert len(asked) == 5  # nothing twice
    fresh = Rows(tmp_path / "other.jsonl")
    worker.try_contexts(fresh, CPU, time.time() - 1)
    assert fresh.finished == {} and len(asked) == 5


def test_a_context_whose_step_would_take_too_long_is_not_tried(tmp_path, monkeypatch):
    """4096, 8192, 16384 at 1.5, 6 and 24 s: the last of them would be above 20."""

    def tried(row, *_):
        return row | {"status": "ok", "step_s": 1.5 * (row["context_length"] / memory.FIRST_TRIED) ** 2}

    monkeypatch.setattr(memory, "tried", tried)
    monkeypatch.setattr(memory, "ways", lambda: [("torch", False)])
    rows = Rows(tmp_path / "rows.jsonl")
    worker.try_contexts(rows, CPU, float("inf"))
    found = [(row["context_length"], row["status"]) for (row,) in rows.finished.values()]
    assert found == [(4096, "ok"), (8192, "ok"), (16_384, "not tried: a step might take 24 s")]
    assert inside.tried_table([row for (row,) in rows.finished.values()])[2][-1][3].startswith("not tried")
    monkeypatch.setattr(memory, "tried", lambda row, *_: row | {"status": "ok", "step_s": 1e-3})
    fast = Rows(tmp_path / "fast.jsonl")
    worker.try_contexts(fast, CPU, float("inf"))
    assert [row["context_length"] for (row,) in fast.finished.values()][-1] == 2**18


def test_tuning_goes_on_where_it_was_and_names_what_a_worker_died_of(tmp_path, monkeypatch):
    tune = pytest.importorskip("kernels.tune")
    first, second, third, *_ = tune.problems()
    path, asked = tmp_path / "rows.jsonl", []

    def search(minutes, say, begin, skip):
        asked.append(set(skip))
        for problem in [p for p in (first, second, third) if str(p) not in skip]:
            begin(str(problem))
            begin(f"{problem}{tune.FINALS}")
            if problem is second:
                return
            say(
                tune.Outcome(problem, {"BLOCK_M": 64}, {"BLOCK_M": 128}, [2.0], [1.0], [({"BLOCK_M": 32}, "spills")], 9)
            )

    monkeypatch.setattr(tune, "tune", search)
    worker.tune(Rows(path), CPU, time.time() + PATIENCE)  # its process dies
    Rows(path).crash()
    worker.tune(Rows(path), CPU, time.time() + PATIENCE)
    worker.tune(Rows(path), CPU, time.time() + PATIENCE)
    assert asked == [set(), {str(first), str(second)}, {str(first), str(second), str(third)}]
    found = {entry["key"]: entry["rows"][0] for entry in entries(path) if entry["kind"] == "tune"}
    assert list(found) == [str(first), str(second), str(third)]
    assert found[str(second)] == {"problem": str(second), "status": worker.CRASHED}
    assert found[str(third)] | {"before": 0, "chosen": 0} == {
        "problem": str(third), "before": 0, "chosen": 0, "before_ms": [2.0], "chosen_ms": [1.0], "speedup": 2.0,
        "refused": 1, "timed": 9, "candidates": len(third.candidates),
    }  # fmt: skip
