"""`minilm doctor`: what this machine has, and what would run on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from rich.console import Console

import kernels
from minilm import hardware
from minilm.corpus.sources import cache_folder
from minilm.training.progress import facts_table, size


def diagnose(console: Console | None = None) -> None:
    """Print versions, devices, the kernels that would run and why, free memory and disk."""
    console = console or Console()
    device = hardware.resolve_device("auto")
    facts: dict[str, object] = {name: version or "not installed" for name, version in hardware.versions().items()}
    facts["revision"] = hardware.git_revision() or "n/a (no git checkout)"
    facts["device"] = f"{device} ({hardware.device_name(device)})"
    if torch.backends.mps.is_available():
        facts["mps"] = "there, by --device mps; minilm has not been tried on it, and takes the CPU by itself"
    facts["threads"] = torch.get_num_threads()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        facts[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    for name in ("auto", *kernels.BACKENDS):
        try:
            chosen, why = kernels.explain(name, device)
            facts[f"kernels {name}"] = f"{chosen} ({why})" if name == "auto" else "runs"
        except kernels.BackendUnavailable as error:
            facts[f"kernels {name}"] = f"cannot run: {error}"
    facts["dtype auto"] = hardware.explain_dtype(device)
    dtype = hardware.resolve_dtype("auto", device)
    peak = hardware.peak_flops(device, dtype)
    facts["peak"] = (
        f"{peak / 1e12:,.0f} TFLOP/s, {str(dtype).removeprefix('torch.')}" if peak else "n/a (MFU is not shown)"
    )
    facts["torch.compile"] = "no C++ compiler found" if hardware.compiler_missing() else "has a C++ compiler"
    if free := hardware.memory(device):
        facts["memory"] = f"{size(free[0])} free of {size(free[1])}"
    cache = cache_folder()
    where = next(p for p in (cache, *cache.parents) if p.exists())
    facts["disk"] = (
        f"{size(shutil.disk_usage(Path.cwd()).free)} free here, {size(shutil.disk_usage(where).free)} at the cache"
    )
    facts["cache"] = f"{cache} (MINILM_CACHE moves it)"
    console.print(facts_table(facts), highlight=False)
