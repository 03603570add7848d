"""Training: learns, says what happened, loses nothing, and goes on from where it was, bit for bit."""

import io
import itertools
import json
import math
import os
import signal
import threading

import pytest
import torch
from rich.console import Console

from minilm import hardware
from minilm.config import build
from minilm.errors import UserError
from minilm.training import checkpoint, evaluate, guards, loop
from minilm.training.journal import RunFolder, newest_run_folder, next_run_folder, read_rows
from minilm.training.loop import train

MODEL = {"n_layers": 2, "n_heads": 2, "d_model": 32, "context_length": 16}
TRAIN = {"steps": 12, "batch_size": 8, "warmup_steps": 2, "eval_interval": 4, "checkpoint_interval": 5}
QUIET = {"log_interval": 4, "eval_tokens": 500}


def config_for(text_file, model=None, **changes):
    overrides = {
        "model": MODEL | (model or {}),
        "train": TRAIN | QUIET | {"kernels": "torch", "device": "cpu"} | changes,
        "data": {"source": str(text_file)},
    }
    return build("tiny", overrides)


def run_training(config, out, **options):
    console = Console(file=io.StringIO(), width=200)
    result = train(config, out, console=console, **options)
    return result, console.file.getvalue()


def last_state(run):
    return checkpoint.load(run / "checkpoints" / "last.pt")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def journal_without_times(run):
    rows = read_rows(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in ("wall", "tokens_per_s")} for row in rows]


class TestOneRun:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tmp_path_factory, text_file):
        out = tmp_path_factory.mktemp("runs") / "tiny-001"
        config = config_for(
            text_file, steps=60, lr=3e-3, sample_interval=30, save_at="0,8", eval_tokens=0, eval_interval=20
        )
        result, said = run_training(config, out, command="minilm train ...")
        return out, result, said

    def test_it_learns(self, run):
        rows = [row for row in read_rows(run[0] / "metrics.jsonl") if "val_loss" in row]
        assert rows[-1]["val_loss"] < 0.7 * rows[0]["val_loss"]

    def test_the_journal_has_one_row_a_step_and_every_evaluation(self, run):
        rows = read_rows(run[0] / "metrics.jsonl")
        steps = [row for row in rows if "loss" in row]
        assert [row["step"] for row in steps] == list(range(1, 61))
        assert all(row.keys() == {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "wall"} for row in steps)
        assert [row["tokens"] for row in steps] == [128 * s for s in range(1, 61)]
        assert all(a["wall"] < b["wall"] for a, b in itertools.pairwise(steps))
        evaluations = [row for row in rows if "val_loss" in row]
        assert [row["step"] for row in evaluations] == [0, 20, 40, 60]
        assert evaluations[0].keys() == {"step", "tokens", "val_loss", "val_bpb", "wall"}

    def test_the_configuration_is_resolved_and_says_where_it_came_from(self, run):
        saved = json.loads((run[0] / "config.json").read_text())
        assert saved["model"]["vocab_size"] == saved["facts"]["parameters"]["embedding"] // 32 - 16
        assert saved["model"]["d_ff"] == 128 and saved["name"] == "tiny-001" and saved["preset"] == "tiny"
        facts = saved["facts"]
        assert facts["kernels"] == "torch" and facts["dtype"] == "float32" and facts["command"] == "minilm train ..."
        assert facts["versions"]["torch"] and len(facts["data_sha256"]) == 64
        assert facts["tokens_per_step"] == 128 and facts["peak_flops"] is None

    def test_best_last_and_kept_steps_are_saved(self, run):
        names = {p.name for p in (run[0] / "checkpoints").iterdir()}
        assert names == {"best.pt", "last.pt", "last_000055.pt", "step_000000.pt", "step_000008.pt"}
        best = min((r for r in read_rows(run[0] / "metrics.jsonl") if "val_loss" in r), key=lambda r: r["val_loss"])
        assert checkpoint.load(run[0] / "checkpoints" / "best.pt")["step"] == best["step"] == run[1].state.best["step"]
        assert last_state(run[0])["step"] == 60

    def test_samples_show_it_learning(self, run):
        samples = sorted((run[0] / "samples").iterdir())
        assert [p.name for p in samples] == ["step_000000.json", "step_000030.json", "step_000060.json"]
        content = json.loads(samples[-1].read_text())
        assert content["step"] == 60 and [s["temperature"] for s in content["samples"]] == [0.8, 0.5, 1.0]
        assert {len(s["text"]) for s in content["samples"]} == {evaluate.SAMPLE_TOKENS}

    def test_events_tell_what_happened(self, run):
        events = [row["event"] for row in read_rows(run[0] / "events.jsonl")]
        assert events[0] == "started" and events[-1] == "finished" and "best" in events

    def test_it_says_beforehand_what_it_will_do(self, run):
        for word in ("device", "float32", "torch (asked for by name)", "without embeddings", "epochs", "MFLOP a token"):
            assert word in run[2]
        assert "MFU n/a" in run[2] and "tokens/s" in run[2] and "left" in run[2]

    def test_a_finished_run_can_be_given_more_steps(self, run, text_file):
        config = loop.read_config(run[0])
        _, said = run_training(config, run[0], resume=True)
        assert "All 60 steps are done already" in said


