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


@pytest.mark.parametrize("flags", [{"amx_bf16", "avx512_bf16"}, {"avx512_bf16", "sse"}, {"avx512f"}, set()], ids=str)
def test_auto_is_bfloat16_on_a_cpu_that_has_instructions_for_it_from_the_width_on_that_gains(flags, monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    said = hardware.explain_dtype(CPU)
    gains = next((gains for flag, gains in hardware.CPU_BFLOAT16.items() if flag in flags), None)
    assert (gains is None) == (not flags & {"amx_bf16", "avx512_bf16"})
    if gains is None:
        assert hardware.resolve_dtype("auto", CPU, 4096) == torch.float32
        assert said.startswith("float32 (") and "AMX or AVX-512 BF16" in said
    else:
        name, width = gains
        assert hardware.resolve_dtype("auto", CPU, width) == torch.bfloat16
        assert hardware.resolve_dtype("auto", CPU, width - 1) == torch.float32
        assert said.startswith(f"bfloat16 for models {width} or more wide") and name in said
    assert hardware.resolve_dtype("float32", CPU, 4096) == torch.float32  # what is asked for by name stands


def test_other_processors_stay_in_float32_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: set())
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert hardware.resolve_dtype("auto", CPU, 4096) == torch.float32
    assert hardware.explain_dtype(CPU) == "float32 (bfloat16 has not been measured on processors of the kind aarch64)"
    assert hardware.explain_dtype(torch.device("mps")) == "float32 (nothing else has been measured on mps)"


@pytest.mark.parametrize("has", [True, False])
def test_the_reason_on_a_gpu_is_whether_it_has_bfloat16(has, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    said = hardware.explain_dtype(torch.device("cuda"))
    assert said == ("bfloat16 (this GPU has bfloat16)" if has else "float16 (this GPU has no bfloat16)")


def test_flags_are_those_of_the_system_and_none_where_it_does_not_say(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse avx512_bf16\n\nflags\t\t: other\n")
    for file, expected in (("cpuinfo", {"fpu", "sse", "avx512_bf16"}), ("nothing", set())):
        monkeypatch.setattr(hardware, "Path", lambda _, file=file: tmp_path / file)
        assert hardware._cpu_flags() == expected


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
