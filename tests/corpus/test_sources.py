"""Sources: files, folders, globs, compressed and not, are read as they are; what cannot be read is named."""

import gzip
import json

import pytest

from minilm.config import DataConfig
from minilm.corpus import sources
from minilm.corpus.sources import open_source
from minilm.errors import UserError


def documents(source, **options):
    found, text = [], ""
    for piece in open_source(DataConfig(source=str(source), **options)).pieces():
        text += piece.text
        if piece.ends_document:
            found.append(text)
            text = ""
    return found


def test_a_folder_is_its_files_in_sorted_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second\r\n", newline="")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "sub" / "c.py.gz").write_bytes(gzip.compress("third ✓".encode()))
    (tmp_path / "notes.pdf").write_bytes(b"\xff")
    (tmp_path / ".env.txt").write_text("a secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("history")
    assert documents(tmp_path) == ["first", "second\r\n", "third ✓"]
    assert documents(f"{tmp_path}/**/*.gz") == ["third ✓"]
    assert documents(f"{tmp_path}/a.md,{tmp_path}/b.txt") == ["first", "second\r\n"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl_gives_one_document_a_line_from_its_field(tmp_path, suffix):
    path = tmp_path / f"rows.jsonl{suffix}"
    content = "".join(json.dumps({"text": "x", "body": f"row {i}"}) + "\n\n" for i in range(3)).encode()
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert documents(path, field="body") == ["row 0", "row 1", "row 2"]


def test_a_large_file_comes_in_pieces_that_join_to_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 7)
    text = "äöü😀 and so on\n" * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert documents(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_bytes_that_are_not_utf8_are_named_by_their_offset(tmp_path, monkeypatch, block):
    monkeypatch.setattr(sources, "BLOCK", block)
    (tmp_path / "a.txt").write_bytes("é good, then ".encode() + b"\xe9 bad")
    with pytest.raises(UserError, match=r"a.txt is not UTF-8: byte 0xe9 at offset 14"):
        documents(tmp_path / "a.txt")


def test_a_jsonl_line_that_is_not_utf8_is_named_by_its_offset_in_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"byte 0xff at offset 24"):
        documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"text": "a"}\n{"text"', "line 2 is not JSON"),
        ('{"body": "a"}', "line 1 has no text in the field 'text'"),
        ('{"text": 3}', "line 1 has no text in the field 'text'"),
        ("[1]", "line 1 has no text in the field 'text'"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, content, sentence):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=sentence):
        documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.txt", "There is no file, folder or source named .*missing.txt; give fables, shakespeare, python"),
        ("*.txt", "No file matches"),
        ("", "holds no file that can be read"),
        ("image.png", "ends in '.png'; a data file must end in .txt, .md, .py, .jsonl, each also .gz"),
        ("torn.txt.gz", "damaged or cut short"),
    ],
)
def test_what_cannot_be_a_source_is_one_sentence(tmp_path, name, sentence):
    if name.endswith("png"):
        (tmp_path / name).touch()
    if name.endswith("gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"text" * 1000)[:-9])
    with pytest.raises(UserError, match=sentence):
        documents(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_is_one_sentence(tmp_path, name, damage):
    content = bytearray(gzip.compress(b'{"text": "some text"}\n' * 5000))
    content = content[:-20] if damage == "cut" else content[:30] + b"\xff" * 8 + content[38:]
    (tmp_path / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match="cannot be read"):
        documents(tmp_path / name)


def test_half_a_character_is_named_by_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(UserError, match="line 2 holds half of a character"):
        documents(tmp_path / "a.jsonl")


def test_python_is_the_installed_library_and_is_text():
    source = open_source(DataConfig(source="python"))
    names = [p.name for p in source.paths]
    assert "argparse.py" in names and not any("site-packages" in p.parts for p in source.paths)
    assert source.paths == sorted(source.paths)


class TestShakespeare:
    def test_without_a_network_the_error_says_what_to_do(self, monkeypatch, cache):
        monkeypatch.setattr(sources, "SHAKESPEARE_URL", "http://127.0.0.1:9/nothing")
        with pytest.raises(UserError, match=r"could not be downloaded .*; put the file at .*shakespeare.txt yourself"):
            sources.shakespeare()
        assert not list(cache.glob("shakespeare*"))

    def test_other_content_is_refused_and_not_kept(self, monkeypatch, cache, tmp_path):
        (tmp_path / "other").write_bytes(b"not Shakespeare")
        monkeypatch.setattr(sources, "SHAKESPEARE_URL", (tmp_path / "other").as_uri())
        with pytest.raises(UserError, match="SHA-256 differs"):
            sources.shakespeare()
        assert not list(cache.glob("shakespeare*"))

    def test_the_right_content_is_kept_and_not_downloaded_again(self, monkeypatch, cache, tmp_path):
        (tmp_path / "right").write_bytes(b"right")
        monkeypatch.setattr(sources, "SHAKESPEARE_SHA256", sources._sha256(b"right"))
        monkeypatch.setattr(sources, "SHAKESPEARE_URL", (tmp_path / "right").as_uri())
        path = sources.shakespeare()
        (tmp_path / "right").unlink()
        assert sources.shakespeare() == path and path.read_bytes() == b"right"
        path.unlink()
