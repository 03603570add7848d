"""Studies on disk: nothing is run twice, nothing killed is lost, and parts make the same table as the whole."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from minilm.config import build
from minilm.errors import UserError
from minilm.studies import design, study
from minilm.studies import trials as study_trials
from minilm.studies.ablation import analyse
from minilm.studies.trials import DIVERGED, FAILED, FINISHED, MISSING, TRIALS, Study, from_runs, run_trials
from tests.capstone.miniature import run_here
from tests.children import Python, forked
from tests.waiting import PATIENCE, wait_for

STEPS = 8


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Two arms and A/A at one seed: three trials of 8 steps."""
    return little_trials(tmp_path_factory.mktemp("text"))


def little_trials(folder, seeds=(1,), **train):
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    base = build(
        "tiny",
        {
            "model": {"n_layers": 2, "n_heads": 2, "d_model": 16, "context_length": 16, "vocab_size": 40},
            "train": {"steps": STEPS, "batch_size": 4, "warmup_steps": 1, "eval_interval": 4, "checkpoint_interval": 2}
            | {"kernels": "reference", "device": "cpu", "log_interval": 1}
            | train,
            "data": {"source": str(text)},
        },
    )
    return design.trials_of(design.arms_of(base, ["norm"]), seeds, lr_triplet=False)


def losses(found):
    return [(o.arm, o.seed, o.status, o.val_loss) for o in found.outcomes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, trials):
    """The study run without a hitch."""
    found = Study.create(tmp_path_factory.mktemp("whole") / "study", {}, trials, resume=False)
    said = []
    with forked(study_trials):
        assert run_trials(found, say=said.append)
    assert len(said) == 3
    return found


def test_every_trial_becomes_a_result_with_its_loss_and_its_cost(whole):
    outcomes = whole.outcomes()
    assert {o.status for o in outcomes} == {FINISHED}
    for o in outcomes:
        assert o.val_loss > 0
        assert o.steps == STEPS
        assert o.tokens == STEPS * 4 * 16
        assert o.wall > 0
        assert o.tokens_per_s == pytest.approx(o.tokens / o.wall)
        assert o.peak_bytes > 2**20
        assert o.parameters["total"] > 0
    assert outcomes[0].val_loss != outcomes[1].val_loss


def test_what_is_finished_is_not_run_again(whole):
    before = {p: p.stat().st_mtime_ns for p in (whole.path / TRIALS).rglob("*") if p.is_file()}
    said = []
    assert run_trials(whole, say=said.append)
    assert said == []
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow  # 40 s; tests/capstone kills one within a study at every run
def test_a_study_killed_at_any_moment_goes_on_to_the_same_table(tmp_path, trials, whole):
    """kill -9 of everything, again and again, until it is done."""
    found = Study.create(tmp_path / "study", {}, trials, resume=False)
    program = f"from minilm.studies.trials import *; import sys; run_trials(Study(Path({str(found.path)!r})))"
    kills = 0
    for attempt in range(60):
        child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
        moment = 1 + attempt % 5  # rows on disk at which it is killed: in another trial, at another step, each time
        while child.poll() is None:
            rows = sum(p.read_text().count("\n") for p in found.path.rglob("metrics.jsonl"))
            if attempt < 3 and rows >= moment + 8 * attempt:
                for process in descendants(child.pid):
                    os.kill(process, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        child.wait()
        if child.returncode == 0:
            break
    assert kills >= 2
    assert losses(found) == losses(whole)


def descendants(pid):
    """A process and its children, whatever session they are in."""
    found = [pid]
    for path in os.listdir("/proc"):
        if path.isdigit():
            try:
                with open(f"/proc/{path}/stat") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found += descendants(int(path))
    return found


def test_a_signal_saves_the_trial_in_hand_and_the_study_goes_on(tmp_path):
    trials = little_trials(tmp_path, steps=2000)[:1]
    found = Study.create(tmp_path / "study", {}, trials, resume=False)
    program = f"from minilm.studies.trials import *; sys.exit(0 if run_trials(Study(Path({str(found.path)!r}))) else 7)"
    child = Python("-c", program)
    metrics = found.folder(trials[0].id) / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 20, "twenty steps")
    child.send_signal(signal.SIGTERM)
    assert child.wait(PATIENCE) == 7
    assert found.outcomes()[0].status == MISSING
    assert (found.folder(trials[0].id) / "checkpoints" / "last.pt").exists()
    assert "stopped by SIGTERM" in (found.folder(trials[0].id) / "events.jsonl").read_text()


