"""A GPT trained as a competent user would write it by hand in an afternoon: what `minilm train` is measured against.

No straw man: the attention is PyTorch's fused operator, the projections of query, key and value are one product, data
are drawn from an array in memory, nothing is copied or computed twice, and nothing is saved, journalled, evaluated or
guarded. Recipe: GPT-2's model, AdamW, warm-up and cosine, gradient clipping. It needs PyTorch and NumPy alone, and
runs on a CPU in float32. The defaults are the preset shakespeare-char-cpu.

    python -m bench.plain_loop --data some.txt --steps 200
"""

import argparse
import json
import math
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads, hidden, bias):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, bias=bias)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.norm_2 = nn.LayerNorm(width, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary, context, layers, heads, width, hidden, bias):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, bias) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token_embedding.weight
        for name, p in self.named_parameters():
            if p.ndim == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if into_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens):
        """Logits (B, T, V) of tokens (B, T)."""
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


def draw(tokens, context, batch_size):
    """Random windows and what follows each of their tokens, both (batch_size, context)."""
    starts = np.random.randint(len(tokens) - context, size=batch_size)
    x = torch.stack([torch.from_numpy(tokens[i : i + context]) for i in starts])
    y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + context]) for i in starts])
    return x, y


def main():
    parser = argparse.ArgumentParser(description="A plain training loop; prints JSON.")
    parser.add_argument("--data", required=True, help="text file; its first nine tenths are trained on, by character")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--skip", type=int, default=20, help="first steps, which do not count for the median time")
    for name, default in {
        "layers": 4,
        "heads": 4,
        "width": 128,
        "hidden": 512,
        "context": 64,
        "batch-size": 12,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bias", action="store_true")
    parser.add_argument("--warmup-steps", type=int, default=100, help="of the learning rate")
    for name, default in {"lr": 1e-3, "min-lr": 1e-4, "decay": 0.1, "beta1": 0.9, "beta2": 0.99, "clip": 1.0}.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()

    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    with open(a.data, encoding="utf-8", newline="") as file:
        characters, tokens = np.unique(np.array(list(file.read())), return_inverse=True)
    tokens = tokens[: int(0.9 * len(tokens))]
    model = GPT(len(characters), a.context, a.layers, a.heads, a.width, a.hidden, a.bias)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": a.decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(a.beta1, a.beta2))

    losses, ends = [], [time.perf_counter()]
    for step in range(a.steps):
        lr = a.lr * (step + 1) / (a.warmup_steps + 1)
        if step >= a.warmup_steps:
            done = (step - a.warmup_steps) / (a.steps - a.warmup_steps)
            lr = a.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (a.lr - a.min_lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = draw(tokens, a.context, a.batch_size)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), a.clip)
        optimizer.step()
        losses.append(loss.item())
        ends.append(time.perf_counter())

    walls = [end - ends[0] for end in ends[1:]]
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_step": a.batch_size * a.context,
        "median_ms": 1e3 * statistics.median(np.diff(ends)[a.skip :]),
        "walls": walls,
        "losses": losses,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
