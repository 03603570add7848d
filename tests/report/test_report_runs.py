"""A run folder is read as training wrote it, finished or not."""

import json
import math

import pytest

from minilm.errors import UserError
from minilm.report.runs import read_run


def append(path, text):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_a_whole_run_is_read(make_run):
    run = read_run(make_run())
    assert (run.name, run.unit, run.source, run.status) == ("quick-001", "character", "fables", "finished")
    assert (len(run.train_rows), len(run.eval_rows), run.steps_done, run.steps_planned) == (2000, 9, 2000, 2000)
    assert (run.tokens, run.epochs) == (3_072_000, pytest.approx(3_072_000 / 990_000))
    assert run.wall == pytest.approx(151.0) and run.tokens_per_second == pytest.approx(20_300, rel=0.01)
    assert [step for step, _ in run.samples] == [0, 250, 500, 1000, 2000]
    assert run.checkpoints == [("best.pt", 4096), ("last.pt", 4096)]
    assert run.left_out == []


def test_the_best_is_the_lowest_finite_validation_loss_and_the_first_of_equals(make_run, lines):
    folder = make_run(steps=3, evaluate=False)
    losses = [3.0, math.nan, 2.0, 2.0, None]
    lines(folder / "metrics.jsonl", [{"step": i, "tokens": i, "val_loss": v} for i, v in enumerate(losses)])
    assert read_run(folder).best["step"] == 2


def test_the_floor_of_characters_is_that_of_the_source(make_run):
    run = read_run(make_run(floor=1.1686, bytes_per_token=1.0))
    assert run.floor == pytest.approx(1.1686 * math.log(2), rel=1e-12)


def test_the_floor_of_bpe_tokens_grows_with_the_bytes_in_a_token(make_run):
    run = read_run(make_run(tokenizer="bpe", floor=1.1686, bytes_per_token=2.7))
    assert run.unit == "token" and run.floor == pytest.approx(1.1686 * math.log(2) * 2.7, rel=1e-12)
    assert run.bits_per_byte(run.floor) == pytest.approx(1.1686, rel=1e-12)


def test_no_floor_is_made_up(make_run):
    assert read_run(make_run(floor=None)).floor is None
    assert read_run(make_run("other", tokenizer="bpe", bytes_per_token=None or math.nan)).floor is None


def test_a_torn_last_line_is_left_out(make_run):
    folder = make_run(steps=20)
    append(folder / "metrics.jsonl", '{"step": 21, "tokens": 32256, "lo')
    append(folder / "events.jsonl", '{"ev')
    run = read_run(folder)
    assert (run.steps_done, len(run.train_rows), len(run.events), run.left_out) == (20, 20, 2, [])


def test_a_torn_line_amid_the_others_is_left_out_and_said(make_run):
    folder = make_run(steps=20)
    append(folder / "metrics.jsonl", '{"step": 21, "tok{"step": 21}\n{"step": 22, "tokens": 1, "loss": 2.5, "lr": 1}\n')
    run = read_run(folder)
    assert run.steps_done == 22 and run.left_out == ["1 unreadable line of metrics.jsonl left out."]


def test_bytes_that_are_no_text_cost_their_line_at_most(make_run):
    folder = make_run(steps=20)
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole + b"\xff\xfe\n")
    assert read_run(folder).steps_done == 20


def test_a_step_written_twice_counts_as_written_last(make_run):
    folder = make_run(steps=20)
    append(
        folder / "metrics.jsonl", '{"step": 7, "tokens": 10752, "loss": 9.5, "lr": 0.001, "grad_norm": 1, "wall": 3}\n'
    )
    run = read_run(folder)
    assert [row["step"] for row in run.train_rows] == list(range(1, 21)) and run.train_rows[6]["loss"] == 9.5


@pytest.mark.parametrize("written", ["null", "NaN", "Infinity", '"low"', "1" + 400 * "0"])
def test_what_is_no_finite_number_is_nan(make_run, written):
    folder = make_run(steps=4)
    append(
        folder / "metrics.jsonl", f'{{"step": 5, "tokens": 1, "loss": {written}, "lr": {written}, "wall": {written}}}\n'
    )
    run = read_run(folder)
    assert run.steps_done == 5 and math.isnan(run.train_rows[-1]["loss"]) and math.isfinite(run.wall)


def test_a_run_that_goes_on_has_no_need_of_the_other_files(make_run, lines):
    folder = make_run(steps_done=12, evaluate=False)
    for name in ("data.json", "events.jsonl", "baselines.json"):
        (folder / name).unlink()
    run = read_run(folder)
    assert (run.status, run.best, run.floor, run.unit) == ("going on", None, None, "character")
    assert run.left_out == []


@pytest.mark.parametrize(
    ("events", "status"),
    [(["started"], "going on"), (["started", "stopped"], "stopped"), (["started", "stopped", "resume"], "going on")],
)
def test_the_events_say_whether_a_run_was_stopped(make_run, lines, events, status):
    folder = make_run(steps_done=12)
    lines(folder / "events.jsonl", [{"step": 12, "event": event} for event in events])
    assert read_run(folder).status == status


def test_an_unreadable_optional_file_is_said_and_not_fatal(make_run):
    folder = make_run(steps=4)
    (folder / "baselines.json").write_bytes(b"\xff{")
    (folder / "samples" / "step_000002.json").write_text("[1]")
    run = read_run(folder)
    assert run.baselines == {} and len(run.left_out) == 2 and "baselines.json" in run.left_out[0]


def test_checkpoints_are_listed_and_never_opened(make_run):
    folder = make_run(steps=4)
    (folder / "checkpoints" / "step_000004.pt").symlink_to("/dev/null")
    assert ("step_000004.pt", 0) in read_run(folder).checkpoints


def broken(folder, how):
    if how == "missing":
        return folder / "nowhere"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif how == "config is no object":
        (folder / "config.json").write_text("[]")
    elif how == "format":
        edit(folder / "config.json", format=2)
    elif how == "no metrics":
        (folder / "metrics.jsonl").unlink()
    elif how == "empty metrics":
        (folder / "metrics.jsonl").write_text("\n")
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "no run folder at"),
        ("no config", "no config.json"),
        ("config is no JSON", "cannot be read"),
        ("config is no object", "cannot be read"),
        ("format", "format 2"),
        ("no metrics", "no metrics yet"),
        ("empty metrics", "no metrics yet"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_in_one_sentence(make_run, how, said):
    with pytest.raises(UserError, match=said) as refused:
        read_run(broken(make_run(steps=2), how))
    message = str(refused.value)
    assert message.endswith(".") and "\n" not in message and "; " in message
