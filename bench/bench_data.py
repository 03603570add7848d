"""Data: tokens a second of preparing a text and of drawing batches, and the memory both take as the corpus grows.

Memory is that of a process that does nothing else. Resident memory has two parts: private memory, which the process
cannot do without, and pages of files, here of train.bin and val.bin, which the system takes back when it needs them.
Drawing batches must not take more resident memory for a larger corpus; everything else is reported.

Corpora of 1 and 10 MB always; of 100 MB and 1 GB with -m slow.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from minilm.config import DataConfig, build
from minilm.corpus.dataset import BatchSampler, open_dataset, prepare
from minilm.corpus.fables import stories
from minilm.corpus.tokenizer import BPETokenizer
from minilm.presets import CAPSTONE, QUICK

ROOT = Path(__file__).resolve().parents[1]
MB = 10**6
SIZES = [1, 10, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 1000))]  # MB
TILE = 10 * MB  # larger corpora repeat so much text
VOCABULARY = 4096  # of byte pairs
# What drawing batches may take more for a larger corpus. Seen: 4 kB. Tokens held in memory: 2 MB for each MB.
FLAT = 1 * MB

PREPARE = """
import sys
from pathlib import Path
from minilm.config import DataConfig
from minilm.corpus.dataset import prepare
source, out, tokenizer = sys.argv[1:]
prepare(DataConfig(source=source, tokenizer=tokenizer), Path(out))
"""
SAMPLE = """
import sys
from pathlib import Path
from minilm.corpus.dataset import BatchSampler, open_dataset
folder, context_length, batch_size = sys.argv[1:]
dataset = open_dataset(Path(folder))
sampler = BatchSampler(dataset.train, int(context_length), int(batch_size), seed=1)
for step in range(1000):
    sampler.batch(step)
"""


REPORT = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(status[name].split()[0] for name in ("VmHWM", "RssFile")))
"""


@dataclass(frozen=True)
class Peak:
    """The most memory of a process in bytes: all that was resident, and how much of that was no page of a file."""

    resident: int
    private: int


