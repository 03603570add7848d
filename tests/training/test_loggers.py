"""Logs: what the journal has, no more, no less, over kills and resumes; and a logger that fails is only left out."""

import csv
import importlib.util
import io
import json
import sys
import types

import pytest
from rich.console import Console

from minilm.config import build
from minilm.errors import UserError
from minilm.training import loggers, loop
from minilm.training.journal import Logger, RunFolder, read_rows

TRAIN = {
    "steps": 8,
    "batch_size": 8,
    "warmup_steps": 2,
    "eval_interval": 4,
    "checkpoint_interval": 3,
    "log_interval": 2,
}
MODEL = {"n_layers": 1, "n_heads": 2, "d_model": 16, "context_length": 16}


@pytest.fixture
def config_for(text_file):
    def make(**changes):
        train = TRAIN | {"eval_tokens": 200, "sample_interval": 4, "kernels": "torch", "device": "cpu"} | changes
        return build("tiny", {"model": MODEL, "train": train, "data": {"source": str(text_file)}})

    return make


def train(config, out, **options):
    console = Console(file=io.StringIO(), width=300)
    result = loop.train(config, out, console=console, **options)
    return result, console.file.getvalue()


def table_of(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def as_the_journal_has_it(run):
    rows = {}
    for row in read_rows(run / "metrics.jsonl"):
        for key, value in row.items():
            rows.setdefault(row["step"], {}).setdefault(key, "" if value is None else json.dumps(value))
    return [{column: row.get(column, "") for column in loggers.COLUMNS} for row in rows.values()]


def killed_at(step, config, out, monkeypatch):
    """A training that ends at once as it evaluates `step`, as by a kill."""

    def die(self, line):
        if self.state.step == step:
            raise SystemError("killed")
        evaluate(self, line)

    evaluate = loop.Loop.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "evaluate", die)
        patch.setattr(loggers.Loggers, "close", lambda self: None)
        with pytest.raises(SystemError):
            train(config, out)


