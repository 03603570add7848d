"""The kernels run natively where there is an NVIDIA GPU, and in Triton's interpreter everywhere else."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for error_rule, which the importlib mode of pytest does not find

if not torch.cuda.is_available():
    # Decides how kernels are defined, so it must precede the first import of Triton, whatever test asks for it.
    already = sys.modules.get("triton.runtime")
    if already is not None and not os.environ.get("TRITON_INTERPRET"):
        raise RuntimeError("Triton was imported before tests/kernels could set TRITON_INTERPRET=1; set it beforehand")
    os.environ["TRITON_INTERPRET"] = "1"
    import kernels.fused  # noqa: F401  # now: tests outside this folder run without the variable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def nan_filled_empties():
    """Fills what torch.empty and its kin return with NaN, so that an element never written shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True  # which a deterministic training has switched off
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A user's folder of tuning tables, of this test alone and empty at first."""
    from kernels.fused import tuning

    monkeypatch.setenv("MINILM_DATA", str(tmp_path))
    tuning.forget()
    yield tmp_path / "tuned"
    tuning.forget()


@pytest.fixture
def tiles(monkeypatch):
    """Small tiles of attention, so that short sequences have several; call it for others. BLOCK_M and BLOCK_N differ on
    purpose."""
    from kernels.fused import tuning

    def use(block_m, block_n):
        config = {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": 4, "num_stages": 1}
        monkeypatch.setattr(tuning, "lookup", lambda *args, **kwargs: config)

    use(32, 16)
    return use
