"""Train a small GPT on one text, go on with it on yours, and see what it learned and what it forgot.

python finetune_on_your_text.py my.txt
python finetune_on_your_text.py my.txt --first other.txt --steps 2000 --finetune-steps 500 --out runs/mine

`minilm train --init RUN --data my.txt` goes on with a run in one command; here the loop lies open, to be changed.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from minilm.config import build
from minilm.corpus.dataset import prepared
from minilm.errors import UserError
from minilm.model import GPT
from minilm.sampling.generate import load_run
from minilm.training.loop import train


def batch_of(tokens: Tensor, length: int, generator: torch.Generator, size: int = 16) -> tuple[Tensor, Tensor]:
    """size windows (size, length) from anywhere in the text, and the same moved by one: what comes next."""
    starts = torch.randint(len(tokens) - length, (size, 1), generator=generator)
    windows = tokens[starts + torch.arange(length + 1)]  # (size, length + 1)
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def loss_on(model: GPT, tokens: Tensor) -> float:
    """Mean loss in nats a token over whole windows of a text."""
    model.eval()
    length = model.config.context_length
    windows = tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)[:64]
    return model(windows[:, :-1], windows[:, 1:]).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="what to fine-tune on, UTF-8")
    parser.add_argument("--first", default="fables", help="what to train on before: as minilm train --data")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--finetune-steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/before-finetuning"))
    options = parser.parse_args()

    # Bytes and their merges, not characters: the second text may hold characters that the first one does not.
    data = {"source": options.first, "tokenizer": "bpe", "vocab_size": 512}
    settings = {"steps": options.steps, "device": "cpu", "warmup_steps": options.steps // 10}
    config = build("tiny", {"train": settings, "data": data})
    length = config.model.context_length
    text = options.text.read_text(encoding="utf-8")
    if len(text) < 100 * length:
        raise UserError(f"{options.text} has {len(text):,} characters; give {100 * length:,} or more to learn from.")
    train(config, options.out, console=Console())

    model, tokenizer = load_run(options.out, device_name="cpu")
    tokens = torch.from_numpy(tokenizer.encode(text)).long()
    held_out = len(tokens) // 10
    new_train, new_val = tokens[:-held_out], tokens[-held_out:]
    old_val = torch.from_numpy(prepared(config.data).val[: 64 * length + 1].astype("int64"))
    before = loss_on(model, old_val), loss_on(model, new_val)

    # A tenth of the rate of training: the weights are near a good place, and large steps would leave it.
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr / 10, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(options.finetune_steps):
        for group in optimizer.param_groups:  # straight down to zero
            group["lr"] = config.train.lr / 10 * (1 - step / options.finetune_steps)
        loss = model(*batch_of(new_train, length, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    after = loss_on(model, old_val), loss_on(model, new_val)
    print(f"\nnats a token{'before':>12}{'after':>12}")
    for name, was, now in zip(("first text", "your text"), before, after, strict=True):
        print(f"{name:12}{was:12.3f}{now:12.3f}")
    written = model.generate(new_val[None, :8], 80, temperature=0.8, generator=generator)
    print(f"\nIt now writes:\n{tokenizer.decode(written[0].tolist())}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError, UnicodeDecodeError) as error:
        sys.exit(str(error))