def peak(code: str, *arguments: str) -> Peak:
    """Of a Python process that runs `code`, which prints nothing. Raises CalledProcessError where it fails. Linux.

    The process reads its own high-water mark: the one that a parent is given (ru_maxrss) is at least what the parent
    had itself. Pages of files are counted at the end: what was mapped must be so still, and nobody else have needed
    the memory.
    """
    command = [sys.executable, "-c", code + REPORT, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    resident, file = (int(kilobytes) * 1024 for kilobytes in done.stdout.split())
    return Peak(resident, resident - file)


class Corpora:
    """Fables on disk, made when first asked for. kind "text": one file. "documents": .jsonl, a story a line."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.text, self.prepared = cache(self._text), cache(self._prepared)
        self.least_sampling = cache(lambda: self.sampling(1))

    def _text(self, megabytes: int, kind: str = "text") -> Path:
        path = self.folder / f"{megabytes}{'.txt' if kind == 'text' else '.jsonl'}"
        size = megabytes * MB
        tile = "".join(
            text if kind == "text" else json.dumps({"text": text}) + "\n" for text, _ in stories(min(size, TILE))
        )
        with open(path, "w", encoding="utf-8") as file:
            for _ in range(-(-size // TILE)):
                file.write(tile)
        return path

    def _prepared(self, megabytes: int) -> Path:
        return prepare(DataConfig(source=str(self.text(megabytes))), self.folder / f"prepared-{megabytes}")

    def sampling(self, megabytes: int) -> Peak:
        """Of opening prepared data and drawing 1000 of the capstone's batches."""
        return peak(SAMPLE, str(self.prepared(megabytes)), *map(str, _shape(CAPSTONE)))


@pytest.fixture(scope="module")
def corpora():
    with tempfile.TemporaryDirectory() as folder:
        yield Corpora(Path(folder))


@pytest.fixture
def memory(request, benchmark) -> Callable[[Peak], None]:
    """Gives a benchmark the memory of a process; leaves out what takes minutes unless it is asked for."""
    if request.node.get_closest_marker("slow") and "slow" not in request.config.option.markexpr:
        pytest.skip("takes minutes; run with -m slow")
    if not Path("/proc/self/status").exists():
        pytest.skip("how much memory a process takes is read from Linux's /proc")

    def take(found: Peak) -> None:
        benchmark.extra_info["resident_MB"] = round(found.resident / MB, 1)
        benchmark.extra_info["private_MB"] = round(found.private / MB, 1)

    return take


def _shape(preset: str) -> tuple[int, int]:
    config = build(preset)
    return config.model.context_length, config.train.batch_size


def _rate(benchmark, tokens: int, size: int | None = None) -> None:
    """Tokens a second, and MB of text a second where `size` bytes of it were read."""
    if benchmark.stats is None:  # --benchmark-disable
        return
    benchmark.extra_info["tokens_per_s"] = tokens / benchmark.stats["median"]
    if size is not None:
        benchmark.extra_info["MB_per_s"] = size / MB / benchmark.stats["median"]


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def bench_prepare(benchmark, corpora, tmp_path, tokenizer):
    benchmark.group = "data: 1 MB of text prepared"
    text = corpora.text(1)
    config = DataConfig(source=str(text), tokenizer=tokenizer, vocab_size=VOCABULARY)
    benchmark.pedantic(prepare, (config, tmp_path / "out"), rounds=3, warmup_rounds=1)
    meta = open_dataset(tmp_path / "out").meta
    _rate(benchmark, meta["train"]["tokens"] + meta["val"]["tokens"], text.stat().st_size)


@pytest.mark.parametrize("part", ["merges", "encoding"])
def bench_byte_pairs(benchmark, corpora, part):
    """Of preparing byte pairs: learning the merges, and encoding with them, as prepare() calls both."""
    benchmark.group = "data: byte pairs of 1 MB of text"
    text = corpora.text(1).read_text(encoding="utf-8")
    tokenizer = BPETokenizer.train([text], VOCABULARY)
    tokens = len(tokenizer.encode_many([text]))
    if part == "merges":
        benchmark.pedantic(BPETokenizer.train, ([text], VOCABULARY), rounds=3)
    else:
        benchmark.pedantic(tokenizer.encode_many, ([text],), rounds=3)
    _rate(benchmark, tokens, len(text.encode()))


@pytest.mark.parametrize("preset", [QUICK, CAPSTONE])
def bench_batch(benchmark, corpora, preset):
    context_length, batch_size = _shape(preset)
    benchmark.group = "data: a batch"
    sampler = BatchSampler(open_dataset(corpora.prepared(10)).train, context_length, batch_size, seed=1)
    steps = itertools.count()
    benchmark(lambda: sampler.batch(next(steps)))
    _rate(benchmark, batch_size * context_length)


@pytest.mark.parametrize("megabytes", SIZES)
@pytest.mark.parametrize(("kind", "tokenizer"), [("text", "char"), ("documents", "char"), ("text", "bpe")])
def bench_memory_of_preparing(benchmark, corpora, memory, tmp_path, kind, tokenizer, megabytes):
    benchmark.group = "data: a process that prepares 1 MB and more"
    source, out = corpora.text(megabytes, kind), tmp_path / "out"
    memory(benchmark.pedantic(peak, (PREPARE, str(source), str(out), tokenizer)))
    dataset = open_dataset(out)
    benchmark.extra_info["documents"] = dataset.meta["documents"]
    _rate(benchmark, len(dataset.train) + len(dataset.val), source.stat().st_size)
    shutil.rmtree(out)


@pytest.mark.parametrize("megabytes", SIZES)
def bench_memory_of_sampling(benchmark, corpora, memory, megabytes):
    """Opening prepared data and drawing 1000 of the capstone's batches takes the same memory at every size."""
    benchmark.group = "data: a process that draws 1000 batches from 1 MB and more"
    corpora.prepared(megabytes)
    found = benchmark.pedantic(corpora.sampling, (megabytes,))
    memory(found)
    more = found.resident - corpora.least_sampling().resident
    assert more < FLAT, f"{more / MB:.1f} MB more resident memory for {megabytes} MB of text than for 1 MB"
