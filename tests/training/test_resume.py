"""Exact resume: N steps are k steps, a stop, and N-k steps, to the last bit, in every preset and with all that one may
switch on; and what a checkpoint holds beside weights."""

import io
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from minilm import hardware
from minilm.config import PRESETS, RunConfig, build
from minilm.training import checkpoint, journal, loop
from minilm.training.loop import train
from tests.faults.victim import same

ROOT = Path(__file__).parents[2]
NARROW = {"n_layers": 2, "n_heads": 2, "n_kv_heads": None, "d_model": 16, "d_ff": None, "context_length": 16}
SHORT = {"steps": 6, "warmup_steps": 2, "eval_interval": 2, "checkpoint_interval": 2, "eval_tokens": 300}


def reduced(preset, text, model=None, **changes) -> RunConfig:
    """A preset with everything that it says but its size, its length and its text."""
    parts = build(preset).train.grad_accumulation
    size = {"batch_size": max(4, parts), "log_interval": 2, "sample_interval": 0, "device": "cpu"}
    data = {"source": str(text)} | ({"vocab_size": 300} if build(preset).data.tokenizer == "bpe" else {})
    return build(
        preset, {"model": NARROW | (model or {}), "train": SHORT | size | {"kernels": "torch"} | changes, "data": data}
    )


def run(config, out, resume=False):
    return train(config, out, resume, Console(file=io.StringIO()))


def stop_after(step, patch):
    """Have SIGTERM come in the update of a step."""

    class Stopped(loop.Loop):
        def update(self, batch):
            super().update(batch)
            if self.state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(loop, "Loop", Stopped)


def assert_same_run(whole, parts):
    names = {p.name for p in (whole / "checkpoints").iterdir() if "last_" not in p.name}
    assert names == {p.name for p in (parts / "checkpoints").iterdir() if "last_" not in p.name}
    for name in names:
        a, b = (checkpoint.load(run / "checkpoints" / name) for run in (whole, parts))
        for state in (a, b):
            state.get("state", {}).pop("wall", None)
        for key in a.keys() | b.keys():
            assert same(a[key], b[key]), (name, key)
    rows = [journal.read_rows(run / journal.METRICS) for run in (whole, parts)]
    untimed = [[{k: v for k, v in r.items() if k not in ("wall", "tokens_per_s")} for r in side] for side in rows]
    assert untimed[0] == untimed[1]


