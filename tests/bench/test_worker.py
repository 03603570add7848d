"""A stage goes on where it was: what is done stays, what crashed is named, what was stopped is taken again."""

import itertools
import time

import torch

from bench import memory, steps, worker
from bench.rows import Rows

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


def test_one_that_fails_while_it_is_timed_takes_no_other_with_it(monkeypatch):
    prepared = []

    def prepare(entry, *_):
        calls = itertools.count()

        def step():
            if entry.compile == "on" and next(calls) > 2:  # not in the first steps
                raise torch.OutOfMemoryError("no more")

        prepared.append(entry)
        return step, 7

    monkeypatch.setattr(steps, "prepare", prepare)
    entries = [steps.Entry("torch", "off"), steps.Entry("torch", "on")]
    sound, failed = steps.measure("tiny", 8, 2, entries, CPU, 0.01)
    assert prepared == entries and sound.status == "ok" and sound.step_s and sound.low <= sound.step_s <= sound.high
    assert (failed.status, failed.reason, failed.step_s) == ("out of memory", "while it was timed", None)


def test_contexts_are_doubled_until_one_does_not_fit_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    asked = []

    def tried(row, *_):
        asked.append((row["kernels"], row["checkpoint_activations"], row["context_length"]))
        fits = row["context_length"] <= (4096 if row["checkpoint_activations"] else 2048)
        return row | {"status": "ok" if fits else "out of memory"}

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
