"""What a durable checkpoint costs over a plain torch.save of the same state: both have checksums, but one of them is
made durable, renamed into place, and leaves its predecessor."""

import statistics
import time

import pytest
import torch

from minilm.config import build
from minilm.model import GPT
from minilm.training import checkpoint
from minilm.training.optimizer import build_optimizers

ROUNDS = 21
MODELS = {"quick": ("quick", {}), "quick, 4 times as wide": ("quick", {"d_model": 512})}


@pytest.fixture(scope="module", params=MODELS)
def paired(request, tmp_path_factory, seconds):
    """Seconds of (plain torch.save, save_last), a pair a round, by turns first; no round where nothing is measured."""
    preset, model = MODELS[request.param]
    config = build(preset, {"model": {"vocab_size": 75, **model}})
    gpt = GPT(config.model)
    optimizers = build_optimizers(gpt, config.train)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    gpt(tokens, tokens).backward()
    for optimizer in optimizers:
        optimizer.step()
    state = {"model": gpt.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    folder = tmp_path_factory.mktemp("checkpoints")

    def plain(_):
        torch.save(state, folder / "plain.pt")

    def durable(step):
        checkpoint.save_last(folder, state, 2, step - 1 if step else None)

    rounds = []
    for step in range(1 if seconds is None else ROUNDS + 1):
        took = {}
        for save in (plain, durable) if step % 2 else (durable, plain):
            start = time.perf_counter()
            save(step)
            took[save] = time.perf_counter() - start
        rounds.append((took[plain], took[durable]))
    size = (folder / "plain.pt").stat().st_size / 1e6
    return f"{request.param}, {size:.0f} MB", rounds[1:]


@pytest.mark.parametrize("way", ["plain torch.save", "durable"])
def bench_save(benchmark, replay, paired, way):
    name, rounds = paired
    benchmark.group = f"checkpoint: save, {name}"
    replay([pair[way == "durable"] for pair in rounds])
    if way == "durable" and rounds:
        ratios = sorted(durable / plain for plain, durable in rounds)
        low, middle, high = statistics.quantiles(ratios, n=4)
        benchmark.extra_info.update(ratio=middle, ratio_low=low, ratio_high=high)
        print(f"{name}: {middle:.2f} times a plain torch.save, half of {len(ratios)} pairs in {low:.2f} to {high:.2f}")
