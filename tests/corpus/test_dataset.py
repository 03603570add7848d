"""Prepared data: exactly the text, cut where it says, opened only when whole; batches known at any step."""

import json
import math

import numpy as np
import pytest

from minilm.config import DataConfig
from minilm.corpus import dataset
from minilm.corpus.dataset import BatchSampler, open_dataset, prepare, prepared
from minilm.errors import UserError

TEXT = "".join(f"Line {i}: naïve café, {i * i}.\n" for i in range(500))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def texts(data):
    return [data.tokenizer.decode(tokens) for tokens in (data.train, data.val)]


@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_tail_split_cuts_the_characters_where_nanogpt_does(source, tmp_path, tokenizer, block, monkeypatch):
    monkeypatch.setattr(dataset, "BLOCK", block)
    config = DataConfig(source=str(source), tokenizer=tokenizer, vocab_size=300, val_fraction=0.1)
    data = open_dataset(prepare(config, tmp_path / "out"))
    train, val = texts(data)
    cut = int(len(TEXT) * 0.9)
    assert (train, val) == (TEXT[:cut], TEXT[cut:])
    for split, text in (("train", train), ("val", val)):
        m = data.meta[split]
        assert (m["characters"], m["bytes"]) == (len(text), len(text.encode()))
    assert data.bits_per_byte(2.0) == pytest.approx(2.0 / math.log(2) * len(data.val) / len(val.encode()))


@pytest.mark.parametrize("text", ["é漢😀x" * 500, "word é漢😀 " * 300], ids=["no spaces", "spaces"])
def test_one_endless_line_is_read_in_pieces_that_join_to_the_whole(tmp_path, text, monkeypatch):
    monkeypatch.setattr(dataset, "BLOCK", 33)
    (tmp_path / "line.txt").write_text(text, encoding="utf-8")
    data = open_dataset(prepare(DataConfig(source=str(tmp_path / "line.txt")), tmp_path / "out"))
    assert "".join(texts(data)) == text
    longest, read = [], dataset._Spool.read

    def recorded(spool, start, end):
        for piece in read(spool, start, end):
            longest.append(len(piece.encode()))
            yield piece

    monkeypatch.setattr(dataset._Spool, "read", recorded)
    prepare(DataConfig(source=str(tmp_path / "line.txt")), tmp_path / "again")
    assert max(longest) < 6 * 33


def test_document_split_holds_out_whole_documents_and_equal_ones_together(tmp_path):
    documents = [f"document {i % 300} says {i % 300}" for i in range(600)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    data = open_dataset(prepare(DataConfig(source=str(path), val_fraction=0.2), tmp_path / "out"))
    train, val = ({*text.split("\n\n")[:-1]} for text in texts(data))
    assert train | val == set(documents) and not train & val
    assert 0.1 < len(val) / 300 < 0.3
    assert data.meta["split"]["rule"] == "document"


def test_a_few_documents_are_cut_by_position(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name} text " * 99)
    data = open_dataset(prepare(DataConfig(source=str(tmp_path)), tmp_path / "out"))
    assert data.meta["split"]["rule"] == "tail" and len(data.val) == pytest.approx(len(data.train) / 9, rel=0.01)


def test_documents_of_bpe_end_in_one_token(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i} " * 9}) + "\n" for i in range(50)))
    data = open_dataset(prepare(DataConfig(source=str(path), tokenizer="bpe", vocab_size=300), tmp_path / "out"))
    train, val = texts(data)
    end = data.tokenizer.encode("<|endoftext|>")
    assert len(end) == 1
    assert (np.concatenate((data.train, data.val)) == end[0]).sum() == 50 == (train + val).count("<|endoftext|>")


def test_fables_know_their_floor(tmp_path):
    from minilm.corpus import fables

    data = open_dataset(prepare(DataConfig(source="fables", characters=60_000), tmp_path / "out"))
    _, val = texts(data)
    stories = {text: log_p for text, log_p in fables.stories(60_000, 0)}
    held_out = [s + "\n\n" for s in val.split("\n\n")[:-1]]
    nats = -sum(stories[s] for s in held_out)
    assert data.meta["floor"]["nats"] == pytest.approx(nats, rel=1e-12) and len(held_out) > 3
    assert data.floor == pytest.approx(nats / len(val))
    assert data.meta["floor"]["bits_per_byte"] == pytest.approx(data.bits_per_byte(data.floor))


def test_the_cache_is_keyed_by_content(source, tmp_path):
    config = DataConfig(source=str(source))
    first = prepared(config)
    assert prepared(config).folder == first.folder
    moved = tmp_path / "moved.txt"
    moved.write_text(TEXT, encoding="utf-8")
    again = prepared(DataConfig(source=str(moved)))
    assert again.folder == first.folder
    assert (first.meta["source"], again.meta["source"]) == (str(source), str(moved))
    assert again.meta == {**first.meta, "source": str(moved)}
    assert prepared(DataConfig(source=str(source), val_fraction=0.2)).folder != first.folder
    source.write_text(TEXT + "more", encoding="utf-8")
    assert prepared(config).folder != first.folder


def test_a_source_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine " * 100 + b"\xff")
    with pytest.raises(UserError, match="offset 500"):
        prepare(DataConfig(source=str(tmp_path / "a.txt")), tmp_path / "data" / "out")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("", {}, "a.txt is empty; it needs some text"),
        ("abc", {"val_fraction": 0.9999}, "leaves the train split empty"),
        ("abc", {"split": "document", "val_fraction": 1e-9}, "leaves the val split empty"),
    ],
)
def test_too_little_text_is_one_sentence(tmp_path, text, options, sentence):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=sentence):
        prepare(DataConfig(source=str(tmp_path / "a.txt"), **options), tmp_path / "out")


