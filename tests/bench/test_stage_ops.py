"""The stage of the operations: whoever ends the process is named and left out, and costs nobody else a result."""

import dataclasses
import itertools
import sys
import time

import pytest
import torch

from bench import cases, peers, timing, worker
from bench.rows import Rows, entries
from kernels import reference

CPU = torch.device("cpu")


@pytest.fixture
def contestants(tmp_path, monkeypatch):
    """Runs the stage ops over three sizes of one operation, again after each death, as the command does: with the
    functions that are given by name. Returns the rows by case and provider."""
    ordered = [cases.SwiGLU("float32", rows, 8) for rows in (4, 8, 12)]
    monkeypatch.setattr(cases, "in_order", lambda _: ordered)

    def run(deaths, first=None, why="", **functions):
        taking = [
            peers.Provider(n, "minilm", lambda case, f=f: lambda x: f(case.rows, x)) for n, f in functions.items()
        ]
        taking = [dataclasses.replace(p, first=first, why=why or p.why) if p.name == "peer" else p for p in taking]
        monkeypatch.setattr(peers, "providers", lambda *_: taking)
        path = tmp_path / "rows.jsonl"
        for _ in range(deaths):
            with pytest.raises(SystemExit):
                worker.ops(Rows(path), CPU, float("inf"), 0.01)
            Rows(path).crash()
        worker.ops(Rows(path), CPU, float("inf"), 0.01)
        found = [row for entry in entries(path) if entry["kind"] == "ops" for row in entry["rows"]]
        keys = [(row["shape"]["rows"], row["provider"], row["which"]) for row in found]
        assert sorted(keys) == sorted(itertools.product((4, 8, 12), functions, cases.PASSES))
        return {key[:2]: row for key, row in zip(keys, found, strict=True)}

    return run


def sound(_, x):
    return reference.swiglu(x)


def deadly(*sizes):
    """Ends the process at these sizes."""

    def function(rows, x):
        if rows in sizes:
            sys.exit(1)
        return reference.swiglu(x)

    return function


def statuses(found, name):
    return [found[rows, name]["status"] for rows in (4, 8, 12)]


def test_one_that_ends_the_process_is_left_out_and_the_others_are_measured(contestants):
    found = contestants(1, peer=deadly(8), other=sound, triton=sound)
    assert statuses(found, "peer") == ["ok", "crashed", "ok"]
    assert found[8, "peer"]["reason"] == "the process ended while this was at work"
    assert statuses(found, "other") == statuses(found, "triton") == ["ok"] * 3


def test_three_that_end_the_process_in_one_case_do_not_cost_the_others_theirs(contestants):
    found = contestants(3, sound=sound, a=deadly(8), b=deadly(8), c=deadly(8))
    assert [statuses(found, name)[1] for name in "abc"] == ["crashed"] * 3 and statuses(found, "sound") == ["ok"] * 3


def test_a_peer_that_ended_the_process_twice_is_not_called_again_but_ours_is(contestants):
    found = contestants(2 + 3, peer=deadly(4, 8, 12), triton=deadly(4, 8, 12), torch=sound)
    assert statuses(found, "peer") == ["crashed", "crashed", "absent"]
    assert "rows=4" in found[12, "peer"]["reason"] and "rows=8" in found[12, "peer"]["reason"]
    assert statuses(found, "triton") == ["crashed"] * 3 and statuses(found, "torch") == ["ok"] * 3


def test_a_process_that_ends_while_all_take_turns_times_each_alone_and_finds_who_it_was(contestants, monkeypatch):
    """Not by an exception, which would tell who was at work."""
    in_turn = timing.in_turn

    def dies(calls, *rest):
        if any(name.startswith("peer") for name in calls):
            sys.exit(1)
        return in_turn(calls, *rest)

    monkeypatch.setattr(timing, "in_turn", dies)
    found = contestants(4, peer=sound, other=sound)
    assert statuses(found, "peer") == ["crashed", "crashed", "absent"] and statuses(found, "other") == ["ok"] * 3


def test_a_reference_that_ends_the_process_costs_its_case(contestants, monkeypatch):
    monkeypatch.setattr(cases.SwiGLU, "reference", lambda case, x: (deadly(8)(case.rows, x),))
    found = contestants(1, triton=sound)
    assert statuses(found, "triton") == ["ok", "crashed", "ok"] and found[8, "triton"]["reason"] == "the reference"


def test_who_compiles_for_long_takes_part_in_the_first_cases_only(contestants):
    found = contestants(0, first=2, peer=sound, other=sound)
    assert statuses(found, "peer") == ["ok", "ok", "absent"] and statuses(found, "other") == ["ok"] * 3
    assert found[12, "peer"]["reason"] == f"only in the first 2 cases: {peers.COMPILES}"


def test_plain_attention_takes_part_in_the_first_case_only_and_says_why(contestants):
    (math,) = (p for p in peers.PEERS["causal_attention"] if p.name == "sdpa-math")
    found = contestants(0, first=math.first, why=math.why, peer=sound, other=sound)
    assert statuses(found, "peer") == ["ok", "absent", "absent"] and statuses(found, "other") == ["ok"] * 3
    assert found[8, "peer"]["reason"] == "only in the first case: it writes every weight to memory, which takes longest"


def test_the_stage_ops_begins_nothing_after_its_time_and_nothing_twice(contestants, tmp_path):
    worker.ops(Rows(tmp_path / "rows.jsonl"), CPU, time.time() - 1, 0.01)
    assert not (tmp_path / "rows.jsonl").exists()
    contestants(0, triton=sound)
    size = (tmp_path / "rows.jsonl").stat().st_size
    worker.ops(Rows(tmp_path / "rows.jsonl"), CPU, float("inf"), 0.01)
    assert (tmp_path / "rows.jsonl").stat().st_size == size
