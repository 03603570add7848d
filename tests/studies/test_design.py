"""What a study compares: the classic values around the capstone, nothing twice, and faults said in a sentence."""

import dataclasses

import pytest

from minilm.config import build
from minilm.errors import UserError
from minilm.studies import design


def base(preset="capstone", **sections):
    sections.setdefault("model", {}).setdefault("vocab_size", 80)
    sections.setdefault("train", {}).setdefault("kernels", "reference")
    return build(preset, sections)


def by_label(arms):
    return {arm.label: arm.config for arm in arms}


def test_the_axes_have_the_classic_values_around_the_capstone():
    arms = by_label(design.arms_of(base(), ["depth", "width", "activation", "norm", "norm_type", "position", "warmup"]))
    assert {c.model.n_layers for label, c in arms.items() if "layer" in label} == {2, 4, 12}
    widths = {label: c.model for label, c in arms.items() if label.startswith("width")}
    assert {m.d_model for m in widths.values()} == {128, 256}
    assert {m.head_dim for m in widths.values()} == {64}
    assert all(m.d_ff == 4 * m.d_model for m in widths.values())
    assert arms["ReLU"].model.d_ff == 2048
    assert (arms["SwiGLU"].model.activation, arms["SwiGLU"].model.d_ff) == ("swiglu", 1368)
    assert arms["post-norm"].model.norm == "post"
    assert arms["RMSNorm"].model.norm_type == "rmsnorm"
    assert arms["rotary positions"].model.position == "rope"
    assert arms["no warm-up"].train.warmup_steps == 0


def test_an_arm_differs_from_the_baseline_in_its_axis_alone():
    whole = base()
    for arm in design.arms_of(whole, ["depth", "norm", "position"])[1:]:
        before, after = (dataclasses.asdict(c.model) for c in (whole, arm.config))
        assert {k for k in before if before[k] != after[k]} <= {"n_layers", "norm", "position"}
        assert (arm.config.train, arm.config.data) == (whole.train, whole.data)


def test_swiglu_has_the_baselines_parameters_and_depth_has_not():
    whole = base()
    arms = by_label(design.arms_of(whole, ["activation", "depth"]))
    assert design.is_matched(arms["SwiGLU"], whole)
    assert not design.is_matched(arms["4 layers"], whole)


def test_matching_gives_an_arm_the_baselines_parameters_where_some_d_ff_does():
    whole = base()
    arms = {a.axis: a for a in design.arms_of(whole, [], fields=["n_layers=6,1"], match="params")}
    matched = next(a for a in design.arms_of(whole, [], fields=["n_layers=6"], match="params") if a.axis != "baseline")
    assert design.is_matched(matched.config, whole)
    assert matched.config.model.d_ff > whole.model.d_ff
    assert str(matched.config.model.d_ff) in matched.label
    wide = base("capstone", model={"d_ff": 16})
    alone = next(a for a in design.arms_of(wide, [], fields=["n_layers=40"], match="params") if a.axis != "baseline")
    assert alone.config.model.d_ff == 16  # 40 layers of attention are too many whatever d_ff is
    assert arms


def test_crossing_takes_every_combination_once():
    arms = design.arms_of(base(), ["norm"], cross=["norm", "warmup", "depth"])
    crossed = [a for a in arms if a.axis == "norm x warmup x depth"]
    assert len({a.label for a in arms}) == len(arms)
    assert len(crossed) == 2 * 2 * 4 - 1 - 1  # all but the baseline, and post-norm alone, which is an arm already
    config = by_label(arms)["post-norm, no warm-up, 2 layers"]
    assert (config.model.norm, config.train.warmup_steps, config.model.n_layers) == ("post", 0, 2)


def test_trials_are_told_apart_by_seed_and_every_setting_and_are_the_same_tomorrow():
    arms = design.arms_of(base(), ["depth", "warmup"])
    trials = design.trials_of(arms, [1, 2, 3], lr_triplet=True)
    assert len({t.id for t in trials}) == len(trials) == 3 * 3 * (len(arms) + 1)
    again = design.trials_of(design.arms_of(base(), ["depth", "warmup"]), [1, 2, 3], lr_triplet=True)
    assert [t.id for t in again] == [t.id for t in trials]
    assert {t.config.train.lr for t in trials} == {1.5e-4, 3e-4, 6e-4}
    assert {t.config.train.min_lr / t.config.train.lr for t in trials} == {0.1}


def test_the_control_is_the_baseline_with_seeds_of_its_own():
    trials = design.trials_of(design.arms_of(base(), ["depth"]), [1, 2, 3], lr_triplet=False)
    control = [t for t in trials if t.arm == design.CONTROL]
    others = [t for t in trials if t.arm != design.CONTROL]
    assert len(control) == 3
    assert not {t.seed for t in control} & {t.seed for t in others}
    baseline = next(t.config for t in trials if t.arm == design.BASELINE)
    assert all(dataclasses.replace(t.config.train, seed=1) == baseline.train for t in control)


def test_naive_against_fused_has_every_backend_and_the_noise_of_another_order_of_sums():
    arms = by_label(design.arms_of(base("quick"), ["kernels"]))
    assert {c.train.kernels for c in arms.values()} >= {"reference", "torch"}
    reordered = arms[design.REORDERED].train
    assert (reordered.kernels, reordered.grad_accumulation) == ("reference", 2)
    lengths = {a.config.model.context_length for a in design.speed_arms(base("quick"))}
    assert lengths == {64, 128, 256, 512}
    assert {a.config.model.context_length * a.config.train.batch_size for a in design.speed_arms(base("quick"))} == {
        1024
    }


def test_any_field_is_an_axis():
    arms = design.arms_of(base(), [], fields=["dropout=0.0,0.1,0.2", "train.weight_decay=0.0"])
    assert [a.label for a in arms] == [
        "baseline",
        "dropout 0.1",
        "dropout 0.2",
        "weight_decay 0.0",
    ]  # 0.0 is the baseline


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"axes": ["dept"]}, "--axes names 'dept'; there are depth, width"),
        ({"axes": [], "cross": ["n"]}, "--cross names 'n'"),
        ({"axes": [], "fields": ["dropout"]}, "is not of the form field=v1,v2"),
        ({"axes": [], "fields": ["seed=1,2"]}, "the field seed is in several sections"),
        ({"axes": [], "fields": ["nonsense=1"]}, "the field nonsense is in no section"),
        ({"axes": [], "fields": ["model.dropout=2"]}, "model.dropout"),
        ({"axes": [], "fields": ["model.dropout=0.0"]}, "has no value here but the baseline's own"),
        ({"axes": ["norm"], "fields": ["model.norm=post"]}, "are the same training"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        design.arms_of(base(), **{"axes": [], **arguments})
