"""Files that were made to harm: pickles that call something, bombs that take all memory. Refused in a sentence, never
run, and before memory is taken."""

import os
import pickletools
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

from minilm.errors import UserError
from minilm.sampling.generate import load_run
from minilm.training import archive, checkpoint
from tests.faults import victim


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
