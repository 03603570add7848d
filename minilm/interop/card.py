"""The model card of an export: what is known of the run, and not a line about what is not."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

import minilm
from minilm.corpus.tokenizer import CharTokenizer
from minilm.errors import UserError
from minilm.interop.layouts import Layout
from minilm.model import GPT
from minilm.report.runs import Run, read_run

if TYPE_CHECKING:
    from minilm.interop.export import Trained

SAMPLE_CHARACTERS = 400
PIPE = "\\|"  # a bar that ends no cell


def model_card(trained: Trained, layout: Layout | None, out: Path, dtype: str) -> str:
    """README.md as the Hugging Face Hub shows it."""
    run = _journal_of(trained.run)
    parts = [
        _front_matter(layout),
        f"# {trained.run.resolve().name}",
        _introduction(trained, layout),
        "## Use",
        _use(trained, layout, out),
        "## Model",
        _table(_model_rows(trained, dtype)),
    ]
    rows = _training_rows(trained, run)
    if rows:
        parts += ["## Training", _table(rows)]
    sample = _sample(trained, run)
    if sample:
        parts += ["## What it writes", sample]
    return "\n\n".join(parts) + "\n"


def _journal_of(path: Path) -> Run | None:
    try:
        return read_run(path)
    except UserError:  # imported: it has no steps
        return None


def _front_matter(layout: Layout | None) -> str:
    library = "transformers" if layout else "minilm"
    return f"---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- minilm\n---"


def _introduction(trained: Trained, layout: Layout | None) -> str:
    c, imported = trained.config.model, trained.saved.get("imported")
    total = _parameters(trained)["total"]
    form = f"in transformers' {layout.name} layout" if layout else "in minilm's own names"
    origin = f"imported by minilm from {Path(imported['path']).name}" if imported else "trained with minilm"
    begun = trained.saved.get("init")
    more = f" It began from the weights of {Path(begun['path']).name}." if begun else ""
    return (
        f"A GPT of {total:,} parameters ({c.n_layers} layers, width {c.d_model}) {origin}, {form}. It continues text; "
        f"it follows no instructions and was tuned for no task.{more}"
    )


def _use(trained: Trained, layout: Layout | None, out: Path) -> str:
    if layout is None:
        return (
            "```bash\n"
            f"minilm import {out.name} --out runs/{out.name}   # the same weights, bit for bit\n"
            f"minilm generate --run runs/{out.name}\n"
            f"minilm train --init {out.name} --data my.txt\n"
            "```"
        )
    lines = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({out.name!r})",
        f"model = AutoModelForCausalLM.from_pretrained({out.name!r})",
        f"ids = tokenizer({_prompt(trained)!r}, return_tensors='pt').input_ids",
        f"print(tokenizer.decode(model.generate(ids, max_new_tokens={trained.config.model.context_length // 2})[0]))",
        "```",
        "",
        f"It reads {trained.config.model.context_length} tokens at most.",
    ]
    if trained.tokenizer.kind == "char":
        lines.append("A token is a character; one outside its vocabulary is an error.")
    else:
        lines.append(
            "`<|endoftext|>` stands between documents and does not end what `generate` writes; "
            "`eos_token_id=tokenizer.eos_token_id` makes it do so."
        )
    return "\n".join(lines)


def _prompt(trained: Trained) -> str:
    """Some text that this tokenizer knows."""
    tokenizer = trained.tokenizer
    if not isinstance(tokenizer, CharTokenizer) or all(c in tokenizer.vocabulary for c in "The "):
        return "The "
    return next((c for c in tokenizer.vocabulary if c.isalpha()), tokenizer.vocabulary[0])


def _parameters(trained: Trained) -> dict[str, int]:
    import torch

    facts = trained.saved.get("facts") or {}
    if isinstance(facts.get("parameters"), dict):
        return facts["parameters"]
    with torch.device("meta"):
        return GPT(trained.config.model).count_parameters()


def _model_rows(trained: Trained, dtype: str) -> list[tuple[str, str]]:
    c, count = trained.config.model, _parameters(trained)
    heads = f"{c.n_heads} of width {c.head_dim}"
    padding = c.vocab_size - trained.tokenizer.vocab_size
    return [
        ("parameters", f"{count['total']:,} ({count['non_embedding']:,} without embeddings)"),
        ("layers, width, feed-forward width", f"{c.n_layers}, {c.d_model}, {c.d_ff}"),
        ("heads", heads + (f", {c.n_kv_heads} for keys and values" if c.n_kv_heads != c.n_heads else "")),
        ("norm, activation, positions", f"{c.norm}-norm {c.norm_type}, {c.activation}, {c.position}"),
        ("context", f"{c.context_length} tokens"),
        (
            "vocabulary",
            f"{trained.tokenizer.vocab_size:,} {'characters' if trained.tokenizer.kind == 'char' else 'byte pairs'}"
            + (f", padded to {c.vocab_size:,}" if padding else ""),
        ),
        ("embeddings and head", "one matrix" if c.tie_embeddings else "two matrices"),
        ("weights stored as", dtype),
        ("written by", f"minilm {minilm.__version__}, safetensors {importlib.metadata.version('safetensors')}"),
    ]


def _training_rows(trained: Trained, run: Run | None) -> list[tuple[str, str]]:
    if run is None:
        return []
    step, t, facts, data = trained.state["step"], trained.config.train, trained.saved.get("facts") or {}, trained.data
    rows = [("text", f"{run.source}, SHA-256 `{data['sha256']}`" if data.get("sha256") else run.source)]
    sizes = {split: (data.get(split) or {}).get("tokens") for split in ("train", "val")}
    if all(sizes.values()):
        rows.append(("tokens in the text", f"{sizes['train']:,} to train on, {sizes['val']:,} held out"))
    tokens = step * facts.get("tokens_per_step", 0)
    rows.append(("steps", f"{step:,}" + (f", {tokens:,} tokens read" if tokens else "")))
    evaluation = next((row for row in run.eval_rows if row["step"] == step), None)
    if evaluation:
        bits = run.bits_of(evaluation)
        rows.append(("validation loss", f"{evaluation['val_loss']:.4f} nats a {run.unit}, {bits:.4f} bits a byte"))
    if run.floor is not None:
        rows.append(("entropy of the source", f"{run.floor:.4f} nats a {run.unit}: no model can do better"))
    rows.append(
        ("optimizer", f"{t.optimizer}, learning rate {t.lr:g} to {t.min_lr:g} ({t.schedule}), batch {t.batch_size}")
    )
    rows.append(("dropout", f"{trained.config.model.dropout:g}"))
    device, number = facts.get("device_name"), facts.get("dtype")
    rows += [("trained on", f"{device}, in {number}")] if device and number else []
    known = {k: v for k, v in (facts.get("versions") or {}).items() if isinstance(v, str)}
    rows += [("versions", ", ".join(f"{name} {version}" for name, version in known.items()))] if known else []
    return rows


def _sample(trained: Trained, run: Run | None) -> str | None:
    drawn = next((samples for step, samples in (run.samples if run else []) if step == trained.state["step"]), None)
    if not drawn:
        return None
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in drawn[0]["text"][:SAMPLE_CHARACTERS]).strip("\n")
    lines = [f"    {line}" for line in text.splitlines()]
    how = f"At step {trained.state['step']:,}, temperature {drawn[0].get('temperature')}, from nothing:"
    return how + "\n\n" + "\n".join(lines)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value.replace('|', PIPE)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])
