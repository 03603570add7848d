"""The presets: each a difference from the defaults of config.py, which checks it like any other setting."""

from __future__ import annotations

from typing import Any

PYTHIA_STEPS = "pythia"  # --save-at pythia: 0, 1, 2, 4 ... 512, then every 1000 (Biderman et al. 2023, section 2.2)
QUICK = "quick"
CAPSTONE = "capstone"

# Every preset is a difference from the defaults above. nanoGPT's recipes are its config/train_shakespeare_char.py
# and the CPU command of its README, field by field; its GPT-2 is config/train_gpt2.py at one GPU's batch.
NANOGPT_CHAR: dict[str, dict[str, Any]] = {
    "model": {"n_layers": 6, "n_heads": 6, "d_model": 384, "context_length": 256, "dropout": 0.2, "bias": False},
    "train": {
        "steps": 5000,
        "batch_size": 64,
        "lr": 1e-3,
        "min_lr": 1e-4,
        "warmup_steps": 100,
        "beta2": 0.99,
        "eval_interval": 250,
        "checkpoint_interval": 1000,
        "sample_interval": 1000,
    },
    "data": {"source": "shakespeare", "split": "tail"},
}
FAST_MODEL = {"activation": "relu2", "position": "rope", "rope_base": 1024.0, "qk_norm": True} | {
    "init": "zero_out",
    "tie_embeddings": False,
    "bias": False,
}
FAST_TRAIN = {"optimizer": "muon", "lr": 0.016, "adamw_lr": 0.03, "muon_momentum": 0.9, "muon_steps": 3} | {
    "schedule": "linear",
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "grad_clip": 0.0,
    "dtype": "bfloat16",
    "checkpoint_interval": 0,
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    QUICK: {
        "model": {"n_layers": 4, "n_heads": 4, "d_model": 128, "context_length": 128, "position": "rope"},
        "train": {
            "steps": 1600,
            "batch_size": 8,
            "optimizer": "muon",
            "lr": 1e-2,
            "min_lr": 5e-4,
            "warmup_steps": 50,
            "eval_interval": 200,
            "sample_interval": 200,
        },
        "data": {"source": "fables", "characters": 4_000_000, "val_fraction": 0.025},
    },
    "tiny": {
        "model": {"n_layers": 2, "n_heads": 2, "d_model": 64, "context_length": 32},
        "train": {"steps": 100, "batch_size": 8, "warmup_steps": 10, "eval_interval": 50},
        "data": {"source": "fables", "characters": 200_000, "val_fraction": 0.05},
    },
    CAPSTONE: {
        "model": {"n_layers": 8, "n_heads": 8, "d_model": 512, "d_ff": 2048, "context_length": 256},
        "train": {
            "steps": 10_000,
            "batch_size": 64,
            "lr": 3e-4,
            "min_lr": 3e-5,
            "warmup_steps": 500,
            "eval_interval": 500,
            "checkpoint_interval": 1000,
            "sample_interval": 1000,
            "save_at": PYTHIA_STEPS,
        },
        "data": {"source": "fables", "characters": 50_000_000, "val_fraction": 0.02},
    },
    "shakespeare-char": NANOGPT_CHAR,
    "shakespeare-char-cpu": {
        "model": {**NANOGPT_CHAR["model"], "n_layers": 4, "n_heads": 4, "d_model": 128, "context_length": 64}
        | {"dropout": 0.0},
        "train": {**NANOGPT_CHAR["train"], "steps": 2000, "batch_size": 12},
        "data": NANOGPT_CHAR["data"],
    },
    # The same data, split and tokens as nanoGPT's recipes, and a transformer that is otherwise free: for the least time
    # to their losses. How the settings were found is in LOG.md.
    "shakespeare-char-fast": {
        "model": {"n_layers": 6, "n_heads": 6, "d_model": 384, "context_length": 256, "dropout": 0.1, **FAST_MODEL},
        "train": {"steps": 500, "batch_size": 64, "eval_interval": 50, "warmup_steps": 20, **FAST_TRAIN},
        "data": NANOGPT_CHAR["data"],
    },
    "shakespeare-char-cpu-fast": {
        "model": {"n_layers": 4, "n_heads": 2, "d_model": 128, "d_ff": 256, "context_length": 64, **FAST_MODEL},
        "train": {"steps": 200, "batch_size": 16, "eval_interval": 50, "warmup_steps": 4, **FAST_TRAIN},
        "data": NANOGPT_CHAR["data"],
    },
    "gpt2": {
        "model": {"n_layers": 12, "n_heads": 12, "d_model": 768, "context_length": 1024, "activation": "gelu_tanh"},
        "train": {
            "steps": 10_000,
            "batch_size": 480,
            "grad_accumulation": 40,
            "lr": 6e-4,
            "min_lr": 6e-5,
            "warmup_steps": 700,
            "eval_interval": 250,
            "eval_tokens": 1_000_000,
            "checkpoint_interval": 500,
            "sample_interval": 500,
        },
        "data": {"source": "python", "tokenizer": "bpe", "vocab_size": 16_384, "val_fraction": 0.05},
    },
}
