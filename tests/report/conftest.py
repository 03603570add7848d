"""Run folders as training writes them, built from a formula."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.report.ablation_lab import Lab, whole
from tests.report.pages_read import Page

FLOOR_BITS_PER_BYTE = 1.1686  # 0.81 nats a character of one byte
PARAMETERS = {"total": 838_144, "non_embedding": 802_816, "matrices_and_head": 809_472, "embedding": 35_328}
FABLE = (
    "The fox met the crow by the old mill. 'Give me the cheese,' said the fox, 'and I will sing for you.' "
    "The crow laughed and flew off to her nest. "
)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build_run(
    folder: Path,
    *,
    steps: int = 2000,
    steps_done: int | None = None,
    eval_interval: int = 250,
    tokenizer: str = "char",
    bytes_per_token: float = 1.0,
    floor: float | None = FLOOR_BITS_PER_BYTE,
    seed: int = 1,
    level: float = 0.42,
    evaluate: bool = True,
    baselines: bool = True,
    name: str | None = None,
    train: dict | None = None,
    last_rise: float = 0.0,
) -> Path:
    """A folder that looks like a run of `steps` steps: the loss falls from ln(vocabulary) towards `level` nats above
    the floor."""
    rng = np.random.default_rng(seed)
    done = steps if steps_done is None else steps_done
    vocab_size = 69 if tokenizer == "char" else 1024
    start, end = math.log(vocab_size), 0.81 * bytes_per_token + level * bytes_per_token
    tokens_per_step, peak = 12 * 128, 1e-3
    command = f"minilm train --preset quick --steps {steps}"
    train_settings = {
        "steps": steps, "batch_size": 12, "grad_accumulation": 1, "lr": peak, "min_lr": peak / 10, "warmup_steps": 100,
        "schedule": "cosine", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "optimizer": "adamw",
        "eval_interval": eval_interval, "checkpoint_interval": 500, "log_interval": 1, "seed": 1337, "dtype": "float32",
        "residual_dtype": "float32", "compile": False, "kernels": "auto", "device": "cpu",
    }  # fmt: skip

    def loss_at(step: float) -> float:
        return end + (start - end) * (0.75 / (1 + step / 25) + 0.25 / (1 + step / 400) ** 1.5)

    def rate_at(step: int) -> float:
        if step <= 100:
            return peak * step / 100
        return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - 100) / max(steps - 100, 1))))

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": 1,
        "name": name or folder.name,
        "preset": "quick",
        "model": {
            "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "d_model": 128, "d_ff": 344, "vocab_size": vocab_size,
            "context_length": 128, "activation": "swiglu", "norm": "pre", "norm_type": "layernorm", "position": "rope",
            "dropout": 0.0, "bias": False, "tie_embeddings": True,
        },
        "train": train_settings | (train or {}),
        "data": {
            "source": "fables", "tokenizer": tokenizer, "vocab_size": vocab_size, "val_fraction": 0.1,
            "split": "documents",
        },
        "facts": {
            "created": "2026-03-02T09:15:27Z", "command": command, "device": "cpu", "device_name": "x86_64, 2 cores",
            "dtype": "float32", "residual_dtype": "float32", "kernels": "torch",
            "kernels_reason": "auto on a machine without an NVIDIA GPU",
            "parameters": PARAMETERS, "flops_per_token": 5_423_616, "tokens_per_step": tokens_per_step, "epochs": 3.1,
            "peak_flops": None, "memory_estimate_bytes": 118_000_000,
            "versions": {"minilm": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "triton": None, "numpy": "2.4.0"},
            "git_revision": "4f1c2d9", "data_sha256": "9b74c9897bac770ffc029102a200c5de" * 2,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    side = {"tokens": 990_000, "characters": 990_000, "bytes": 990_000, "documents": 4_100}
    data = {
        "source": "fables", "tokenizer": {"type": tokenizer}, "vocab_size": vocab_size, "train": side,
        "val": {key: value // 9 for key, value in side.items()}, "bytes_per_token": bytes_per_token,
        "split": {"rule": "documents", "val_fraction": 0.1}, "sha256": "9b74c989",
        "floor": None if floor is None else {"nats_per_char": floor * math.log(2), "bits_per_byte": floor},
    }  # fmt: skip
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")

    rows = []
    for step in range(done + 1):
        if evaluate and (step % eval_interval == 0 or step == done):
            rise = last_rise * max(0.0, step / steps - 0.7)
            val_loss = loss_at(step) + 0.02 + rise + 0.004 * rng.standard_normal()
            bits = val_loss / math.log(2) / bytes_per_token
            tokens = step * tokens_per_step
            rows.append({"step": step, "tokens": tokens, "val_loss": val_loss, "val_bpb": bits, "wall": step * 0.0755})
        if step < done:
            noise = 0.05 * rng.standard_normal()
            grad_norm = (0.35 + 2.5 / (1 + step / 30)) * math.exp(0.25 * rng.standard_normal())
            row = {
                "step": step + 1,
                "tokens": (step + 1) * tokens_per_step,
                "loss": loss_at(step) + noise,
                "lr": rate_at(step + 1),
            }
            rate = 20_300 + 600 * rng.standard_normal()
            rows.append(row | {"grad_norm": grad_norm, "tokens_per_s": rate, "wall": (step + 1) * 0.0755})
    write_lines(folder / "metrics.jsonl", rows)

    events = [
        {"step": 0, "time": "2026-03-02T09:15:27Z", "event": "started", "message": "Training starts from new weights."}
    ]
    if done >= steps:
        events.append(
            {"step": done, "time": "2026-03-02T09:17:58Z", "event": "finished", "message": f"{done} steps done."}
        )
    write_lines(folder / "events.jsonl", events)
    if baselines:
        per_byte = [4.19, 3.31, 2.64, 2.18, 1.97, 1.99]
        nats = math.log(2) * bytes_per_token
        orders = [{"order": k, "nats_per_token": b * nats, "bits_per_byte": b} for k, b in enumerate(per_byte, 1)]
        text = {"smoothing": "interpolated Kneser-Ney", "fitted_on_tokens": done * tokens_per_step, "orders": orders}
        (folder / "baselines.json").write_text(json.dumps(text), encoding="utf-8")
    write_samples(folder, done, rng)
    (folder / "checkpoints").mkdir(exist_ok=True)
    for file in ("best.pt", "last.pt"):
        (folder / "checkpoints" / file).write_bytes(b"\0" * 4096)
    return folder


def write_samples(folder: Path, done: int, rng: np.random.Generator) -> None:
    (folder / "samples").mkdir(exist_ok=True)
    letters = list("etaoin shrdlu,.'")
    for step in sorted({0, done // 8, done // 4, done // 2, done}):
        samples = []
        for index, prompt in enumerate(("The fox", "Once upon a time", "")):
            learned = int(len(FABLE) * min(1.0, 2 * step / max(done, 1)))
            tail = FABLE[7:learned] + "".join(rng.choice(letters, size=max(0, 260 - learned)))
            settings = {"prompt": prompt, "temperature": 0.8, "top_k": None, "top_p": 0.95, "seed": index + 1}
            samples.append(settings | {"text": prompt + tail})
        (folder / "samples" / f"step_{step:06d}.json").write_text(
            json.dumps({"step": step, "samples": samples}), encoding="utf-8"
        )


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, **how) builds tmp_path/name and returns its path."""
    return lambda name="quick-001", **how: build_run(tmp_path / name, **how)


@pytest.fixture
def lines():
    return write_lines


@pytest.fixture(scope="session")
def build():
    return build_run


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The whole study, reported once: (lab, result, page, folder of the report). Not to be changed."""
    lab = whole(Lab(tmp_path_factory.mktemp("study")))
    return lab, lab.result(), Page.at(lab.write()), lab.folder / "out"


@pytest.fixture
def undrawn_figures(monkeypatch):
    """For tests of a page's words and numbers: figures are made and stay blank, for drawing them takes seconds."""

    def blank(figure, file, *, format, **options):
        width, height = 72 * figure.get_size_inches()
        if format == "svg":
            file.write(f'<svg viewBox="0 0 {width} {height}"><g id="figure_1"></g></svg>')
        else:
            Path(file).write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", blank)
