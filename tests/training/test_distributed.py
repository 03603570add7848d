"""Several processes train the model that one would, write once, and end together."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minilm.config import TrainConfig, build
from minilm.errors import UserError
from minilm.sampling.generate import load_run
from minilm.training import checkpoint, distributed, evaluate, loop, reduction
from minilm.training.journal import read_rows
from tests.children import Python
from tests.waiting import LONG, PATIENCE, wait_for

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODEL = {"n_layers": 2, "n_heads": 2, "d_model": 16, "context_length": 16}
TRAIN = {"steps": 8, "batch_size": 8, "eval_interval": 4, "checkpoint_interval": 5}
TRAIN |= {"warmup_steps": 2, "schedule": "constant"}  # so that more steps do not change the first ones
TOLERANCE = 1e-5  # of the losses of 8 steps in float32; 2e-7 was measured


def overrides(text_file, model=None, **train):
    quiet = {"log_interval": 4, "eval_tokens": 700, "kernels": "torch", "device": "cpu"}
    return {"model": MODEL | (model or {}), "train": TRAIN | quiet | train, "data": {"source": str(text_file)}}


def environment(rank, size, port):
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def begun_anew(*command, env):
    """A Python that is not forked, and has a seed of hashes of its own: sets have another order in each."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *map(str, command)], env=env, stdout=pipe, stderr=pipe, text=True)


def start(size, *command, begin=Python):
    """`size` processes that know of each other, without torchrun, which takes as long to start as they do."""
    (port,) = free_ports(1)
    return [begin(*command, env=environment(rank, size, port)) for rank in range(size)]


def run_jobs(size, jobs, folder, begin=Python):
    """What each process says came of each job."""
    folder.mkdir()
    # of its own, for a process that is quick would join the other's group of the job before
    jobs = [{**job, "port": port} for job, port in zip(jobs, free_ports(len(jobs)), strict=True)]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    processes = start(size, HERE / "distributed_worker.py", folder / "jobs.json", folder, begin=begin)
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0] * size, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)], said


