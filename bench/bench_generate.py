"""Tokens a second of GPT.generate by each backend: the last tokens of a full context, for one sequence and for eight.

A backend is judged before it is timed: each of its greedy tokens must be the likeliest by the reference in float64, up
to what the dtype costs plain PyTorch.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor

import kernels
from bench import timing
from bench.conftest import DEVICE
from kernels.backend import interpreted
from kernels.error_rule import ORDERS, judge
from minilm.config import build
from minilm.model import GPT
from minilm.presets import CAPSTONE, QUICK

PRESET, DTYPE, NEW_TOKENS = (CAPSTONE, torch.bfloat16, 64) if DEVICE.type == "cuda" else (QUICK, torch.float32, 8)
BACKENDS = [name for name in kernels.available(DEVICE) if not (name == "triton" and interpreted())]
WAYS = {
    "cached": {"cache": True},
    "anew": {"cache": False},
}  # anew: the whole text goes through the model for each token


@pytest.fixture(scope="module")
def model() -> GPT:
    """Of the preset's shape. Its weights are larger than initial ones, so that what it writes depends on all of it:
    an untrained model with tied embeddings repeats its last token, whatever its attention does."""
    config = dataclasses.replace(build(PRESET).model, vocab_size=96)
    torch.manual_seed(0)
    with torch.device(DEVICE), torch.no_grad():
        made = GPT(config)
        for matrix in (p for p in made.parameters() if p.ndim == 2):
            matrix.normal_(0.0, matrix.shape[1] ** -0.5)
    return made.eval()


@pytest.fixture(scope="module")
def in_turn(model, seconds):
    """By batch size: the times of every backend and way, taken in turns, and what is wrong with those that are."""
    found: dict[int, tuple[dict[tuple[str, str], timing.Times], dict[tuple[str, str], str]]] = {}

    def take(batch_size: int):
        if batch_size not in found:
            context = _context(model, batch_size)
            calls = {
                (backend, way): partial(_generate, model, backend, context, **settings)
                for backend in BACKENDS
                for way, settings in WAYS.items()
            }
            faults = {name: _fault(model, context, call(temperature=0)) for name, call in calls.items()}
            right = {name: call for name, call in calls.items() if faults[name] is None}
            times = {} if seconds is None else timing.in_turn(right, DEVICE, seconds, wall=True)
            found[batch_size] = times, faults
        return found[batch_size]

    return take


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def bench_generate(benchmark, replay, in_turn, batch_size, way, backend):
    benchmark.group = f"generate: {NEW_TOKENS} tokens of {PRESET}, {batch_size} at a time, {str(DTYPE)[6:]}"
    times, faults = in_turn(batch_size)
    if fault := faults[backend, way]:
        pytest.fail(f"wrong: {fault}", pytrace=False)
    if not times:
        return replay(())
    replay(times[backend, way].rounds)
    benchmark.extra_info["tokens_per_s"] = batch_size * NEW_TOKENS / times[backend, way].median


def _context(model: GPT, batch_size: int) -> Tensor:
    """Random tokens, so many that the new ones fill the context."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    size = batch_size, model.config.context_length - NEW_TOKENS
    return torch.randint(model.config.vocab_size, size, generator=generator, device=DEVICE)


def _generate(model: GPT, backend: str, context: Tensor, temperature: float = 0.8, **settings) -> Tensor:
    model.use(kernels.select(backend, DEVICE), DTYPE)
    return model.generate(context, NEW_TOKENS, temperature, **settings)


@torch.no_grad()
def _fault(model: GPT, context: Tensor, greedy: Tensor) -> str | None:
    """What is wrong with greedy tokens (B, context + NEW_TOKENS), or None.

    A logit may err by kernels.error_rule. Where two err against each other, a token may win that is less likely than
    the likeliest by twice that.
    """
    before, new = greedy[:, :-1], greedy[:, context.shape[1] :]
    if new.shape[1] != NEW_TOKENS or not torch.equal(greedy[:, : context.shape[1]], context):
        return f"{tuple(greedy.shape)} tokens, not the context and {NEW_TOKENS} more"
    right = copy.deepcopy(model).double().use(kernels.select("reference"), torch.float64)(before)
    last = right[:, -NEW_TOKENS:]
    short = (last.amax(-1) - last.gather(-1, new[..., None])[..., 0]).max().item()
    allowed = 0.0
    for order in ORDERS:
        with order:
            plain = model.use(kernels.select("reference"), DTYPE)(before)
        allowed = max(allowed, 2 * judge(plain, plain, right).allowed)
        if short <= allowed:
            return None
    return f"a token is {short:.2e} less likely than the likeliest, allowed {allowed:.2e}"