class TestTable:
    def test_it_has_one_row_a_step_with_the_numbers_of_the_journal(self, config_for, tmp_path):
        train(config_for(log="csv"), tmp_path / "run")
        rows = table_of(tmp_path / "run")
        assert [int(row["step"]) for row in rows] == list(range(9))
        assert rows == as_the_journal_has_it(tmp_path / "run")
        assert [row["step"] for row in rows if row["val_bpb"]] == ["0", "4", "8"] and rows[4]["loss"]
        assert float(rows[-1]["grad_norm"]) > 0 and float(rows[-1]["tokens_per_s"]) > 0

    @pytest.mark.parametrize("torn", [False, True])
    def test_a_killed_run_goes_on_in_it_without_gap_or_duplicate(self, torn, config_for, tmp_path, monkeypatch):
        config, run = config_for(log="csv"), tmp_path / "run"
        killed_at(8, config, run, monkeypatch)
        text = (run / "metrics.csv").read_bytes()
        assert text.endswith(b"\n") and len(table_of(run)) == 8  # the row of step 8 waits for its evaluation
        if torn:
            (run / "metrics.csv").write_bytes(text[:-9])
        train(config, run, resume=True)
        assert [int(row["step"]) for row in table_of(run)] == list(range(9))
        assert table_of(run) == as_the_journal_has_it(run)

    def test_asked_for_on_the_way_it_has_all_steps_and_can_be_left_out_again(self, config_for, tmp_path):
        run = tmp_path / "run"
        train(config_for(), run)
        assert not (run / "metrics.csv").exists()
        _, said = train(config_for(log="csv", steps=9), run, resume=True)
        assert "Changed: train.log from  to csv" in said and len(table_of(run)) == 10
        train(config_for(steps=10), run, resume=True)
        assert len(table_of(run)) == 10 and len(as_the_journal_has_it(run)) == 11

    def test_what_is_not_finite_is_an_empty_cell(self, tmp_path):
        with RunFolder(tmp_path / "run", resume=False) as run:
            run.log = loggers.Table(run.path)
            run.rewind(-1)
            run.metric({"step": 1, "tokens": 8, "loss": float("nan"), "lr": 0.1, "wall": 0.123456789})
        assert table_of(tmp_path / "run")[0] | {"wall": ""} == dict.fromkeys(loggers.COLUMNS, "") | {
            "step": "1",
            "tokens": "8",
            "lr": "0.1",
        }


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
class TestTensorBoard:
    def read(self, run):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
        return events.Reload()

    def scalars(self, run):
        events = self.read(run)
        return {key: [(e.step, e.value) for e in events.Scalars(tag)] for key, tag in loggers.TAGS.items()}

    def in_journal(self, run):
        rows = read_rows(run / "metrics.jsonl")
        return {key: [(row["step"], pytest.approx(row[key])) for row in rows if key in row] for key in loggers.TAGS}

    def test_it_has_scalars_texts_and_the_figure(self, config_for, tmp_path):
        run = tmp_path / "run"
        train(config_for(log="tensorboard"), run, figure=lambda path: PIXEL)
        events = self.read(run)
        assert self.scalars(run) == self.in_journal(run)
        assert len(events.Scalars("loss/training")) == 8 and len(events.Scalars("bits_per_byte/validation")) == 3
        texts = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("samples/temperature_0.8/text_summary")]
        written = json.loads((run / "samples" / "step_000008.json").read_text())["samples"][0]["text"]
        assert len(texts) == 3 and [line[4:] for line in texts[-1].splitlines()] == written.splitlines()
        (image,) = events.Images("report")
        assert (image.step, image.width, image.height) == (8, 2, 1)

    def test_a_killed_run_goes_on_in_it_without_gap_or_duplicate(self, config_for, tmp_path, monkeypatch):
        config, run = config_for(log="tensorboard"), tmp_path / "run"
        killed_at(8, config, run, monkeypatch)
        assert self.scalars(run)["loss"][-1][0] == 8  # what the checkpoint of step 6 does not know of
        train(config, run, resume=True)
        assert len(list((run / "tensorboard").iterdir())) == 2 and self.scalars(run) == self.in_journal(run)

    def test_asked_for_on_the_way_it_begins_at_the_beginning(self, config_for, tmp_path):
        run = tmp_path / "run"
        train(config_for(), run)
        train(config_for(log="tensorboard", steps=9), run, resume=True)
        assert self.scalars(run) == self.in_journal(run) and len(self.scalars(run)["loss"]) == 9


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: what it was told."""

    class Run:
        def __init__(self, settings):
            self.settings, self.logged, self.finished = settings, [], False

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            self.finished = True

    module = types.ModuleType("wandb")
    module.runs = []
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    module.init = lambda **settings: module.runs.append(Run(settings)) or module.runs[-1]
    module.Settings = dict
    module.Image = lambda pixels: pixels.shape

    class Table(list):
        def __init__(self, columns):
            super().__init__([columns])

        def add_data(self, *row):
            self.append(row)

    module.Table = Table
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


class TestWandb:
    def test_it_is_offline_and_told_all(self, config_for, tmp_path, wandb):
        train(config_for(log="wandb"), tmp_path / "run", figure=lambda path: PIXEL)
        (run,) = wandb.runs
        assert run.settings["mode"] == "offline" and run.settings["config"]["model"]["d_model"] == 16
        assert [step for step, values in run.logged if "loss/training" in values] == list(range(1, 9))
        assert [step for step, values in run.logged if "bits_per_byte/validation" in values] == [0, 4, 8]
        assert [(step, len(values["samples"])) for step, values in run.logged if "samples" in values][-1] == (8, 4)
        assert run.logged[-1] == (8, {"report": (1, 2, 3)}) and run.finished

    def test_the_environment_chooses_the_mode_and_a_run_that_goes_on_keeps_its_name(
        self, config_for, tmp_path, wandb, monkeypatch
    ):
        monkeypatch.setenv("WANDB_MODE", "online")
        config, run = config_for(log="wandb"), tmp_path / "run"
        killed_at(8, config, run, monkeypatch)
        train(config, run, resume=True)
        first, second = (r.settings for r in wandb.runs)
        assert first["id"] == second["id"] and (second["mode"], second["resume"]) == ("online", "allow")
        logged = [(step, tuple(values)) for r in wandb.runs for step, values in r.logged]
        assert len(logged) == len(set(logged)) and {step for step, _ in logged} == set(range(9))


MOMENTS = ("go_on", "rows", "samples", "figure", "close")


class TestFailure:
    @pytest.mark.parametrize("moment", MOMENTS)
    def test_a_logger_that_fails_is_left_out_and_the_training_goes_on(self, moment, config_for, tmp_path, monkeypatch):
        told = []

        class Broken(Logger):
            def __getattribute__(self, name):
                if name in MOMENTS:
                    told.append(name)
                    if name == moment:
                        raise ConnectionError("the server\nis gone")
                return super().__getattribute__(name)

        with monkeypatch.context() as patch:
            made = loggers.loggers_of
            patch.setattr(loggers, "loggers_of", lambda names, run: {"broken": Broken(), **made(names, run)})
            result, said = train(config_for(log="csv"), tmp_path / "run", figure=lambda path: PIXEL)
        warning = "the log broken failed (ConnectionError: the server is gone) and is left out from here on"
        assert result.state.step == 8 and said.count(warning) == 1
        events = read_rows(tmp_path / "run" / "events.jsonl")
        assert [e["message"] for e in events if e["event"] == "warning"] == [warning]
        assert [e["event"] for e in events].count("finished") == 1
        assert set(told[told.index(moment) + 1 :]) <= {"close"}  # told nothing more
        assert len(table_of(tmp_path / "run")) == 9  # the other one has all

    def test_a_figure_that_cannot_be_drawn_ends_no_training(self, config_for, tmp_path, wandb):
        def draw(path):
            raise ValueError("no fonts")

        result, said = train(config_for(log="wandb"), tmp_path / "run", figure=draw)
        assert result.state.step == 8 and "(ValueError: no fonts)" in said

    def test_one_that_is_not_installed_is_a_sentence_before_anything_is_made(self, config_for, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match='--log wandb needs the wandb package; pip install "minilm.wandb."'):
            train(config_for(log="csv,wandb"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_names_are_checked(self, config_for):
        with pytest.raises(UserError, match=r"train.log is 'csv,excel'; it must be tensorboard, wandb, csv, or"):
            config_for(log="csv,excel")
        assert config_for(log="csv, tensorboard,csv").train.loggers() == ("csv", "tensorboard")


def test_logs_leave_the_training_as_it_is(config_for, tmp_path):
    def journal(out, **changes):
        train(config_for(**changes), tmp_path / out)
        rows = read_rows(tmp_path / out / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k not in ("wall", "tokens_per_s")} for row in rows]

    assert journal("with", log="csv") == journal("without")


def test_of_several_processes_only_the_first_is_given_loggers(config_for, tmp_path, monkeypatch):
    from minilm.training.distributed import Bystander, Team

    class Second(Team):
        rank = 1

        def folder(self, open_folder, out):
            out.mkdir()
            return Bystander(out)

    monkeypatch.setattr(loop.distributed, "join", lambda train: Second())
    monkeypatch.setattr(loggers, "loggers_of", lambda names, run: pytest.fail("the second process made loggers"))
    monkeypatch.setattr(loop.checkpoint, "save", lambda *_: None)
    result, _ = train(config_for(log="csv"), tmp_path / "run", figure=lambda path: PIXEL)
    assert result.state.step == 8 and not list((tmp_path / "run").iterdir())


def _pixel():
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (2, 1)).save(buffer, "PNG")
    return buffer.getvalue()


PIXEL = _pixel()
