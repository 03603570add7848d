"""Text from a run: load a checkpoint with any kernels, encode the prompt, decode what comes as it comes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

import kernels
from minilm import hardware
from minilm.corpus.tokenizer import Tokenizer, load_tokenizer
from minilm.errors import UserError
from minilm.model import GPT
from minilm.training import checkpoint
from minilm.training.journal import check_folder


def load_run(
    run: Path, which: str = "best", kernels_name: str = "auto", device_name: str = "auto", dtype: str = "float32"
) -> tuple[GPT, Tokenizer]:
    """The model of a run at the checkpoint "best", "last" or a step, ready to generate, and its tokenizer.

    Raises UserError for what is missing, damaged or does not fit together.
    """
    device = hardware.resolve_device(device_name)
    ops = kernels.select(kernels_name, device)
    check_folder(run)
    if not run.is_dir():
        raise UserError(f"There is no run folder {run}; name one that minilm train wrote.")
    if not (run / "config.json").exists():
        raise UserError(f"{run} is not a run folder, for it has no config.json; name one that minilm train wrote.")
    path = checkpoint.find(run, which)
    state = checkpoint.load(path, device)
    config = checkpoint.config_of(state, path).model
    tokenizer = load_tokenizer(run / "tokenizer.json")
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{run}/tokenizer.json has {tokenizer.vocab_size} tokens and the model {config.vocab_size}.")
    with torch.device(device):
        model = GPT(config, ops, hardware.resolve_dtype(dtype, device))
    checkpoint.load_weights(model, state, path)
    return model.eval(), tokenizer


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    unknown: str = "error",
) -> Iterator[str]:
    """What the model writes after `prompt`, in pieces as they are drawn; never a piece that ends within a character.

    An empty prompt begins a new document (see Tokenizer.beginning). seed None: from the clock.
    """
    if not math.isfinite(temperature) or temperature < 0:
        raise UserError(f"The temperature is {temperature}; it must be a number of at least 0, 0 being greedy.")
    device = model.head.weight.device
    generator = torch.Generator(device)
    _ = generator.seed() if seed is None else generator.manual_seed(seed)
    context = tokenizer.encode(prompt, unknown) if prompt else tokenizer.beginning()
    ids = torch.tensor([context.tolist()], device=device)
    pending: list[int] = []  # tokens that may end within a character: each holds some bytes of it
    for token in model.stream(ids, max_new_tokens, temperature, top_k, top_p, generator):
        if int(token) >= tokenizer.vocab_size:  # a padded vocabulary has ids that no text has
            continue
        pending.append(int(token))
        text = tokenizer.decode(pending)
        if not text.endswith("\ufffd") or len(pending) >= 4:
            yield text
            pending.clear()
    if pending:
        yield tokenizer.decode(pending)
