"""minilm import and train --init: a model from a transformers folder, from safetensors in our names, or from a run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm import hardware
from minilm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from minilm.corpus.tokenizer import Tokenizer, load_tokenizer
from minilm.errors import UserError
from minilm.files import check_plain, write_folder
from minilm.interop import export
from minilm.interop.layouts import Layout, layout_named
from minilm.interop.tensors import Tensors, open_tensors, sha256_of
from minilm.model import GPT
from minilm.training import checkpoint, journal
from minilm.training.start import Start

IMPORTED = "imported"  # in config.json of a run that was not trained here; its preset, where nobody knows it


@dataclass(frozen=True)
class Model:
    """A model as it was read, whole."""

    config: RunConfig
    weights: dict[str, Tensor]  # by the names of GPT.state_dict(), float32; tied ones share their memory
    tokenizer: Tokenizer
    origin: dict[str, Any]  # path, layout, step and val_loss where known, sha256 of the weights
    tokenizer_file: Path
    data: dict[str, Any]  # data.json of the run that it was
    notes: list[str]  # what a person should know about what was left out


def read_model(path: Path) -> Model:
    """From a transformers folder (GPT-2 or Llama), from one that minilm export wrote, or from a model.safetensors in
    either. Raises UserError for everything that cannot be read whole and mapped, before memory is taken for it."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no {path}; name a folder that transformers or minilm export wrote.")
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no .safetensors file; other kinds are not opened, for loading them may run what they hold."
        )
    check_plain(path, folder=path.is_dir())
    folder = path if path.is_dir() else path.parent
    saved = journal.read_json(folder / export.CONFIG) if (folder / export.CONFIG).exists() else None
    if not isinstance(saved, dict):
        raise UserError(f"{folder} has no {export.CONFIG} that says what the weights are; copy it beside them.")
    notes: list[str] = []
    with open_tensors(path) as tensors:
        if saved.get("format") == export.OURS:
            config, layout, name = _config_of_ours(folder, saved), None, "minilm"
            weights = _read_ours(tensors, config.model)
        else:
            layout = layout_named(saved.get("model_type"))
            model, name = _model_of_layout(layout, saved, notes), layout.name
            weights = _read_layout(tensors, layout, model, saved)
            config = RunConfig(IMPORTED, model, TrainConfig(), DataConfig(source=IMPORTED))
    tokenizer_file = folder / export.TOKENIZER
    if not tokenizer_file.exists():
        raise UserError(
            f"{folder} has no {export.TOKENIZER}, without which nothing can be read or written; save it there too "
            "(in transformers: tokenizer.save_pretrained(folder))."
        )
    tokenizer = load_tokenizer(tokenizer_file)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(f"{tokenizer_file} has {tokenizer.vocab_size} tokens and the model {config.model.vocab_size}.")
    known = {key: saved[key] for key in ("step", "val_loss") if layout is None and key in saved}
    origin = {"path": str(path.resolve()), "layout": name, **known, "sha256": sha256_of(weights)}
    data = saved.get("data_meta", {}) if layout is None else {}
    return Model(config, weights, tokenizer, origin, tokenizer_file, data, notes)


def import_model(path: Path, out: Path) -> Model:
    """Write the run folder `out` with the model at `path`, whole or not at all; generate, check and train --init take
    it. Raises UserError as read_model() does, and for an `out` that holds anything."""
    model = read_model(path)
    with torch.device("meta"):
        parameters = GPT(model.config.model).count_parameters()
    config = {
        **model.config.to_dict(),
        "format": 1,
        "name": out.name,
        "facts": {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "parameters": parameters,
            "versions": hardware.versions(),
        },
        IMPORTED: model.origin,
    }
    kind = {"type": model.tokenizer.kind, "vocab_size": model.tokenizer.vocab_size}
    known = {key: model.origin[key] for key in ("val_loss",) if key in model.origin}
    state = {"model": model.weights, "config": model.config.to_dict(), "step": model.origin.get("step", 0), **known}

    def write(folder: Path) -> None:
        journal.write_json(folder / journal.CONFIG, config)
        journal.write_json(folder / journal.DATA, model.data or {"source": IMPORTED, "tokenizer": kind})
        (folder / export.TOKENIZER).write_text(model.tokenizer.to_json(), encoding="utf-8")
        checkpoint.save(folder / checkpoint.FOLDER / checkpoint.best_name(model.config.preset), state)

    write_folder(out, (), write)
    return model


def read_start(path: Path) -> Start:
    """What a training begins from: a run (its best weights, or its last), or anything that read_model() takes."""
    path = Path(path)
    if not _is_run(path):
        model = read_model(path)
        return Start(model.config.model, model.weights, model.tokenizer_file, model.origin)
    has_best = any((path / checkpoint.FOLDER).glob("*best.pt"))
    trained = export.read_trained(path, "best" if has_best else "last")
    weights = trained.state["model"]
    origin = {"path": str(path.resolve()), "layout": "run", "step": trained.state["step"]}
    return Start(trained.config.model, weights, path / export.TOKENIZER, {**origin, "sha256": sha256_of(weights)})


