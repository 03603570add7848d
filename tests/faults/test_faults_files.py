"""Damaged, hostile and strange files: refused in a sentence, before memory is taken, and never run."""

import json
import math
import os
import pickletools
import random
import resource
import shutil
import zipfile
from pickletools import (
    TAKEN_FROM_ARGUMENT1,
    TAKEN_FROM_ARGUMENT4,
    TAKEN_FROM_ARGUMENT4U,
    TAKEN_FROM_ARGUMENT8U,
    UP_TO_NEWLINE,
)

import pytest
import torch

from minilm.check import check
from minilm.corpus.dataset import open_dataset, prepared
from minilm.errors import UserError
from minilm.sampling.generate import load_run
from minilm.training import archive, checkpoint, journal
from minilm.training.journal import RunFolder, read_rows
from tests.faults import victim

LONG = pytest.mark.faults


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file):
    """A finished run of 12 steps."""
    out = tmp_path_factory.mktemp("faults") / "run"
    victim.run(victim.config_for(text_file), out)
    return out


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


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


def archive_of(pickled, path, template):
    """A torch archive like `template` with another pickle in it."""
    writer = torch._C.PyTorchFileWriter(str(path))
    with zipfile.ZipFile(template) as source:
        for entry in source.infolist():
            name = entry.filename.partition("/")[2]
            if name not in ("version", ".data/serialization_id"):  # which the writer adds
                content = pickled if name == "data.pkl" else source.read(entry)
                writer.write_record(name, content, len(content))
    writer.write_end_of_file()


def text(word):
    return b"\x8c" + bytes([len(word)]) + word.encode()