def stopped_and_resumed(config, folder):
    """Train whole, and stopped after step 3 and resumed in a process that is somewhere else; compare."""
    run(config, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        assert run(config, folder / "parts").state.step == 3
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    run(loop.read_config(folder / "parts"), folder / "parts", resume=True)
    assert_same_run(folder / "whole", folder / "parts")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_on_bit_for_bit(preset, tmp_path, text_file):
    config = reduced(preset, text_file)
    whole = build(preset)
    for kept in ("optimizer", "grad_accumulation", "schedule", "save_at", "beta2"):
        assert getattr(config.train, kept) == getattr(whole.train, kept)
    for kept in ("dropout", "bias", "position", "activation"):
        assert getattr(config.model, kept) == getattr(whole.model, kept)
    stopped_and_resumed(config, tmp_path)


@pytest.mark.parametrize("kernels", ["reference", "torch"])
def test_with_accumulation_dropout_and_muon_together(kernels, tmp_path, text_file):
    model = {"dropout": 0.3, "norm_type": "rmsnorm", "activation": "swiglu", "n_kv_heads": 1}
    config = reduced("quick", text_file, model, kernels=kernels, grad_accumulation=2, dtype="bfloat16")
    stopped_and_resumed(config, tmp_path)


def test_the_scale_of_float16_gradients_goes_on(tmp_path, text_file, monkeypatch):
    """Refused on a CPU, where only a test has a use for it; it halves where gradients overflow, as at steps 2 and 5."""

    class Overflowing(loop.Loop):
        def update(self, batch):
            weight = self.model.blocks[0].mlp.up.weight
            hook = weight.register_hook(lambda grad: grad * float("inf")) if self.state.step in (1, 4) else None
            super().update(batch)
            if hook:
                hook.remove()

    monkeypatch.setattr(loop, "Loop", Overflowing)
    monkeypatch.setattr(hardware, "resolve_dtype", lambda *_: torch.float16)
    stopped_and_resumed(reduced("tiny", text_file), tmp_path)
    scaler = checkpoint.load(tmp_path / "parts" / "checkpoints" / "last.pt")["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2.0**14, 1)


@pytest.mark.parametrize("began", ["float32", "bfloat16"])
def test_a_resumed_run_keeps_the_dtype_that_auto_came_to(began, tmp_path, text_file, monkeypatch):
    """On whatever machine it goes on: half a training in each would be neither."""
    says = {"float32": set(), "bfloat16": {"amx_bf16"}}
    other = {"float32": "bfloat16", "bfloat16": "float32"}[began]
    monkeypatch.setattr(hardware, "CPU_BFLOAT16", (("AMX", {"amx_bf16"}, 1),))
    monkeypatch.setattr(hardware, "_cpu_says", lambda: says[began])
    config = reduced("tiny", text_file)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        run(config, tmp_path / "run")
    monkeypatch.setattr(hardware, "_cpu_says", lambda: says[other])
    run(config, tmp_path / "run", resume=True)
    run(config, tmp_path / "anew")
    dtypes = [journal.read_json(tmp_path / name / "config.json")["facts"]["dtype"] for name in ("run", "anew")]
    assert dtypes == [began, other]
    assert [
        row for row in journal.read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "config_change"
    ] == []


def test_a_run_in_float16_goes_on_in_float32_where_there_is_a_cpu_alone_and_says_so(tmp_path, text_file, monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_says", lambda: set())
    config = reduced("tiny", text_file)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        run(config, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "float16"'))  # as a GPU would have it
    run(config, tmp_path / "run", resume=True)
    said = [row["message"] for row in journal.read_rows(tmp_path / "run" / "events.jsonl")]
    assert "dtype in use from float16 to float32" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_with_interpreted_triton_kernels(tmp_path, text_file):
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    pytest.importorskip("triton")
    code = (
        "import sys; from pathlib import Path; from tests.training.test_resume import reduced, stopped_and_resumed; "
        "model = {'n_layers': 1, 'n_heads': 1, 'dropout': 0.2}; "
        "config = reduced('tiny', sys.argv[1], model, kernels='triton', steps=4, eval_interval=0, batch_size=2); "
        "stopped_and_resumed(config, Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(text_file), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert journal.read_json(tmp_path / "parts" / "config.json")["facts"]["kernels"] == "triton"


def test_a_compiled_model_saves_the_names_of_a_plain_one(tmp_path, text_file):
    """Not with `_orig_mod.` before them, so that both load what the other saved."""
    run(reduced("tiny", text_file), tmp_path / "run")
    names = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["model"]
    assert not [name for name in names if "_orig_mod" in name or name.startswith("module.")]


class TestGenerators:
    @pytest.fixture
    def drawn(self):
        def draw():
            return (
                torch.rand(3).tolist(),
                np.random.rand(3).tolist(),
                np.random.randn(),
                random.random(),
                random.gauss(0, 1),
            )

        return draw

    def test_all_of_them_are_seeded_when_a_run_starts(self, drawn):
        checkpoint.seed_generators(2**40)
        first = drawn()
        checkpoint.seed_generators(2**40)
        assert drawn() == first
        checkpoint.seed_generators(2**40 + 1)
        assert all(a != b for a, b in zip(drawn(), first, strict=True))

    def test_all_of_them_go_on_from_a_checkpoint_file(self, drawn, tmp_path):
        np.random.randn()  # has a second number in store
        random.gauss(0, 1)
        checkpoint.save(tmp_path / "a.pt", {"generators": checkpoint.generator_states()})
        following = drawn()
        checkpoint.seed_generators(5)
        assert checkpoint.restore_generators(checkpoint.load(tmp_path / "a.pt")["generators"]) is None
        assert drawn() == following

    def test_another_number_of_gpus_is_told_as_an_event(self, tmp_path, text_file, monkeypatch):
        run(reduced("tiny", text_file), tmp_path / "run")
        last = tmp_path / "run" / "checkpoints" / "last.pt"
        state = checkpoint.load(last)
        state["generators"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 2
        checkpoint.save(last, {k: v for k, v in state.items() if k != "format"})
        config = loop.read_config(tmp_path / "run")
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if here:
            pytest.skip("about a machine without a GPU")
        run(config, tmp_path / "run", resume=True)
        events = journal.read_rows(tmp_path / "run" / "events.jsonl")
        assert [e["message"] for e in events if e["event"] == "warning"] == [
            "generators of 2 GPUs were saved and this machine has 0: draws on the others are not repeated"
        ]


class TestKeptCheckpoints:
    def names(self, out):
        return sorted(p.name for p in (out / "checkpoints").glob("last*.pt"))

    @pytest.mark.parametrize(("keep", "kept"), [(1, []), (2, [4]), (3, [4, 2]), (9, [4, 2, 0])])
    def test_the_last_k_are_kept(self, keep, kept, tmp_path, text_file):
        run(reduced("tiny", text_file, keep_last=keep), tmp_path / "run")
        assert self.names(tmp_path / "run") == sorted(["last.pt", *(f"last_{s:06d}.pt" for s in kept)])
        for step in kept:
            assert checkpoint.load(checkpoint.find(tmp_path / "run", str(step)))["step"] == step

    def test_no_checkpoint_is_durable_before_the_rows_of_its_steps(self, tmp_path, text_file, monkeypatch):
        order = []
        save, sync = checkpoint.save_last, journal.sync_file
        monkeypatch.setattr(checkpoint, "save_last", lambda *a: (order.append("last.pt"), save(*a)))
        monkeypatch.setattr(journal, "sync_file", lambda path: (order.append(path.name), sync(path)))
        run(reduced("tiny", text_file), tmp_path / "run")
        assert order == ["metrics.jsonl", "events.jsonl", "last.pt"] * 4

    def test_older_ones_go_only_when_the_newer_is_whole(self, tmp_path, text_file, monkeypatch):
        folder = tmp_path / "run" / "checkpoints"
        config = reduced("tiny", text_file, keep_last=2)
        seen = []
        whole = checkpoint.write_atomically

        def write(path, write, before=None):
            seen.append((path.name, self.names(tmp_path / "run")))
            if [name for name, _ in seen].count("last.pt") == 3:
                raise KeyboardInterrupt
            whole(path, write, before)

        monkeypatch.setattr(checkpoint, "write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
        steps = [checkpoint.load(folder / name)["step"] for name in self.names(tmp_path / "run")]
        assert sorted(steps) == [0, 2] and self.names(tmp_path / "run") == seen[-1][1]

    def test_what_a_signal_saved_takes_no_place_of_a_regular_one(self, tmp_path, text_file):
        config = reduced("tiny", text_file, steps=8, keep_last=2)
        with pytest.MonkeyPatch.context() as patch:
            stop_after(5, patch)
            run(config, tmp_path / "run")
        assert self.names(tmp_path / "run") == ["last.pt", "last_000004.pt"]
        with pytest.MonkeyPatch.context() as patch:
            stop_after(6, patch)
            run(config, tmp_path / "run", resume=True)
        assert self.names(tmp_path / "run") == ["last.pt", "last_000004.pt"]

    def test_better_weights_on_disk_are_not_replaced_by_worse(self, tmp_path, text_file):
        """As when an earlier checkpoint is gone on from by other kernels, or past other batches."""
        config = reduced("tiny", text_file)
        run(config, tmp_path / "run")
        best = tmp_path / "run" / "checkpoints" / "best.pt"
        state = checkpoint.load(best)
        checkpoint.save(best, {**state, "val_loss": 0.5})
        for name in ("last.pt", "last_000004.pt"):
            path = tmp_path / "run" / "checkpoints" / name
            old = checkpoint.load(tmp_path / "run" / "checkpoints" / "last_000004.pt")
            checkpoint.save(path, {k: v for k, v in old.items() if k != "format"})
        run(loop.read_config(tmp_path / "run"), tmp_path / "run", resume=True)
        assert checkpoint.load(best)["val_loss"] == 0.5

    def test_best_weights_that_were_damaged_are_replaced_by_the_next(self, tmp_path, text_file, monkeypatch):
        """Worse ones are better than none; the best loss is remembered all the same, and is no event."""
        losses = iter([4.0, 2.0, 3.0, 2.5, 3.5, 2.4])
        monkeypatch.setattr(loop, "evaluate", lambda *_: next(losses))
        run(reduced("tiny", text_file, steps=4), tmp_path / "run")
        best = tmp_path / "run" / "checkpoints" / "best.pt"
        assert checkpoint.load(best)["val_loss"] == 2.0
        best.write_bytes(best.read_bytes()[:-9])
        result = run(reduced("tiny", text_file, steps=10), tmp_path / "run", resume=True)
        assert checkpoint.load(best)["val_loss"] == 2.4
        assert result.state.best["val_loss"] == 2.0
        told = [e["val_loss"] for e in journal.read_rows(tmp_path / "run" / journal.EVENTS) if e["event"] == "best"]
        assert told == [4.0, 2.0]
