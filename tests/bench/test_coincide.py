"""Before and after what makes training faster: which arms there are, and that the verdict is the ablation's own."""

import dataclasses

import pytest
import torch

from bench import coincide
from minilm.errors import UserError
from minilm.studies.design import BASELINE, CONTROL
from minilm.studies.trials import FAILED
from tests.report.ablation_lab import Lab


def test_each_is_switched_on_alone_and_then_all_together():
    naive, *arms = coincide.arms_of("quick", 20, None, torch.device("cpu"))
    assert (naive.config.model.n_layers, naive.config.model.d_model, naive.config.train.steps) == (4, 128, 20)
    assert naive.config.train.compile == "off" and naive.config.train.dtype == "float32"
    changed = {}
    for arm in arms:
        before, after = dataclasses.asdict(naive.config.train), dataclasses.asdict(arm.config.train)
        changed[arm.label] = {key: after[key] for key in after if after[key] != before[key]}
        assert arm.config.model == naive.config.model and arm.config.data == naive.config.data
    alone = {"torch kernels": {"kernels": "torch"}, "bfloat16": {"dtype": "bfloat16"}, "compiled": {"compile": "on"}}
    alone |= {"activations again": {"checkpoint_activations": True}}
    assert changed == alone | {"all": {key: value for how in alone.values() for key, value in how.items()}}


def test_arms_are_chosen_in_another_precision_and_on_other_data():
    found = coincide.arms_of(
        "quick", 20, None, torch.device("cpu"), "bfloat16", ["data.characters=900000", "train.lr=0.02"],
        ["all", "torch kernels"],
    )  # fmt: skip
    assert [arm.label for arm in found] == [BASELINE, "all", "torch kernels"]
    naive, together, fused = (arm.config for arm in found)
    for config in (naive, together, fused):
        assert (config.train.dtype, config.train.lr, config.data.characters) == ("bfloat16", 0.02, 900_000)
    assert (naive.train.kernels, fused.train.kernels, together.train.compile) == ("reference", "torch", "on")
    every = coincide.arms_of("quick", 20, None, torch.device("cpu"), "bfloat16")
    assert "bfloat16" not in [arm.label for arm in every]
    with pytest.raises(UserError, match="--arms names 'graphs'; here there are torch kernels, bfloat16, compiled"):
        coincide.arms_of("quick", 20, None, torch.device("cpu"), only=["graphs"])
    for assignment in ("train.dtype=float32", "train.checkpoint_activations=true"):
        with pytest.raises(UserError, match=f"--set {assignment}: train"):
            coincide.arms_of("quick", 20, None, torch.device("cpu"), assignments=[assignment])


def test_the_options_reach_the_trials(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(coincide, "run_trials", lambda study, jobs, say: seen.append((study.rows, jobs)))
    out = ["--device", "cpu", "--steps", "9", "--seeds", "2", "--out", str(tmp_path / "study")]
    chosen = ["--arms", "torch kernels, all", "--dtype", "bfloat16", "--set", "data.characters=900000", "--jobs", "3"]
    assert coincide.main([*out, *chosen]) == 1  # stopped
    ((rows, jobs),) = seen
    assert jobs == 3 and {row["arm"] for row in rows} == {BASELINE, CONTROL, "torch kernels", "all"} and len(rows) == 8
    assert {row["config"]["train"]["dtype"] for row in rows} == {"bfloat16"}
    with pytest.raises(SystemExit):
        coincide.main([*out, "--jobs", "0"])


def test_the_same_within_the_margin_another_model_and_one_that_differs_at_a_step_are_told_apart(tmp_path):
    lab = Lab(tmp_path)
    for seed in (1, 2, 3, 4):
        lab.trial(BASELINE, BASELINE, seed, 2.7 + seed / 100)
        lab.trial("same", coincide.AXIS, seed, 2.7 + seed / 100 + 1e-4 * (seed % 2))
        lab.trial("worse", coincide.AXIS, seed, 2.75 + seed / 100 + 1e-4 * (seed % 2))
        lab.trial("unsteady", coincide.AXIS, seed, 2.7 + seed / 100 + 0.02 * (-1) ** seed, apart=1e-3)
        lab.trial(CONTROL, CONTROL, 10_000 + seed, 2.9)
    rows = coincide.verdicts(lab.outcomes, lab.runs)
    assert {row["arm"]: row["verdict"] for row in rows} == {
        "same": "equivalent", "worse": "different", "unsteady": "not shown equivalent",
    }  # fmt: skip
    same, worse, unsteady = rows
    assert same["seeds"] == 4 and abs(same["difference"] - 5e-5) < 1e-12 and same["low"] < 5e-5 < same["high"] < 0.01
    assert abs(worse["difference"] - 0.05005) < 1e-9 and worse["largest_difference"] == 0
    assert 0.05 < unsteady["largest_difference"] < 0.1  # of step 99 or so, where they lie 0.1 apart at most
    lab.trial("broken", coincide.AXIS, 1, status=FAILED)
    folders = {outcome.id: tmp_path / outcome.id for outcome in lab.outcomes}
    assert coincide.verdicts(lab.outcomes, folders)[-1]["verdict"] == "failed: it was not to be"
    lab.trial(BASELINE, BASELINE, 5, status=FAILED)
    with pytest.raises(UserError, match=r"Naive training failed .it was not to be.; --resume tries it again"):
        coincide.verdicts(lab.outcomes, lab.runs)
    with pytest.raises(SystemExit) as ended:
        coincide.main(["--seeds", "0", "--out", str(tmp_path / "none")])
    assert ended.value.code == 2
    _, head, cells = coincide.table_of(rows)
    assert all(len(row) == len(head) for row in cells) and cells[0][2] == "+0.00005"
