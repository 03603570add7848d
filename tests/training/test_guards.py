"""What a training looks out for: spikes, numbers that are not finite, memory, signals."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minilm.config import build
from minilm.errors import UserError
from minilm.training import checkpoint, guards, journal, loop
from minilm.training.loop import Loop
from minilm.training.signals import caught_signals
from tests.training.test_resume import assert_same_run, reduced, run, stop_after
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


def events(out, kind):
    return [(e["step"], e["message"]) for e in journal.read_rows(out / journal.EVENTS) if e["event"] == kind]


class TestSpikes:
    @pytest.fixture(autouse=True)
    def early(self, monkeypatch):
        monkeypatch.setattr(guards, "SPIKE_AFTER", 3)

    def spiking(self, batches, kill_at=None):
        """A loop in which batches of these numbers give a loss far above the others, and that dies when asked to."""

        fetched: dict[int, int] = {}  # the number of the batch that each step took

        class Spiking(Loop):
            def fetch(self, step):
                drawn, batch = [], self.sampler.batch
                self.sampler.batch = lambda number: drawn.append(number) or batch(number)
                result = super().fetch(step)
                self.sampler.batch = batch
                (fetched[step],) = drawn
                return result

            def judge(self, step, loss, norm, line):
                super().judge(step, loss + 9 * (fetched[step - 1] in batches), norm, line)

            def save_last(self):
                if kill_at == "going back" and self.state.rewinds:
                    raise MemoryError
                super().save_last()

            def update(self, batch):
                if isinstance(kill_at, int) and self.state.step == kill_at and not self.state.rewinds:
                    raise MemoryError
                super().update(batch)

        Spiking.fetched = fetched
        return Spiking

    def config(self, text_file, **changes):
        model = {"dropout": 0.2}
        changes = {"steps": 16, "lr": 1e-5, "min_lr": 1e-5, "checkpoint_interval": 4, "eval_interval": 4} | changes
        return reduced("tiny", text_file, model, log_interval=3, **changes)

    def test_continue_logs_it_and_goes_on(self, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(loop, "Loop", self.spiking({9}))
        assert run(self.config(text_file), tmp_path / "run").state.step == 16
        assert [step for step, _ in events(tmp_path / "run", "spike")] == [10]
        assert events(tmp_path / "run", "rewind") == []

    def test_rewind_goes_back_to_the_last_checkpoint_and_past_the_batches_since(self, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(loop, "Loop", self.spiking({9}))
        state = run(self.config(text_file, on_spike="rewind"), tmp_path / "run").state
        ((step, message),) = events(tmp_path / "run", "rewind")
        assert step == 8 and "at step 10: back to step 8, past 2 batches" in message
        assert (state.step, state.skipped, state.rewinds) == (16, 2, 1)
        rows = [r for r in journal.read_rows(tmp_path / "run" / journal.METRICS) if "loss" in r]
        assert [r["step"] for r in rows] == list(range(1, 17))
        assert [r["tokens"] for r in rows] == [r["step"] * rows[0]["tokens"] for r in rows]
        assert all(a["wall"] <= b["wall"] for a, b in itertools.pairwise(rows))
        evaluations = [r["step"] for r in journal.read_rows(tmp_path / "run" / journal.METRICS) if "val_loss" in r]
        assert evaluations == [0, 4, 8, 12, 16] and max(r["loss"] for r in rows) < 9

    def test_the_batches_after_it_are_those_of_a_run_that_never_had_the_others(self, tmp_path, text_file, monkeypatch):
        Spiking = self.spiking({9})
        monkeypatch.setattr(loop, "Loop", Spiking)
        run(self.config(text_file, on_spike="rewind"), tmp_path / "run")
        assert [Spiking.fetched[step] for step in range(16)] == [*range(8), *range(10, 18)]

    def test_a_second_spike_before_the_next_checkpoint_adds_to_what_is_passed(self, tmp_path, text_file, monkeypatch):
        Spiking = self.spiking({9, 12})
        monkeypatch.setattr(loop, "Loop", Spiking)
        state = run(self.config(text_file, on_spike="rewind"), tmp_path / "run").state
        assert (state.skipped, state.rewinds) == (5, 2)
        assert [Spiking.fetched[step] for step in range(16)] == [*range(8), *range(13, 21)]

    @pytest.mark.parametrize("kill_at", [9, 10, "going back", None])
    def test_killed_or_stopped_around_it_the_end_is_the_same(self, kill_at, tmp_path, text_file):
        config = self.config(text_file, on_spike="rewind")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "Loop", self.spiking({9}))
            run(config, tmp_path / "whole")
            if kill_at is None:
                patch.setattr(loop, "Loop", self.spiking({9}))
                stop_after(13, patch)  # after going back
                run(config, tmp_path / "parts")
            else:
                patch.setattr(loop, "Loop", self.spiking({9}, kill_at))
                with pytest.raises(MemoryError):
                    run(config, tmp_path / "parts")
            patch.setattr(loop, "Loop", self.spiking({9}))
            run(config, tmp_path / "parts", resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "parts")
        assert events(tmp_path / "whole", "rewind") == events(tmp_path / "parts", "rewind")

    def test_it_goes_back_a_few_times_and_then_on(self, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(loop, "Loop", self.spiking(range(5, 99, 2)))
        monkeypatch.setattr(guards, "SPIKE_SIGMAS", 1.0)
        state = run(self.config(text_file, on_spike="rewind", checkpoint_interval=0), tmp_path / "run").state
        assert state.step == 16 and state.rewinds == guards.MAX_REWINDS
        assert len(events(tmp_path / "run", "rewind")) == guards.MAX_REWINDS
        assert {step for step, _ in events(tmp_path / "run", "rewind")} == {0}

    def test_it_needs_an_earlier_checkpoint(self):
        with pytest.raises(
            UserError, match=r"train.keep_last is 1; it must be at least 2 where train.on_spike is rewind"
        ):
            build("tiny", {"train": {"on_spike": "rewind", "keep_last": 1}})


def test_the_end_by_non_finite_steps_names_the_last_good_checkpoint(tmp_path, text_file, monkeypatch):
    class Diverged(loop.Loop):
        def judge(self, step, loss, norm, line):
            super().judge(step, loss if step <= 3 else float("nan"), norm, line)

    monkeypatch.setattr(loop, "Loop", Diverged)
    out = tmp_path / "run"
    with pytest.raises(guards.NonFiniteError, match=rf"last good checkpoint is {out}/checkpoints/last.pt, of step 4"):
        run(reduced("tiny", text_file, max_bad_steps=2), out)
    assert checkpoint.load(out / "checkpoints" / "last.pt")["step"] == 4


def test_so_many_non_finite_steps_in_a_row_end_it_wherever_losses_are_read(tmp_path, text_file, monkeypatch):
    """Also where steps after them, of the same reading, were good."""

    class Diverged(loop.Loop):
        def judge(self, step, loss, norm, line):
            super().judge(step, float("nan") if step in (2, 4, 5, 6) else loss, norm, line)

    monkeypatch.setattr(loop, "Loop", Diverged)
    changes = {"steps": 9, "eval_interval": 0, "checkpoint_interval": 0, "log_interval": 9}
    with pytest.raises(guards.NonFiniteError, match=r"^3 steps in a row had .* up to step 6, and"):
        run(reduced("tiny", text_file, max_bad_steps=3, **changes), tmp_path / "run")
    assert run(reduced("tiny", text_file, max_bad_steps=4, **changes), tmp_path / "4").state.step == 9


class TestMemory:
    def failing(self, error):
        class Failing(loop.Loop):
            def update(self, batch):
                if self.state.step == 2:
                    raise error
                super().update(batch)

        return Failing

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. Error"
            ),
        ],
        ids=["GPU", "CPU"],
    )
    def test_it_names_the_option_and_by_how_much(self, error, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(loop, "Loop", self.failing(error))
        size = r"2.00 GiB" if "GiB" in str(error) else "99 bytes"
        with pytest.raises(
            UserError,
            match=rf"not enough memory \(it asked for {size}\) in update 3; an update goes in 1 part of 12 sequences: "
            r"--set train.grad_accumulation=2 makes them of 6, and the batch stays the same",
        ):
            run(reduced("tiny", text_file, batch_size=12), tmp_path / "run")

    def test_the_next_divisor_and_in_the_end_the_context(self):
        def remedy(batch, parts, again=False):
            changes = {"batch_size": batch, "grad_accumulation": parts, "checkpoint_activations": again}
            return guards._remedy(build("tiny", {"train": changes}), building=False)

        assert "grad_accumulation=9 makes them of 1" in remedy(9, 3)
        assert "grad_accumulation=15 makes them of 3" in remedy(45, 5)
        assert "--checkpoint-activations" in remedy(4, 4)
        assert "--set model.context_length=16" in remedy(4, 4, again=True)

    def test_a_resume_may_take_more_and_smaller_parts(self, tmp_path, text_file):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "Loop", self.failing(torch.OutOfMemoryError("out of memory")))
            with pytest.raises(UserError):
                run(reduced("tiny", text_file), tmp_path / "run")
        assert run(reduced("tiny", text_file, grad_accumulation=2), tmp_path / "run", resume=True).state.step == 6
        assert events(tmp_path / "run", "config_change") == [(2, "train.grad_accumulation from 1 to 2")]

    def test_a_model_that_cannot_be_built_is_a_sentence(self, tmp_path, text_file):
        config = reduced("tiny", text_file, {"d_model": 2**20})
        with pytest.raises(
            UserError, match=r"not enough memory .*building the model; halve --set model.d_model=524288"
        ):
            run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_other_errors_are_left_alone(self):
        with pytest.raises(RuntimeError, match="shape"), guards.memory_named(build("tiny")):
            raise RuntimeError("shape mismatch")


class TestSignals:
    def signalled(self, numbers, when=3, during=None):
        """A loop to which signals come in an update, or while it saves a checkpoint of step `during`."""

        class Signalled(loop.Loop):
            def update(self, batch):
                super().update(batch)
                if during is None and self.state.step == when:
                    for number in numbers:
                        os.kill(os.getpid(), number)

        return Signalled

    @pytest.mark.parametrize(
        "numbers", [["SIGTERM"], ["SIGTERM"] * 3, ["SIGINT"], ["SIGINT"] * 2, ["SIGTERM", "SIGINT", "SIGINT"]]
    )
    def test_once_or_twice_the_step_is_finished_and_saved(self, numbers, tmp_path, text_file, monkeypatch):
        numbers = [getattr(signal, name) for name in numbers]
        monkeypatch.setattr(loop, "Loop", self.signalled(numbers))
        result = run(reduced("tiny", text_file), tmp_path / "run")
        assert (result.state.step, result.signal) == (3, numbers[0])
        assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 3
        rows = journal.read_rows(tmp_path / "run" / journal.METRICS)
        assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3]

    @pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
    def test_during_a_save_the_save_is_finished(self, number, tmp_path, text_file, monkeypatch):
        number, save = getattr(signal, number), torch.save
        whole = reduced("tiny", text_file)
        run(whole, tmp_path / "whole")
        saves = itertools.count()

        def signalled(state, file):
            if next(saves) == 3:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
            save(state, file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "save", signalled)
            result = run(whole, tmp_path / "run")
        assert result.signal == (None if number == signal.SIGUSR1 else number)
        if result.signal:
            run(loop.read_config(tmp_path / "run"), tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "run")

    @pytest.mark.parametrize("evaluation", [0, 1, 3])
    @pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
    def test_during_an_evaluation_it_is_left_for_the_resumed_run(
        self, number, evaluation, tmp_path, text_file, monkeypatch
    ):
        """Which may take longer than a scheduler waits. Of steps 0, 2, 4 and the last."""
        number, evaluate = getattr(signal, number), loop.evaluate
        config = reduced("tiny", text_file, save_at="0,2,6", eval_tokens=0, sample_interval=2, on_spike="rewind")
        run(config, tmp_path / "whole")
        count, asked = itertools.count(), []

        def signalled(*arguments):
            if next(count) == evaluation:
                os.kill(os.getpid(), number)
                cut = arguments[-1]
                arguments = (*arguments[:-1], lambda: asked.append(1) or cut())
            return evaluate(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "evaluate", signalled)
            result = run(config, tmp_path / "run")
        assert (result.signal, result.state.step) == (number, 2 * evaluation) and len(asked) == 1
        assert run(config, tmp_path / "run", resume=True).signal is None
        assert_same_run(tmp_path / "whole", tmp_path / "run")
        samples = [sorted(p.name for p in (tmp_path / name / "samples").iterdir()) for name in ("whole", "run")]
        assert samples[0] == samples[1]

    def test_a_third_ctrl_c_interrupts_at_once_and_loses_nothing_that_was_saved(self, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(loop, "Loop", self.signalled([signal.SIGINT] * 3))
        with pytest.raises(KeyboardInterrupt):
            run(reduced("tiny", text_file), tmp_path / "run")
        assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 2

    def test_before_the_first_step_ctrl_c_interrupts_and_leaves_nothing(self, tmp_path, text_file, monkeypatch):
        monkeypatch.setattr(loop, "prepare", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(reduced("tiny", text_file), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_usr1_saves_and_goes_on_and_the_end_is_the_same(self, tmp_path, text_file, monkeypatch):
        config = reduced("tiny", text_file, checkpoint_interval=0)
        run(config, tmp_path / "whole")
        seen = []

        class Watched(self.signalled([signal.SIGUSR1, signal.SIGUSR1])):
            def update(self, batch):
                seen.append(checkpoint.load(self.run.path / "checkpoints" / "last.pt")["step"])
                super().update(batch)

        monkeypatch.setattr(loop, "Loop", Watched)
        assert run(config, tmp_path / "run").signal is None
        assert seen == [0, 0, 0, 3, 3, 3]
        assert events(tmp_path / "run", "saved") == [(3, "saved at step 3, as asked for by SIGUSR1")]
        assert_same_run(tmp_path / "whole", tmp_path / "run")

    def test_handlers_are_put_back(self):
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        with caught_signals():
            assert signal.getsignal(signal.SIGTERM) is not before[1]
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_the_quick_preset_ends_with_the_step_in_hand(self, number, code, tmp_path):
        command = [sys.executable, "-m", "minilm", "train", "--preset", "quick", "--device", "cpu", "--out", "run"]
        command += ["--set", "train.log_interval=1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("grad_norm") < 20:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        seen = max(r["step"] for r in journal.read_rows(metrics))
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == code
        step = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
        assert max(r["step"] for r in journal.read_rows(metrics)) == step
        assert 20 <= step <= seen + 1
