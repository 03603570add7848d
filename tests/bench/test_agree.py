"""Whether all ways to run a model agree: on a GPU in the capstone's shape, elsewhere a miniature, so that what asks the
questions is known to work; and that it finds what differs."""

import functools
import json

import pytest
import torch

from bench import agree, contest, steps
from minilm.training import checkpoint

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def plain_compiler(monkeypatch):
    """torch.compile that traces, and generates no code: that takes a compiler, and half a minute."""
    traced = functools.partial(torch.compile, backend="eager")

    def compile(function, fullgraph=False, dynamic=None, mode=None, options=None):
        return traced(function, fullgraph=fullgraph, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("minilm.hardware.compiler_missing", lambda: False)


@pytest.fixture
def miniature(tmp_path):
    return agree.setting_of("tiny", 1, 4, "torch", CPU, ("off", "on"), tmp_path)


def test_a_miniature_agrees(miniature, plain_compiler):
    rows = list(agree.checks(miniature))
    assert [row.check for row in rows] == [
        "resumed, eager", "resumed, compiled", "losses, compiled", "gradients, eager", "decoding, eager",
        "gradients, compiled whole", "decoding, compiled whole", "text, decoding compiled",
    ]  # fmt: skip
    assert {row.check: (row.status, row.reason) for row in rows if row.status != contest.OK} == {}
    assert all(len(line) == len(agree.table_of(rows)[1]) for line in agree.table_of(rows)[2])
    saved = [json.loads((miniature.folder / way / agree.WHOLE / "config.json").read_text()) for way in ("off", "on")]
    assert [run["train"]["deterministic"] for run in saved] == [False, True]


def test_losses_are_told_also_where_the_resumed_training_failed(miniature):
    row = agree.answer("losses", lambda row: agree.apart(row, miniature, "off", "off"))
    assert (row.status, row.value) == (contest.OK, 0.0)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("way", list(steps.MODES))
def test_a_training_is_resumed_bit_for_bit_on_a_gpu(way, tmp_path):
    setting = agree.setting_of("capstone", 2, 40, "triton", torch.device("cuda"), (way,), tmp_path)
    row = agree.answer("resumed", lambda row: agree.resumed(row, setting, way))
    assert (row.status, row.value) == (contest.OK, 0), row


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_and_decoding_hold_the_error_rule_on_a_gpu(compiled, tmp_path):
    judged = agree.Judged(agree.setting_of("capstone", 2, 40, "triton", torch.device("cuda"), (), tmp_path))
    rows = [agree.answer("gradients", lambda row: judged.gradients(row, compiled))]
    rows += [agree.answer("decoding", lambda row: judged.decoding(row, compiled))]
    rows += [agree.answer("text", judged.text)] if compiled else []
    assert [row.status for row in rows] == [contest.OK] * len(rows), rows


class TestWhatDiffers:
    @pytest.fixture
    def twice(self, miniature):
        for name in ("one", "other"):
            agree._train(miniature, "off", miniature.folder / name)
        return miniature.folder / "one", miniature.folder / "other"

    def test_the_same_training_twice_differs_in_nothing_and_every_part_of_a_checkpoint_is_looked_at(self, twice):
        one, other = twice
        assert agree.differences(one, other) == []
        path = other / checkpoint.FOLDER / checkpoint.LAST
        for part, change in {
            "model.final_norm.bias": lambda saved: saved["model"]["final_norm.bias"].add_(1e-7),
            "optimizers[0].state.0.exp_avg": lambda saved: saved["optimizers"][0]["state"][0]["exp_avg"].add_(1e-7),
            "generators.torch": lambda saved: saved["generators"]["torch"].add_(1),
            "state.loss_mean": lambda saved: saved["state"].update(loss_mean=0.5),
        }.items():
            before = path.read_bytes()
            saved = checkpoint.load(path)
            change(saved)
            checkpoint.save(path, {key: value for key, value in saved.items() if key != "format"})
            assert agree.differences(one, other) == [part]
            path.write_bytes(before)
        rows = (other / "metrics.jsonl").read_text().splitlines()
        first = json.loads(rows[1])
        (other / "metrics.jsonl").write_text("\n".join([rows[0], json.dumps(first | {"loss": 1.0}), *rows[2:]]) + "\n")
        assert agree.differences(one, other) == ["journal[1].loss"]

    def test_losses_that_lie_too_far_apart_are_wrong_and_missing_ones_are_no_answer(self, twice, miniature):
        one, other = (miniature.folder / way / agree.WHOLE for way in ("off", "on"))
        for source, target in zip(twice, (one, other), strict=True):
            target.parent.mkdir()
            source.rename(target)
        path = other / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row |= {"loss": row["loss"] + 0.02 * (row["step"] == 3)} if "loss" in row else {}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = agree.answer("losses", lambda row: agree.apart(row, miniature, "off", "on"))
        assert (found.status, found.where) == (contest.WRONG, "at step 3") and 0.019 < found.value < 0.021
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] != 3))
        found = agree.answer("losses", lambda row: agree.apart(row, miniature, "off", "on"))
        assert found.status == contest.FAILED and "journalled" in found.reason


def test_a_gradient_that_is_wrong_in_one_small_parameter_is_found(miniature):
    judged = agree.Judged(miniature)
    bias = judged.model.blocks[0].norm_1.bias
    bias.register_hook(lambda gradient: gradient * 1.001)
    row = agree.answer("gradients", lambda row: judged.gradients(row, False))
    assert (row.status, row.where) == (contest.WRONG, "blocks.0.norm_1.bias")
    judged.model.final_norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    row = agree.answer("gradients", lambda row: judged.gradients(row, False))
    assert row.status == contest.WRONG and row.value != row.value


def test_decoding_that_is_wrong_at_a_token_and_texts_that_differ_are_found(miniature, monkeypatch):
    judged = agree.Judged(miniature)

    def wrong(model):
        return lambda model, token, cache: steps_of(model, token, cache) * (-1 if int(cache.lengths[0]) == 20 else 1)

    steps_of = agree.decoding.step
    monkeypatch.setattr(agree.decoding, "compiled_step", wrong)
    row = agree.answer("decoding", lambda row: judged.decoding(row, True))
    assert (row.status, row.where) == (contest.WRONG, "token 19")
    row = agree.answer("text", judged.text)
    assert row.status == contest.WRONG and row.value >= 1 and row.where == "from token 20"


def test_what_fails_is_a_row_and_the_command_says_so(tmp_path, plain_compiler, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("not today")

    monkeypatch.setattr(agree, "resumed", fails)
    options = ["--device", "cpu", "--steps", "4", "--layers", "1", "--ways", "off", "--out", str(tmp_path)]
    assert agree.main(options) == 1
    rows = [json.loads(line) for line in (tmp_path / "agree.jsonl").read_text().splitlines()]
    assert (rows[0]["status"], rows[0]["reason"]) == ("failed", "ValueError: not today")
    assert {row["status"] for row in rows[1:]} == {"ok"} and len(rows) == 6
    assert "Do all ways to run a model agree?" in capsys.readouterr().out
    assert not list(tmp_path.glob("runs-*"))
    assert agree.main(["--device", "cpu", "--kernels", "triton", "--out", str(tmp_path)]) == 2
    with pytest.raises(SystemExit):
        agree.main(["--device", "cpu", "--ways", "fast", "--out", str(tmp_path)])


def test_a_lost_device_ends_it(miniature):
    def lost(row):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(Exception, match="illegal memory access"):
        agree.answer("any", lost)
    assert steps.MODES.keys() == steps.SETTINGS.keys()
