"""From Python: train, open, write, report, go on; errors are UserError; the command does the very same."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import minilm
from minilm import UserError, api, cli

SMALL = {"model.n_layers": 1, "model.d_model": 16, "model.context_length": 16}
SHORT = {"train.eval_tokens": 200, "train.eval_interval": 5, "train.sample_interval": 10, "train.log_interval": 5}


def train(text_file, out, **changes):
    given = {"steps": 10, "device": "cpu", "baselines": False, "report": False, "quiet": True} | changes
    settings = SMALL | SHORT | given.pop("settings", {})
    return minilm.train("tiny", text_file, out=out, settings=settings, **given)


@pytest.fixture(scope="module")
def run(text_file, tmp_path_factory):
    """A run of 10 steps. Not to be changed."""
    return train(text_file, tmp_path_factory.mktemp("api") / "run")


class TestRun:
    def test_it_is_what_the_settings_say(self, run, text_file):
        assert run.config.model.n_layers == 1 and run.config.train.steps == 10
        assert run.config.data.source == str(text_file)
        opened = minilm.open_run(str(run.path))
        assert opened.path == run.path and opened.history == run.history and repr(opened) == repr(run)

    def test_its_history_is_a_row_a_step(self, run):
        assert [row["step"] for row in run.history] == list(range(11))
        assert [row["step"] for row in run.history if row["val_loss"] is not None] == [0, 5, 10]
        steps, losses = run.column("loss")
        assert steps.tolist() == list(range(1, 11)) and losses.dtype == np.float64 and losses[-1] < losses[0]
        with pytest.raises(UserError, match="no column 'losses' in the history; there are step, tokens"):
            run.column("losses")

    def test_its_best_evaluation_is_the_lowest(self, run):
        assert run.best["val_loss"] == min(run.column("val_loss")[1])
        assert f"best: step {run.best['step']}, validation loss {run.best['val_loss']:.4f}" in repr(run)

    def test_its_samples_are_those_on_disk(self, run):
        assert [(s["step"], s["temperature"]) for s in run.samples()] == [(0, 0.8), (10, 0.8), (10, 0.5), (10, 1.0)]
        written = json.loads((run.path / "samples" / "step_000010.json").read_text())["samples"]
        assert [s["text"] for s in run.samples()[1:]] == [s["text"] for s in written]

    def test_its_report_shows_itself_in_a_notebook(self, run, tmp_path):
        page = run.report(tmp_path / "page")
        assert page.path == tmp_path / "page" / "report.html" and page.path.exists()
        shown = page._repr_html_()
        assert shown.startswith('<iframe srcdoc="') and "&lt;svg" in shown and shown.count('"') == 4

    def test_what_is_no_run_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="is no run folder"):
            minilm.open_run(tmp_path)


class TestGenerate:
    def test_it_is_the_text_that_the_command_writes(self, run):
        options = ("--prompt", "1 green", "--seed", "3", "--max-new-tokens", "40", "--top-k", "5")
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.cli(["generate", "--run", str(run.path), *options])
        assert run.generate("1 green", 40, seed=3, top_k=5) + "\n" == said.getvalue()

    def test_settings_reach_the_model(self, run):
        greedy = run.generate("1 green", 30, 0)
        assert greedy == run.generate("1 green", 30, 0) and len(greedy) == 37
        assert run.generate("1 green", 30, seed=1) != run.generate("1 green", 30, seed=2)
        assert run.generate("1 green", 30, 0, stop=greedy[10]) == greedy[: greedy.index(greedy[10], 7)]
        with pytest.raises(UserError, match="The temperature is"):
            run.generate("1", temperature=float("nan"))
        with pytest.raises(UserError, match="position 0"):
            run.generate("€")
        with pytest.raises(UserError, match="has no checkpoint '77'"):
            run.generate(checkpoint=77)

    def test_a_model_is_read_once(self, run):
        model, tokenizer = run.model()
        assert run.model()[0] is model and not model.training and tokenizer.vocab_size == model.config.vocab_size
        assert run.model("last")[0] is not model


class TestTrain:
    def test_a_run_goes_on(self, text_file, tmp_path):
        run = train(text_file, tmp_path / "run", steps=4)
        before = run.model("last")[0].head.weight
        assert run.resume(30, baselines=False, report=False, quiet=True, settings={"train.log": "csv"}) is run
        assert run.config.train.steps == 30 and [row["step"] for row in run.history] == list(range(31))
        assert (run.path / "metrics.csv").exists()
        assert not torch.equal(run.model("last")[0].head.weight, before)  # not those that were read before

    def test_it_does_what_the_command_does(self, run, text_file, tmp_path):
        words = ["--data", text_file, "--steps", 10, "--device", "cpu", "--no-baselines", "--no-report"]
        words += [w for name, value in (SMALL | SHORT).items() for w in ("--set", f"{name}={value}")]
        with contextlib.redirect_stdout(io.StringIO()):
            cli.cli(
                ["train", "--preset", "tiny", *map(str, words), "--out", str(tmp_path / "run")], standalone_mode=False
            )
        other = minilm.open_run(tmp_path / "run")
        assert other.config == run.config and other.column("loss")[1].tolist() == run.column("loss")[1].tolist()

    def test_by_default_it_compares_and_reports(self, text_file, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        run = train(text_file, None, steps=2, baselines=True, report=True, quiet=False, log=["csv"])
        assert str(run.path) == os.path.join("runs", "tiny-001") and (run.path / "metrics.csv").exists()
        assert (run.path / "report.html").exists() and (run.path / "baselines.json").exists()
        said = capsys.readouterr().out
        assert "step 2: validation loss" in said and "this model, best" in said and "\x1b" not in said

    def test_quiet_says_nothing(self, text_file, tmp_path, capsys):
        train(text_file, tmp_path / "run", steps=1)
        assert capsys.readouterr() == ("", "")

    def test_mistakes_are_user_errors(self, text_file, tmp_path, monkeypatch):
        out = tmp_path / "run"
        with pytest.raises(UserError, match="no preset 'quik' .did you mean quick"):
            minilm.train("quik")
        with pytest.raises(UserError, match=r"no key train.lrr .did you mean train.lr"):
            train(text_file, out, settings={"train.lrr": 1})
        with pytest.raises(UserError, match=r"settings has 'lr'; its names are of the form section.key"):
            train(text_file, out, settings={"lr": 1})
        with pytest.raises(UserError, match=r"train.steps is given twice"):
            train(text_file, out, settings={"train.steps": 1})
        with pytest.raises(UserError, match="--kernels triton cannot run here"):
            train(text_file, out, kernels="triton")
        with pytest.raises(UserError, match="train.log is 'excel'"):
            train(text_file, out, log="excel")
        assert not out.exists()

    def test_a_notebook_shows_a_mistake_as_its_sentence(self):
        assert UserError("Do this.")._render_traceback_() == ["UserError: Do this."]

    def test_outside_the_main_thread_it_trains_and_leaves_signals_alone(self, text_file, tmp_path):
        before, runs = signal.getsignal(signal.SIGINT), []
        thread = threading.Thread(target=lambda: runs.append(train(text_file, tmp_path / "run", steps=2)))
        thread.start()
        thread.join()
        assert runs[0].history[-1]["step"] == 2 and signal.getsignal(signal.SIGINT) is before

    def test_interrupted_it_saves_and_returns_the_run_as_it_stands(self, text_file, tmp_path, capsys):
        def interrupt():
            metrics = tmp_path / "run" / "metrics.jsonl"
            while not (metrics.exists() and metrics.read_text().count("grad_norm") > 9):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        run = train(text_file, tmp_path / "run", steps=1_000_000, quiet=False)
        said = capsys.readouterr().out
        assert "Stopped by SIGINT after step" in said and "From Python: run.resume()" in said
        reached = run.history[-1]["step"]
        assert run.model("last")[0] and 10 <= reached < 1_000_000
        assert run.resume(reached + 1, baselines=False, report=False, quiet=True).history[-1]["step"] == reached + 1


def test_importing_minilm_loads_nothing_heavy():
    code = "import sys, minilm; print([m for m in ('torch', 'numpy', 'rich', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_what_is_promised_is_there():
    for name in minilm.__all__:
        assert getattr(minilm, name).__doc__, name
    for name in ("train", "open_run", "Run", "Page"):
        assert getattr(api, name).__doc__
