"""The optimizers, and the learning rate of each step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minilm.config import TrainConfig
from minilm.model import GPT


def build_optimizers(model: GPT, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter 2019) for everything; or Muon (Jordan 2024) for the matrices of the blocks and AdamW
    for the rest. Weight decay pulls on matrices and embeddings, not on biases and norms.

    Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so that one learning rate serves
    both. AdamW is fused: one pass over the parameters, and its update can be skipped by a flag on the device.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in model.blocks.parameters() if p.requires_grad and p.ndim == 2]
    by_muon = {id(p) for p in matrices} if config.optimizer == "muon" else set()
    rest = [p for p in parameters if id(p) not in by_muon]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=betas, fused=True)
    if not by_muon:
        return [adamw]
    settings: Any = {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.muon_momentum}
    return [torch.optim.Muon(matrices, **settings, ns_steps=config.muon_steps, adjust_lr_fn="match_rms_adamw"), adamw]


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer, rates: Sequence[Tensor] | None = None) -> None:
    """An update, or where the 0-d bool tensor `bad` is true none: weights and moments then stay as they are.

    Fused AdamW reads the flag on the device, so that a guard against non-finite gradients costs no synchronisation with
    the host. Muon has no such flag: on a GPU its step is made and taken back.
    rates: the learning rates of the optimizer's groups, 0-d float32 on the device, in place of the groups' own: for an
    update that is captured, in which a number would stay what it was.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler hands it over
        with _in_groups(optimizer, rates, capturable=bad.is_cuda and torch.cuda.is_current_stream_capturing()):
            optimizer.step()
    elif bad.device.type == "cuda" or rates:
        step_or_take_back(bad, optimizer, rates)
    elif not bad.item():
        optimizer.step()


@contextlib.contextmanager
def _in_groups(optimizer: torch.optim.Optimizer, rates: Sequence[Any] | None, **others: Any) -> Iterator[None]:
    """The groups have these learning rates, and these other values, within; none where rates is None."""
    before = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates or (), strict=bool(rates)):
        group.update(lr=rate, **others)
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)


@torch.no_grad()
def step_or_take_back(bad: Tensor, muon: torch.optim.Optimizer, rates: Sequence[Tensor] | None = None) -> None:
    """step_unless() by copies of weights and momentum, which the host need not wait for.

    Muon takes its rate as a number only. Its step is linear in it, weight decay included: with rates it is made at a
    rate of 1, and the weights go that part of the way.
    """
    parameters = [p for group in muon.param_groups for p in group["params"] if p.grad is not None]
    for p in parameters:
        if "momentum_buffer" not in muon.state[p]:  # there is none yet to go back to
            muon.state[p]["momentum_buffer"] = torch.zeros_like(p)
    held = [tensor for p in parameters for tensor in (p, muon.state[p]["momentum_buffer"])]
    before = [tensor.clone() for tensor in held]
    with _in_groups(muon, [1.0] * len(rates) if rates else None):
        muon.step()
    if rates:
        earlier_of = {id(tensor): earlier for tensor, earlier in zip(held, before, strict=True)}
        for group, rate in zip(muon.param_groups, rates, strict=True):
            for p in (p for p in group["params"] if p.grad is not None):
                torch.lerp(earlier_of[id(p)], p, rate, out=p)
    for tensor, earlier in zip(held, before, strict=True):
        torch.where(bad, earlier, tensor, out=tensor)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of update `step`, counted from 0: linear warm-up, then down to min_lr along a cosine or a line, or not
    at all, or (wsd: warm-up, stable, decay; Hu et al. 2024) along a line in the last decay_fraction of the steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.lr
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, round(config.steps * (1 - config.decay_fraction)))
    done = min(1.0, max(0, step - start) / max(1, config.steps - start))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.min_lr + left * (config.lr - config.min_lr)


def set_rates(optimizers: list[torch.optim.Optimizer], step: int, config: TrainConfig) -> float:
    """Give every parameter group its rate for update `step`; returns that of the journal, learning_rate()."""
    rate = learning_rate(step, config)
    for optimizer in optimizers:
        beside_muon = len(optimizers) > 1 and isinstance(optimizer, torch.optim.AdamW)
        own = config.adamw_lr if beside_muon else None
        for group in optimizer.param_groups:
            group["lr"] = rate if own is None else rate * own / config.lr
    return rate