VARIANTS = {
    "plain": {},
    "muon": {"optimizer": "muon"},
    "dropout": {"model": {"dropout": 0.2}},
    "accumulation": {"grad_accumulation": 4},
    "reference kernels": {"kernels": "reference"},
    "llama-like": {
        "model": {"position": "rope", "norm_type": "rmsnorm", "activation": "swiglu", "n_kv_heads": 1, "dropout": 0.1}
    },
    "bfloat16": {"dtype": "bfloat16"},
    "sampling": {"sample_interval": 3, "model": {"dropout": 0.2}},
    "deterministic": {"deterministic": True, "model": {"dropout": 0.2}},
    "compiled": {"compile": "on", "model": {"n_layers": 1, "d_model": 16, "dropout": 0.2}},
    "between evaluations": {"eval_interval": 0, "log_interval": 7},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, tmp_path, text_file):
    config = config_for(text_file, **VARIANTS[name])
    if config.train.compile == "on" and hardware.compiler_missing():
        pytest.skip("torch.compile needs a C++ compiler")
    run_training(config, tmp_path / "whole")

    class Stop(loop.Loop):
        def update(self, batch):
            super().update(batch)
            if self.state.step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Loop", Stop)
        result, said = run_training(config, tmp_path / "parts")
    assert result.signal == signal.SIGTERM and result.state.step == 7 and "--resume" in said
    torch.manual_seed(99)  # another process would be somewhere else
    run_training(loop.read_config(tmp_path / "parts"), tmp_path / "parts", resume=True)
    whole, parts = last_state(tmp_path / "whole"), last_state(tmp_path / "parts")
    for state in (whole, parts):
        state["state"].pop("wall")
    assert whole.keys() == parts.keys()
    for key in whole:
        assert same(whole[key], parts[key]), key
    assert journal_without_times(tmp_path / "whole") == journal_without_times(tmp_path / "parts")


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, text_file):
    for parts in (1, 4):
        run_training(config_for(text_file, steps=3, grad_accumulation=parts), tmp_path / str(parts))
    a, b = (last_state(tmp_path / p)["model"] for p in "14")
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=2e-5)
    for one, four in zip(*(journal_without_times(tmp_path / p) for p in "14"), strict=True):
        assert one == pytest.approx(four, rel=1e-4)  # AdamW would forgive a gradient of another size; the norm does not


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_the_precision_of_float32_products_is_what_was_asked_for(precision, tmp_path, text_file):
    before = torch.get_float32_matmul_precision()
    try:
        run_training(config_for(text_file, steps=1, matmul_precision=precision), tmp_path / "run")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_best_is_never_replaced_by_worse_nor_by_nan(tmp_path, text_file, monkeypatch):
    losses = iter([4.0, 2.0, 3.0, math.nan])
    monkeypatch.setattr(loop, "evaluate", lambda *_: next(losses))
    result, _ = run_training(config_for(text_file), tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["step"] == 4
    assert result.state.best["val_loss"] == 2.0 and math.isnan(result.state.final["val_loss"])


def test_rows_after_the_resumed_step_and_a_torn_line_are_dropped(tmp_path, text_file):
    config = config_for(text_file)
    run_training(config, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    rows = path.read_text()
    state = last_state(tmp_path / "run")
    state["state"]["step"] = state["step"] = 10
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last.pt", {k: v for k, v in state.items() if k != "format"})
    path.write_text(rows + '{"step": 13, "lo')
    run_training(config, tmp_path / "run", resume=True)
    assert [r["step"] for r in read_rows(path) if "loss" in r] == list(range(1, 13))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()][-1] == 12


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(tmp_path, text_file):
    class Killed(loop.Loop):
        def update(self, batch):
            if self.state.step == 3:
                raise MemoryError
            super().update(batch)

    config = config_for(text_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Loop", Killed)
        with pytest.raises(MemoryError):
            run_training(config, tmp_path / "run")
    run_training(config, tmp_path / "run", resume=True)
    rows = journal_without_times(tmp_path / "run")
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in rows if "val_loss" in r] == [0, 4, 8, 12]


def test_a_padded_vocabulary_trains_and_samples(tmp_path, text_file):
    config = config_for(text_file, steps=2, sample_interval=1, model={"vocab_size": 4096})
    result, _ = run_training(config, tmp_path / "run")
    assert result.state.step == 2


class TestGuards:
    def poisoned(self, when):
        class Poisoned(loop.Loop):
            def update(self, batch):
                weight = self.model.blocks[0].mlp.up.weight
                self.before = weight.detach().clone()
                if self.state.step in when:
                    handle = weight.register_hook(lambda grad: grad * math.nan)
                    super().update(batch)
                    handle.remove()
                    assert torch.equal(weight, self.before)  # the step was skipped
                else:
                    super().update(batch)
                    assert not torch.equal(weight, self.before)

        return Poisoned

    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    def test_a_non_finite_gradient_skips_the_step_and_is_logged(self, tmp_path, text_file, monkeypatch, optimizer):
        monkeypatch.setattr(loop, "Loop", self.poisoned({3, 5}))
        result, said = run_training(config_for(text_file, optimizer=optimizer, max_bad_steps=2), tmp_path / "run")
        assert result.state.step == 12 and "the step was skipped" in said
        assert [e["step"] for e in read_rows(tmp_path / "run" / "events.jsonl") if e["event"] == "non_finite"] == [4, 6]
        assert all(t.isfinite().all() for t in last_state(tmp_path / "run")["model"].values())
        rows = read_rows(tmp_path / "run" / "metrics.jsonl")
        assert next(r for r in rows if r["step"] == 4)["grad_norm"] is None

    def test_too_many_in_a_row_stop_the_run_in_a_sentence(self, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(loop, "Loop", self.poisoned(range(4, 99)))
        with pytest.raises(UserError, match=r"4 steps in a row had a non-finite loss or gradient, up to step 8"):
            run_training(config_for(text_file, max_bad_steps=4), tmp_path / "run")

    def test_a_sudden_loss_is_an_event(self, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(guards, "SPIKE_AFTER", 8)

        class Spiking(loop.Loop):
            def judge(self, step, loss, norm, line):
                super().judge(step, loss + 5 * (step == 10), norm, line)

        monkeypatch.setattr(loop, "Loop", Spiking)
        run_training(config_for(text_file, lr=1e-5, min_lr=1e-5), tmp_path / "run")
        assert [e["step"] for e in read_rows(tmp_path / "run" / "events.jsonl") if e["event"] == "spike"] == [10]


class TestFolders:
    def test_a_run_is_not_overwritten(self, tmp_path, text_file):
        config = config_for(text_file, steps=1)
        run_training(config, tmp_path / "run")
        before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        with pytest.raises(UserError, match="holds a run already; continue it with --resume"):
            run_training(config, tmp_path / "run")
        assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}

    def test_a_run_in_use_names_its_holder(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text("{}")
        with RunFolder(tmp_path / "run", resume=True):
            failures = []

            def second():
                try:
                    RunFolder(tmp_path / "run", resume=True)
                except UserError as error:
                    failures.append(str(error))

            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert failures and f"is in use by process {os.getpid()}" in failures[0]
        with RunFolder(tmp_path / "run", resume=True):
            pass

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_folder_of_other_things_is_left_alone(self, tmp_path, text_file, resume):
        (tmp_path / "thesis.txt").write_text("x")
        with pytest.raises(UserError, match=r"is no run folder|holds no run to resume"):
            run_training(config_for(text_file), tmp_path, resume=resume)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_training_that_cannot_start_leaves_no_folder(self, tmp_path, text_file):
        with pytest.raises(UserError, match="There is no file"):
            run_training(config_for("/nowhere.txt"), tmp_path / "run")
        with pytest.raises(UserError, match="model.context_length is 100000"):
            run_training(config_for(text_file, model={"context_length": 100_000}), tmp_path / "run")
        with pytest.raises(UserError, match="model.vocab_size is 3 and the data has"):
            run_training(config_for(text_file, model={"vocab_size": 3}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_numbers_go_up(self, tmp_path):
        assert next_run_folder("quick", tmp_path).name == "quick-001"
        for name in ("quick-007", "quick-2", "tiny-100", "quick-old"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").touch()
        assert next_run_folder("quick", tmp_path).name == "quick-008"
        assert newest_run_folder("quick", tmp_path).name == "quick-007"
        with pytest.raises(UserError, match="no run of capstone"):
            newest_run_folder("capstone", tmp_path)


class TestRefusedResumes:
    def test_other_text_behind_the_same_name_is_refused(self, tmp_path):
        text = tmp_path / "a.txt"
        text.write_text("some text that repeats. " * 200)
        config = config_for(text, steps=2)
        run_training(config, tmp_path / "run")
        text.write_text("other text that repeats. " * 200)
        with pytest.raises(UserError, match="has changed since"):
            run_training(loop.read_config(tmp_path / "run"), tmp_path / "run", resume=True)

    def test_other_settings_are_refused_by_name_and_allowed_ones_are_logged(self, tmp_path, text_file):
        run_training(config_for(text_file, steps=2), tmp_path / "run")
        saved = loop.read_config(tmp_path / "run")
        import dataclasses

        def changed(**values):
            return dataclasses.replace(saved, train=dataclasses.replace(saved.train, **values))

        with pytest.raises(UserError, match=r"cannot change train.lr from 0.001 to 0.01"):
            run_training(changed(lr=0.01), tmp_path / "run", resume=True)
        with pytest.raises(UserError, match=r"cannot change model.n_layers from 2 to 3"):
            run_training(config_for(text_file, model={"n_layers": 3}, steps=2), tmp_path / "run", resume=True)
        with pytest.raises(UserError, match=r"train.steps is 1 and .*run has done 2; ask for more"):
            run_training(changed(steps=1), tmp_path / "run", resume=True)
        assert loop.read_config(tmp_path / "run").train.steps == 2
        run_training(changed(steps=4, kernels="reference"), tmp_path / "run", resume=True)
        changes = [e["message"] for e in read_rows(tmp_path / "run" / "events.jsonl") if e["event"] == "config_change"]
        assert changes == ["train.steps from 2 to 4", "train.kernels from torch to reference"]
        assert loop.read_config(tmp_path / "run").train.steps == 4


def test_a_training_on_a_cpu_has_the_c_library_keep_what_tensors_give_back(tmp_path, text_file, monkeypatch):
    called = []
    monkeypatch.setattr(hardware, "keep_freed_memory", lambda: called.append(True))
    run_training(config_for(text_file, steps=1), tmp_path / "run")
    assert called == [True]