def test_a_trial_that_outlives_its_runner_is_not_run_twice(tmp_path):
    """The runner is killed, the trial goes on; another runner leaves it alone and finds its result afterwards."""
    trials = little_trials(tmp_path, steps=300, checkpoint_interval=100, eval_interval=100)[:1]
    found = Study.create(tmp_path / "study", {}, trials, resume=False)
    program = f"from minilm.studies.trials import *; run_trials(Study(Path({str(found.path)!r})))"
    runner = Python("-c", program)
    metrics = found.folder(trials[0].id) / "metrics.jsonl"
    wait_for(metrics.exists, "the first step")
    runner.kill()
    runner.wait()
    said = []
    with forked(study_trials):
        run_trials(found, say=said.append)
    wait_for(lambda: found.outcomes()[0].status == FINISHED, "the trial's end")
    assert "in the hands of another process" in said[0]
    assert found.outcomes()[0].status == FINISHED
    assert "resume" not in (found.folder(trials[0].id) / "events.jsonl").read_text()


@pytest.fixture
def in_this_process(monkeypatch):
    """For tests of what becomes of trials, not of their processes: each takes seconds to import PyTorch."""
    monkeypatch.setattr("minilm.studies.trials._run_one", run_here)


def test_two_shards_merged_are_the_whole(tmp_path, trials, whole, in_this_process):
    parts = [Study.create(tmp_path / name, {}, trials, resume=False) for name in ("one", "two")]
    for number, part in enumerate(parts, 1):
        run_trials(part, shard=(number, 2))
    assert [sum(o.status == FINISHED for o in part.outcomes()) for part in parts] == [2, 1]
    assert parts[0].merge(parts[1].path) == 1
    assert losses(parts[0]) == losses(whole)
    assert parts[0].merge(parts[1].path) == 0
    tables = [analyse(s.outcomes(), {o.id: s.folder(o.id) for o in s.outcomes()})["table"] for s in (parts[0], whole)]
    timeless = [[{k: v for k, v in row.items() if k not in COSTS} for row in table] for table in tables]
    assert timeless[0] == timeless[1]


COSTS = ("wall", "tokens_per_s", "peak_bytes")


def test_a_part_of_another_study_does_not_merge(tmp_path, whole):
    other = Study.create(tmp_path / "other", {}, little_trials(tmp_path, lr=0.1), resume=False)
    with pytest.raises(UserError, match="a study of other trials"):
        whole.merge(other.path)


def test_a_trial_that_fails_stops_nobody_and_is_tried_again(tmp_path, trials):
    broken = dataclasses.replace(
        trials[0],
        config=dataclasses.replace(
            trials[0].config, data=dataclasses.replace(trials[0].config.data, source="nowhere.txt")
        ),
    )
    found = Study.create(tmp_path / "study", {}, [broken, trials[1]], resume=False)
    with forked(study_trials):
        assert run_trials(found)
    one, two = found.outcomes()
    assert (one.status, two.status) == (FAILED, FINISHED)
    assert "nowhere.txt" in one.reason
    assert [row["id"] for row in found.open_rows()] == [broken.id]


def test_a_trial_that_diverges_is_a_result_and_is_not_tried_again(tmp_path, in_this_process):
    (trial, *_) = little_trials(tmp_path, lr=1e30, min_lr=1e29, grad_clip=0.0, max_bad_steps=2, steps=20)
    found = Study.create(tmp_path / "study", {}, [trial], resume=False)
    run_trials(found)
    (outcome,) = found.outcomes()
    assert (outcome.status, outcome.val_loss) == (DIVERGED, None)
    assert found.open_rows() == []


def test_a_study_is_not_laid_over_another(tmp_path, trials, whole):
    with pytest.raises(UserError, match="holds a study already; go on with it by --resume"):
        Study.create(whole.path, {}, trials, resume=False)
    with pytest.raises(UserError, match="holds a study of other trials"):
        Study.create(whole.path, {}, trials[:1], resume=True)
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        Study.create(tmp_path, {}, trials, resume=False)
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_finished_runs_become_arms_by_what_they_change(whole):
    folders = [whole.folder(o.id) for o in whole.outcomes()]
    named = from_runs(folders)
    assert [o.arm for o in named] == ["baseline", "norm post", "baseline"]
    assert [o.val_loss for o in named] == [o.val_loss for o in whole.outcomes()]
    assert [o.arm for o in from_runs([whole.path])] == ["baseline", "norm post", "baseline"]


def test_the_slurm_script_is_an_array_over_the_parts_that_a_shell_can_read(whole):
    path = study.write_slurm(whole, 5)
    text = path.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "#SBATCH --array=1-5\n" in text
    assert '--resume --shard "$SLURM_ARRAY_TASK_ID/5"' in text
    subprocess.run(["sh", "-n", path], check=True)


def test_the_analysis_is_plain_json_and_every_finding_names_trials_that_are_there(whole):
    outcomes = whole.outcomes()
    result = analyse(outcomes, {o.id: whole.folder(o.id) for o in outcomes})
    assert json.loads(json.dumps(result)) == result
    ids = {o.id for o in outcomes}
    assert all(finding["trials"] and set(finding["trials"]) <= ids for finding in result["findings"])
    assert all(row["verdict"] in (None, "inconclusive") for row in result["table"])  # one seed shows nothing
