"""minilm check: what is sound is called sound; what is wrong is named, with what can be done."""

import json
import shutil

import pytest
import torch

from minilm import check as checking
from minilm.corpus.dataset import prepared
from minilm.errors import UserError
from minilm.training import checkpoint, journal
from tests.faults import victim


@pytest.fixture
def run(copied):
    return copied


def wrong(path):
    """The lines about what is wrong."""
    return [text for sound, text in checking.check(path).lines if not sound]


def only(lines, *words):
    assert len(lines) == 1, lines
    for word in (*words, "What can be done: "):
        assert word in lines[0], lines[0]


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_a_sound_run_and_each_of_its_checkpoints_are_sound(run, capsys):
    assert checking.main(run) == 0
    said = capsys.readouterr().out
    for words in ("last.pt: step 12, to go on from", "best.pt: step ", "12 steps without a gap, 4 evaluations"):
        assert words in said
    assert "WRONG" not in said and said.endswith("Everything is sound.\n")
    for path in (run / "checkpoints").iterdir():
        assert wrong(path) == []


def test_a_damaged_checkpoint_and_the_one_to_go_on_from(run, capsys):
    last = run / "checkpoints" / "last.pt"
    flip(last, last.stat().st_size // 2)
    only(wrong(run), "last.pt is damaged", f"minilm train --out {run} --resume goes on from last_000009.pt")
    only(wrong(last), "last.pt is damaged")
    assert checking.main(run) == 1 and "1 thing is wrong." in capsys.readouterr().out


def test_no_checkpoint_to_go_on_from(run):
    for path in (run / "checkpoints").glob("last*.pt"):
        path.unlink()
    only(wrong(run), "has no sound checkpoint to go on from", "start a new run")


def test_weights_that_are_not_finite(run):
    path = run / "checkpoints" / "step_000005.pt"
    state = checkpoint.load(path)
    state["model"]["blocks.0.mlp.up.weight"][0, 0] = float("nan")
    checkpoint.save(path, {k: v for k, v in state.items() if k != "format"})
    only(wrong(run), "step_000005.pt holds numbers that are not finite, in blocks.0.mlp.up.weight")


@pytest.mark.parametrize(
    "state", [{}, {"model": [1]}, {"model": {"w": "x"}}, {"model": {"w": torch.ones(2)}}, {"config": []}, {"step": 1}]
)
def test_a_checkpoint_of_something_else(state, run, tmp_path):
    """Of the right format, and with nothing in it that a run needs."""
    checkpoint.save(tmp_path / "other.pt", state)
    only(wrong(tmp_path / "other.pt"), "other.pt ", "use another checkpoint of the run")
    for optimizers in ({}, {"optimizers": 3}):
        checkpoint.save(run / "checkpoints" / "last.pt", {**state, **optimizers})
        only(wrong(run), "last.pt ", f"minilm train --out {run} --resume goes on from last_000009.pt")
        assert checkpoint.newest(run)[0].name == "last_000009.pt"


@pytest.mark.parametrize("facts", [None, {}, [], "x", {"created": "today"}])
def test_a_configuration_without_its_facts(facts, run, text_file):
    saved = journal.read_json(run / journal.CONFIG)
    journal.write_json(run / journal.CONFIG, {**saved, "facts": facts})
    only(wrong(run), "config.json lacks the facts of a run", "start a new run")
    with pytest.raises(UserError, match="config.json lacks the facts of a run"):
        victim.run(victim.config_for(text_file), run)


def test_a_step_of_any_size_in_the_journal_takes_no_memory(run):
    with open(run / journal.METRICS, "a") as file:
        file.write(json.dumps({"step": 10**15, "loss": 1.0}) + "\n")
    only(wrong(run), f"lacks {10**15 - 13} of {10**15} steps, the first of them 13")


def test_journals_that_are_torn_or_have_gaps_or_doubles(run):
    path = run / journal.METRICS
    whole = path.read_text()
    path.write_text(whole + '{"step": 13, "lo')
    only(wrong(run), "metrics.jsonl has 1 lines that are torn", "--resume mends it")
    path.write_text(whole[:-1])
    only(wrong(run), "metrics.jsonl has 1 lines that are torn")
    lines = whole.splitlines(keepends=True)
    gone = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == 7)
    path.write_text("".join(lines[:gone] + lines[gone + 1 :]))
    only(wrong(run), "metrics.jsonl lacks 1 of 12 steps, the first of them 7")
    path.write_text(whole + lines[gone])
    only(wrong(run), "metrics.jsonl has step 7 twice")
    path.write_text("".join(line for line in lines if json.loads(line)["step"] <= 10))
    only(wrong(run), "lacks 2 of 12 steps, the first of them 11")


def test_a_best_that_is_not_the_best(run):
    path = run / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    checkpoint.save(path, {**state, "val_loss": 99.0})
    only(wrong(run), "the best checkpoint has a validation loss of 99.0000 and the journal a better one")


def test_what_is_missing_or_left_over(run):
    (run / "checkpoints" / ".last.pt.7.part").write_bytes(b"half")
    only(wrong(run), ".last.pt.7.part is half of a write", "the next --resume removes it")
    (run / "checkpoints" / ".last.pt.7.part").unlink()
    (run / "tokenizer.json").unlink()
    only(wrong(run), "tokenizer.json is missing", "copy tokenizer.json from the prepared data")


def test_data_are_compared_with_what_was_written(tmp_path, text_file):
    shutil.copytree(prepared(victim.config_for(text_file).data).folder, tmp_path / "data")
    assert wrong(tmp_path / "data") == []
    tokens = bytearray((tmp_path / "data" / "val.bin").read_bytes())
    tokens[0:2], tokens[2:4] = tokens[2:4], tokens[0:2]  # sizes and ids are as before
    assert tokens != (tmp_path / "data" / "val.bin").read_bytes()
    (tmp_path / "data" / "val.bin").write_bytes(bytes(tokens))
    only(wrong(tmp_path / "data"), "val.bin is not what was written: its SHA-256 differs", "prepare the data again")
    (tmp_path / "data" / "val.bin").write_bytes(b"odd")
    only(wrong(tmp_path / "data"), "val.bin has 3 bytes")


@pytest.mark.parametrize("name", ["nothing", "notes.txt", "."])
def test_what_is_nothing_of_ours_is_refused(name, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is no run folder, no prepared data and no checkpoint"):
        checking.check(tmp_path / name)