class TestHostilePickles:
    """Each family of opcodes by which a pickle can call something, calling os.system, open and their like."""

    def payloads(self, planted):
        word, shell = str(planted), f"touch {planted}"
        line, touch = f"V{word}\n".encode(), f"V{shell}\n".encode()
        return {
            "GLOBAL REDUCE": b"cos\nsystem\n(" + touch + b"tR.",
            "GLOBAL REDUCE of protocol 2": b"\x80\x02cposix\nsystem\n" + touch + b"\x85R.",
            "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + touch + b"\x85R.",
            "INST": b"(" + touch + b"ios\nsystem\n.",
            "OBJ": b"(cos\nsystem\n" + touch + b"o.",
            "NEWOBJ": b"\x80\x02cbuiltins\nlist\ncbuiltins\nmap\ncos\nsystem\n(" + touch + b"l\x86\x81\x85R.",
            "NEWOBJ_EX": b"\x80\x04cbuiltins\nlist\ncbuiltins\nmap\ncos\nsystem\n(" + touch + b"l\x86}\x92\x85R.",
            "BUILD": b"\x80\x02cfunctools\npartial\ncos\ngetcwd\n\x85R(cos\nsystem\n" + touch + b"\x85}Ntb)R.",
            "EXT1": b"\x80\x02\x82\x01" + touch + b"\x85R.",
            "EXT2": b"\x80\x02\x83\x01\x00" + touch + b"\x85R.",
            "EXT4": b"\x80\x02\x84\x01\x00\x00\x00" + touch + b"\x85R.",
            "PERSID": b"P" + shell.encode() + b"\n.",
            "dotted name": b"\x80\x02ctorch.serialization\nos.system\n" + touch + b"\x85R.",
            "open": b"\x80\x02cio\nopen\n" + line + b"Vw\n\x86R.",
            "eval": b"\x80\x02cbuiltins\neval\nVopen(" + repr(word).encode() + b",'w')\n\x85R.",
            "exec": b"\x80\x02cbuiltins\nexec\nVopen(" + repr(word).encode() + b",'w')\n\x85R.",
            "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\n__dict__\nVsystem\n\x86R.",
            "partial": b"\x80\x02cfunctools\npartial\ncos\nsystem\n" + touch + b"\x86R)R.",
            "torch.load": b"\x80\x02ctorch\nload\n" + line + b"\x85R.",
            "torch's hub": b"\x80\x02ctorch.hub\ndownload_url_to_file\n" + line + b"\x85R.",
            "numpy": b"\x80\x02cnumpy\nsave\n" + line + b"K\x01\x86R.",
            "BYTEARRAY8": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
            "FRAME": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"cos\nsystem\n" + touch + b"\x85R.",
            "LONG4": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b".",
            "a Parameter": b"\x80\x02ctorch.nn.parameter\nParameter\n)R.",
            "a set": b"\x80\x04\x8f(" + touch + b"\x90.",
        }

    def test_none_runs_as_an_archive_as_a_bare_file_or_as_metadata(self, copied, tmp_path, text_file):
        planted = tmp_path / "ran"
        payloads = self.payloads(planted)
        last, good = copied / "checkpoints" / "last.pt", tmp_path / "good.pt"
        shutil.copy(last, good)
        for name, payload in payloads.items():
            archive_of(payload, last, good)
            with pytest.raises(UserError) as caught:
                checkpoint.load(last)
            assert "\n" not in str(caught.value), name
            last.write_bytes(payload)
            with pytest.raises(UserError, match="is no checkpoint that can be read"):
                checkpoint.load(last)
            (copied / "checkpoints" / ".metadata").write_bytes(payload)
            assert not planted.exists(), name
        shutil.copy(good, last)
        victim.run(victim.config_for(text_file), copied)
        assert not planted.exists()

    @pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
    def test_every_opcode_that_no_checkpoint_has_is_refused_before_torch_sees_it(self, opcode, trained, tmp_path):
        sizes = {TAKEN_FROM_ARGUMENT1: 1, TAKEN_FROM_ARGUMENT4: 4, TAKEN_FROM_ARGUMENT4U: 4, TAKEN_FROM_ARGUMENT8U: 8}
        size = opcode.arg.n if opcode.arg else 0
        argument = {"stringnl": b"'os'\n", "stringnl_noescape_pair": b"os\nsystem\n"}.get(
            opcode.arg.name if opcode.arg else "", b"0\n" if size == UP_TO_NEWLINE else bytes(sizes.get(size, size))
        )
        pickled = b"\x80\x02}" + opcode.code.encode("latin-1") + argument + b"."
        assert [name.name for name, *_ in pickletools.genops(pickled)][2] == opcode.name
        archive_of(pickled, tmp_path / "a.pt", trained / "checkpoints" / "last.pt")
        code = ord(opcode.code)
        named = code not in archive.OPCODES or opcode.name == "GLOBAL"
        asked = "'os system'" if opcode.name == "GLOBAL" else f"opcode {code:#04x}"
        sentence = f"asks for {asked}, which no checkpoint needs"
        with pytest.raises(UserError, match=sentence if named else "is no checkpoint"):
            checkpoint.load(tmp_path / "a.pt")

    def test_opcodes_are_those_of_the_standard_library_with_as_many_bytes_after_them(self, trained):
        """Or a reader here and one in torch could see different things in the same bytes."""
        known = {ord(o.code): o for o in pickletools.opcodes}
        lengths = {TAKEN_FROM_ARGUMENT1: 1, TAKEN_FROM_ARGUMENT4: 4, TAKEN_FROM_ARGUMENT4U: 4}
        for code, size in archive.SIZES.items():
            assert size == (known[code].arg.n if known[code].arg else 0), known[code].name
        for code, size in archive.COUNTED.items():
            assert size == lengths[known[code].arg.n], known[code].name
        assert {known[code].name for code in (archive.STOP, archive.GLOBAL)} == {"STOP", "GLOBAL"}
        assert all(known[code].proto <= 2 for code in archive.OPCODES)

    def test_what_is_refused_by_name_would_have_been_run_by_an_unpickler(self, tmp_path):
        """Or this class would test nothing: a plain unpickler, in a process of its own, runs most of them."""
        planted = tmp_path / "ran"
        ran = 0
        for payload in self.payloads(planted).values():

            def work(payload=payload):
                os.close(2)
                __import__("pickle").loads(payload)

            victim.forked(work)
            ran += planted.exists()
            planted.unlink(missing_ok=True)
        assert ran >= 12


