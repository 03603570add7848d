"""kill -9 at any moment, a disk that is full, a power cut: what was saved is there, and runs end as they would have."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from minilm.corpus.dataset import prepare, prepared
from minilm.errors import UserError
from minilm.training import checkpoint, journal
from minilm.training.loop import train
from tests.faults import victim

ROOT = Path(__file__).parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LONG = pytest.mark.faults


@pytest.fixture
def quick_disk(tmp_path):
    """A folder in memory where there is one: kill -9 leaves there what it leaves anywhere, and fsync costs nothing."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param({"seed": 0, "variants": ["plain"], "hooked": 16, "random": 3, "repeated": 1}, id="fast"),
        pytest.param(
            {"seed": 1, "variants": list(victim.VARIANTS), "hooked": 70, "random": 20, "repeated": 4},
            marks=LONG,
            id="long",
        ),
    ],
)
def test_a_run_killed_at_any_moment_ends_bit_for_bit_as_if_it_had_not_been(plan, quick_disk, text_file):
    command = [sys.executable, "-m", "tests.faults.victim", quick_disk, text_file, json.dumps(plan)]
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=ALONE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    killed = sum(one["killed"] for one in lives)
    print(f"{len(lives)} lives, {killed} kills, {lives[0]['moments']} hooked moments a run")
    wrong = [one for one in lives if one["differences"]]
    assert not wrong, f"{len(wrong)}: {wrong[:3]} {done.stderr[-2000:]}"
    assert killed >= len(plan["variants"]) * plan["hooked"]  # at the hooks all of them, at random not all


