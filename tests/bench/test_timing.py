"""Calls take turns, a slower one is seen to be slower, and the interval of a median covers it."""

from types import SimpleNamespace

import pytest
import torch

from bench import timing
from tests.bench.small_cases import CPU


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    """By counting: of medians of 15 draws, about 19 in 20 intervals hold the true median, and no fewer."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 15, generator=generator).exp().tolist()
    covered = sum(low <= 1.0 <= high for low, high in map(timing.median_interval, draws)) / len(draws)
    assert 0.95 <= covered < 0.99
    assert timing.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_calls_take_turns_in_an_order_that_rotates():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = timing.in_turn(calls, CPU, 0.0, rounds=6)
    assert "".join(order[6:]) == "abcbcacababcbcacab"
    assert {len(t.rounds) for t in times.values()} == {6}


def test_a_planted_slow_down_is_seen(monkeypatch):
    """On a clock that only the calls move, so that a busy machine changes nothing."""
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def taking(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    times = timing.in_turn({"fast": taking(0.002), "slow": taking(0.004)}, CPU, 0.1)
    assert times["slow"].median / times["fast"].median == pytest.approx(2)
    assert 10 < len(times["fast"].rounds) == len(times["slow"].rounds) < 20  # what fits into a tenth of a second