def test_a_folder_of_other_things_is_not_overwritten(source, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    (tmp_path / "precious" / "meta.json").write_text("{}")
    with pytest.raises(UserError, match="holds other things than prepared data; name another folder"):
        prepare(DataConfig(source=str(source)), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_prepared_folder_is_a_source_and_may_be_prepared_again(source, tmp_path):
    for _ in range(2):
        folder = prepare(DataConfig(source=str(source)), tmp_path / "out")
    assert prepared(DataConfig(source=str(folder))).folder == folder


def test_damage_in_the_cache_is_made_good(source):
    folder = prepared(DataConfig(source=str(source))).folder
    (folder / "val.bin").write_bytes(b"")
    assert len(prepared(DataConfig(source=str(source))).val)


class TestDamage:
    @pytest.fixture
    def folder(self, source, tmp_path):
        return prepare(DataConfig(source=str(source)), tmp_path / "out")

    def test_a_cut_file_is_named(self, folder):
        (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1])
        with pytest.raises(UserError, match=r"train.bin has \d+ bytes and meta.json says \d+"):
            open_dataset(folder)

    def test_an_id_beyond_the_vocabulary_is_named_with_its_position(self, folder):
        tokens = np.fromfile(folder / "val.bin", dtype=np.uint16)
        tokens[17] = 60_000
        tokens.tofile(folder / "val.bin")
        with pytest.raises(UserError, match=r"val.bin holds token 60000 at position 17"):
            open_dataset(folder)

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99}'])
    def test_other_metadata_is_refused(self, folder, content):
        (folder / "meta.json").write_text(content)
        with pytest.raises(UserError, match=r"cannot be read|format 99"):
            open_dataset(folder)

    def test_a_missing_file_is_named(self, folder):
        (folder / "val.bin").unlink()
        with pytest.raises(UserError, match=r"val.bin is missing"):
            open_dataset(folder)


class TestBatches:
    tokens = np.arange(1000, dtype=np.uint16)

    def test_a_step_always_has_the_same_batch_whatever_came_before(self):
        one, other = (BatchSampler(self.tokens, 16, 4, seed=3) for _ in "ab")
        for step in range(5):
            one.batch(step)
        assert (one.batch(7) == other.batch(7)).all()
        assert (one.batch(7) != one.batch(8)).any()
        assert (one.batch(7) != BatchSampler(self.tokens, 16, 4, seed=4).batch(7)).any()

    @pytest.mark.parametrize("dtype", ["<u2", "<u4"])
    def test_a_file_is_read_as_the_same_batches_and_never_mapped(self, tmp_path, dtype):
        self.tokens.astype(dtype).tofile(tmp_path / "tokens.bin")
        on_disk = np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r")
        sampler = BatchSampler(on_disk, 16, 4, seed=3)
        sampler.tokens = None  # the map is not what is read
        for step in range(20):
            batch = sampler.batch(step)
            assert batch.dtype == np.int64
            assert batch.tolist() == BatchSampler(self.tokens, 16, 4, seed=3).batch(step).tolist()

    def test_windows_are_consecutive_tokens_and_reach_both_ends(self):
        sampler = BatchSampler(self.tokens[:20], 16, 64, seed=0)
        batch = sampler.batch(0)
        assert batch.shape == (64, 17) and batch.dtype == np.int64
        assert (np.diff(batch) == 1).all()
        assert set(batch[:, 0]) == {0, 1, 2, 3}

    def test_batches_never_change_between_versions(self):
        assert BatchSampler(self.tokens, 2, 6, seed=1).batch(5)[:, 0].tolist() == GOLDEN_OFFSETS

    def test_a_corpus_no_longer_than_the_context_is_refused(self):
        with pytest.raises(UserError, match=r"has 16 tokens and model.context_length is 16; give at least 17"):
            BatchSampler(self.tokens[:16], 16, 1, seed=0)


GOLDEN_OFFSETS = [389, 85, 461, 743, 906, 159]
