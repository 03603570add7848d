"""Checkpoints: written whole or not at all, loaded without running anything that a file says.

last.pt continues a run (weights, optimizer, generators, position), last_NNNNNN.pt are its predecessors, should it be
damaged; best.pt and step_NNNNNN.pt hold weights only.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from minilm.config import ModelConfig, RunConfig
from minilm.errors import UserError
from minilm.files import check_plain, write_atomically
from minilm.model import GPT
from minilm.presets import CAPSTONE
from minilm.training.archive import inspect, tensors_in, unreadable

FORMAT = 1
FOLDER = "checkpoints"
LAST = "last.pt"


def best_name(preset: str) -> str:
    return f"{CAPSTONE}_best.pt" if preset == CAPSTONE else "best.pt"


def step_name(step: int) -> str:
    return f"step_{step:06d}.pt"


def earlier_name(step: int) -> str:
    return f"last_{step:06d}.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint durably. Raises UserError naming the file and the bytes where there is no room."""
    _save(path, state)


def save_last(folder: Path, state: dict[str, Any], keep: int, earlier: int | None) -> None:
    """Write last.pt durably; the one it replaces, of step `earlier`, is kept under a name of its own (None: it is not).

    Of those, the newest keep - 1 stay. They go only when the new one is durable.
    """
    last = folder / LAST

    def keep_earlier() -> None:
        if earlier is not None and keep > 1:
            kept = folder / earlier_name(earlier)
            kept.unlink(missing_ok=True)
            try:
                os.link(last, kept)  # a second name: nothing is copied, and last.pt is there all the while
            except OSError:  # a file system without links
                shutil.copyfile(last, kept)

    _save(last, state, keep_earlier)
    prune(folder, keep)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest keep - 1 predecessors of last.pt, which must be durable and sound."""
    for path in _earlier(folder)[keep - 1 :]:
        path.unlink()


def _save(path: Path, state: dict[str, Any], before: Callable[[], None] | None = None) -> None:
    def write(part: Path) -> None:
        with open(part, "wb") as file:  # opened here: torch never closes a file that it could not write to its end
            torch.save({"format": FORMAT, **state}, file)

    try:
        write_atomically(path, write, before)
    except (RuntimeError, UserError) as error:
        if isinstance(error, RuntimeError) and "unexpected pos" not in str(error):  # so torch says that it had no room
            raise
        cause = error.__context__  # what write_atomically() met
        reason = cause.strerror if isinstance(cause, OSError) else "the disk, a quota or a limit on file sizes is full"
        needed = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(state)}.values())
        raise UserError(
            f"{path} of {needed:,} bytes could not be written, where {shutil.disk_usage(path.parent).free:,} are free "
            f"({reason}); what was saved before is intact: free some space and --resume."
        ) from None


def _earlier(folder: Path) -> list[Path]:
    """last_NNNNNN.pt, newest first."""
    return sorted(folder.glob("last_*.pt"), key=lambda p: (len(p.name), p.name), reverse=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that save() wrote, tensors on `device`.

    Raises UserError for a file that is missing, torn, foreign, or whose weights are not of the shapes that its own
    configuration asks for: all of that before any memory is taken for them.
    """
    verify(path)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(path, error) from None


