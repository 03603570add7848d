"""Damaged and strange files, and those of another run: mended where they can be, else refused in a sentence."""

import json
import math
import os
import random
import shutil
import zipfile

import pytest
import torch

from minilm.check import check
from minilm.corpus.dataset import open_dataset, prepared
from minilm.errors import UserError
from minilm.sampling.generate import load_run
from minilm.training import checkpoint, journal
from minilm.training.journal import RunFolder, read_rows
from tests.faults import victim

LONG = pytest.mark.faults


class TestDamage:
    def damaged(self, content, drawn):
        data, kind = bytearray(content), drawn.choice(["cut", "flip", "zeros", "burst"])
        at = drawn.randrange(len(data))
        if kind == "cut":
            return kind, bytes(data[:at])
        if kind == "flip":
            for _ in range(drawn.choice([1, 1, 2, 8])):
                data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        length = min(drawn.choice([1, 16, 512, 4096]), len(data) - at)
        if kind == "zeros":
            data[at : at + length] = bytes(length)
        if kind == "burst":
            data[at : at + length] = drawn.randbytes(length)
        return kind, bytes(data)

    @pytest.mark.parametrize("count", [pytest.param(300, id="fast"), pytest.param(10_000, marks=LONG, id="long")])
    def test_no_damaged_checkpoint_loads_otherwise_than_it_was_saved(self, count, trained, tmp_path):
        content = (trained / "checkpoints" / "last.pt").read_bytes()
        whole, drawn = checkpoint.load(trained / "checkpoints" / "last.pt"), random.Random(count)
        path, refused, harmless = tmp_path / "last.pt", 0, 0
        for _ in range(count):
            kind, data = self.damaged(content, drawn)
            path.write_bytes(data)
            try:
                state = checkpoint.load(path)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            harmless += 1  # what was hit is padding, or a field that no reader looks at
            assert victim.same(state, whole), kind
        print(f"{count} damaged checkpoints: {refused} refused, {harmless} loaded as they were saved, 0 otherwise")
        assert refused > 0.8 * count

    @pytest.mark.parametrize("every", [pytest.param(61, id="fast"), pytest.param(1, marks=LONG, id="long")])
    def test_no_bit_of_the_archives_directory_changes_what_is_read(self, every, trained, tmp_path):
        """CRCs are of the content only, and zipfile and torch differ in what they make of the rest: an entry that is
        marked as a folder, torch reads as uninitialised memory."""
        good, path = trained / "checkpoints" / "best.pt", tmp_path / "best.pt"
        content, whole = good.read_bytes(), checkpoint.load(good)
        with zipfile.ZipFile(good) as archive:
            start, entries = archive.start_dir, archive.infolist()
        lengths = [46 + len(e.filename) + len(e.extra) for e in entries]
        places = [*range(start, start + sum(lengths[:3])), *range(start + sum(lengths), len(content))]
        for entry in entries[:3]:
            places += range(entry.header_offset, entry.header_offset + 30 + len(entry.filename) + 4)
        for bit in range(0, 8 * len(places), every):
            data = bytearray(content)
            data[places[bit // 8]] ^= 1 << bit % 8
            path.write_bytes(data)
            try:
                assert victim.same(checkpoint.load(path), whole), (places[bit // 8] - start, bit % 8)
            except UserError:
                continue

    def test_an_entry_that_is_marked_as_a_folder_is_refused(self, trained, tmp_path):
        good, path = trained / "checkpoints" / "best.pt", tmp_path / "best.pt"
        data = bytearray(good.read_bytes())
        with zipfile.ZipFile(good) as archive:
            at = archive.start_dir
            for entry in archive.infolist():
                if entry.filename.endswith("data/0"):
                    data[at + 38] |= 0x10  # the external attributes of a central directory entry
                at += 46 + len(entry.filename) + len(entry.extra)
        path.write_bytes(data)
        with pytest.raises(UserError, match="has entries that no checkpoint has"):
            checkpoint.load(path)

    def test_the_newest_sound_one_is_used_with_a_warning_and_the_run_ends_the_same(self, copied, trained, text_file):
        last = copied / "checkpoints" / "last.pt"
        last.write_bytes(last.read_bytes()[:-500])
        victim.run(victim.config_for(text_file), copied)
        warnings = [e["message"] for e in read_rows(copied / "events.jsonl") if e["event"] == "warning"]
        assert len(warnings) == 1 and str(last) in warnings[0]
        assert victim.differences(trained, copied) == []

    def test_when_none_is_sound_it_says_so(self, copied, text_file):
        for path in (copied / "checkpoints").glob("last*.pt"):
            path.write_bytes(b"")
        with pytest.raises(UserError, match="cannot be resumed, for none of its checkpoints to go on from is sound"):
            victim.run(victim.config_for(text_file), copied)


class TestStrangePaths:
    """Links, pipes, folders in the place of files, and names that climb: one sentence, no waiting, nothing followed."""

    PLACES = ("checkpoints/last.pt", "config.json", "metrics.jsonl", "events.jsonl", "tokenizer.json", "checkpoints")

    def put(self, kind, path, aside):
        if path.is_dir():
            shutil.move(path, aside)
        else:
            path.rename(aside)
        if kind == "link":
            path.symlink_to(aside)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir() if aside.is_file() else path.touch()

    @pytest.mark.parametrize("kind", ["link", "pipe", "other kind"])
    @pytest.mark.parametrize("place", PLACES)
    def test_in_a_run_folder(self, kind, place, copied, tmp_path, text_file):
        for old in (copied / "checkpoints").glob("last_*.pt"):
            old.unlink()
        self.put(kind, copied / place, tmp_path / "aside")
        with pytest.raises(UserError, match=r"is a link to|is no regular file|is no folder|has no config"):
            victim.run(victim.config_for(text_file), copied)
        with pytest.raises(UserError):
            load_run(copied, "last")
        assert check(copied).faults
        assert (tmp_path / "aside").exists()

    def test_a_run_folder_that_is_a_link_or_a_pipe(self, copied, tmp_path, text_file):
        (tmp_path / "link").symlink_to(copied)
        os.mkfifo(tmp_path / "pipe")
        for name, sentence in (("link", f"is a link to {copied}"), ("pipe", "is no folder")):
            for use in (
                lambda name=name: victim.run(victim.config_for(text_file), tmp_path / name),
                lambda name=name: load_run(tmp_path / name),
                lambda name=name: check(tmp_path / name),
            ):
                with pytest.raises(UserError, match=sentence):
                    use()

    @pytest.mark.parametrize("name", [journal.LOCK, journal.HOLDER])
    @pytest.mark.parametrize("kind", ["link", "pipe"])
    def test_in_the_place_of_a_lock(self, kind, name, copied, tmp_path, text_file):
        """What is written there must not go through a link to a file elsewhere."""
        (tmp_path / "aside").write_text("precious")
        (copied / name).unlink(missing_ok=True)
        (copied / name).symlink_to(tmp_path / "aside") if kind == "link" else os.mkfifo(copied / name)
        with pytest.raises(UserError, match=r"is a link to|is no regular file"):
            victim.run(victim.config_for(text_file), copied)
        assert (tmp_path / "aside").read_text() == "precious"

    @pytest.mark.parametrize("kind", ["link", "pipe", "other kind"])
    @pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json", "tokenizer.json"])
    def test_in_prepared_data(self, kind, name, tmp_path, text_file):
        data = prepared(victim.config_for(text_file).data).folder
        shutil.copytree(data, tmp_path / "data")
        self.put(kind, tmp_path / "data" / name, tmp_path / "aside")
        with pytest.raises(UserError, match="is a link to|is no regular file"):
            open_dataset(tmp_path / "data")
        assert check(tmp_path / "data").faults

    @pytest.mark.parametrize("which", ["../../secret", "..", "/etc/passwd", "last.pt/..", "-1", "9" * 5000, "²", "\0"])
    def test_names_of_checkpoints_that_climb_or_are_no_names(self, which, copied, tmp_path):
        torch.save({"format": 1}, tmp_path / "secret.pt")
        with pytest.raises(UserError, match="has no checkpoint"):
            checkpoint.find(copied, which)

    def test_a_name_that_is_too_long_for_a_file(self, tmp_path):
        with pytest.raises(UserError, match=r"^9{100} cannot be read \(File name too long\)"):
            victim.run(victim.config_for("9" * 5000), tmp_path / "run")

    def test_a_pipe_as_text(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.txt")
        with pytest.raises(UserError, match="neither a file nor a folder"):
            victim.run(victim.config_for(tmp_path / "pipe.txt"), tmp_path / "run")


class TestForeignData:
    """Prepared data whose description does not fit what it describes."""

    @pytest.fixture
    def data(self, tmp_path, text_file):
        shutil.copytree(prepared(victim.config_for(text_file).data).folder, tmp_path / "data")
        return tmp_path / "data"

    @pytest.mark.parametrize("value", [None, 0, -1, 10**12, 0.5, float("nan"), "x", [], {}, True])
    def test_any_value_in_its_description_is_used_or_refused(self, value, data):
        meta = json.loads((data / "meta.json").read_text())
        for section, key in [(None, key) for key in meta] + [(s, key) for s in ("train", "val") for key in meta[s]]:
            changed = json.loads(json.dumps(meta))
            (changed[section] if section else changed)[key] = value
            (data / "meta.json").write_text(json.dumps(changed))
            try:
                opened = open_dataset(data)
            except UserError:
                continue
            assert math.isfinite(opened.bits_per_byte(1.0)) and opened.floor is None
            assert len(opened.train) and len(opened.val) and opened.vocab_size == opened.tokenizer.vocab_size

    def test_the_tokenizer_of_another_text_is_refused(self, data):
        tokenizer = json.loads((data / "tokenizer.json").read_text())
        count = len(tokenizer["vocabulary"])
        for vocabulary in (tokenizer["vocabulary"][:-1], [*tokenizer["vocabulary"], "é"]):
            (data / "tokenizer.json").write_text(json.dumps({**tokenizer, "vocabulary": vocabulary}))
            with pytest.raises(UserError, match=f"has {len(vocabulary)} tokens and meta.json says {count}: .* again"):
                open_dataset(data)
            assert check(data).faults == 1


class TestTornJournals:
    @pytest.mark.parametrize("every", [pytest.param(7, id="fast"), pytest.param(1, marks=LONG, id="long")])
    @pytest.mark.parametrize("name", [journal.METRICS, journal.EVENTS])
    def test_cut_at_any_byte_nothing_is_lost_before_it_and_what_follows_is_whole(self, every, name, copied):
        path = copied / name
        content = path.read_bytes()
        rows = read_rows(path)
        ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
        for cut in range(0, len(content) + 1, every):
            path.write_bytes(content[:cut])
            whole = sum(end <= cut or end == cut + 1 for end in ends)  # a line without its end of line is whole too
            with RunFolder(copied, resume=True) as run:
                run.rewind(10**6)
                assert read_rows(path) == rows[:whole], cut
                run.metric({"step": 99, "tokens": 1, "loss": 1.0}) if name == journal.METRICS else run.event(
                    99, "x", "y"
                )
            assert [r["step"] for r in read_rows(path)] == [r["step"] for r in rows[:whole]] + [99], cut
            assert path.read_bytes().endswith(b"\n")

    def test_before_the_first_checkpoint_a_cut_line_is_mended_too(self, copied, text_file):
        """Nothing is glued to it, and lost with it."""
        for path in [*(copied / "checkpoints").iterdir(), copied / journal.METRICS]:
            path.unlink()
        first, *_ = (copied / journal.EVENTS).read_text().splitlines(keepends=True)
        (copied / journal.EVENTS).write_text(first + first[:30])
        victim.run(victim.config_for(text_file), copied)
        lines = (copied / journal.EVENTS).read_text().splitlines()
        assert [json.loads(line)["event"] for line in lines][:3] == ["started", "started", "best"]

    def test_rows_beyond_the_checkpoint_go_and_a_gap_before_it_is_told(self, copied, text_file, trained):
        path = copied / journal.METRICS
        lines = path.read_text().splitlines(keepends=True)
        gone = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == 5)
        path.write_text("".join(lines[:gone] + lines[gone + 1 :]) + '{"step": 13, "loss": 1.0}\n{"step": 14, "lo')
        victim.run(victim.config_for(text_file), copied)
        warnings = [e["message"] for e in read_rows(copied / journal.EVENTS) if e["event"] == "warning"]
        assert warnings == ["metrics.jsonl lacks 1 steps up to 12, the first of them 5"]
        assert max(row["step"] for row in read_rows(path)) == 12
