"""Tokenizers: every text comes back as it was, by character and by byte pair."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilm.corpus.tokenizer as tokenizer_module
from minilm.corpus.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, code_points, load_tokenizer
from minilm.errors import UserError

CORPUS = "the cat sat on the mat, the rat sat on the cat. " * 50 + "Ünïcödé 😀 \r\n\ttabs"
BPE = BPETokenizer.train([CORPUS], 400)


def char_tokenizer(text, unknown="error"):
    seen = np.zeros(0x110000, dtype=bool)
    seen[code_points(text)] = True
    return CharTokenizer.train(seen, unknown)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_gives_every_text_back(text):
    assert BPE.decode(BPE.encode(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_characters_give_every_text_of_theirs_back(text):
    tokenizer = char_tokenizer(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) == len(text) and ids.max() < tokenizer.vocab_size


def test_characters_are_numbered_in_sorted_order_as_nanogpt_numbers_them():
    assert char_tokenizer("hello\n").vocabulary == ["\n", "e", "h", "l", "o"]


def test_an_unseen_character_is_named_with_its_position():
    with pytest.raises(UserError, match=r"The character 'ß' at position 3 is not among the 5"):
        char_tokenizer("hello\n").encode("helß")


def test_an_unseen_character_is_replaced_on_request():
    assert char_tokenizer("abc", "replace").encode("aßc", "replace").tolist() == [0, 3, 2]
    plain = char_tokenizer("abc?")
    assert plain.decode(plain.encode("aßc", "replace")) == "a?c"


def test_bpe_learns_merges_and_encodes_many_as_one_after_another():
    assert BPE.vocab_size == 400 or BPE.vocab_size > 257
    ids = BPE.encode(CORPUS)
    assert len(ids) < len(CORPUS) / 2
    assert BPE.encode_many(["the cat", " sat"]).tolist() == [*BPE.encode("the cat"), *BPE.encode(" sat")]


def test_a_long_text_in_pieces_has_the_tokens_and_teaches_the_merges_of_the_whole(monkeypatch):
    words = ["word", " ", "  ", "   ", "\n", "\n\n", "\t", " it's", " 42", "é", "日本", " .", "  x", " the cat sat"]
    generator = random.Random(0)
    text = "".join(generator.choice(words) for _ in range(4000))
    whole, merges = BPE.encode(text).tolist(), BPETokenizer.train([text], 300).to_json()
    monkeypatch.setattr(tokenizer_module, "PIECE", 200)
    assert max(map(len, tokenizer_module._pieces([text]))) <= 200
    assert "".join(tokenizer_module._pieces([text])) == text
    assert BPE.encode_many([text]).tolist() == whole
    assert BPETokenizer.train([text], 300).to_json() == merges
    assert BPE.encode_many(["x" * 1000]).tolist() != []  # no space to cut at


def test_the_end_of_text_is_one_token():
    assert len(BPE.encode(END_OF_TEXT)) == 1


@pytest.mark.parametrize("tokenizer", [BPE, char_tokenizer(CORPUS)], ids=["bpe", "char"])
def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = load_tokenizer(path)
    assert loaded.vocab_size == tokenizer.vocab_size and loaded.kind == tokenizer.kind
    assert loaded.encode(CORPUS).tolist() == tokenizer.encode(CORPUS).tolist()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"type": "char"}', "\0"])
def test_a_file_that_holds_no_tokenizer_is_one_sentence(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(path)
    with pytest.raises(UserError, match="missing"):
        load_tokenizer(tmp_path / "none.json")
