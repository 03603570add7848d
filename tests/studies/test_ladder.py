"""Ladders of sizes: what is trained, what is read, and what the fits are given."""

import dataclasses
import json

import pytest

from minilm.config import build
from minilm.errors import UserError
from minilm.studies import design, ladder
from minilm.studies.trials import Outcome


@pytest.fixture
def base():
    return build("quick", {"model": {"vocab_size": 80}, "train": {"kernels": "reference"}})


def test_every_size_has_one_head_width_and_the_same_tokens(base):
    trials = ladder.trials_of(base, ladder.SIZES, [300], [], seeds=3)
    assert len(trials) == 18 == len({t.id for t in trials})
    assert len({t.config.model.head_dim for t in trials}) == 1
    assert {t.config.model.d_ff / t.config.model.d_model for t in trials} == {4.0}
    assert {t.config.train.steps for t in trials} == {300}
    counts = [design.parameters(t.config)["non_embedding"] for t in trials]
    assert max(counts) / min(counts) > 10  # a decade, which an exponent needs


def test_several_budgets_are_crossed_with_sizes(base):
    trials = ladder.trials_of(base, ["1x32", "2x32"], [100, 200, 400], [], seeds=1)
    assert [t.arm for t in trials[:3]] == ["1x32, 100 steps", "1x32, 200 steps", "1x32, 400 steps"]
    assert {t.config.train.steps for t in trials} == {100, 200, 400}


def test_a_compute_budget_gives_each_size_the_steps_that_spend_it(base):
    trials = ladder.trials_of(base, ["1x32", "4x64"], [1], [1e11, 4e11], seeds=1)
    for t in trials:
        spent = design.flops_per_token(t.config) * t.config.train.steps * t.config.train.batch_size * 128
        assert min(abs(spent / budget - 1) for budget in (1e11, 4e11)) < 0.02
    with pytest.raises(UserError, match="at least 20 are needed"):
        ladder.trials_of(base, ["4x256"], [1], [1e9], seeds=1)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [("4", "LAYERSxWIDTH"), ("0x32", "LAYERSxWIDTH"), ("2x30", "a multiple of 8"), ("x", "LAYERS")],
)
def test_what_is_no_size_is_refused(base, size, sentence):
    with pytest.raises(UserError, match=sentence):
        ladder.trials_of(base, [size], [100], [], seeds=1)


def outcome(base, arm, loss, seed=1, axis="size", **changes):
    n = {"total": 2000, "non_embedding": changes.pop("n", 1000), "matrices_and_head": 1500, "embedding": 500}
    known = {"val_loss": loss, "best_step": 100, "steps": 100, "tokens": 12_800, "epochs": 0.1, "flops_per_token": 6000}
    found = Outcome("id", arm, axis, seed, 1.0, base.to_dict(), "finished", parameters=n, **known)
    return dataclasses.replace(found, **changes)


def test_a_point_carries_every_fact_that_a_rule_asks_for(base):
    point = ladder.point_of(outcome(base, "2x32", 2.0), [0.1, 0.2])
    missing = [f.name for f in dataclasses.fields(point) if getattr(point, f.name) is None]
    assert missing == []
    assert point.flops == 6000 * 12_800
    assert point.lr_tried == (0.1, 0.2)
    diverged = ladder.point_of(outcome(base, "2x32", None, status="diverged"))
    assert diverged.loss is None


def test_the_analysis_is_plain_json_and_says_what_refuses_the_exponent(base, tmp_path):
    found = [(outcome(base, f"{n}", 3 * n**-0.1, seed, n=n, status="diverged" if n == 1 else "missing"), tmp_path)
             for n in (10, 20) for seed in (1, 2)]  # fmt: skip
    with pytest.raises(UserError, match="None of these runs has finished"):
        ladder.analyse(found, "non_embedding")
    ended = [(dataclasses.replace(o, status="diverged", val_loss=None), path) for o, path in found]
    result = ladder.analyse(ended, "non_embedding")
    assert json.loads(json.dumps(result)) == result
    assert result["fit"]["exponent"] is None
    assert any("0 sizes" in reason for reason in result["fit"]["refusals"])
