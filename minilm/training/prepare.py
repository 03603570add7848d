"""Everything that can fail before the first step: device, kernels, compiler, data, model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

import kernels
from minilm import hardware
from minilm.config import RunConfig
from minilm.corpus.dataset import BatchSampler, Dataset, prepared
from minilm.errors import UserError
from minilm.model import GPT
from minilm.training import checkpoint, compiling, distributed, graphs, guards
from minilm.training.facts import facts_of_run, with_vocabulary
from minilm.training.optimizer import build_optimizers
from minilm.training.reduction import shard
from minilm.training.start import Start


@dataclass(frozen=True)
class Parts:
    """What is trained, on what, by what: the same on every process but for `facts`, which each has of itself."""

    config: RunConfig  # with the vocabulary of the data
    data: Dataset
    sampler: BatchSampler
    model: GPT
    optimizers: list[torch.optim.Optimizer]
    facts: dict[str, Any]
    origin: dict[str, Any] | None  # whose weights it begins from, where they are another model's


def prepare(
    config: RunConfig,
    console: Console,
    command: str,
    team: distributed.Team,
    start: Start | None = None,
    earlier: dict[str, Any] | None = None,
) -> Parts:
    """The parts of a training. earlier: the facts of the run that is resumed.

    Raises UserError for what a person can mend; only prepared data is written.
    """
    device = hardware.resolve_device(config.train.device)
    dtype = hardware.resolve_dtype(_dtype_name(config, device, earlier or {}), device, config.model.d_model)
    residual = config.train.residual_dtype
    residual_dtype = dtype if residual == "auto" else hardware.DTYPES[residual]
    backend, why = kernels.explain(config.train.kernels, device)
    compiling.check(config.train, device, team.size)
    graphs.check(config.train, device, dtype, team.size)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks, for reproducible products
        # every element is written before it is read, which the tests show: filling them first would take its time
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.set_float32_matmul_precision(config.train.matmul_precision)  # the Triton kernels go by it too

    with console.status(f"Reading {config.data.source} ..."):
        data = team.first_then_all(lambda: prepared(config.data))
    sampler = BatchSampler(data.train, config.model.context_length, config.train.batch_size, config.train.seed)
    if len(data.val) < 2:
        raise UserError("The validation split has fewer than 2 tokens; give more text or another data.val_fraction.")
    config = with_vocabulary(config, data)

    checkpoint.seed_generators(config.train.seed)
    ops = kernels.select(config.train.kernels, device)
    with guards.memory_named(config), torch.device("cpu" if config.train.shard else device):
        model = GPT(config.model, ops, dtype, residual_dtype)
        model.checkpoint_activations = config.train.checkpoint_activations
        if start is not None:
            start.load_into(model)
    if config.train.shard:
        shard(model, team, device)
    optimizers = build_optimizers(model, config.train)
    facts = facts_of_run(config, data, model, backend, why, device, team) | {"command": command}
    compiled = None if earlier is None else earlier.get("compile", compiling.OFF)
    how, because = team.tell(
        lambda: compiling.decide(config.train, facts["flops_per_token"], facts["tokens_per_step"], device, compiled)
    )
    facts |= {"compile": how, "compile_reason": because}
    return Parts(config, data, sampler, model, optimizers, facts, start.origin if start is not None else None)


def _dtype_name(config: RunConfig, device: torch.device, earlier: dict[str, Any]) -> str:
    """train.dtype; for auto what it came to when the run began, whatever this machine would begin with."""
    began = str(earlier.get("dtype"))
    impossible = began not in hardware.DTYPES or (began == "float16" and device.type == "cpu")
    return config.train.dtype if config.train.dtype != "auto" or impossible else began