def alone(text_file, out, resume=False, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BATCH_TOKENS", 100)
        return loop.train(build("tiny", overrides(text_file, **options)), out, resume)


def losses(run):
    rows = read_rows(run / "metrics.jsonl")
    return {(r["step"], k): r[k] for r in rows for k in ("loss", "grad_norm", "val_loss") if k in r}


def events(run, kind):
    return [(row["step"], row["message"]) for row in read_rows(run / "events.jsonl") if row["event"] == kind]


def weights(run, name="last.pt"):
    state = checkpoint.load(run / "checkpoints" / name)
    moments = state.get("optimizers", [])
    return [*state["model"].values(), *(t for o in moments for s in o["state"].values() for t in s.values())]


def same_bits(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


JOBS = {
    "plain": {"train": {"grad_accumulation": 4}},
    "exact": {"train": {"exact_reduction": True}, "model": {"dropout": 0.1}},
    "exact muon": {"train": {"exact_reduction": True, "optimizer": "muon"}},
    "shard": {"train": {"shard": True, "grad_accumulation": 4, "sample_interval": 8}},
    "dropout": {"model": {"dropout": 0.3}, "train": {"steps": 3}},
    "nan": {"fault": "nan", "train": {"optimizer": "muon"}},
    "disk": {"fault": "disk"},
    "no data": {"fault": "no data"},
    "term": {"fault": "term", "train": {"exact_reduction": True}},
    "term plain": {"fault": "term"},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory, text_file):
    """All jobs by two processes: the folder of their runs, and what each process says of them."""
    root = tmp_path_factory.mktemp("two")

    def job(name, parts):
        asked = overrides(text_file, parts.get("model"), **parts.get("train", {}))
        return {"out": str(root / name), "fault": parts.get("fault", ""), "overrides": asked}

    results, _ = run_jobs(2, [job(name, parts) for name, parts in JOBS.items()], root / "results")
    outcomes = {name: [ranks["jobs"][i]["outcome"] for ranks in results] for i, name in enumerate(JOBS)}
    return root, outcomes, results


@pytest.fixture(scope="module")
def one(tmp_path_factory, text_file):
    root = tmp_path_factory.mktemp("one")
    alone(text_file, root / "plain", grad_accumulation=4)
    alone(text_file, root / "exact", model={"dropout": 0.1}, exact_reduction=True)
    alone(text_file, root / "exact muon", exact_reduction=True, optimizer="muon")
    alone(text_file, root / "exact whole", exact_reduction=True)
    return root


class TestSameTraining:
    @pytest.mark.parametrize("name", ["plain", "shard"])
    def test_the_losses_and_norms_are_those_of_one_process(self, one, two, name):
        ours, theirs = losses(one / "plain"), losses(two[0] / name)
        assert ours.keys() == theirs.keys() and len(ours) == 8 + 8 + 3
        assert theirs == pytest.approx(ours, rel=0, abs=TOLERANCE)

    @pytest.mark.parametrize("name", ["exact", "exact muon"])
    def test_exact_reduction_gives_the_same_bits_with_dropout_too(self, one, two, name):
        assert same_bits(weights(one / name), weights(two[0] / name))
        assert losses(one / name) == losses(two[0] / name)

    def test_evaluation_gives_the_same_number_to_the_last_bit(self, one, two):
        """Of 7 batches, which two processes cannot share evenly."""
        for name in ("plain", "shard"):
            assert losses(one / "plain")[0, "val_loss"] == losses(two[0] / name)[0, "val_loss"]

    def test_processes_drop_different_units(self, two):
        model = build("tiny", {"model": MODEL | {"dropout": 0.3, "vocab_size": 9}}).model
        reduced = reduction.Plain(reduction.GPT(model), TrainConfig(), distributed.Team())
        draws = []
        for step, part in ((0, 0), (0, 1), (1, 0), (0, 0)):
            reduced.reseed(step, part)
            draws.append(torch.rand(4).tolist())
        assert draws[0] == draws[3] and len({tuple(d) for d in draws}) == 3
        assert two[1]["dropout"] == ["step 3 signal None"] * 2

    def test_config_json_says_how_many_processes_there_were(self, one, two):
        for run, size, backend in ((one / "plain", 1, None), (two[0] / "plain", 2, "gloo")):
            facts = json.loads((run / "config.json").read_text())["facts"]
            assert (facts["world_size"], facts["backend"]) == (size, backend)

    def test_the_first_process_alone_writes(self, two):
        first, second = two[2]
        assert any("last.pt" in path for path in first["written"])
        assert [path for path in second["written"] if "/results/" not in path] == []


class TestSharded:
    def test_checkpoints_are_whole_and_any_command_loads_them(self, one, two):
        model, _ = load_run(two[0] / "shard", "best", "torch", "cpu", "float32")
        for ours, theirs in zip(weights(one / "plain"), weights(two[0] / "shard"), strict=True):
            assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-4
        assert model.generate(torch.tensor([[1]]), 5, 0.0).shape == (1, 6)
        keys = checkpoint.load(two[0] / "shard" / "checkpoints" / "last.pt")["model"].keys()
        assert keys == checkpoint.load(one / "plain" / "checkpoints" / "last.pt")["model"].keys()

    def test_samples_are_written_by_all_processes_together(self, two):
        names = sorted(p.name for p in (two[0] / "shard" / "samples").iterdir())
        assert names == ["step_000000.json", "step_000008.json"]

    def test_tied_weights_are_stored_once(self, two):
        state = checkpoint.load(two[0] / "shard" / "checkpoints" / "last.pt")["model"]
        assert state["head.weight"].data_ptr() == state["token_embedding.weight"].data_ptr()


class TestFailures:
    def test_a_non_finite_loss_or_gradient_on_one_process_skips_the_step_on_all(self, two):
        run = two[0] / "nan"  # that weights stayed as they were on both was checked by both
        assert two[1]["nan"] == ["step 8 signal None"] * 2
        assert [step for step, _ in events(run, "non_finite")] == [4, 6]
        assert all(t.isfinite().all() for t in weights(run))

    def test_what_stops_the_first_process_stops_all_and_they_say_why(self, two):
        first, second = two[1]["disk"]
        assert first == "UserError: the disk is full."
        assert "process 0 of 2: the disk is full." in second
        assert checkpoint.load(two[0] / "disk" / "checkpoints" / "last.pt")["step"] == 0

    def test_what_stops_another_process_before_the_first_step_stops_all(self, two):
        first, second = two[1]["no data"]
        assert second == "UserError: this process has no data."
        assert first == "UserError: process 1 of 2: this process has no data."
        assert not (two[0] / "no data").exists()

    def test_a_signal_to_one_process_ends_all_after_the_same_step(self, two):
        assert two[1]["term"] == two[1]["term plain"] == ["step 4 signal 15"] * 2
        assert checkpoint.load(two[0] / "term" / "checkpoints" / "last.pt")["step"] == 4


class TestChangingNumbers:
    """2 -> 1 -> 2 processes, by runs that two processes left after step 4."""

    @pytest.fixture(scope="class")
    @classmethod
    def changed(cls, one, two, text_file):
        root, jobs = two[0], []
        alone(text_file, root / "term", resume=True, exact_reduction=True, steps=6, keep_last=3)
        alone(text_file, root / "term plain", resume=True, steps=6)
        alone(text_file, root / "shard", resume=True, grad_accumulation=4, sample_interval=8, steps=10)
        for name, more in (
            ("term", {"exact_reduction": True}),
            ("term plain", {"steps": 8, "shard": True}),
            ("shard", {"grad_accumulation": 4, "sample_interval": 8, "steps": 12, "shard": True}),
        ):
            jobs.append({"out": str(root / name), "resume": True, "overrides": overrides(text_file, **more)})
        return root, run_jobs(2, jobs, root / "changed", begun_anew)[0]

    def test_with_exact_reduction_the_bits_are_those_of_a_run_that_never_stopped(self, one, changed):
        assert same_bits(weights(one / "exact whole"), weights(changed[0] / "term"))
        assert losses(one / "exact whole").items() <= losses(changed[0] / "term").items()

    def test_each_change_is_an_event(self, changed):
        said = [m for _, m in events(changed[0] / "term", "config_change") if "world_size" in m]
        assert said == ["world_size in use from 2 to 1", "world_size in use from 1 to 2"]

    def test_whole_and_sharded_runs_go_on_from_each_other(self, changed, tmp_path, text_file):
        alone(text_file, tmp_path / "whole", steps=12, grad_accumulation=4)
        ours, theirs = losses(tmp_path / "whole"), losses(changed[0] / "shard")
        assert [ranks["jobs"][2]["outcome"] for ranks in changed[1]] == ["step 12 signal None"] * 2
        assert {key: theirs[key] for key in ours} == pytest.approx(ours, rel=0, abs=TOLERANCE)
        assert [ranks["jobs"][1]["outcome"] for ranks in changed[1]] == ["step 8 signal None"] * 2


def test_four_processes_give_the_same_bits_by_exact_reduction(tmp_path, text_file, one):
    parts = JOBS["exact"]
    job = {"out": str(tmp_path / "exact"), "overrides": overrides(text_file, parts["model"], **parts["train"])}
    run_jobs(4, [job], tmp_path / "results")
    assert same_bits(weights(one / "exact"), weights(tmp_path / "exact"))


def all_end_by_themselves(processes):
    try:
        for process in processes:
            process.wait(timeout=PATIENCE)
    finally:
        end(processes)


def end(processes):
    for process in processes:
        process.kill()
        process.wait(PATIENCE)


def when_saved(run):
    files = run / "checkpoints" / "last.pt", run / "metrics.jsonl"
    wait_for(lambda: all(file.exists() for file in files), "the first checkpoint")


def test_killing_one_process_ends_the_others_and_leaves_the_checkpoint(tmp_path, text_file):
    job = {"out": str(tmp_path / "run"), "fault": "slow", "overrides": overrides(text_file, steps=10_000)}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    processes = start(2, HERE / "distributed_worker.py", tmp_path / "jobs.json", tmp_path)
    when_saved(tmp_path / "run")
    processes[1].kill()
    all_end_by_themselves(processes)
    said = json.loads((tmp_path / "0.json").read_text())["jobs"][0]["outcome"]
    assert said.startswith("UserError: ") and "--resume" in said
    checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")


def test_a_process_that_shows_no_life_ends_the_others(tmp_path, text_file):
    """Stopped, not dead: its sockets stay open, so that only the missing signs of life tell, as with NCCL."""
    job = {"out": str(tmp_path / "run"), "fault": "slow", "overrides": overrides(text_file, steps=10_000)}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    code = (
        "import runpy, sys; from minilm.training import distributed as d; d.DEAD_AFTER_S, d.GRACE_S = 4, 1;"
        f"sys.argv = ['w', {str(tmp_path / 'jobs.json')!r}, {str(tmp_path)!r}];"
        f"runpy.run_path({str(HERE / 'distributed_worker.py')!r}, run_name='__main__')"
    )
    first, second = start(2, "-c", code)
    try:
        when_saved(tmp_path / "run")
        second.send_signal(signal.SIGSTOP)
        assert first.wait(timeout=PATIENCE) == 1
        assert re.search(r"process 1 of 2 gave no sign of life for 4 s", first.communicate(PATIENCE)[1])
    finally:
        end([first, second])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_torchrun_ends_in_time_with_a_sound_checkpoint(number, tmp_path, text_file):
    """kill -9 of one process; SIGTERM and SIGINT as a scheduler and a terminal send them to torchrun itself."""
    settings = [f"--set={s}.{k}={v}" for s, o in overrides(text_file, steps=100_000).items() for k, v in o.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minilm"]
    command += ["train", "--preset", "tiny", "--out", str(tmp_path / "run"), "--no-report", "--no-baselines", *settings]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    when_saved(tmp_path / "run")
    workers = children(job.pid)
    assert len(workers) == 2
    os.kill(workers[1] if number == signal.SIGKILL else job.pid, number)
    try:
        job.communicate(timeout=PATIENCE)
    finally:
        job.kill()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
    if number != signal.SIGKILL:  # torchrun's own exit code tells nothing; the checkpoint and the journal do
        assert events(tmp_path / "run", "stopped") == [(last, f"stopped by {number.name} and saved")]


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


REFUSED = {
    "train.batch_size is 8 and there are 3 processes; it must be a multiple": (3, {}),
    "train.device is 'cuda:1' and there are 2 processes; leave out the number": (2, {"device": "cuda:1"}),
    "train.shard cuts a model over several processes and there is one": (1, {"shard": True}),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_numbers_of_processes_that_do_not_fit_are_refused(sentence, monkeypatch):
    size, train = REFUSED[sentence]
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=sentence):
        distributed.join(TrainConfig(**({"batch_size": 8, "device": "cpu"} | train)))


def test_a_process_that_comes_half_way_is_not_waited_for_as_for_a_collective(tmp_path, text_file):
    job = {"out": str(tmp_path / "run"), "overrides": overrides(text_file)}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    code = f"""
import os, runpy, sys, time
from datetime import timedelta
import torch.distributed as dist
from minilm.training import distributed
if os.environ["RANK"] == "1":
    held = next(dist.rendezvous("env://"))  # connects, and then says nothing
    time.sleep({LONG})
distributed.JOIN_TIMEOUT = timedelta(seconds=2)
sys.argv = ["worker", {str(tmp_path / "jobs.json")!r}, {str(tmp_path)!r}]
runpy.run_path({str(HERE / "distributed_worker.py")!r}, run_name="__main__")
"""
    first, second = start(2, "-c", code)
    try:
        all_end_by_themselves([first])
    finally:
        end([second])
    outcome = json.loads((tmp_path / "0.json").read_text())["jobs"][0]["outcome"]
    assert outcome.startswith("UserError: Process 0 could not join the 2 of this training at 127.0.0.1:")


@pytest.mark.parametrize("other", [{"optimizer": "muon"}, {"exact_reduction": True}, {"dtype": "float16"}])
def test_what_cannot_be_sharded_is_refused_by_name(other):
    with pytest.raises(UserError, match=rf"train.{next(iter(other))} is .* where train.shard is set"):
        TrainConfig(shard=True, **other)


def test_exact_reduction_refuses_a_number_of_processes_that_does_not_divide_its_lanes():
    team = distributed.Team()
    team.size = 3
    model = reduction.GPT(build("tiny", {"model": {"vocab_size": 9}}).model)
    with pytest.raises(UserError, match="adds 4 lanes of a batch of 12 and there are 3 processes"):
        reduction.Lanes(model, TrainConfig(batch_size=12), team)


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(8, 4, 2), (480, 40, 8), (6, 2, 3), (12, 1, 4), (9, 9, 3)])
def test_a_part_is_never_larger_than_on_one_process(batch, accumulation, size):
    config = TrainConfig(batch_size=batch, grad_accumulation=accumulation)
    parts = reduction.micro_batches(batch // size, config)
    assert batch // size % parts == 0 and batch // size // parts <= batch // accumulation
    assert reduction.micro_batches(batch, config) == accumulation


def test_one_process_has_no_process_group(tmp_path, text_file, monkeypatch):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("a group was made"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone(text_file, tmp_path / "run", steps=1)
