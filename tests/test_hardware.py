"""The memory that a training gives back and takes again."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

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