def save_until_full(folder, state, limit):
    """In a process of its own: one good save, then one with only `limit` bytes a file."""

    def work():
        checkpoint.save(folder / "last.pt", {**state, "step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            checkpoint.save_last(folder, {**state, "step": 2}, 2, 1)
        except UserError as error:
            sentence = str(error)
            assert sentence.count("\n") == 0 and str(folder / "last.pt") in sentence and " bytes" in sentence, sentence
            os._exit(3)

    return os.waitstatus_to_exitcode(victim.forked(work))


@pytest.mark.parametrize("points", [pytest.param(6, id="fast"), pytest.param(50, marks=LONG, id="long")])
def test_a_file_size_limit_anywhere_leaves_the_earlier_checkpoint(points, tmp_path):
    state = {"model": {"w": torch.randn(100, 100)}}
    checkpoint.save(tmp_path / "size.pt", state)
    size = (tmp_path / "size.pt").stat().st_size
    for point in range(points):
        folder = tmp_path / str(point)
        assert save_until_full(folder, state, size * point // points) == 3
        assert checkpoint.load(folder / "last.pt")["step"] == 1
        assert [p.name for p in folder.iterdir()] == ["last.pt"]


@pytest.fixture
def small_disk():
    """A tmpfs of 2 MB, where this user may mount one."""
    folder = Path(tempfile.mkdtemp())
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here: " + done.stderr.decode().strip()[:80])
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
@pytest.mark.parametrize("points", [pytest.param(3, id="fast"), pytest.param(50, marks=LONG, id="long")])
def test_a_full_disk_anywhere_leaves_the_earlier_checkpoint(points, small_disk):
    state = {"model": {"w": torch.randn(300, 300)}}  # 360 kB
    checkpoint.save(small_disk / "last.pt", {**state, "step": 1})
    free = shutil.disk_usage(small_disk).free
    for point in range(points):
        (small_disk / "filler").write_bytes(b"x" * (free - 340_000 * point // points))
        with pytest.raises(UserError, match=r"last.pt of [\d,]+ bytes could not be written, where [\d,]+ are free"):
            checkpoint.save_last(small_disk, {**state, "step": 2}, 2, 1)
        assert checkpoint.load(small_disk / "last.pt")["step"] == 1
        assert {p.name for p in small_disk.iterdir()} <= {"last.pt", "filler"}
        (small_disk / "filler").unlink()
    checkpoint.save_last(small_disk, {**state, "step": 2}, 2, 1)
    assert checkpoint.load(small_disk / "last.pt")["step"] == 2


def test_a_training_on_a_full_disk_ends_in_a_sentence_and_goes_on_when_there_is_room(tmp_path, text_file):
    config, out = victim.config_for(text_file), tmp_path / "run"

    def full():
        def save(path, write, before=None):
            if path.name == "last.pt" and (out / journal.METRICS).exists():
                limit = 2000
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            whole(path, write, before)

        whole, checkpoint.write_atomically = checkpoint.write_atomically, save
        try:
            victim.run(config, out)
        except UserError as error:
            os._exit(3 if "could not be written" in str(error) and "\n" not in str(error) else 4)

    victim.run(config, tmp_path / "whole")
    assert os.waitstatus_to_exitcode(victim.forked(full)) == 3
    victim.run(config, out)
    assert victim.differences(tmp_path / "whole", out) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt-get install strace)")
def test_the_system_calls_of_a_save_are_in_the_order_that_survives_a_power_cut(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from minilm.training import checkpoint as c; "
        "f = Path(sys.argv[1]); s = {'model': {'w': torch.zeros(9)}}; "
        "[c.save_last(f, {**s, 'step': n}, 2, n - 1 if n else None) for n in range(4)]"
    )
    calls, folder = tmp_path / "calls", tmp_path / "run" / "checkpoints"
    names = "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,openat,mkdir"
    command = ["strace", "-f", "-y", "-e", names, "-o", calls, sys.executable, "-c", code, folder]
    traced = subprocess.run([*map(str, command)], cwd=ROOT, env=ALONE, capture_output=True, text=True)
    if traced.returncode and "ptrace" in traced.stderr:
        pytest.skip("strace may not trace here")
    assert traced.returncode == 0, traced.stderr
    kinds = {
        r"fsync\(\d+<[^>]*\.part>": "fsync file",
        r"link(at)?\(.*last\.pt.*last_": "link",
        r"rename.*\.part.*last\.pt": "rename",
        r"fsync\(\d+<[^>]*/checkpoints>": "fsync folder",
        r"fsync\(\d+<[^>]*/run>": "fsync parent",
        r"unlink(at)?\(.*/last_\d+\.pt.*= 0": "prune",
    }
    seen = [kind for line in calls.read_text().splitlines() for p, kind in kinds.items() if re.search(p, line)]
    first = ["fsync file", "rename", "fsync folder"]
    later = ["fsync file", "link", "rename", "fsync folder"]
    assert seen == ["fsync parent", *first, *later, *later, "prune", *later, "prune"]


def test_prepared_data_are_durable_before_they_have_their_name(tmp_path, text_file, monkeypatch):
    """Else a power cut leaves files of the right size that hold zeros, each of them a token."""
    order, sync, replace = [], os.fsync, os.replace

    def name(file):
        return Path(os.readlink(f"/proc/self/fd/{file}")).name

    monkeypatch.setattr(os, "fsync", lambda file: (order.append(name(file)), sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"rename to {b.name}"), replace(a, b)))
    prepare(victim.config_for(text_file).data, tmp_path / "data")
    assert sorted(order[:4]) == ["meta.json", "tokenizer.json", "train.bin", "val.bin"]
    assert order[4].startswith(".data.") and order[5:] == ["rename to data", tmp_path.name]


def test_the_tokenizer_of_a_run_is_written_whole_or_not_at_all(tmp_path, text_file, monkeypatch):
    def torn(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:20])
        raise MemoryError

    config, out = victim.config_for(text_file), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(shutil, "copyfile", torn)
        victim.run(config, out)
    assert (out / journal.CONFIG).exists() and not (out / "tokenizer.json").exists()
    victim.run(config, out)
    assert (out / "tokenizer.json").read_bytes() == (prepared(config.data).folder / "tokenizer.json").read_bytes()


def test_a_second_training_in_the_same_folder_is_refused_and_the_first_goes_on(tmp_path, text_file):
    config, out = victim.config_for(text_file, steps=100_000), tmp_path / "run"
    pid = os.fork()
    if pid == 0:
        try:
            victim.run(config, out)
        finally:
            os._exit(0)
    try:
        while not (out / journal.METRICS).exists():
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        with pytest.raises(UserError, match=f"is in use by process {pid} since"):
            train(victim.config_for(text_file, steps=1), out, resume=True)  # ends soon where nothing refuses it
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    with journal.RunFolder(out, resume=True):  # the lock of a dead process is no lock
        pass
