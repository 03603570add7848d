"""What this machine is: devices, number formats, peak rates, memory, versions."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minilm.errors import UserError

# Peak dense bf16 (fp16 where the chip has no bf16) rates with fp32 accumulation, TFLOP/s, without sparsity, from the
# makers' data sheets. The longest name found in the device's name counts.
PEAK_TFLOPS = {
    "B200": 2250,
    "GB200": 2500,
    "B100": 1750,
    "H200": 989,
    "GH200": 989,
    "H100": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H800": 989,
    "A100": 312,
    "A800": 312,
    "A40": 149.7,
    "A30": 165,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 364,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 4080": 97.5,
    "RTX 3090": 71,
    "RTX 3080": 59.5,
    "V100": 125,
    "T4": 65,
}
# What makes a training step faster in bfloat16 than in float32 on a CPU: (name, what Linux must say of the processor,
# from which width of the model on). Measured, times as fast, 4 layers, 8 x 128 tokens, AdamW, torch's operators:
#
#   width                                   32     64     96    128    192    256    384
#   AMX, one core                         0.97   1.14   1.36   1.44   1.65   1.74   1.86
#   AVX-512 BF16 of an AMD EPYC              -      -      -    1.4      -    1.7    1.3
#   AVX-512 BF16 of an Intel Xeon, no AMX 0.83   0.85   0.85   0.83   0.85   0.85   0.84
#
# and shakespeare-char-cpu 1.69, 1.7 and 0.70; 2 layers of 64 and 8 x 32 tokens, with AMX, 0.86. Intel's units without
# AMX take a product at 113 GFLOP/s in bfloat16 and at 199 in float32: the flag alone does not say that it is faster.
CPU_BFLOAT16 = (
    ("AMX", {"amx_bf16"}, 96),
    ("AVX-512 BF16", {"avx512_bf16", "AuthenticAMD"}, 128),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda", "cuda:1" or "mps" means here. Raises UserError where it does not exist."""
    if name == "auto":  # never mps, on which nothing here has been run: it can be asked for
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"The device is {name!r}; it must be auto, cpu, cuda, cuda:N or mps.")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise UserError(f"The device is {name!r} and this machine has {count} of that kind; use auto or cpu.")
    return device


def resolve_dtype(name: str, device: torch.device, d_model: int = 0) -> torch.dtype:
    """The dtype of matrix products. auto: bfloat16 on GPUs that have it, float16 on older ones, else float32; on a CPU
    with instructions for bfloat16, bfloat16 for models wide enough to gain by it. Raises UserError for float16 on a
    CPU."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        gains = _cpu_bfloat16() if device.type == "cpu" else None
        return torch.bfloat16 if gains is not None and d_model >= gains[1] else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UserError("train.dtype is 'float16' and the device is a CPU; use float32 or bfloat16 there.")
    return DTYPES[name]


def explain_dtype(device: torch.device) -> str:
    """What the dtype "auto" comes to on `device`, and why, in words."""
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    if device.type == "cuda":
        return f"{dtype} (this GPU has {'bfloat16' if dtype == 'bfloat16' else 'no bfloat16'})"
    if device.type != "cpu":
        return f"{dtype} (nothing else has been measured on {device.type})"
    if gains := _cpu_bfloat16():
        return f"bfloat16 for models {gains[1]} or more wide, which {gains[0]} of this CPU makes faster; else float32"
    if platform.machine().lower() in ("x86_64", "amd64"):
        if "avx512_bf16" in _cpu_says():
            return f"{dtype} (bfloat16 by AVX-512 alone was measured slower than float32 on Intel's processors)"
        return f"{dtype} (this CPU says nothing of AMX or AVX-512 BF16, without which bfloat16 is slower)"
    return f"{dtype} (bfloat16 has not been measured on processors of the kind {platform.machine()})"


def _cpu_bfloat16() -> tuple[str, int] | None:
    """What makes bfloat16 fast on this CPU, and from which width of the model on; None where nothing does."""
    says = _cpu_says()
    return next(((name, width) for name, needed, width in CPU_BFLOAT16 if needed <= says), None)


def _cpu_says() -> set[str]:
    """The maker and the flags of the first processor by Linux; empty elsewhere, and where it does not say."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return set()
    told = dict(line.split(":", 1) for line in first if ":" in line)
    return {word for name, words in told.items() if name.strip() in ("vendor_id", "flags") for word in words.split()}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The chip's peak rate in FLOP/s for `dtype`, or None where it is not known."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    if re.search(r"\b(laptop|max-q|ti|super|mobile)\b", name, re.I):  # other chips under the same number
        return None
    known = [chip for chip in PEAK_TFLOPS if re.search(rf"\b{re.escape(chip)}\b", name, re.I)]
    return PEAK_TFLOPS[max(known, key=len)] * 1e12 if known else None


def memory_bandwidth(device: torch.device) -> float | None:
    """What the device's memory can give in bytes/s: two transfers a clock over its whole bus. None where not known."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    kilohertz, bits = (getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return 2 * kilohertz * 1e3 * bits / 8 or None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return f"{cpu}, {os.cpu_count()} cores"


def memory(device: torch.device) -> tuple[int, int] | None:
    """(available, total) bytes of the device's memory, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}
    return kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024


def keep_freed_memory() -> bool:
    """Have the C library keep what tensors on the CPU give back, up to 32 MiB each, for the next ones; whether it does.

    By itself glibc may return it to the system at every step and be handed it again, page by page and filled with
    zeros: up to a fifth of a small model's step, until larger tensors, such as an evaluation's, teach it otherwise (a
    run that is resumed may take long to see one). For the whole process, which then stays as large as it once was. An
    environment with settings of its own for malloc is left alone, and another C library as it is.
    """
    own = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ)
    if own or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_threshold, 2**25) and mallopt(trim_threshold, 2**31 - 1))


def versions() -> dict[str, str | None]:
    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    import minilm

    packages = ("torch", "triton", "numpy", "tokenizers", "matplotlib")
    return {"minilm": minilm.__version__, "python": platform.python_version()} | {p: version(p) for p in packages}


def git_revision() -> str | None:
    """The commit this code stands at, "+" where files differ from it, or None outside a checkout.

    What $MINILM_REVISION says comes first: a copy on another machine may have no .git, or that of another day.
    """
    return os.environ.get("MINILM_REVISION") or _revision_of_checkout()


def _revision_of_checkout() -> str | None:
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists() or not shutil.which("git"):
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        return revision + "+" * bool(git("status", "--porcelain", "--untracked-files=no")) if revision else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def compiler_missing() -> bool:
    """Whether torch.compile has no C++ compiler to call."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return not any(shutil.which(name) for name in names)


def saved_bytes(module: torch.nn.Module, *inputs: Any) -> int:
    """Bytes that autograd keeps from a forward pass of `module` for its backward: see saved_by_part()."""
    return saved_by_part(module, str, *inputs).total()


def saved_by_part(module: torch.nn.Module, part: Callable[[], str], *inputs: Any) -> Counter[str]:
    """Bytes that autograd keeps from a forward pass of `module` for its backward, its own parameters apart.

    part: the name under which what is kept now is counted; a tensor that several keep is counted with the first. On
    meta tensors this costs no memory and no time to speak of, and counts what would be kept.
    """
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, Any] = {}
    found: Counter[str] = Counter()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage  # held, so that no other storage takes its address
            found[part()] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(*inputs)
    del result
    return found
