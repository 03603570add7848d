"""Configuration: every preset holds, every mistake is named in a sentence, what is saved comes back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm.config import PRESETS, RunConfig, build, check_resume, parse_assignment
from minilm.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_comes_back_from_json_as_it_was(preset):
    config = build(preset)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_nanogpts_cpu_recipe_field_by_field():
    c = build("shakespeare-char-cpu")
    m, t = c.model, c.train
    assert (m.n_layers, m.n_heads, m.d_model, m.d_ff, m.context_length) == (4, 4, 128, 512, 64)
    assert (m.dropout, m.bias, m.activation, m.tie_embeddings, m.position) == (0.0, False, "gelu", True, "learned")
    assert (t.steps, t.batch_size, t.grad_accumulation, t.lr, t.min_lr, t.warmup_steps) == (
        2000,
        12,
        1,
        1e-3,
        1e-4,
        100,
    )
    assert (t.beta1, t.beta2, t.weight_decay, t.grad_clip, t.schedule) == (0.9, 0.99, 0.1, 1.0, "cosine")
    assert (c.data.source, c.data.tokenizer, c.data.split, c.data.val_fraction) == ("shakespeare", "char", "tail", 0.1)


def test_nanogpts_gpu_recipe_field_by_field():
    c = build("shakespeare-char")
    m, t = c.model, c.train
    assert (m.n_layers, m.n_heads, m.d_model, m.context_length, m.dropout, m.bias) == (6, 6, 384, 256, 0.2, False)
    assert (t.steps, t.batch_size, t.lr, t.min_lr, t.warmup_steps, t.beta2) == (5000, 64, 1e-3, 1e-4, 100, 0.99)


def test_the_capstone_is_as_it_is_described():
    c = build("capstone")
    m, t = c.model, c.train
    assert (m.n_layers, m.n_heads, m.d_model, m.d_ff, m.context_length) == (8, 8, 512, 2048, 256)
    assert (m.activation, m.norm, m.position, m.bias, m.tie_embeddings, m.dropout) == (
        "gelu",
        "pre",
        "learned",
        True,
        True,
        0,
    )
    assert (t.steps, t.batch_size, t.lr, t.min_lr, t.schedule) == (10_000, 64, 3e-4, 3e-5, "cosine")
    assert (c.data.source, c.data.characters, c.data.tokenizer) == ("fables", 50_000_000, "char")


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train.learnrate=1", "There is no key train.learnrate"),
        ("train.lrr=1", "did you mean train.lr?"),
        ("train.d_model=1", "did you mean model.d_model?"),
        ("modle.d_model=1", "There is no section 'modle' (did you mean model?)"),
        ("lr=1", "not of the form section.key=value"),
        ("train.lr", "not of the form section.key=value"),
        ("train.steps=ten", "train.steps is 'ten'; it must be a whole number"),
        ("train.steps=1.5", "train.steps is '1.5'; it must be a whole number"),
        ("train.steps=nan", "must be a whole number"),
        ("train.steps=inf", "must be a whole number"),
        ("train.steps=0", "train.steps is 0; it must be at least 1"),
        ("train.lr=0", "train.lr is 0.0; it must be above 0"),
        ("train.lr=nan", "train.lr is nan; it must be above 0"),
        ("train.beta2=1", "train.beta2 is 1.0; it must be at least 0 and below 1"),
        ("train.lr=inf", "train.lr is inf; it must be a finite number"),
        ("model.n_layers=1e9", "model.n_layers is 1000000000; it must be at least 1 and at most 10000"),
        ("train.steps=1e12", "it must be at least 1 and at most 1000000000"),
        ("train.compile=perhaps", "train.compile is 'perhaps'; it must be one of auto, off, on, graphs"),
        ("train.grad_accumulation=7", "train.grad_accumulation is 7; it must be a divisor of batch_size (8)"),
        ("train.min_lr=1", "train.min_lr is 1.0; it must be at most train.lr"),
        ("train.save_at=soon", "train.save_at is 'soon'; it must be pythia or steps"),
        ("model.activation=glu", "it must be one of gelu, gelu_tanh, relu, relu2, swiglu (did you mean gelu?)"),
        ("model.d_model=130", "model.d_model is 130; it must be a multiple of model.n_heads (4)"),
        ("model.n_kv_heads=3", "model.n_kv_heads is 3; it must be a divisor of model.n_heads (4)"),
        ("data.val_fraction=1", "it must be above 0 and below 1"),
        ("data.vocab_size=100", "data.vocab_size is 100; it must be at least 257"),
    ],
)
def test_a_wrong_setting_names_the_field_the_value_and_what_is_allowed(assignment, sentence):
    def use():
        section, key, value = parse_assignment(assignment)
        return build("quick", {section: {key: value}})

    with pytest.raises(UserError) as caught:
        use()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(UserError, match=r"no preset 'quik' \(did you mean quick\?\); there are quick, tiny"):
        build("quik")


@pytest.mark.parametrize(
    ("text", "value"), [("1e4", 10_000), ("1_000", 1000), ("250", 250), ("9007199254740993", 9007199254740993)]
)
def test_whole_numbers_are_read_exactly(text, value):
    assert parse_assignment(f"train.seed={text}") == ("train", "seed", value)


def test_none_is_read_where_it_is_allowed():
    assert parse_assignment("model.d_ff=none") == ("model", "d_ff", None)


@given(st.text(max_size=30))
def test_any_assignment_is_taken_or_refused_in_one_sentence(text):
    for assignment in (text, f"train.{text}", f"train.lr={text}", f"model.d_ff={text}", f"data.source={text}"):
        try:
            section, key, value = parse_assignment(assignment)
            build("tiny", {section: {key: value}})
        except UserError as error:
            assert str(error)


def test_pythias_steps_double_and_then_go_by_thousands():
    steps = sorted(build("capstone").train.kept_steps())
    assert steps == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 10_001, 1000)]
    assert build("tiny", {"train": {"save_at": "0, 50,9999"}}).train.kept_steps() == {0, 50}


def test_a_resume_may_change_length_kernels_device_and_logging_only():
    old = build("tiny")
    allowed = build("tiny", {"train": {"steps": 200, "kernels": "reference", "device": "cpu", "log_interval": 1}})
    assert len(check_resume(old, allowed)) == 4
    refused = build("tiny", {"train": {"lr": 0.5, "steps": 200}, "model": {"d_model": 32}})
    with pytest.raises(UserError, match=r"cannot change model.d_model from 64 to 32, .*train.lr from 0.001 to 0.5"):
        check_resume(old, refused)
