"""train.compile: what auto comes to, that a resumed run keeps to it, and what happens where the compiler fails."""

import dataclasses

import pytest
import torch

from minilm.config import TrainConfig, build
from minilm.errors import UserError
from minilm.training import checkpoint, compiling, journal
from minilm.training.compiling import check, decide
from tests.training.test_resume import assert_same_run, reduced, run, stop_after

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HOUR = 3600 * compiling.CPU_FLOPS_PER_THREAD  # FLOPs of one thread


@pytest.fixture
def compiler(monkeypatch):
    """A C++ compiler, and one thread, wherever this runs."""
    monkeypatch.setattr("minilm.hardware.compiler_missing", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize(
    ("flops", "device", "steps", "expected", "why"),
    [
        (HOUR, CPU, 1, "on", "about 60 min of training repay it"),
        (HOUR / 100, CPU, 100, "on", "about 60 min of training repay it"),
        (HOUR / 100, CPU, 1, "off", "about 36 s of training do not repay it"),
        (1.0, CUDA, 10_000, "on", "10,000 steps repay compiling"),
        (1.0, CUDA, 500, "off", "500 steps do not repay compiling"),
        (HOUR, torch.device("mps"), 10_000, "off", "not on mps"),
    ],
)
def test_auto_compiles_where_the_training_is_long_enough_to_repay_it(compiler, flops, device, steps, expected, why):
    assert decide(TrainConfig(steps=steps), flops / 10, 10, device) == (expected, why)


def test_more_threads_are_expected_to_be_done_sooner(compiler, monkeypatch):
    assert decide(TrainConfig(steps=1), HOUR / 4, 1, CPU)[0] == "on"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert decide(TrainConfig(steps=1), HOUR / 4, 1, CPU)[0] == "off"


def test_no_preset_for_a_cpu_compiles_on_two_threads(compiler, monkeypatch):
    """They last a minute or two, and are shown as they start at once."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for preset, flops in (("quick", 5.5e6), ("tiny", 1e6), ("shakespeare-char-cpu", 5e6)):
        config = build(preset)
        tokens = config.train.batch_size * config.model.context_length
        assert decide(config.train, flops, tokens, CPU)[0] == "off"


@pytest.mark.parametrize("changes", [{"exact_reduction": True}, {"shard": True}])
def test_where_bits_must_not_depend_on_threads_or_weights_are_cut_it_is_off(compiler, changes):
    assert decide(TrainConfig(**changes), HOUR, 1, CPU)[0] == "off"


def test_what_is_asked_for_is_done_and_what_was_begun_is_kept(compiler):
    for how in ("off", "on", "graphs"):
        assert decide(TrainConfig(compile=how), HOUR, 1, CUDA, "off") == (how, "asked for")
    for how in ("off", "on"):
        assert decide(TrainConfig(), HOUR, 1, CPU, how) == (how, "as the run was begun")


def test_what_was_begun_and_cannot_be_here_is_decided_anew(monkeypatch):
    monkeypatch.setattr("minilm.hardware.compiler_missing", lambda: True)
    assert decide(TrainConfig(), HOUR, 1, CPU, "on") == ("off", "there is no C++ compiler")
    monkeypatch.setattr("minilm.hardware.compiler_missing", lambda: False)
    assert decide(TrainConfig(), 1.0, 1, CPU, "graphs")[0] == "off"


def test_without_a_compiler_auto_is_off_and_on_is_refused(monkeypatch):
    monkeypatch.setattr("minilm.hardware.compiler_missing", lambda: True)
    assert decide(TrainConfig(steps=10**6), HOUR, 1, CUDA) == ("off", "there is no C++ compiler")
    for how in ("on", "graphs"):
        with pytest.raises(UserError, match=rf"train.compile is '{how}', which needs a C\+\+ compiler"):
            check(TrainConfig(compile=how), CUDA)
    check(TrainConfig(), CUDA)


@pytest.mark.parametrize(
    ("device", "changes", "processes"),
    [
        (CPU, {}, 1),
        (CUDA, {"grad_accumulation": 2}, 1),
        (CUDA, {"exact_reduction": True}, 1),
        (CUDA, {"shard": True}, 2),
        (CUDA, {}, 2),
    ],
)
def test_graphs_are_for_one_gpu_one_process_and_one_micro_batch(compiler, device, changes, processes):
    check(TrainConfig(compile="graphs"), CUDA)
    with pytest.raises(UserError, match="for one GPU, one process and one micro-batch an update; take on"):
        check(TrainConfig(compile="graphs", **changes), device, processes)


def test_a_configuration_saved_before_there_was_auto_is_read():
    saved = dataclasses.asdict(TrainConfig())
    assert [TrainConfig(**saved | {"compile": old}).compile for old in (False, True)] == ["off", "on"]


class TestRun:
    @pytest.fixture
    def calls(self, compiler, monkeypatch):
        """torch.compile, so that what it makes is only counted."""
        calls = []

        def compile(module, options=None):
            def call(*inputs):
                calls.append(options)
                return module(*inputs)

            return call

        monkeypatch.setattr(torch, "compile", compile)
        monkeypatch.setattr(compiling, "CPU_SECONDS", 0)
        return calls

    def test_a_resumed_run_keeps_to_what_auto_came_to(self, calls, tmp_path, text_file, monkeypatch):
        config = reduced("tiny", text_file)
        run(config, tmp_path / "whole")
        assert len(calls) == config.train.steps  # and no evaluation
        with pytest.MonkeyPatch.context() as patch:
            stop_after(3, patch)
            run(config, tmp_path / "parts")
        monkeypatch.setattr(compiling, "CPU_SECONDS", 1e9)
        run(config, tmp_path / "parts", resume=True)
        assert len(calls) == 2 * config.train.steps
        facts = journal.read_facts(tmp_path / "parts")
        assert (facts["compile"], facts["compile_reason"]) == ("on", "as the run was begun")
        assert_same_run(tmp_path / "whole", tmp_path / "parts")

    def test_how_it_is_compiled_may_change_on_resume_and_is_journalled(self, calls, tmp_path, text_file):
        config = reduced("tiny", text_file, compile="on")
        with pytest.MonkeyPatch.context() as patch:
            stop_after(3, patch)
            run(config, tmp_path / "run")
        run(reduced("tiny", text_file, compile="off"), tmp_path / "run", resume=True)
        assert len(calls) == 3
        events = journal.read_rows(tmp_path / "run" / "events.jsonl")
        changed = [event["message"] for event in events if event["event"] == "config_change"]
        assert changed == ["train.compile from on to off"]

    @pytest.fixture
    def broken(self, compiler, monkeypatch):
        def compile(module, options=None):
            def call(*inputs):
                raise torch._dynamo.exc.InternalTorchDynamoError("the linker is not there\nand more")

            return call

        monkeypatch.setattr(torch, "compile", compile)
        monkeypatch.setattr(compiling, "CPU_SECONDS", 0)

    def test_where_it_fails_auto_warns_once_and_goes_on(self, broken, tmp_path, text_file):
        run(reduced("tiny", text_file), tmp_path / "run")
        run(reduced("tiny", text_file, compile="off"), tmp_path / "eager")
        one, other = (checkpoint.load(tmp_path / name / "checkpoints/last.pt")["model"] for name in ("eager", "run"))
        assert all(torch.equal(one[key], other[key]) for key in one)
        events = journal.read_rows(tmp_path / "run" / "events.jsonl")
        said = [event["message"] for event in events if event["event"] == "warning"]
        assert said == ["torch.compile failed (the linker is not there), so this goes on without it"]
        facts = journal.read_facts(tmp_path / "run")
        assert (facts["compile"], facts["compile_reason"]) == ("off", "the compiler failed")

    def test_where_it_fails_and_was_asked_for_it_is_a_sentence(self, broken, tmp_path, text_file):
        with pytest.raises(UserError, match=r"torch.compile failed .the linker is not there.; take train.compile=off"):
            run(reduced("tiny", text_file, compile="on"), tmp_path / "run")
