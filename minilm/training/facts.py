"""What is known of a training before its first step: the facts of config.json."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

import kernels
from minilm import hardware
from minilm.config import RunConfig
from minilm.corpus.dataset import Dataset
from minilm.errors import UserError
from minilm.model import GPT
from minilm.training.distributed import Team


def facts_of_run(
    config: RunConfig, data: Dataset, model: GPT, backend: str, why: str, device: torch.device, team: Team
) -> dict[str, Any]:
    """backend: the kernels in use, and why these; peak_flops of all devices together, None where it is not known."""
    dtype, residual = model.dtype, model.residual_dtype
    peak = hardware.peak_flops(device, dtype)
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(device),
        "device_name": hardware.device_name(device),
        "world_size": team.size,
        "backend": team.backend,
        "dtype": str(dtype).removeprefix("torch."),
        "residual_dtype": str(residual).removeprefix("torch."),
        "kernels": backend,
        "kernels_reason": why,
        "parameters": model.count_parameters(),
        "flops_per_token": model.flops_per_token(),
        "tokens_per_step": config.train.batch_size * config.model.context_length,
        "epochs": config.train.steps * config.train.batch_size * config.model.context_length / len(data.train),
        "peak_flops": peak and peak * team.size,
        "memory_estimate_bytes": estimate_memory(config, model.ops, dtype, residual),
        "versions": hardware.versions(),
        "git_revision": hardware.git_revision(),
        "data_sha256": data.meta["sha256"],
    }


def estimate_memory(config: RunConfig, ops: kernels.Backend, dtype: torch.dtype, residual_dtype: torch.dtype) -> int:
    """Bytes a training step needs at least: float32 weights, gradients and two moments, and what one micro-batch
    keeps for its backward, counted on meta tensors through the operations that will run."""
    with torch.device("meta"):
        model = GPT(config.model, ops, dtype, residual_dtype)
        rows = config.train.batch_size // config.train.grad_accumulation
        tokens = torch.empty(rows, config.model.context_length, dtype=torch.int64)
        kept = 0
        if config.train.checkpoint_activations:  # what goes into the blocks, and what one of them keeps meanwhile
            model.checkpoint_activations = True
            stream = torch.empty(rows, config.model.context_length, config.model.d_model, dtype=model.residual_dtype)
            kept = 2 * stream.nbytes * config.model.n_layers
            kept += hardware.saved_bytes(model.blocks[0], stream, stream.to(dtype), None, None)
    return 16 * model.count_parameters()["total"] + hardware.saved_bytes(model, tokens, tokens) + kept


def with_vocabulary(config: RunConfig, data: Dataset) -> RunConfig:
    """The configuration with model.vocab_size from the data, or as given where that is enough."""
    given = config.model.vocab_size
    if given is not None and given < data.vocab_size:
        raise UserError(f"model.vocab_size is {given} and the data has {data.vocab_size} tokens; leave it out.")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=given or data.vocab_size))
