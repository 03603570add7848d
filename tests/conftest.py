"""Shared by all tests: no downloads, no display, and a cache of its own for prepared data."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

# Before PyTorch is imported. The tensors here are small: more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    # A plainer instruction set. What torch.compile keeps from run to run is not asked for which it was made.
    kept = Path(tempfile.gettempdir()) / f"torchinductor-{os.getuid()}-{capability}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No test fails by the clock: on a busy machine an example may take any time. Fixtures of a test serve all its examples.
settings.register_profile(
    "minilm", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("minilm")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Nothing that a test prepares touches the person's own cache; what one test prepared serves the next."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MINILM_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def short_samples():
    """What a training writes on its way is longer than the models' windows, and not 400 tokens."""
    from minilm.training import evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "SAMPLE_TOKENS", 40)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """shared(name, make): what make(folder) made in a folder that all workers have, by the first who asks for it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name, make):
        folder = base / f"shared-{name}"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "whole").exists():
                make(folder)
                (folder / "whole").touch()
        return folder

    return once


@pytest.fixture(scope="session")
def text_file(shared):
    """A small real-looking text of 40,000 characters, the same every time. Not to be changed."""
    lines = [f"{n} green bottles hanging on the wall, and if {n % 7} should fall: {n * n}!" for n in range(700)]
    text = "\n".join(lines)[:40_000]
    return shared("text", lambda folder: (folder / "rhymes.txt").write_text(text, encoding="utf-8")) / "rhymes.txt"


@pytest.fixture(scope="session")
def capstone_folder(shared, text_file):
    """A miniature capstone, killed as it trained and as it compared, told to stop, and finished. Not to be changed."""
    from tests.capstone.miniature import make_with_kills

    return shared("capstone", lambda folder: make_with_kills(folder / "made", text_file)) / "made"


@pytest.fixture(scope="session")
def trained(tmp_path_factory, text_file):
    """A finished run of 12 steps. Not to be changed."""
    from tests.faults import victim

    out = tmp_path_factory.mktemp("trained") / "run"
    victim.run(victim.config_for(text_file), out)
    return out


@pytest.fixture
def copied(trained, tmp_path):
    """The run of `trained`, to do with as one likes."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def pytest_make_parametrize_id(val: object) -> str | None:
    """float32, where pytest would number it."""
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


def pytest_collection_finish() -> None:
    """What is imported by now stays: a collection of garbage, of which some tests ask for many, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """tests/kernels/conftest.py sets TRITON_INTERPRET; no other test is to find kernels that are available and slow."""
    if (ROOT / "tests" / "kernels") not in item.path.parents:
        os.environ.pop("TRITON_INTERPRET", None)
    elif not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


RUN_WHEN_ASKED_FOR = {"slow": "takes minutes; run with -m slow", "faults": "takes minutes; run with -m faults"}


# Files that take longest: begun first, so that no worker is left alone with one.
FIRST = {
    ROOT / "tests" / name
    for name in (
        "training/test_distributed.py",
        "kernels/test_attention.py",
        "studies/test_trials.py",
        "test_readme.py",
        "capstone/test_capstone_check.py",
        "kernels/test_tune_compiling.py",
        "test_examples.py",
    )
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path not in FIRST)
    for marker, reason in RUN_WHEN_ASKED_FOR.items():
        if marker not in config.option.markexpr:
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))
