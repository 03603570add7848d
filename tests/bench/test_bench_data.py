"""What bench_data measures of a process is what the process took."""

from pathlib import Path

import pytest

from bench.bench_data import MB, peak

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it reads Linux's /proc")
NOISE = 1 * MB


@pytest.fixture(scope="module")
def nothing():
    """Of a process that does nothing else."""
    return peak("import mmap")


def test_memory_that_was_given_back_counts(nothing):
    found = peak("import mmap; held = bytearray(b'x') * 40_000_000; del held")
    assert found.resident - nothing.resident == pytest.approx(40 * MB, abs=NOISE)
    assert found.private - nothing.private == pytest.approx(40 * MB, abs=NOISE)


def test_pages_of_a_file_are_resident_and_not_private(nothing, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(40 * MB))
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)"
    )
    found = peak(code + "; sum(held[i] for i in range(0, len(held), 4096))", str(path))
    assert found.resident - nothing.resident == pytest.approx(40 * MB, abs=NOISE)
    assert found.private - nothing.private == pytest.approx(0, abs=NOISE)


def test_a_large_parent_does_not_count(nothing):
    held = bytearray(b"x") * (100 * MB)
    assert peak("import mmap").resident == pytest.approx(nothing.resident, abs=NOISE)
    del held
