"""One command makes it all: killed anywhere it goes on to the same, and it refuses what would mix two capstones."""

import dataclasses
import io
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from rich.console import Console

from minilm.capstone import plan as planning
from minilm.capstone.folder import Folder
from minilm.capstone.plan import Options
from minilm.capstone.progress import Line
from minilm.capstone.run import capstone
from minilm.cli import cli
from minilm.errors import UserError
from minilm.studies import design, study
from minilm.studies.trials import TRIALS, Study
from minilm.training.loop import train
from tests.capstone.miniature import PLAN, make, run_here


def quiet():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory, text_file):
    """The training of the miniature without a kill."""
    options = Options(scale="quick", data=str(text_file), kernels="torch", device="cpu")
    out = tmp_path_factory.mktemp("unhurried") / "train"
    train(planning.training(PLAN, options), out, console=quiet())
    return out


def test_killed_in_its_training_it_ends_with_the_weights_of_one_that_was_not(capstone_folder, unhurried):
    mine = torch.load(capstone_folder / "capstone_best.pt", weights_only=True)
    theirs = torch.load(unhurried / "checkpoints" / "best.pt", weights_only=True)
    assert mine["step"] == theirs["step"] and mine["val_loss"] == theirs["val_loss"]
    assert all(torch.equal(mine["model"][name], theirs["model"][name]) for name in theirs["model"])


def test_killed_in_a_study_it_ends_with_the_losses_of_one_that_was_not(capstone_folder, tmp_path, text_file):
    options = Options(data=str(text_file), kernels="torch", device="cpu")
    asked = planning.study_plan(PLAN, options, "ablation")
    trials = design.trials_of(design.arms_of(study.baseline_of(asked), asked.axes), range(1, 4), lr_triplet=False)[:4]
    whole = Study.create(tmp_path / "study", {}, trials, resume=False)
    made = Study(capstone_folder / "ablation")
    assert [row["id"] for row in made.rows[:4]] == [row["id"] for row in whole.rows]  # the killed ones among them
    for row in whole.rows:
        run_here(whole, row, 1, {}, [])
        assert made.result(row["id"])["val_loss"] == whole.result(row["id"])["val_loss"] > 0


def test_what_is_done_is_not_done_again_and_the_page_is_the_same_to_the_byte(capstone_folder, tmp_path, text_file):
    copy = tmp_path / "made"
    shutil.copytree(capstone_folder, copy)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in copy.rglob("*") if p.is_file()}
    said = quiet()

    def never(*_):
        raise AssertionError("a trial was run again")

    assert make(copy, text_file, said, run_one=never) is None
    changed = {p.relative_to(copy).as_posix() for p, (at, _) in before.items() if p.stat().st_mtime_ns != at}
    assert "report.html" in changed
    assert not [name for name in changed if name.startswith(("ablation/", "kernels/", "scaling/"))]
    assert not [name for name in changed if name.endswith((".pt", ".jsonl"))]
    for name in ("report.html", "report.md", "train/report.html"):
        assert (copy / name).read_bytes() == before[copy / name][1].replace(
            str(capstone_folder).encode(), str(copy).encode()
        )
    assert "stage 6 of 6, report" in said.file.getvalue() and "stage 1 of 6" not in said.file.getvalue()


def test_a_deliverable_that_was_damaged_is_made_again_by_the_same_command(capstone_folder, tmp_path, text_file):
    copy = tmp_path / "made"
    shutil.copytree(capstone_folder, copy)
    best, result = copy / "capstone_best.pt", copy / "scaling" / "scaling.json"
    sound = best.read_bytes()
    best.write_bytes(sound[: len(sound) // 2])
    result.write_text(result.read_text().replace("3", "4"))
    assert make(copy, text_file, quiet()) is None
    assert best.read_bytes() == sound
    assert result.read_bytes() == (capstone_folder / "scaling" / "scaling.json").read_bytes()


def test_the_trials_of_every_study_begin_at_the_seed_that_was_asked_for(tmp_path, text_file, capstone_folder):
    seeds = {(row["axis"] == design.CONTROL, row["seed"]) for row in Study(capstone_folder / "ablation").rows}
    assert seeds == {(False, 1), (False, 2), (False, 3)} | {(True, design.CONTROL_SEED + k) for k in range(3)}
    moved = planning.study_plan(PLAN, Options(data=str(text_file)), "scaling")
    assert moved.seeds == 3
    from minilm.capstone.run import _shifted

    base = study.baseline_of(moved)
    trial = design.trials_of([design.Arm(design.BASELINE, design.BASELINE, base)], [1], lr_triplet=False)[0]
    assert _shifted(trial, 6).seed == _shifted(trial, 6).config.train.seed == 7


@pytest.mark.parametrize("name", ["scale", "data", "kernels", "device", "seed"])
def test_an_option_that_would_change_is_refused_by_name(capstone_folder, text_file, name):
    other = {"scale": "full", "data": "shakespeare", "kernels": "reference", "device": "auto", "seed": 2}[name]
    with pytest.raises(UserError, match=f"--{name} is .* was begun with .* leave it out to go on"):
        make(capstone_folder, text_file, quiet(), **{name: other})


def test_options_that_are_left_out_are_those_it_was_begun_with():
    held = Options("full", "x.txt", "torch", "cpu", 5)
    assert planning.agreed(held, {"scale": None, "data": None, "seed": None}) == held
    assert planning.agreed(None, {"scale": "full", "data": None}) == Options("full")


def test_two_at_once_are_refused_and_a_folder_with_other_things_too(tmp_path, text_file):
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="is in use by"):
        make(tmp_path, text_file, quiet())
    (tmp_path / "essay.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things .essay.txt. and no capstone"):
        make(tmp_path, text_file, quiet())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "essay.txt"]


