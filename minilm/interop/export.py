"""minilm export: a run's model as a folder that transformers loads, or as safetensors in our own names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm import hardware
from minilm.config import RunConfig
from minilm.corpus.tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer, load_tokenizer
from minilm.corpus.tokenizer_json import to_library
from minilm.errors import UserError
from minilm.files import write_folder
from minilm.interop.card import model_card
from minilm.interop.layouts import Layout, layout_for
from minilm.interop.tensors import SINGLE, write_tensors
from minilm.training import checkpoint, journal

FORMAT = 1
OURS = "minilm"  # "format" in config.json of safetensors in our own names
FORMATS = ("hf", "safetensors")
CARD, CONFIG, GENERATION, TOKENIZER = "README.md", "config.json", "generation_config.json", "tokenizer.json"
FILES = {SINGLE, CARD, CONFIG, GENERATION, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json"}


@dataclass(frozen=True)
class Trained:
    """One checkpoint of a run."""

    run: Path
    config: RunConfig
    state: dict[str, Any]
    tokenizer: Tokenizer
    saved: dict[str, Any]  # config.json of the run, facts and origin with it
    data: dict[str, Any]  # data.json


def read_trained(run: Path, which: str) -> Trained:
    """The checkpoint "best", "last" or a step of a run. Raises UserError for what is missing, damaged or unfit."""
    journal.check_folder(run)
    if not run.is_dir():
        raise UserError(f"There is no run folder {run}; name one that minilm train or minilm import wrote.")
    saved = journal.read_json(run / journal.CONFIG)
    journal.read_config(run)
    path = checkpoint.find(run, which)
    state = checkpoint.load(path)
    config = checkpoint.config_of(state, path)
    checkpoint.check_shapes(path, state, config.model)
    tokenizer = load_tokenizer(run / TOKENIZER)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(f"{run / TOKENIZER} has {tokenizer.vocab_size} tokens and the model {config.model.vocab_size}.")
    data = journal.read_json(run / journal.DATA) if (run / journal.DATA).exists() else {}
    return Trained(run, config, state, tokenizer, saved, data)


def export(run: Path, out: Path, form: str = "hf", which: str = "best", dtype: str = "float32") -> Path:
    """Write the model of a run at a checkpoint into the folder `out`, whole or not at all.

    form "hf": config.json, generation_config.json, model.safetensors and the tokenizer as transformers reads them, with
    a model card. "safetensors": the same names and numbers as ours, to be read back by import_model(). dtype of the
    weights: float32, bfloat16 or float16. Raises UserError for a model that the layout cannot say, for numbers that
    the dtype has not, and for an `out` that holds other things.
    """
    trained = read_trained(run, which)
    layout = layout_for(trained.config.model) if form == "hf" else None
    weights = to_layout(layout, trained) if layout else _ours(trained)
    tensors = _cast(weights, hardware.DTYPES[dtype], dtype)
    config = _config_of_layout(layout, trained, dtype) if layout else _config_of_ours(trained)
    tokenizer = to_library(trained.tokenizer) if layout else trained.tokenizer.to_json()

    def write(folder: Path) -> None:
        write_tensors(folder / SINGLE, tensors)
        _write_json(folder / CONFIG, config)
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        (folder / CARD).write_text(model_card(trained, layout, out, dtype), encoding="utf-8")
        if layout:
            _write_json(folder / GENERATION, {"bos_token_id": None, "eos_token_id": None, "do_sample": False})
            special = {"eos_token": END_OF_TEXT} if _ends_documents(trained.tokenizer) else {}
            _write_json(folder / "special_tokens_map.json", special)
            described = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": trained.config.model.context_length,
                "clean_up_tokenization_spaces": False,
                **special,
            }
            _write_json(folder / "tokenizer_config.json", described)

    write_folder(out, FILES, write)
    return out


def _ends_documents(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer, BPETokenizer) and len(tokenizer.encode(END_OF_TEXT)) == 1


def to_layout(layout: Layout, trained: Trained) -> dict[str, Tensor]:
    """The weights under the layout's names, in its shapes; zeros for biases that it cannot leave out. Tied weights are
    there once."""
    config, weights = layout.widened(trained.config.model), trained.state["model"]
    shapes = checkpoint.shapes_of(config)
    tensors: dict[str, Any] = {}
    for ours, place in layout.places(config).items():
        tensor = weights[ours] if ours in weights else torch.zeros(shapes[ours])
        tensors |= zip(place.names, place.taken_apart(tensor), strict=True)
    return tensors


def _ours(trained: Trained) -> dict[str, Tensor]:
    weights = dict(trained.state["model"])
    if trained.config.model.tie_embeddings:
        del weights["head.weight"]
    return weights


def _cast(weights: dict[str, Tensor], dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    cast = {key: tensor.to(dtype) for key, tensor in weights.items()}
    for key, tensor in cast.items():
        if weights[key].isfinite().all() and not tensor.isfinite().all():
            raise UserError(f"{key} has numbers too large for {name}; use --dtype bfloat16 or float32.")
    return cast


def _config_of_layout(layout: Layout, trained: Trained, dtype: str) -> dict[str, Any]:
    return {
        **layout.describe(trained.config.model),
        "tie_word_embeddings": trained.config.model.tie_embeddings,
        "bos_token_id": None,  # no token ends what generate() writes, nor what `minilm generate` does
        "eos_token_id": None,
        "torch_dtype": dtype,
    }


def _config_of_ours(trained: Trained) -> dict[str, Any]:
    """All that an import needs to be the run again, but for its journal and its optimizer."""
    known: dict[str, Any] = {key: trained.state[key] for key in ("step", "val_loss") if key in trained.state}
    config = trained.config.to_dict()
    config["data"]["tokenizer_file"] = None  # a path of this machine; the tokens are beside it
    return {"format": OURS, "version": FORMAT, **config, **known, "data_meta": trained.data}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