def _is_run(path: Path) -> bool:
    """A folder whose config.json has the sections of a run; an export's says what else it is."""
    if not (path / journal.CONFIG).exists():
        return False
    saved = journal.read_json(path / journal.CONFIG)
    return isinstance(saved, dict) and "model_type" not in saved and saved.get("format") != export.OURS


def _config_of_ours(folder: Path, saved: dict[str, Any]) -> RunConfig:
    if saved.get("version") != export.FORMAT:
        raise UserError(
            f"{folder} was exported in version {str(saved.get('version'))[:20]} and this minilm reads {export.FORMAT}; "
            "export it again."
        )
    try:
        config = RunConfig.from_dict(saved)
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder / export.CONFIG} is no configuration of a model: {json.dumps(saved)[:60]} ..."
        ) from None
    if config.model.vocab_size is None:
        raise UserError(f"{folder / export.CONFIG} says no model.vocab_size.")
    for key, kind in {"step": int, "val_loss": float, "data_meta": dict}.items():
        if key in saved and type(saved[key]) is not kind:
            raise UserError(
                f"{folder / export.CONFIG} says {key} {saved[key]!r:.40}, which minilm export never writes."
            )
    return config


def _model_of_layout(layout: Layout, saved: dict[str, Any], notes: list[str]) -> ModelConfig:
    try:
        return layout.read(saved, notes)
    except UserError as error:
        raise UserError(f"This {layout.name} cannot be mapped. {error}") from None


def _read_ours(tensors: Tensors, config: ModelConfig) -> dict[str, Tensor]:
    tied = {"head.weight"} if config.tie_embeddings else set()
    shapes = _shapes(tensors, config)
    _check(tensors, {name: shape for name, shape in shapes.items() if name not in tied})
    weights = {name: tensors.get(name) for name in shapes if name not in tied}
    return _tie(weights, config)


def _read_layout(tensors: Tensors, layout: Layout, config: ModelConfig, saved: dict[str, Any]) -> dict[str, Tensor]:
    """Ours from theirs. A head beside tied embeddings must be the same numbers; a side without biases gets zeros."""
    shapes, places = _shapes(tensors, config), layout.places(config)
    there = {_full(name, layout, tensors): name for name in tensors.names}
    for name in [name for name in there if layout.unused.fullmatch(name)]:
        del there[name]
    biasless = layout.biasless(saved)
    absent = {ours for ours in places if ours.endswith("bias") and any(part in ours for part in biasless)}
    wanted = {
        name: shape
        for ours, place in places.items()
        if ours not in absent
        for name, shape in zip(place.names, place.shapes(shapes[ours]), strict=True)
    }
    head = there.pop("lm_head.weight", None) if config.tie_embeddings else None
    _check(tensors, wanted, there)
    weights = {}
    for ours, place in places.items():
        if ours in absent:
            weights[ours] = torch.zeros(shapes[ours])
            continue
        parts = [tensors.get(there[name]) for name in place.names]
        parts = [part.T for part in parts] if place.turned else parts
        weights[ours] = (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous()
    if head is not None and not _same(tensors, head, weights["token_embedding.weight"]):
        raise UserError("Its config.json ties the head to the embeddings, and lm_head.weight holds other numbers.")
    return _tie(weights, config)


def _same(tensors: Tensors, name: str, other: Tensor) -> bool:
    return tensors.shape(name) == tuple(other.shape) and torch.equal(tensors.get(name), other)


def _full(name: str, layout: Layout, tensors: Tensors) -> str:
    """A model that was saved without its head has names without the prefix."""
    whole = name == "lm_head.weight" or any(n.startswith(layout.prefix) for n in tensors.names)
    return name if whole else layout.prefix + name


def _tie(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    return weights | ({"head.weight": weights["token_embedding.weight"]} if config.tie_embeddings else {})


def _shapes(tensors: Tensors, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    if config.n_layers > len(tensors.names):  # building so many layers may take all memory
        raise UserError(f"Its config.json says {config.n_layers} layers, and there are {len(tensors.names)} tensors.")
    return checkpoint.shapes_of(config)


def _check(tensors: Tensors, wanted: dict[str, tuple[int, ...]], there: dict[str, str] | None = None) -> None:
    """Raises UserError where names or shapes differ from those that the configuration asks for; reads no numbers."""
    there = {name: name for name in tensors.names} if there is None else there
    unlike = sorted(wanted.keys() - there.keys())
    if unlike:
        raise UserError(f"The weights lack {unlike[0][:80]}, which their configuration asks for.")
    unlike = sorted(there.keys() - wanted.keys())
    if unlike:
        raise UserError(
            f"The weights hold {unlike[0][:80]}, for which minilm's GPT of their configuration has no place."
        )
    for name, shape in wanted.items():
        found = tensors.shape(there[name])
        if found != shape:
            raise UserError(
                f"{name} is {'x'.join(map(str, found))} and its configuration asks for {'x'.join(map(str, shape))}."
            )
