"""What a machine is taken for, and the memory that a training gives back and takes again."""

import ctypes
import io
import os
import platform
import re
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from minilm import hardware
from minilm.doctor import diagnose

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("says", "name", "width"),
    [
        ({"GenuineIntel", "amx_bf16", "avx512_bf16"}, "AMX", 96),
        ({"AuthenticAMD", "avx512_bf16", "sse"}, "AVX-512 BF16", 128),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_that_is_faster_so_from_the_width_on_that_gains(says, name, width, monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_says", lambda: says)
    assert hardware.resolve_dtype("auto", CPU, width) == torch.bfloat16
    assert hardware.resolve_dtype("auto", CPU, width - 1) == torch.float32
    said = hardware.explain_dtype(CPU)
    assert said == f"bfloat16 for models {width} or more wide, which {name} of this CPU makes faster; else float32"
    assert hardware.resolve_dtype("float32", CPU, 4096) == torch.float32  # what is asked for by name stands


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ({"GenuineIntel", "avx512_bf16"}, "slower than float32 on Intel's processors"),
        ({"AuthenticAMD", "avx512f"}, "says nothing of AMX or AVX-512 BF16"),
        (set(), "says nothing of AMX or AVX-512 BF16"),
    ],
)
def test_other_cpus_of_that_family_stay_in_float32_and_the_reason_is_said(says, reason, monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_says", lambda: says)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert hardware.resolve_dtype("auto", CPU, 4096) == torch.float32
    said = hardware.explain_dtype(CPU)
    assert said.startswith("float32 (") and reason in said


def test_other_processors_stay_in_float32_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_says", lambda: set())
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert hardware.resolve_dtype("auto", CPU, 4096) == torch.float32
    assert hardware.explain_dtype(CPU) == "float32 (bfloat16 has not been measured on processors of the kind aarch64)"
    assert hardware.explain_dtype(torch.device("mps")) == "float32 (nothing else has been measured on mps)"


@pytest.mark.parametrize("has", [True, False])
def test_the_reason_on_a_gpu_is_whether_it_has_bfloat16(has, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    said = hardware.explain_dtype(torch.device("cuda"))
    assert said == ("bfloat16 (this GPU has bfloat16)" if has else "float16 (this GPU has no bfloat16)")


def test_what_the_system_says_of_the_cpu_is_read_and_nothing_where_it_says_nothing(tmp_path, monkeypatch):
    (tmp_path / "amd").write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: amx_bf16 in name alone\n"
        "flags\t\t: fpu sse avx512_bf16\nbugs\t\t:\n\nprocessor\t: 1\nflags\t\t: other\n"
    )
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    for file, expected in (("amd", {"AuthenticAMD", "fpu", "sse", "avx512_bf16"}), ("arm", set()), ("none", set())):
        monkeypatch.setattr(hardware, "Path", lambda _, file=file: tmp_path / file)
        assert hardware._cpu_says() == expected


def test_a_mac_begins_on_its_cpu_and_mps_is_there_for_the_asking(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.resolve_device("auto") == CPU
    assert hardware.resolve_device("mps") == torch.device("mps")
    console = Console(file=io.StringIO(), width=200)
    diagnose(console)
    assert re.search(r"mps +there, by --device mps; minilm has not been tried on it", console.file.getvalue())


# What the C library does with 24 MiB: (mapped apart?, MiB it keeps at the top of its heap once they are given back).
TAKE_AND_GIVE_BACK = """
import ctypes, sys
from minilm import hardware

libc = ctypes.CDLL(None)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
libc.mallinfo2.restype = Info
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
said = hardware.keep_freed_memory() if sys.argv[1] == "kept" else None
mapped = libc.mallinfo2().hblks
block = libc.malloc(24 * 2**20)
mapped = libc.mallinfo2().hblks - mapped
libc.free(block)
print(said, mapped, libc.mallinfo2().keepcost // 2**20)
"""
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later"
)


def taken_and_given_back(which, **settings):
    """In a process of its own, for what is set is set for the whole of one."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | settings
    command = [sys.executable, "-c", TAKE_AND_GIVE_BACK, which]
    said, mapped, kept = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout.split()
    return said, int(mapped), int(kept)


@glibc
def test_memory_given_back_is_kept_for_the_next_tensor():
    said, mapped, kept = taken_and_given_back("kept")
    assert (said, mapped) == ("True", 0) and kept >= 24
    assert taken_and_given_back("by itself")[1:] == (1, 0), "the test shows nothing: glibc does so by itself"


@glibc
def test_settings_of_the_environment_are_left_alone():
    assert taken_and_given_back("kept", MALLOC_MMAP_THRESHOLD_="65536")[:2] == ("False", 1)
