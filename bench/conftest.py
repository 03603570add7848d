"""How pytest-benchmark is given what was measured side by side.

Providers of one case are measured together, in turns, the first time that one of them is asked for; each benchmark
then replays its own rounds through a clock of its own, so that pytest-benchmark's tables, --benchmark-save,
--benchmark-compare and --benchmark-histogram are about device time on a GPU and about alternated wall time elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import contest, peers
from bench.cases import Case
from bench.tables import ops_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    torch.set_num_threads(1)  # else the time of an operation is that of waiting for whoever else uses the other cores
SECONDS = 1.0  # of measuring for each case and pass, or whatever else takes turns


class ReplayClock:
    """Stands still unless it is advanced."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = ReplayClock()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to measure beside")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "replay" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK, disable_gc=True))


def only_once(config: pytest.Config) -> bool:
    """--benchmark-disable: everything runs once, to see that it does, and nothing is measured."""
    return config.getoption("benchmark_disable")


@pytest.fixture(scope="session")
def seconds(request) -> float | None:
    """How long to measure; None: not at all."""
    return None if only_once(request.config) else SECONDS


@pytest.fixture(scope="session")
def rows() -> dict[tuple[str, str], dict[str, contest.Row]]:
    """What has been measured, by case and pass, then by provider; told as a table at the end."""
    return {}


@pytest.fixture
def replay(benchmark) -> Callable[[Iterable[float]], None]:
    """Gives seconds that were measured, a round each, to pytest-benchmark; nothing where nothing was."""

    def play(seconds: Iterable[float]) -> None:
        rounds = list(seconds)
        upcoming = iter(rounds)
        benchmark.pedantic(lambda: CLOCK.advance(next(upcoming, 0.0)), rounds=max(len(rounds), 1))

    return play


@pytest.fixture
def measured(request, benchmark, replay, rows, seconds) -> Callable[[Case, str, str], None]:
    """Measure a case and pass with every provider that was selected, and give this provider's rounds on."""

    def take(case: Case, which: str, provider: str) -> None:
        key = (str(case), which)
        if key not in rows:
            chosen = {
                item.callspec.params["provider"]
                for item in request.session.items
                if getattr(item, "callspec", None)
                and (str(item.callspec.params.get("case")), item.callspec.params.get("which")) == key
            }
            entrants = [p for p in peers.providers(case.op, DEVICE) if p.name in chosen]
            rows[key] = {row.provider: row for row in contest.measure(case, DEVICE, entrants, [which], seconds)}
            if seconds is not None:
                request.config.stash.setdefault(ROWS, []).extend(rows[key].values())
        row = rows[key][provider]
        benchmark.group = f"{case} {which}"
        if row.status == contest.ABSENT:
            pytest.skip(f"{provider}: {row.reason}")
        if row.status != contest.OK:
            sentence = f"{row.status}: {row.reason}"
            pytest.fail(sentence, pytrace=False) if provider in peers.OURS and row.status != contest.MEMORY else (
                pytest.xfail(sentence)
            )
        benchmark.extra_info.update(row.to_dict())
        replay(row.rounds)

    return take


ROWS = pytest.StashKey[list[contest.Row]]()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """What pytest-benchmark has no columns for: tokens/s, memory, and the rows with their rates and floors."""
    session = getattr(config, "_benchmarksession", None)
    for one in session.benchmarks if session else []:
        if one.extra_info and "case" not in one.extra_info and "label" not in one.extra_info:
            figures = (f"{name} {value:,.4g}" for name, value in one.extra_info.items())
            terminalreporter.write_line(f"{one.name}: {', '.join(figures)}")
    if found := config.stash.get(ROWS, []):
        where = f"{torch.cuda.get_device_name()}, cold L2 cache" if DEVICE.type == "cuda" else "a CPU, one thread"
        Console(width=None if terminalreporter.isatty else 160, file=terminalreporter._tw._file).print(
            ops_table(found, f"Medians on {where}")
        )


def _id(case: Case) -> str:
    """Short, and without what a shell or pytest would take for its own: normal-rows2048-width512."""
    kind = {"causal_attention_packed": "packed", "linear_cross_entropy": "mean", "decode_attention": "cache"}
    return "-".join([kind.get(case.op, case.op), *(f"{name}{value}" for name, value in case.shape.items())])


def contests(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrizes by case, pass and provider, in this order."""
    every = [
        pytest.param(case, which, provider.name, id=f"{_id(case)}-{which}-{provider.name}")
        for case in cases
        for which in case.passes
        for provider in peers.providers(case.op, DEVICE)
    ]
    return pytest.mark.parametrize(("case", "which", "provider"), every)
