"""What is known of a training before its first step: the facts of config.json."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import kernels
from minilm import hardware
from minilm.config import ModelConfig, RunConfig
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
    """Bytes a training step needs at least: the sum of memory_by_part()."""
    return sum(memory_by_part(config, ops, dtype, residual_dtype).values())


def memory_by_part(
    config: RunConfig, ops: kernels.Backend, dtype: torch.dtype, residual_dtype: torch.dtype
) -> dict[str, int]:
    """Bytes of a training step: float32 weights, gradients and two moments, and what one micro-batch keeps for its
    backward, counted on meta tensors through the operations that will run. What an operation needs only while it runs
    is not in it."""
    rows = config.train.batch_size // config.train.grad_accumulation
    return dict(_memory_by_part(config.model, rows, config.train.checkpoint_activations, ops, dtype, residual_dtype))


@functools.lru_cache(maxsize=64)  # what is trained again and again is counted once
def _memory_by_part(
    config: ModelConfig,
    rows: int,
    checkpoint_activations: bool,
    ops: kernels.Backend,
    dtype: torch.dtype,
    residual_dtype: torch.dtype,
) -> dict[str, int]:
    where = ["embedding, last norm and loss"]

    def count_under(module: Any, part: str) -> None:
        module.register_forward_pre_hook(lambda *_: where.append(part))
        module.register_forward_hook(lambda *_: where.pop() and None)

    with torch.device("meta"), torch.enable_grad(), FusedAttention():
        model = GPT(config, ops, dtype, residual_dtype)
        tokens = torch.empty(rows, config.context_length, dtype=torch.int64)
        counted = model.count_parameters()["total"]
        found = {"weights": 4 * counted, "gradients": 4 * counted, "moments": 8 * counted}
        if checkpoint_activations:  # what goes into the blocks, and what one of them keeps meanwhile
            model.checkpoint_activations = True
            stream = torch.empty(rows, config.context_length, config.d_model, dtype=model.residual_dtype)
            found["inputs of the blocks"] = 2 * stream.nbytes * config.n_layers
            again = hardware.saved_bytes(model.blocks[0], stream, stream.to(dtype), None, None)
            found["one block, computed again"] = again
        else:
            for block in model.blocks:
                count_under(block, "norms and residual stream")
                count_under(block.attention, "attention")
                count_under(block.mlp, "MLP")
        return found | hardware.saved_by_part(model, lambda: where[-1], tokens, tokens)


class FusedAttention(TorchFunctionMode):
    """On meta tensors PyTorch takes its attention apart, which would count scores that no device keeps: this calls the
    fused operator there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("is_causal"):
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args, 0.0, True, scale=kwargs["scale"])[0]
        return func(*args, **kwargs)


def with_vocabulary(config: RunConfig, data: Dataset) -> RunConfig:
    """The configuration with model.vocab_size from the data, or as given where that is enough."""
    given = config.model.vocab_size
    if given is not None and given < data.vocab_size:
        raise UserError(f"model.vocab_size is {given} and the data has {data.vocab_size} tokens; leave it out.")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=given or data.vocab_size))
