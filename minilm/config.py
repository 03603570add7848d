"""What a run is made of: three frozen dataclasses, checked when made, saved as JSON, changed by section.key=value."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from minilm.errors import UserError
from minilm.presets import PRESETS, PYTHIA_STEPS

LOGGERS = ("tensorboard", "wandb", "csv")


def _choice(default: Any, *allowed: str) -> Any:
    return field(default=default, metadata={"choices": allowed})


def _number(default: Any, low: float = -math.inf, high: float = math.inf, *, open_low=False, open_high=False) -> Any:
    return field(default=default, metadata={"range": (low, high, open_low, open_high)})


def _derived(low: float, high: float = math.inf) -> Any:
    """A whole number that is found from the rest, or from the data, where it is left at None."""
    return field(default=None, metadata={"range": (low, high, False, False), "derived": True})


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a GPT. n_kv_heads and d_ff left at None are derived: n_heads, and 4·d_model (for SwiGLU
    two thirds of that, up to a multiple of 8, which keeps the parameters of the plain MLP: Shazeer 2020)."""

    n_layers: int = _number(4, 1, 10_000)
    n_heads: int = _number(4, 1, 2**16)
    n_kv_heads: int = _derived(1)
    d_model: int = _number(128, 1, 2**20)
    d_ff: int = _derived(1, 2**24)
    vocab_size: int = _derived(1, 2**31)  # None: what the data has
    context_length: int = _number(128, 1, 2**24)
    activation: str = _choice("gelu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu")
    norm: str = _choice("pre", "pre", "post")
    norm_type: str = _choice("layernorm", "layernorm", "rmsnorm")
    norm_eps: float = _number(1e-5, 0, 1, open_low=True)  # added to the variance
    position: str = _choice("learned", "learned", "rope")
    rope_base: float = _number(10_000.0, 1)
    qk_norm: bool = False
    init: str = _choice("gpt2", "gpt2", "zero_out")  # see GPT.initialise
    dropout: float = _number(0.0, 0, 1, open_high=True)
    bias: bool = True
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        _check(self, "model")
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.d_ff is None:
            swiglu = -(-self.d_model * 8 // 3 // 8) * 8
            object.__setattr__(self, "d_ff", swiglu if self.activation == "swiglu" else 4 * self.d_model)
        if self.d_model % self.n_heads:
            _fail("model.d_model", self.d_model, f"a multiple of model.n_heads ({self.n_heads})")
        if self.n_heads % self.n_kv_heads:
            _fail("model.n_kv_heads", self.n_kv_heads, f"a divisor of model.n_heads ({self.n_heads})")
        if self.init == "zero_out" and self.tie_embeddings:
            _fail("model.init", self.init, "gpt2 where model.tie_embeddings is set: its head is 0")
        if self.position == "rope" and self.head_dim % 2:
            _fail("model.d_model", self.d_model, "an even number for each head where model.position is rope")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Steps count optimizer updates; intervals are in steps, 0 meaning never."""

    steps: int = _number(1000, 1, 10**9)
    batch_size: int = _number(32, 1, 2**24)  # sequences an update, over all micro-batches
    grad_accumulation: int = _number(1, 1)  # micro-batches an update; must divide batch_size
    lr: float = _number(1e-3, 0, open_low=True)
    min_lr: float = _number(1e-4, 0)
    warmup_steps: int = _number(100, 0)
    schedule: str = _choice("cosine", "cosine", "linear", "constant", "wsd")
    decay_fraction: float = _number(0.2, 0, 1, open_low=True)  # wsd: the last share of the steps, in which lr falls
    weight_decay: float = _number(0.1, 0)
    beta1: float = _number(0.9, 0, 1, open_high=True)
    beta2: float = _number(0.95, 0, 1, open_high=True)
    grad_clip: float = _number(1.0, 0)  # largest global gradient norm; 0 clips nothing
    optimizer: str = _choice("adamw", "adamw", "muon")
    adamw_lr: float | None = _number(None, 0, open_low=True)  # of what Muon leaves to AdamW; None: lr
    muon_momentum: float = _number(0.95, 0, 1, open_high=True)
    muon_steps: int = _number(5, 1, 99)  # Newton-Schulz iterations an update
    eval_interval: int = _number(250, 0)
    eval_tokens: int = _number(0, 0)  # 0: the whole validation split; else evenly spaced windows of about so many
    checkpoint_interval: int = _number(500, 0)
    keep_last: int = _number(2, 1)  # checkpoints to go on from: the newest, and before it those of the interval
    save_at: str = ""  # "pythia", or steps separated by commas, at which the weights are kept
    sample_interval: int = _number(0, 0)
    log_interval: int = _number(10, 1)  # steps between writes of the journal and readings of the loss
    log: str = ""  # also to tensorboard, wandb or csv, separated by commas: see training/loggers.py
    seed: int = _number(1, 0, 2**63 - 1)
    device: str = "auto"
    dtype: str = _choice("auto", "auto", "float32", "bfloat16", "float16")
    residual_dtype: str = _choice("auto", "auto", "float32", "bfloat16", "float16")  # auto: train.dtype
    matmul_precision: str = _choice("highest", "highest", "high", "medium")  # of float32 products: high allows TF32
    kernels: str = _choice("auto", "auto", "reference", "torch", "triton")
    compile: str = _choice("auto", "auto", "off", "on", "graphs")  # graphs: also as CUDA graphs
    graphs: str = _choice("off", "off", "on")  # on: the whole update, optimizer included, as one CUDA graph
    checkpoint_activations: bool = False  # less memory, a third more arithmetic; the same numbers
    deterministic: bool = False
    exact_reduction: bool = False  # the same bits on 1, 2, 4 and 8 processes
    shard: bool = False  # cut weights, gradients and moments over the processes
    on_spike: str = _choice("continue", "continue", "rewind")  # rewind: to the last checkpoint, past the batches since
    max_bad_steps: int = _number(20, 1)  # non-finite steps in a row that end the run, as seen when losses are read

    def __post_init__(self) -> None:
        if isinstance(self.compile, bool):  # as runs were saved before there was "auto"
            object.__setattr__(self, "compile", "on" if self.compile else "off")
        _check(self, "train")
        if self.batch_size % self.grad_accumulation:
            _fail("train.grad_accumulation", self.grad_accumulation, f"a divisor of batch_size ({self.batch_size})")
        if self.min_lr > self.lr:
            _fail("train.min_lr", self.min_lr, f"at most train.lr ({self.lr})")
        if (
            self.shard and self.optimizer == "muon"
        ):  # it orthogonalises whole matrices, of which each process has a part
            _fail("train.optimizer", self.optimizer, "adamw where train.shard is set")
        if self.shard and self.exact_reduction:
            _fail("train.exact_reduction", True, "false where train.shard is set, which adds in an order of its own")
        if self.shard and self.dtype == "float16":
            _fail("train.dtype", self.dtype, "bfloat16 or float32 where train.shard is set")
        if self.on_spike == "rewind" and self.keep_last < 2:
            _fail("train.keep_last", self.keep_last, "at least 2 where train.on_spike is rewind")
        self.kept_steps()
        self.loggers()

    def loggers(self) -> tuple[str, ...]:
        """The names in `log`, each once."""
        names = tuple(dict.fromkeys(name.strip() for name in self.log.split(",") if name.strip()))
        if not set(names) <= set(LOGGERS):
            _fail("train.log", self.log, f"{_words(LOGGERS)}, or several of them separated by commas")
        return names

    def kept_steps(self) -> set[int]:
        """The steps up to the last at which the weights are kept for good."""
        if self.save_at == PYTHIA_STEPS:
            doubling = {0} | {2**k for k in range(10)}
            return {s for s in doubling | set(range(1000, self.steps + 1, 1000)) if s <= self.steps}
        try:
            kept = {int(step) for step in self.save_at.split(",") if step.strip()}
        except ValueError:
            kept = {-1}
        if any(step < 0 for step in kept):
            _fail("train.save_at", self.save_at, f"{PYTHIA_STEPS} or steps separated by commas, such as 0,100,1000")
        return {step for step in kept if step <= self.steps}


@dataclass(frozen=True)
class DataConfig:
    """Which text, cut into which tokens, held out how. See minilm/corpus/sources.py for what a source may be."""

    source: str = "fables"
    tokenizer: str = _choice("char", "char", "bpe")
    vocab_size: int = _number(4096, 257, 2**31)  # for bpe: 256 bytes, the end of text, and merges
    tokenizer_file: str | None = None  # a tokenizer.json whose tokens are used, in place of one made from the text
    val_fraction: float = _number(0.1, 0, 1, open_low=True, open_high=True)
    split: str = _choice("auto", "auto", "tail", "document")
    field: str = "text"  # of each line of a .jsonl file
    unknown: str = _choice("error", "error", "replace")
    characters: int = _number(5_000_000, 1000)  # how much of fables to write
    seed: int = _number(0, 0, 2**63 - 1)  # of fables

    def __post_init__(self) -> None:
        _check(self, "data")


@dataclass(frozen=True)
class RunConfig:
    preset: str
    model: ModelConfig
    train: TrainConfig
    data: DataConfig

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> RunConfig:
        """The configuration that to_dict() wrote; raises UserError for fields this version does not know."""
        return RunConfig(saved["preset"], **{s: _make(s, saved[s]) for s in SECTIONS})


SECTIONS = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}
ON_RESUME = {
    "train": {
        "steps",
        "kernels",
        "device",
        "compile",
        "graphs",
        "log_interval",
        "sample_interval",
        "checkpoint_interval",
        "shard",
    }
    | {"grad_accumulation", "keep_last", "on_spike", "checkpoint_activations", "log"}
}


def build(preset: str, overrides: dict[str, dict[str, Any]] | None = None) -> RunConfig:
    """The configuration of a preset with overrides {section: {key: value}} laid over it.

    Raises UserError for an unknown preset, section or key ("did you mean"), and for a value that is not allowed.
    """
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}{_did_you_mean(preset, PRESETS)}; there are {_words(PRESETS)}.")
    merged = {s: {**PRESETS[preset].get(s, {}), **(overrides or {}).get(s, {})} for s in SECTIONS}
    return RunConfig(preset, **{section: _make(section, values) for section, values in merged.items()})


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """("train", "lr", 0.001) from "train.lr=1e-3". Raises UserError naming what is wrong."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot):
        raise UserError(f"--set {text!r} is not of the form section.key=value, such as train.lr=3e-4.")
    kinds = _kinds(_class_of(section))[_known_key(section, key)]
    return section, key, _parse(f"{section}.{key}", kinds, value.strip())


def check_resume(old: RunConfig, new: RunConfig) -> list[str]:
    """What changes between a run and its continuation, in words; raises UserError naming what must not change."""
    changes: list[str] = []
    refused: list[str] = []
    for section in SECTIONS:
        before, after = (dataclasses.asdict(getattr(config, section)) for config in (old, new))
        for key in before:
            if before[key] != after[key]:
                can_change = key in ON_RESUME.get(section, ())
                (changes if can_change else refused).append(f"{section}.{key} from {before[key]} to {after[key]}")
    if old.preset != new.preset:
        refused.append(f"the preset from {old.preset} to {new.preset}")
    if refused:
        allowed = _words(f"{s}.{k}" for s, keys in ON_RESUME.items() for k in sorted(keys))
        raise UserError(f"--resume cannot change {_words(refused)}; it can change {allowed}: start a new run instead.")
    return changes


def _make(section: str, values: dict[str, Any]) -> Any:
    for key in values:
        _known_key(section, key)
    return SECTIONS[section](**values)


def _class_of(section: str) -> type:
    if section not in SECTIONS:
        raise UserError(
            f"There is no section {section!r}{_did_you_mean(section, SECTIONS)}; there are {_words(SECTIONS)}."
        )
    return SECTIONS[section]


def _known_key(section: str, key: str) -> str:
    keys = [f.name for f in dataclasses.fields(_class_of(section))]
    if key in keys:
        return key
    elsewhere = [f"{s}.{key}" for s, kind in SECTIONS.items() if key in {f.name for f in dataclasses.fields(kind)}]
    hint = f" (did you mean {elsewhere[0]}?)" if elsewhere else _did_you_mean(key, keys, f"{section}.")
    shown = key if key.isprintable() else repr(key)
    raise UserError(f"There is no key {section}.{shown}{hint}; {section} has {_words(keys)}.")


def _did_you_mean(word: str, known: typing.Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _words(items: typing.Iterable[str]) -> str:
    return ", ".join(items)


@functools.cache  # to evaluate the annotations takes longer than all else that is done for a configuration
def _kinds(section: type) -> dict[str, tuple[type, ...]]:
    """The types that each field of a section may be given."""
    found, hints = {}, typing.get_type_hints(section)
    for f in dataclasses.fields(section):
        kind = hints[f.name]
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        found[f.name] = (*kinds, type(None)) if f.metadata.get("derived") else kinds
    return found


def _parse(name: str, kinds: tuple[type, ...], text: str) -> Any:
    if type(None) in kinds and text.lower() in ("none", ""):
        return None
    if bool in kinds:
        words = {
            "true": True,
            "yes": True,
            "1": True,
            "on": True,
            "false": False,
            "no": False,
            "0": False,
            "off": False,
        }
        return words.get(text.lower()) if text.lower() in words else _fail(name, text, "true or false")
    if str in kinds:
        return text
    try:
        number = float(text)
        if int not in kinds:
            return number
        if number.is_integer():  # 1e4 is a whole number too; int() where float() would round
            return int(text) if text.lstrip("+-").replace("_", "").isdigit() else int(number)
    except ValueError:
        pass
    return _fail(name, text, "a whole number" if int in kinds else "a number")


def _check(config: Any, section: str) -> None:
    """Types, choices and ranges of every field, each failure naming the field, the value and what is allowed."""
    kinds_of = _kinds(config.__class__)
    for f in dataclasses.fields(config):
        name, value, kinds = f"{section}.{f.name}", getattr(config, f.name), kinds_of[f.name]
        if value is None and type(None) in kinds:
            continue
        if float in kinds and type(value) is int:
            value = float(value)
            object.__setattr__(config, f.name, value)
        if type(value) not in kinds:
            words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
            _fail(name, value, words[kinds[0]])
        if "choices" in f.metadata and value not in f.metadata["choices"]:
            _fail(name, value, f"one of {_words(f.metadata['choices'])}", _did_you_mean(value, f.metadata["choices"]))
        if "range" in f.metadata:
            low, high, open_low, open_high = f.metadata["range"]
            if not (low <= value <= high) or (open_low and value == low) or (open_high and value == high):
                low_words = f"{'above' if open_low else 'at least'} {low}" if low > -math.inf else ""
                high_words = f"{'below' if open_high else 'at most'} {high}" if high < math.inf else ""
                _fail(name, value, " and ".join(filter(None, (low_words, high_words))))
            if value == math.inf:
                _fail(name, value, "a finite number")


def _fail(name: str, value: Any, allowed: str, hint: str = "") -> typing.NoReturn:
    raise UserError(f"{name} is {value!r}; it must be {allowed}{hint}.")
