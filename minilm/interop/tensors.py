"""Safetensors files: read with their shapes known before any memory is taken, written durably, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm.errors import UserError
from minilm.files import check_plain
from minilm.training.journal import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32", "BF16", "F16"}


class Tensors:
    """The tensors of one model, in one file or several. Shapes come from the headers, which the library holds against
    the size of the file; nothing is read before get()."""

    def __init__(self, names: dict[str, Any]):
        self.names = names  # of each, the open file that holds it

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises UserError for numbers of a kind that no GPT here is made of."""
        piece = self.names[name].get_slice(name)
        if piece.get_dtype() not in DTYPES:
            raise UserError(
                f"Its tensor {name} is of {piece.get_dtype()}; what can be read is {', '.join(sorted(DTYPES))}."
            )
        return tuple(piece.get_shape())

    def get(self, name: str) -> Tensor:
        """float32, whatever the file has."""
        return self.names[name].get_tensor(name).float()


@contextmanager
def open_tensors(path: Path) -> Iterator[Tensors]:
    """A .safetensors file, or a folder with model.safetensors or its shards. Raises UserError for what is none."""
    from safetensors import SafetensorError, safe_open

    index = None if path.is_file() else _index(path)
    paths = [path] if path.is_file() else [path / name for name in sorted(set((index or {"": SINGLE}).values()))]
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for file in paths:
            check_plain(file)
            try:
                files[file.name] = stack.enter_context(safe_open(file, framework="pt"))
            except FileNotFoundError:
                raise UserError(f"{file} is missing; copy the folder whole.") from None
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is no safetensors file that can be read ({str(error)[:100]}).") from None
        if index is None:
            ((_, file),) = files.items()
            names = dict.fromkeys(file.keys(), file)
        else:
            held = {name: set(file.keys()) for name, file in files.items()}
            absent = [name for name, file in index.items() if name not in held[file]]
            if absent:
                raise UserError(f"{path / index[absent[0]]} lacks {absent[0][:80]}, which {INDEX} says it has.")
            names = {name: files[file] for name, file in index.items()}
        yield Tensors(names)


def _index(folder: Path) -> dict[str, str] | None:
    """{tensor: file name} of a model in shards, None where there is one file."""
    if (folder / SINGLE).exists():
        return None
    if not (folder / INDEX).exists():
        other = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf")]
        if other:
            raise UserError(
                f"{folder} has its weights in {other[0]}, a kind of file that is not opened here; save them as "
                "safetensors (in transformers: model.save_pretrained(folder, safe_serialization=True))."
            )
        raise UserError(f"{folder} has no {SINGLE} and no {INDEX}; give a folder that transformers or minilm wrote.")
    saved = read_json(folder / INDEX)
    index = saved.get("weight_map") if isinstance(saved, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise UserError(f"{folder / INDEX} has no weight_map from tensors to files.")
    outside = [file for file in index.values() if Path(file).name != file or not file.endswith(".safetensors")]
    if outside:
        raise UserError(f"{folder / INDEX} names {outside[0][:80]!r}, which is no safetensors file beside it.")
    return index


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def sha256_of(weights: dict[str, Tensor]) -> str:
    """Of names, shapes and numbers, in the order of the names: the same however a file lays them out."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        t = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
