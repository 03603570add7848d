"""train.graphs: an update as one CUDA graph gives what its launches one by one give, and knows where it cannot be."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from minilm.config import TrainConfig
from minilm.errors import UserError
from minilm.training import checkpoint, graphs, journal, loop
from minilm.training.graphs import EAGER_UPDATES, CapturedUpdate
from minilm.training.optimizer import build_optimizers
from tests.training.test_resume import assert_same_run, reduced, run, stop_after

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16
on_both = pytest.mark.parametrize("optimizer", ["adamw", "muon"])


@pytest.mark.parametrize(
    ("device", "changes", "dtype", "processes", "reason"),
    [
        (CPU, {}, BF16, 1, "CUDA graphs need a GPU of NVIDIA where the device is cpu"),
        (CUDA, {"exact_reduction": True}, BF16, 1, "one process, without exact reduction or shards"),
        (CUDA, {"shard": True}, BF16, 1, "one process, without exact reduction or shards"),
        (CUDA, {}, BF16, 2, "one process"),
        (CUDA, {"compile": "graphs"}, BF16, 1, "CUDA graphs of its own"),
        (CUDA, {}, torch.float16, 1, "float16"),
        (CUDA, {"checkpoint_activations": True}, BF16, 1, "computing activations again"),
    ],
)
def test_where_an_update_cannot_be_captured_it_is_refused_in_a_sentence(device, changes, dtype, processes, reason):
    graphs.check(TrainConfig(**changes), device, dtype, processes)
    with pytest.raises(UserError, match=rf"train.graphs is 'on', and .*{reason}.*; take off"):
        graphs.check(TrainConfig(graphs="on", **changes), device, dtype, processes)


def test_elsewhere_it_is_done():
    for changes in ({}, {"compile": "on"}, {"grad_accumulation": 2, "batch_size": 8}, {"optimizer": "muon"}):
        graphs.check(TrainConfig(graphs="on", **changes), CUDA, BF16)


@pytest.fixture
def stand_in(monkeypatch):
    """A graph that, replayed, does what was captured once more: with the tensors and the numbers that it had then."""
    made = []

    def capture(self):
        numbers = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.result = torch.zeros(2)
        made.append(self)

        def replay():
            now = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
            for optimizer, rates in zip(self.optimizers, numbers, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
            self.result.copy_(self.advance(self.batch, self.rates))
            for optimizer, rates in zip(self.optimizers, now, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate

        return replay

    monkeypatch.setattr(CapturedUpdate, "capture", capture)
    monkeypatch.setattr(graphs, "why_not", lambda *_: None)
    return made


def weights_of(path):
    return checkpoint.load(path / "checkpoints/last.pt")["model"]


@on_both
def test_a_captured_training_follows_the_rate_and_the_batches_of_an_eager_one(optimizer, stand_in, tmp_path, text_file):
    """Rates are float32 on the device and Muon's step is taken at 1 and shortened: equal but for rounding."""
    settings = {"steps": 12, "warmup_steps": 6, "lr": 3e-3, "min_lr": 1e-4, "optimizer": optimizer}
    run(reduced("tiny", text_file, graphs="off", **settings), tmp_path / "eager")
    assert not stand_in
    run(reduced("tiny", text_file, graphs="on", **settings), tmp_path / "captured")
    assert len(stand_in) == 1
    one, other = (journal.read_rows(tmp_path / name / "metrics.jsonl") for name in ("eager", "captured"))
    for a, b in zip(one, other, strict=True):
        assert a["step"] == b["step"] and a.get("lr") == b.get("lr")
        for key in ("loss", "val_loss", "grad_norm"):
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=2e-4)


@on_both
def test_a_captured_training_that_is_resumed_has_the_same_bits(optimizer, stand_in, tmp_path, text_file):
    """The first updates of a process are eager, wherever in the training they come."""
    config = reduced("tiny", text_file, optimizer=optimizer, graphs="on")
    assert config.train.steps > EAGER_UPDATES + 1
    run(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(EAGER_UPDATES + 1, patch)
        run(config, tmp_path / "parts")
    run(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_training_that_is_over_holds_no_graph(stand_in, tmp_path, text_file, monkeypatch):
    """The graph knows its loop and the loop its graph: together they would wait for Python's collector, on a GPU."""
    held = []
    conclude = loop.Loop.conclude
    monkeypatch.setattr(loop.Loop, "conclude", lambda self: held.append(self.captured) or conclude(self))
    run(reduced("tiny", text_file, graphs="on"), tmp_path / "run")
    assert len(stand_in) == 1 and held == [None]


def test_what_is_restored_is_captured_anew(stand_in):
    """Restored moments are other tensors than those that the graph knows."""
    update = CapturedUpdate(lambda batch, rates: batch.sum() * torch.ones(2), [], CPU)
    for number in range(EAGER_UPDATES + 3):
        assert torch.equal(update(torch.full((2,), float(number))), torch.full((2,), 2.0 * number))
    assert len(stand_in) == 1
    update.forget()
    for _ in range(EAGER_UPDATES + 1):
        update(torch.ones(2))
    assert len(stand_in) == 2


def test_a_result_stays_what_it_was_when_the_next_batch_has_come(stand_in):
    update = CapturedUpdate(lambda batch, rates: batch.sum() * torch.ones(2), [], CPU)
    results = [update(torch.full((1,), float(number))) for number in range(EAGER_UPDATES + 3)]
    assert [result[0].item() for result in results] == list(range(EAGER_UPDATES + 3))


@on_both
def test_a_bad_step_changes_nothing_with_rates_on_the_device(optimizer):
    from minilm.training.optimizer import step_unless

    torch.manual_seed(0)
    matrix, table = (torch.nn.Parameter(torch.randn(8, 4)) for _ in range(2))
    model = SimpleNamespace(parameters=lambda: [matrix, table], blocks=SimpleNamespace(parameters=lambda: [matrix]))
    only = build_optimizers(model, dataclasses.replace(TrainConfig(), optimizer=optimizer))[0]
    rates = [torch.tensor(0.01) for _ in only.param_groups]
    for bad in (False, True, False):
        before = matrix.detach().clone()
        matrix.grad = torch.full_like(matrix, torch.nan if bad else 1.0)
        step_unless(torch.tensor(bad), only, rates)
        assert torch.equal(matrix, before) == bad and matrix.isfinite().all()
    assert all(isinstance(group["lr"], float) for group in only.param_groups)


@pytest.mark.gpu
@on_both
def test_on_a_gpu_a_real_graph_is_replayed(optimizer, tmp_path, text_file):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    settings = {"steps": 20, "optimizer": optimizer, "device": "cuda", "kernels": "torch", "lr": 1e-3}
    losses = {}
    for name in ("off", "on"):
        run(reduced("tiny", text_file, {"dropout": 0.1}, graphs=name, **settings), tmp_path / name)
        losses[name] = [row["loss"] for row in journal.read_rows(tmp_path / name / "metrics.jsonl") if "loss" in row]
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-3)  # dropout draws on as it would have
