"""AdamW with decay for matrices only, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from minilm.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019). Weight decay pulls on matrices and embeddings, not on biases and norms.

    Fused, on every device: one pass over the parameters, and the update can be skipped by a flag on the device
    (optimizer.found_inf), so that a non-finite gradient costs no synchronisation with the host.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), fused=True
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of update `step`, counted from 0: linear warm-up, then cosine, linear or no decay down to min_lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.min_lr + left * (config.lr - config.min_lr)
