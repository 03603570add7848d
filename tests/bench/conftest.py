import gc
import math

import pytest

from bench import contest


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_stays():
    """The benches collect garbage before each thing they time, and need not look through PyTorch's compiler for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nobody_is_slow(monkeypatch):
    """All take turns, and not those apart whose one call for weighing happened to take long."""
    monkeypatch.setattr(contest, "SLOW", math.inf)
