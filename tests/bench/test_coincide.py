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