def verify(path: Path) -> dict[str, Any]:
    """What load() would return, with tensors on the meta device. Raises UserError as load() does."""
    state = inspect(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of minilm in format {FORMAT}.")
    if "config" in state:
        check_shapes(path, state, config_of(state, path).model)
    return state


class _Undrawn(TorchFunctionMode):
    """Leaves initial numbers out: the meta device has none, and drawing them there costs a second of imports."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.normal_, torch.nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a GPT's state, tied weights under both names; takes no memory for numbers."""
    with torch.device("meta"), _Undrawn():
        return {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}


def check_shapes(path: Path, state: dict[str, Any], config: ModelConfig) -> None:
    """Raises UserError where the weights (tensors of any device) are not those of a GPT of this configuration."""
    try:
        saved = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
        own = {}
        if config.n_layers <= len(saved):  # else they are too few, and building so many layers may take all memory
            own = shapes_of(config)
        allowed = {*own.values(), (), (1,)}
        moments = [t for o in state.get("optimizers", []) for t in tensors_in(o) if tuple(t.shape) not in allowed]
    except Exception as error:  # a configuration that only a foreign file has
        raise unreadable(path, error) from None
    wrong = sorted(own.keys() ^ saved.keys()) or [name for name in own if own[name] != saved[name]]
    if wrong:
        raise UserError(f"{path} does not fit this model: {wrong[0]} is missing, unknown or of another shape.")
    if moments:
        raise UserError(
            f"{path} does not fit this model: its optimizer has a tensor of shape {tuple(moments[0].shape)}."
        )


def find(run: Path, which: str) -> Path:
    """The checkpoint of a run that "best", "last" or a step number names. Raises UserError listing what there is."""
    folder = run / FOLDER
    check_plain(folder, folder=True)
    present = sorted(p.name for p in folder.glob("*.pt")) if folder.is_dir() else []
    names = {"last": [LAST], "best": ["best.pt", f"{CAPSTONE}_best.pt"]}.get(which)
    if names is None:
        number = int(which) if which.isdecimal() and len(which) < 20 else None
        names = [which] if number is None else [step_name(number), earlier_name(number)]
    for name in names:
        if name in present:
            return folder / name
    steps = sorted({int(p[5:-3]) for p in present if p[:5] in ("step_", "last_") and p[5:-3].isdecimal()})
    kinds = [k for k, name in {"best": "best.pt", "last": LAST}.items() if any(p.endswith(name) for p in present)]
    there = ", ".join([*kinds, *map(str, steps)]) or "none yet"
    raise UserError(f"{run} has no checkpoint {which!r}; it has {there}.")


def to_go_on_from(run: Path) -> list[Path]:
    """last.pt and its predecessors, newest first, sound or not."""
    folder = run / FOLDER
    return [p for p in (folder / LAST, *_earlier(folder)) if os.path.lexists(p)]


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint to go on from that passes verify(), and what is wrong with those that are newer.

    None where the run has not written one yet. Raises UserError where it has and every one of them is damaged.
    """
    folder = run / FOLDER
    check_plain(folder, folder=True)
    present = to_go_on_from(run)
    damage: list[str] = []
    for path in present:
        try:
            state = verify(path)
            if {"optimizers", "config"} <= state.keys() and isinstance(state.get("step"), int):
                return path, damage
            damage.append(f"{path} does not hold all that training goes on from.")
        except UserError as error:
            damage.append(str(error))
    if not present and not any(folder.glob("*.pt")):
        return None, damage
    raise UserError(
        f"{run} cannot be resumed, for none of its checkpoints to go on from is sound ("
        + (" ".join(damage) or f"there is no {LAST}")
        + "); its weights may still load, see minilm check."
    )


def best_loss(run: Path, preset: str) -> float:
    """The validation loss of the best weights on disk; infinity where there are none that are sound."""
    try:
        loss = verify(run / FOLDER / best_name(preset)).get("val_loss", math.inf)
    except UserError:
        return math.inf
    return loss if isinstance(loss, float) else math.inf


def load_weights(model: GPT, state: dict[str, Any], path: Path) -> None:
    """Put saved weights into a model. Raises UserError where names or shapes differ from what the model has."""
    check_shapes(path, state, model.config)
    model.load_state_dict(state["model"])


def config_of(state: dict[str, Any], path: Path) -> RunConfig:
    """The configuration in a checkpoint; raises UserError where it holds none that this version knows."""
    try:
        return RunConfig.from_dict(state["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no configuration of a run ({error!r:.60}).") from None


def seed_generators(seed: int) -> None:
    """Every generator a training might draw from begins at `seed`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generator_states() -> dict[str, Any]:
    """The states of every generator a training might draw from, as tensors and plain numbers."""
    kind, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state())
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), gauss_next],
    }


def restore_generators(states: dict[str, Any]) -> str | None:
    """Set every generator as it was; returns a sentence where the number of GPUs is not what it was."""
    torch.set_rng_state(states["torch"].cpu())
    saved, here = len(states["cuda"]), torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, state in enumerate(states["cuda"][:here]):
        torch.cuda.set_rng_state(state.cpu(), index)
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), gauss_next))
    if saved == here:
        return None
    return f"generators of {saved} GPUs were saved and this machine has {here}: draws on the others are not repeated"
