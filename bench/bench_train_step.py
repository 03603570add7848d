"""A whole training step by backend, and nanoGPT's where `--nanogpt PATH` names a checkout of it."""

from pathlib import Path

import pytest

from bench import contest, steps
from bench.conftest import DEVICE
from bench.tables import microseconds

SIZES = steps.sizes(DEVICE)
ENTRIES = [str(entry) for entry in steps.entries(DEVICE, Path("nanoGPT"))]


@pytest.fixture(scope="module")
def step_rows(request, seconds):
    """Rows by size, measured in turns the first time that one of a size is asked for."""
    found = {}
    folder = request.config.getoption("--nanogpt")

    def of(size):
        if size not in found:
            chosen = steps.entries(DEVICE, folder)
            timed = None if seconds is None else 5 * seconds
            found[size] = {row.label: row for row in steps.measure(*size, chosen, DEVICE, timed, folder)}
        return found[size]

    return of


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("size", SIZES, ids=[f"{preset}-T{T}-B{B}" for preset, T, B in SIZES])
def bench_train_step(benchmark, replay, step_rows, size, entry):
    rows = step_rows(size)
    if entry not in rows:
        pytest.skip("needs --nanogpt PATH")
    row = rows[entry]
    benchmark.group = f"training step, {size[0]}, {size[1]} x {size[2]} tokens"
    if row.status != contest.OK:
        pytest.xfail(f"{row.status}: {row.reason}")
    if not row.rounds:
        return replay(())
    benchmark.extra_info.update(row.to_dict())
    print(f"{row.tokens_per_s:,.0f} tokens/s, {microseconds(row.step_s)} a step")
    replay(row.rounds)
