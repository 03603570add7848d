"""Run folders and transformers folders with random numbers in them, made in a moment."""

from pathlib import Path

import torch

from minilm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from minilm.corpus.tokenizer import BPETokenizer, CharTokenizer, code_points
from minilm.model import GPT
from minilm.sampling.generate import load_run
from minilm.training import checkpoint, journal

TEXT = 'A fox met — at dawn, in  deep\tsnow —\r\na crow. "Don\'t!" said she . \n\nNaïve e\u0301tude 🦊 2 * 3 = 6?\n'
SMALL = {"n_layers": 2, "n_heads": 4, "d_model": 32, "context_length": 48}
ROTARY = {"position": "rope", "norm_type": "rmsnorm", "activation": "swiglu"}


def characters() -> CharTokenizer:
    seen = torch.zeros(0x110000, dtype=torch.bool).numpy()
    seen[code_points(TEXT)] = True
    return CharTokenizer.train(seen)


def byte_pairs() -> BPETokenizer:
    return BPETokenizer.train([TEXT] * 3, 300)


@torch.no_grad()
def scramble(model: torch.nn.Module, seed: int = 0) -> None:
    """Numbers large enough that a wrong row, a missing bias or another epsilon shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        norm = parameter.ndim == 1 and not name.endswith("bias")
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + norm)


def make_run(path: Path, tokenizer=None, seed: int = 0, **model) -> GPT:
    """A run folder whose best checkpoint holds the model that is returned."""
    tokenizer = tokenizer or characters()
    config = RunConfig(
        "tiny",
        ModelConfig(**SMALL | {"vocab_size": tokenizer.vocab_size} | model),
        TrainConfig(),
        DataConfig(tokenizer=tokenizer.kind),
    )
    gpt = GPT(config.model).eval()
    scramble(gpt, seed)
    journal.write_json(path / journal.CONFIG, {**config.to_dict(), "format": 1, "name": path.name, "facts": {}})
    (path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    state = {"model": gpt.state_dict(), "config": config.to_dict(), "step": 7}
    checkpoint.save(path / checkpoint.FOLDER / "best.pt", state)
    return gpt


def save_theirs(path: Path, config, tokenizer=None, shard: str = "5GB", base: bool = False):
    """A random model of transformers, saved as it saves them, with a tokenizer beside it."""
    from transformers import AutoModelForCausalLM

    from minilm.corpus.tokenizer_json import to_library

    model = AutoModelForCausalLM.from_config(config).eval()
    scramble(model)
    (model.base_model if base else model).save_pretrained(path, max_shard_size=shard)
    (path / "tokenizer.json").write_text(to_library(tokenizer or characters()), encoding="utf-8")
    return model


def load_theirs(path: Path):
    """(model, tokenizer), and not a word about weights that were missing or left over."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, said = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(said.values())
    return model.eval(), AutoTokenizer.from_pretrained(path)


def load_ours(path: Path) -> GPT:
    return load_run(path, "best", "torch", "cpu")[0]


@torch.no_grad()
def logits(model, ids):
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


def some_ids(vocab_size: int, T: int = 48) -> torch.Tensor:
    return torch.randint(vocab_size, (3, T), generator=torch.Generator().manual_seed(3))
