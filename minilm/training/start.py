"""What a training may begin from in place of random numbers: the weights and the tokenizer of another model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minilm.config import ModelConfig, RunConfig
from minilm.corpus.tokenizer import load_tokenizer
from minilm.errors import UserError
from minilm.model import GPT
from minilm.training import checkpoint, journal


@dataclass(frozen=True)
class Start:
    model: ModelConfig
    weights: dict[str, Tensor]  # by the names of GPT.state_dict(), float32
    tokenizer: Path  # tokenizer.json, ours or the tokenizers library's
    origin: dict[str, Any]  # for config.json: path, layout, step, sha256 of the weights

    def fit(self, config: RunConfig) -> RunConfig:
        """`config` with the model's architecture and its tokens. Raises UserError naming what cannot change.

        What can: model.dropout, and model.context_length where positions are rotary, for no weight depends on them.
        """
        free = {"dropout"} | ({"context_length"} if self.model.position == "rope" else set())
        given, own = dataclasses.asdict(config.model), dataclasses.asdict(self.model)
        given["vocab_size"] = given["vocab_size"] or own["vocab_size"]
        for key, value in own.items():
            if given[key] != value and key not in free:
                raise UserError(
                    f"model.{key} is {given[key]} and that of {self.origin['path']}, which --init begins from, is "
                    f"{value}; leave it out, for only {' and '.join(f'model.{k}' for k in sorted(free))} can change."
                )
        kind = load_tokenizer(self.tokenizer).kind
        data = dataclasses.replace(config.data, tokenizer=kind, tokenizer_file=str(self.tokenizer.resolve()))
        return dataclasses.replace(config, model=ModelConfig(**given), data=data)

    def check_changes(self, asked: dict[str, dict[str, Any]]) -> None:
        """Raises UserError for settings {section: {key: value}} about tokens: those of the weights are used."""
        for key in ("tokenizer", "vocab_size", "tokenizer_file"):
            if key in asked.get("data", {}):
                raise UserError(f"data.{key} cannot be set with --init: the tokens are those of {self.origin['path']}.")

    def load_into(self, model: GPT) -> None:
        model.load_state_dict(self.weights)


def check_resumable(run: Path) -> None:
    """Raises UserError for a run that holds nothing to go on with: imported, or stopped before it had weights."""
    saved = journal.read_json(run / journal.CONFIG)
    if "imported" in saved:
        raise UserError(
            f"{run} was imported and has no training to go on with; begin one by minilm train --init {run}."
        )
    if "init" in saved and not checkpoint.to_go_on_from(run):
        raise UserError(
            f"{run} was stopped before it held any weights; delete it and start again, with --init "
            f"{saved['init']['path']}."
        )
