import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_stays():
    """The benches collect garbage before each thing they time, and need not look through PyTorch's compiler for it."""
    gc.collect()
    gc.freeze()