def test_options_that_cannot_work_leave_no_folder_that_is_begun(tmp_path):
    with pytest.raises(UserError, match="--scale is 'huge'"):
        capstone(tmp_path / "a", {"scale": "huge"}, quiet())
    with pytest.raises(UserError, match="The device is"):
        capstone(tmp_path / "a", {"device": "abacus"}, quiet())
    assert not (tmp_path / "a" / "capstone.json").exists()


def test_what_a_kill_left_before_the_manifest_of_a_study_is_no_obstacle(tmp_path):
    from minilm.capstone.folder import empty_stub

    (tmp_path / "s" / TRIALS).mkdir(parents=True)
    (tmp_path / "s" / ".study.json.17.part").write_text("{")
    assert empty_stub(tmp_path / "s", "study.json")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    assert not empty_stub(tmp_path / "s", "study.json")


def test_both_scales_are_configurations_that_exist(monkeypatch):
    monkeypatch.setattr(study, "baseline_of", lambda plan: plan)
    for scale, steps, layers in (("quick", 1600, 4), ("full", 10_000, 8)):
        plan, options = planning.plan_of(scale), Options(scale)
        config = planning.training(plan, options)
        assert (config.train.steps, config.model.n_layers) == (steps, layers)
        assert len(config.train.kept_steps()) >= 4
        assert len(plan.axes) >= planning.MIN_AXES and plan.seeds >= 3 and len(plan.sizes) >= 5
        assert set(plan.seconds) == set(planning.STAGES)
        assert set(plan.axes) <= set(design.AXES)
        assert planning.study_plan(plan, options, "kernels").axes == ("kernels",)
        assert "train.kernels=auto" in planning.study_plan(plan, options, "ablation").assignments


def test_the_time_left_goes_by_the_pace_of_what_is_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("minilm.capstone.progress.time.monotonic", lambda: now[0])
    line = Line(quiet(), ("a", "b", "c"), {"a": 10.0, "b": 20.0, "c": 30.0}, {"a": 100.0})
    line.begin("a", "first", live=False)
    assert line.left() == 60
    now[0] = 20.0
    assert line.end() == 120  # with what was spent before
    line.begin("b", "second", live=False)
    assert line.left() == 2 * 50  # twice as slow as expected
    now[0] = 30.0
    line.step(1, 2, "half")
    assert line.left() == 10 + 60
    assert line.elapsed() == 100 + 30
    assert re.search(r"stage 2 of 3, b  half  \(2m10s so far, about 1m10s left\)", line.console.file.getvalue())


def test_a_record_that_is_none_is_refused_in_a_sentence(tmp_path):
    for text in ("", "[]", '{"format": 1}', '{"format": 2, "options": {}, "seconds": {}, "files": {}}'):
        (tmp_path / "capstone.json").write_text(text)
        with pytest.raises(UserError):
            Folder(tmp_path)


def test_the_command_asks_for_a_folder_and_check_for_nothing_else(tmp_path):
    for arguments, words in (
        (["capstone"], "--out names no folder"),
        (["capstone", "--check", str(tmp_path), "--seed", "1"], "takes no other option"),
    ):
        result = CliRunner().invoke(cli, arguments)
        assert isinstance(result.exception, UserError) and words in str(result.exception)


def test_options_hold_what_the_record_holds():
    assert {f.name for f in dataclasses.fields(Options)} == {"scale", "data", "kernels", "device", "seed"}
