"""assess_generation_quality(): our own model or a course's, printed and returned, the same every time."""

import pytest
import torch
from torch import nn

import minilm
from minilm.config import ModelConfig
from minilm.corpus.tokenizer import CharTokenizer
from minilm.errors import UserError
from minilm.model import GPT

LETTERS = CharTokenizer(" abcdefghijklmnopqrstuvwxyzIT")
FEW = {"temperatures": (0.5, 1.0), "max_new_tokens": 30, "samples": 3}


class Course(nn.Module):
    """A model as a course has it: a block_size, logits of the last position alone, first in a tuple."""

    def __init__(self, block_size=8):
        super().__init__()
        torch.manual_seed(0)
        self.block_size = block_size
        self.table = nn.Embedding(LETTERS.vocab_size, LETTERS.vocab_size)
        self.longest, self.was_training = 0, False

    def forward(self, tokens):
        self.longest, self.was_training = max(self.longest, tokens.shape[1]), self.training
        return self.table(tokens[:, -1:]), None


@pytest.fixture(scope="module")
def ours():
    torch.manual_seed(0)
    config = ModelConfig(n_layers=1, n_heads=2, d_model=16, context_length=64, vocab_size=LETTERS.vocab_size)
    return GPT(config).eval()


def test_it_prints_and_returns_texts_after_each_prompt_and_figures_at_each_temperature(ours, capsys):
    found = minilm.assess_generation_quality(ours, LETTERS.decode, "cpu", LETTERS.encode, **FEW)
    said = capsys.readouterr().out
    assert [(s["prompt"], s["temperature"]) for s in found["samples"]] == [
        (prompt, heat) for heat in (0.5, 1.0) for prompt in ("The ", "To be or ", "In the beginning ")
    ]
    for sample in found["samples"]:
        assert len(sample["text"]) == 30 and sample["prompt"] + sample["text"] in said
    assert [row["temperature"] for row in found["figures"]] == [0.5, 1.0]
    assert "repeated_4grams" in said and "distinct_2" in found["figures"][0]


def test_150_tokens_at_four_temperatures_unless_asked_otherwise():
    found = minilm.assess_generation_quality(Course(), LETTERS.decode, encode_fn=LETTERS.encode, samples=1)
    assert found["temperatures"] == [0.3, 0.7, 1.0, 1.5] and {len(s["text"]) for s in found["samples"]} == {150}


def test_the_models_own_tokenizer_encodes_unless_another_is_given(ours, monkeypatch):
    monkeypatch.setattr(ours, "tokenizer", LETTERS, raising=False)
    own = minilm.assess_generation_quality(ours, LETTERS.decode, "cpu", **FEW)
    assert own == minilm.assess_generation_quality(ours, LETTERS.decode, "cpu", LETTERS.encode, **FEW)
    other = minilm.assess_generation_quality(ours, LETTERS.decode, "cpu", lambda text: [1, 2, 3], **FEW)
    assert other["samples"] != own["samples"]


def test_without_anything_that_encodes_it_is_refused():
    with pytest.raises(UserError, match="encode_fn"):
        minilm.assess_generation_quality(Course(), LETTERS.decode)


@pytest.mark.parametrize("encode", [lambda text: {}[text], lambda text: []], ids=["fails", "gives nothing"])
def test_a_prompt_that_cannot_be_encoded_is_named(encode):
    with pytest.raises(UserError, match="'The '"):
        minilm.assess_generation_quality(Course(), LETTERS.decode, encode_fn=encode)


def test_a_model_is_given_no_more_than_it_can_take_and_is_left_as_it_was():
    model = Course(block_size=8).train()
    minilm.assess_generation_quality(model, LETTERS.decode, encode_fn=LETTERS.encode, **FEW)
    assert model.longest == 8 and not model.was_training and model.training


def test_the_plain_loop_writes_what_our_own_does(ours):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = ours, ours.config

        def forward(self, tokens):
            return self.inner(tokens)

    def texts(model):
        return minilm.assess_generation_quality(
            model, LETTERS.decode, "cpu", LETTERS.encode, temperatures=(0, 0.8), max_new_tokens=40, samples=2
        )

    assert texts(Wrapped()) == texts(ours)


def test_the_same_seed_writes_the_same_and_another_does_not(ours):
    def of(seed):
        return minilm.assess_generation_quality(ours, LETTERS.decode, "cpu", LETTERS.encode, seed=seed, **FEW)

    assert of(3) == of(3) != of(4)
