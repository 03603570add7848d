"""A tokenizer is the same list of tokens and the same text back, in minilm and in transformers."""

import json

import numpy as np
import pytest

from minilm.corpus.tokenizer import END_OF_TEXT, CharTokenizer, load_tokenizer
from minilm.corpus.tokenizer_json import from_library, to_library
from minilm.errors import UserError
from tests.interop.interop_models import TEXT, byte_pairs, characters

ODD = (
    "\x00\t\n\x0b\x0c\r\x1c\x85\u00a0\u200b\u200d\u0301\u2028\u2029"
    "\u3000\ud7ff\ue000\ufeff\ufffd\U0010ffff \\\"'{}<|>▁Ġ#"
)


def as_transformers(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(to_library(tokenizer), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False})
    )
    return transformers.AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", [TEXT, ODD, ODD[::-1] + "\r\n\n\r" * 3, "don 't . , ! ?  n't  's\n 're", ""])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_text_has_the_same_ids_in_transformers_and_comes_back_exactly(kind, text, tmp_path):
    tokenizer = byte_pairs() if kind == "bpe" else CharTokenizer(sorted(set(ODD + TEXT + "don't s,re")))
    theirs = as_transformers(tmp_path, tokenizer)
    ids = theirs(text).input_ids
    assert ids == tokenizer.encode(text).tolist()
    assert theirs.decode(ids) == text == tokenizer.decode(ids)


def test_every_character_of_a_vocabulary_has_the_id_it_had(tmp_path):
    vocabulary = [c for c in map(chr, range(0, 0x3000, 7)) if c]
    np.random.default_rng(0).shuffle(vocabulary)
    theirs = as_transformers(tmp_path, CharTokenizer(vocabulary))
    assert theirs("".join(vocabulary)).input_ids == list(range(len(vocabulary)))
    assert len(theirs) == len(vocabulary)


def test_an_unknown_character_is_an_error_in_transformers_too(tmp_path):
    theirs = as_transformers(tmp_path, characters())
    with pytest.raises(Exception, match="UNK"):
        theirs("A fox ate Ω")


@pytest.mark.parametrize("make", [characters, byte_pairs])
def test_a_tokenizer_comes_back_as_the_kind_it_was(make, tmp_path):
    tokenizer = make()
    (tmp_path / "tokenizer.json").write_text(to_library(tokenizer), encoding="utf-8")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(again) is type(tokenizer) and again.to_json() == tokenizer.to_json()


def test_the_end_of_a_document_is_one_token_on_both_sides(tmp_path):
    theirs, tokenizer = as_transformers(tmp_path, byte_pairs()), byte_pairs()
    assert len(tokenizer.encode(END_OF_TEXT)) == 1
    assert theirs("a" + END_OF_TEXT + "\nb").input_ids == tokenizer.encode("a" + END_OF_TEXT + "\nb").tolist()


def test_tokenizers_of_another_kind_are_refused_by_name(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"a": 0, "word": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    unigram = Tokenizer(models.Unigram([("a", 0.0)], unk_id=0))
    plain = Tokenizer(models.BPE())
    around = Tokenizer.from_str(byte_pairs().to_json())
    around.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, 0)]
    )
    llama = Tokenizer(models.BPE(byte_fallback=True))
    llama.pre_tokenizer, llama.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    cases = ((words, "list of words"), (unigram, "is Unigram"), (plain, "not byte-level"), (llama, "not byte-level"))
    for tokenizer, sentence in (*cases, (around, "special tokens around every text")):
        with pytest.raises(UserError, match=sentence):
            from_library(tokenizer.to_str())
    with pytest.raises(UserError, match="half of a character"):
        to_library(CharTokenizer(["a", "\ud800"]))
