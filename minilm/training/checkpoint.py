"""Checkpoints: written whole or not at all, loaded without running anything that a file says.

last.pt continues a run (weights, optimizer, generators, position); best.pt and step_NNNNNN.pt hold weights only.
"""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minilm.config import CAPSTONE, RunConfig
from minilm.errors import UserError

FORMAT = 1
FOLDER = "checkpoints"
LAST = "last.pt"


def best_name(preset: str) -> str:
    return f"{CAPSTONE}_best.pt" if preset == CAPSTONE else "best.pt"


def step_name(step: int) -> str:
    return f"step_{step:06d}.pt"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file, make it durable, and only then give it its name.

    A kill, a full disk or a power cut at any moment leaves either the old file or the new one, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "r+b") as file:  # for writing: Windows syncs no other
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} could not be written ({reason}); free some space and --resume.") from None
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda part: torch.save({"format": FORMAT, **state}, part))


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that save() wrote, tensors on `device`. Raises UserError for a file that is missing, torn or foreign.

    weights_only keeps torch.load from running code; it does not check for bit flips, the archive's own CRCs do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UserError(f"{path} has compressed entries, which no checkpoint has: it is not used.")
            damaged = archive.testzip()
        if damaged:
            raise UserError(f"{path} is damaged ({damaged} fails its checksum); use another checkpoint.")
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except UserError:
        raise
    except Exception as error:  # what a foreign file makes torch.load raise is anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{path} is no checkpoint that can be read ({reason}).") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of minilm in format {FORMAT}.")
    return state


def find(run: Path, which: str) -> Path:
    """The checkpoint of a run that "best", "last" or a step number names. Raises UserError listing what there is."""
    folder = run / FOLDER
    present = sorted(p.name for p in folder.glob("*.pt")) if folder.is_dir() else []
    names = {"last": [LAST], "best": ["best.pt", f"{CAPSTONE}_best.pt"]}.get(which)
    if names is None:
        names = [step_name(int(which))] if which.isdigit() else [which]
    for name in names:
        if name in present:
            return folder / name
    steps = [str(int(p[5:-3])) for p in present if p.startswith("step_")]
    kinds = [k for k, name in {"best": "best.pt", "last": LAST}.items() if any(p.endswith(name) for p in present)]
    there = ", ".join(kinds + steps) or "none yet"
    raise UserError(f"{run} has no checkpoint {which!r}; it has {there}.")


def load_weights(model: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put saved weights into a model. Raises UserError where names or shapes differ from what the model has."""
    own, saved = model.state_dict(), state["model"]
    wrong = sorted(own.keys() ^ saved.keys()) or [k for k in own if own[k].shape != saved[k].shape]
    if wrong:
        raise UserError(f"{path} does not fit this model: {wrong[0]} is missing, unknown or of another shape.")
    model.load_state_dict(saved)


def config_of(state: dict[str, Any]) -> RunConfig:
    return RunConfig.from_dict(state["config"])


def generator_states() -> dict[str, Any]:
    """The states of every generator a training might draw from, as tensors and plain numbers."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), gauss_next],
    }


def restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), gauss_next))
