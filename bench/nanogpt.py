"""nanoGPT itself, from a checkout that the user has: its model and optimizer for the benches, and a whole training.

    python -m bench.nanogpt PATH --data input.txt --seed 1 --out races/mine/nanogpt-1
    minilm race --data input.txt --out races/mine --resume --beside races/mine/nanogpt-1

The training follows nanoGPT's train.py with the settings of one of our presets that is its recipe: the same model
code, optimizer, schedule, clipping and precision (on a CPU it uses none but float32). The text is cut and split as
minilm does it, which gives the same tokens. What is written has the form of a run folder, as far as a race reads it.
Evaluations are of the whole validation split and their time is not training time, as in minilm's own runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import timing
from minilm import hardware
from minilm.config import RunConfig, build
from minilm.corpus.dataset import BatchSampler, prepared
from minilm.errors import UserError
from minilm.studies.race import EVALUATIONS
from minilm.training.journal import CONFIG, METRICS, write_json
from minilm.training.optimizer import learning_rate

EVALUATED_AT_ONCE = 256  # windows


def load(folder: Path | None) -> Any:
    """The module model.py of a checkout of nanoGPT. Raises UserError where there is none."""
    path = Path(folder or "") / "model.py"
    if not path.is_file():
        raise UserError(f"{folder} holds no model.py; --nanogpt takes a checkout of nanoGPT.")
    module = sys.modules.get("nanogpt_model")
    if module is None:
        spec = importlib.util.spec_from_file_location("nanogpt_model", path)
        module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def prepare(
    folder: Path | None, config: RunConfig, device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[torch.Tensor], torch.Tensor]]:
    """Its model and optimizer in the shape of `config`, and its step: from ids (B, T + 1) to the loss."""
    module, m, t = load(folder), config.model, config.train
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(
            module.GPTConfig(
                block_size=m.context_length, vocab_size=m.vocab_size, n_layer=m.n_layers, n_head=m.n_heads,
                n_embd=m.d_model, dropout=m.dropout, bias=m.bias,
            )
        ).to(device)  # fmt: skip
        optimizer = model.configure_optimizers(t.weight_decay, t.lr, (t.beta1, t.beta2), device.type)
    forward = torch.compile(model) if compiled else model

    def step(batch: torch.Tensor) -> torch.Tensor:
        with casting(device, dtype):
            _, loss = forward(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), t.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return model, optimizer, step


def casting(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Its train.py casts on GPUs only, in training and evaluation."""
    return torch.autocast(device.type, dtype) if device.type == "cuda" else contextlib.nullcontext()


def train(folder: Path, config: RunConfig, out: Path) -> None:
    """One training as a run folder; raises UserError where `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists; name another folder by --out.")
    device = hardware.resolve_device(config.train.device)
    dtype = hardware.resolve_dtype("auto", device, config.model.d_model)
    data, t, T = prepared(config.data), config.train, config.model.context_length
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=data.vocab_size))
    torch.manual_seed(t.seed)
    model, optimizer, step = prepare(folder, config, device, dtype, compiled=device.type == "cuda")  # as its README
    sampler = BatchSampler(data.train, T, t.batch_size, t.seed)
    parameters = sum(p.numel() for p in model.parameters())
    out.mkdir(parents=True)
    saved = {**config.to_dict(), "preset": "nanoGPT", "facts": {"parameters": {"total": parameters}}}
    write_json(out / CONFIG, saved)
    every, wall, began = max(1, t.steps // EVALUATIONS), 0.0, None
    with (out / METRICS).open("w", encoding="utf-8") as rows:
        for number in range(t.steps + 1):
            if number % every == 0 or number == t.steps:
                timing.synchronize(device)
                wall += 0.0 if began is None else time.perf_counter() - began
                began = None  # the clock stands still meanwhile
                with casting(device, dtype):
                    loss = evaluate(model, data.val, T, device)
                print(f"step {number}: validation loss {loss:.4f}, {wall:.1f} s", flush=True)
                rows.write(json.dumps({"step": number, "val_loss": loss, "wall": wall}) + "\n")
            if number == t.steps:
                break
            began = time.perf_counter() if began is None else began
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(number, t)
            batch = torch.from_numpy(sampler.batch(number))
            step(batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch)


@torch.no_grad()
def evaluate(model: torch.nn.Module, tokens: np.ndarray, T: int, device: torch.device) -> float:
    """Mean nats a token over all of `tokens` in windows of T that do not overlap."""
    model.eval()
    starts, total = np.arange(0, len(tokens) - 1, T), 0.0
    full = starts[starts + T < len(tokens)]
    batches = [full[i : i + EVALUATED_AT_ONCE] for i in range(0, len(full), EVALUATED_AT_ONCE)]
    for at in [*batches, *([s] for s in starts[len(full) :])]:
        window = min(T, len(tokens) - 1 - int(at[-1]))
        ids = torch.from_numpy(tokens[np.asarray(at)[:, None] + np.arange(window + 1)].astype(np.int64)).to(device)
        _, loss = model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        total += loss.item() * ids[:, 1:].numel()
    model.train()
    return total / (len(tokens) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--preset", default="shakespeare-char-cpu")
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    settings = {"seed": a.seed, "device": a.device} | ({} if a.steps is None else {"steps": a.steps})
    try:
        train(a.nanogpt, build(a.preset, {"train": settings, "data": {"source": a.data}}), a.out)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