def peak_of(work):
    """By how much the resident memory of this process at its peak grew, in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


class TestBombs:
    def refused(self, path, match, run=None):
        def work():
            with pytest.raises(UserError, match=match):
                load_run(run, "last") if run else checkpoint.load(path)

        assert peak_of(work) < 2**26

    def test_compressed(self, copied, tmp_path):
        path = tmp_path / "bomb.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}.")
            with archive.open("a/data/0", "w") as entry:
                for _ in range(512):
                    entry.write(bytes(2**20))
        assert path.stat().st_size < 2**20
        self.refused(path, "has compressed entries")

    @pytest.mark.parametrize("extra", [{}, {"config": None}])
    def test_a_view_of_stride_zero(self, extra, trained, tmp_path):
        state = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
        state["model"]["token_embedding.weight"] = torch.zeros(1).expand(10**12)
        state |= extra
        torch.save(state, tmp_path / "bomb.pt")
        assert (tmp_path / "bomb.pt").stat().st_size < 2**20
        self.refused(tmp_path / "bomb.pt", "asks for more than it holds, with a tensor of 1000000000000")

    def test_a_size_that_the_bytes_do_not_cover(self, tmp_path):
        torch.save({"format": 1, "model": {"w": torch.zeros(16)}}, tmp_path / "good.pt")
        with zipfile.ZipFile(tmp_path / "good.pt") as archive:
            pickled = archive.read("good/data.pkl")
        shape, stored = b"K\x10\x85", b"cpuq\tK\x10"
        assert pickled.count(shape) == 1 and pickled.count(stored) == 1
        for size in (17, 10**9, 2**31 - 1):
            number = b"J" + size.to_bytes(4, "little")
            archive_of(pickled.replace(shape, number + b"\x85"), tmp_path / "a.pt", tmp_path / "good.pt")
            self.refused(tmp_path / "a.pt", "asks for more than it holds|no checkpoint that can be read")
            both = pickled.replace(shape, number + b"\x85").replace(stored, stored[:-2] + number)
            archive_of(both, tmp_path / "b.pt", tmp_path / "good.pt")
            self.refused(tmp_path / "b.pt", "asks for more than it holds|record size")

    def test_many_views_of_one_storage(self, tmp_path):
        numbers = torch.zeros(2**20)
        torch.save({"format": 1, "model": [numbers[i : i + 2**19] for i in range(100)]}, tmp_path / "bomb.pt")
        self.refused(tmp_path / "bomb.pt", "asks for more than it holds")

    def test_a_bytearray(self, trained, tmp_path):
        archive_of(
            b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
            tmp_path / "bomb.pt",
            trained / "checkpoints" / "last.pt",
        )
        self.refused(tmp_path / "bomb.pt", "asks for 'builtins bytearray'")

    def test_lists_of_lists_that_share_themselves_and_lists_without_end(self, trained, tmp_path):
        laughs = b"\x80\x02]q\x00" + b"".join(b"](h%c" % i + b"h%c" % i + b"eq%c" % (i + 1) for i in range(200)) + b"."
        deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
        for payload in (laughs, deep):
            archive_of(payload, tmp_path / "bomb.pt", trained / "checkpoints" / "last.pt")
            self.refused(tmp_path / "bomb.pt", "is no checkpoint")

    @pytest.mark.parametrize(
        "change", [{"n_layers": 10_000}, {"d_model": 2**20}, {"vocab_size": 2**31}, {"d_ff": 2**24}]
    )
    def test_a_configuration_that_asks_for_another_model(self, change, copied):
        last = copied / "checkpoints" / "last.pt"
        state = torch.load(last, weights_only=True)
        state["config"]["model"] |= change
        torch.save(state, last)
        self.refused(last, "does not fit this model", run=copied)

    def test_entries_within_entries(self, tmp_path):
        """Files of a few bytes that hold one another add up to any size."""

        def within(count, inner):
            with zipfile.ZipFile(tmp_path / "inner.zip", "w") as archive:
                archive.writestr(f"a/data/{count}", inner)
                start = archive.start_dir
            return (tmp_path / "inner.zip").read_bytes()[:start]

        record, path = bytes(1000), tmp_path / "bomb.pt"
        for count in range(20, 0, -1):
            record = within(count, record)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}.")
            offset = archive.fp.tell()
            archive.writestr("a/data/1", record[30 + len("a/data/1") :])
            outer = archive.filelist[-1]
            for count in range(2, 21):
                offset += 30 + len(outer.filename)
                inner = zipfile.ZipInfo(f"a/data/{count}")
                inner.header_offset = offset
                archive.filelist.append(inner)
                outer = inner
            archive.fp.flush()
            content = path.read_bytes()
            for inner in archive.filelist[2:]:
                at = inner.header_offset
                inner.CRC, inner.file_size = (int.from_bytes(content[at + n : at + n + 4], "little") for n in (14, 22))
                inner.compress_size = inner.file_size
            for entry in archive.filelist:
                entry.external_attr = 0
        self.refused(path, "overlap")


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
