"""Two layouts of transformers, GPT-2 and Llama: which configuration is which, and which tensor goes where.

Both directions read the same table: for each of our tensors the names that hold it there. What one side has and the
other cannot say is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minilm.config import ModelConfig
from minilm.errors import UserError

FREE = {"init", "dropout", "bias"}  # what may differ and is the same model: biases that are zeros are none
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}  # ours: GPT-2's
TANH = "gelu_pytorch_tanh"  # another name of gelu_new


@dataclass(frozen=True)
class Place:
    """Where a layout holds one of our tensors: in several, rows after rows, or turned over (GPT-2's Conv1D)."""

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()  # of each, where there are several
    turned: bool = False

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of the tensors there, for the shape of ours."""
        parts = [(rows, *shape[1:]) for rows in self.rows] if self.rows else [shape]
        return [part[::-1] for part in parts] if self.turned else parts

    def taken_apart(self, ours: Tensor) -> list[Tensor]:
        parts = list(ours.split(self.rows)) if self.rows else [ours]
        return [part.T if self.turned else part for part in parts]


@dataclass(frozen=True)
class Layout:
    """How transformers lays out one family of models."""

    name: str
    prefix: str  # of what is not the head, left out where a model was saved without one
    unused: re.Pattern[str]  # buffers that older versions saved
    refusal: Callable[[ModelConfig], str | None]  # what of ours it cannot say
    describe: Callable[[ModelConfig], dict[str, Any]]  # config.json
    read: Callable[[dict[str, Any], list[str]], ModelConfig]  # the reverse; appends what a person should know
    places: Callable[[ModelConfig], dict[str, Place]]
    widened: Callable[[ModelConfig], ModelConfig]  # with the biases that it cannot leave out
    biasless: Callable[[dict[str, Any]], list[str]]  # parts of our names that get zeros for biases, by its config.json


def layout_for(config: ModelConfig) -> Layout:
    """The layout that can hold a model. Raises UserError naming what none can."""
    reasons = {}
    for layout in (GPT2, LLAMA):
        reasons[layout.name] = layout.refusal(config) or _unsaid(layout, config)
        if reasons[layout.name] is None:
            return layout
    words = ", and ".join(f"{name}'s {reason}" for name, reason in reasons.items())
    raise UserError(f"This model fits no layout of transformers: {words}; --format safetensors takes every model.")


def layout_named(model_type: Any) -> Layout:
    """Raises UserError for a family that is neither."""
    for layout in (GPT2, LLAMA):
        if layout.name.lower().replace("-", "") == model_type:
            return layout
    raise UserError(f"Its config.json says model_type {model_type!r:.40}; what can be read is gpt2 and llama.")


def _unlike(config: ModelConfig, **wanted: Any) -> str | None:
    for field, allowed in wanted.items():
        value = getattr(config, field)
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        if value not in allowed:
            return f"has model.{field} {' or '.join(map(str, allowed))} and this one {value}"
    return None


def _unsaid(layout: Layout, config: ModelConfig) -> str | None:
    """What a layout has no word for: reading its own description back must give the same model."""
    said = layout.read({**layout.describe(config), "tie_word_embeddings": config.tie_embeddings}, [])
    fields = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in FREE]
    return _unlike(config, **{field: getattr(said, field) for field in fields})


def _refused_by_gpt2(config: ModelConfig) -> str | None:
    return _unlike(
        config,
        position="learned",
        norm="pre",
        norm_type="layernorm",
        activation=tuple(ACTIVATIONS),
        n_kv_heads=config.n_heads,
    )


def _refused_by_llama(config: ModelConfig) -> str | None:
    return _unlike(config, position="rope", norm="pre", norm_type="rmsnorm", activation="swiglu")


def _describe_gpt2(c: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.context_length,
        "n_embd": c.d_model,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_inner": c.d_ff,
        "activation_function": ACTIVATIONS[c.activation],
        "layer_norm_epsilon": c.norm_eps,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
    }


def _describe_llama(c: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_base,
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
        "attention_dropout": c.dropout,  # the only one it has
    }


class _Theirs:
    """A config.json of transformers, which leaves out what is as its class has it by default."""

    def __init__(self, saved: dict[str, Any], defaults: dict[str, Any]):
        self.values = {**defaults, **saved}

    def number(self, key: str) -> int:
        value = self.values[key]
        if type(value) is not int or value < 1:
            raise UserError(f"Its config.json says {key} {value!r:.40}; it must be a whole number above 0.")
        return value

    def yes(self, key: str) -> bool:
        if type(self.values[key]) is not bool:
            raise UserError(f"Its config.json says {key} {self.values[key]!r:.40}; it must be true or false.")
        return self.values[key]

    def rate(self, key: str) -> float:
        value = self.values[key] or 0.0
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"Its config.json says {key} {value!r:.40}; it must be from 0 to below 1.")
        return float(value)

    def must_be(self, key: str, *allowed: Any) -> Any:
        value: Any = self.values.get(key)
        for known in allowed:
            both = isinstance(value, float | int) and isinstance(known, float)
            if value == known or (both and math.isclose(value, known, rel_tol=1e-9)):
                return value
        words = " or ".join(map(str, allowed))
        raise UserError(f"This model has {key} {str(value)[:60]}, which minilm's GPT has not: it has {words}.")


def _read_gpt2(saved: dict[str, Any], notes: list[str]) -> ModelConfig:
    theirs = _Theirs(
        saved,
        {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None}
        | {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
        | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "scale_attn_weights": True}
        | {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "quantization_config": None},
    )
    theirs.must_be("scale_attn_weights", True)
    theirs.must_be("scale_attn_by_inverse_layer_idx", False)
    theirs.must_be("add_cross_attention", False)
    theirs.must_be("quantization_config", None)
    activation = theirs.must_be("activation_function", *ACTIVATIONS.values(), TANH)
    rates = {key: theirs.rate(key) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(set(rates.values())) > 1:
        notes.append(f"Its dropout differs by place; for further training all have {rates['resid_pdrop']:g} here.")
    return ModelConfig(
        n_layers=theirs.number("n_layer"),
        n_heads=theirs.number("n_head"),
        d_model=theirs.number("n_embd"),
        d_ff=None if theirs.values["n_inner"] is None else theirs.number("n_inner"),  # type: ignore[arg-type]
        vocab_size=theirs.number("vocab_size"),
        context_length=theirs.number("n_positions"),
        activation={theirs_: ours for ours, theirs_ in ACTIVATIONS.items()}.get(activation, "gelu_tanh"),
        norm_eps=theirs.values["layer_norm_epsilon"],
        dropout=rates["resid_pdrop"],
        tie_embeddings=theirs.yes("tie_word_embeddings"),
    )


def _read_llama(saved: dict[str, Any], notes: list[str]) -> ModelConfig:
    theirs = _Theirs(
        saved,
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "silu", "rms_norm_eps": 1e-6}
        | {"max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
        | {"attention_dropout": 0.0, "head_dim": None, "quantization_config": None},
    )
    theirs.must_be("hidden_act", "silu", "swish")
    theirs.must_be("quantization_config", None)
    # one table since version 5; before, a number and a table of what is not the default
    table = saved.get("rope_parameters") or saved.get("rope_scaling") or {}
    rope = table if isinstance(table, dict) else {"rope_type": table}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta") or saved.get("rope_theta") or 10_000.0
    part = rope.get("partial_rotary_factor", saved.get("partial_rotary_factor"))
    rotary = _Theirs({"rope_type": kind, "partial_rotary_factor": part}, {})
    rotary.must_be("rope_type", "default")
    rotary.must_be("partial_rotary_factor", None, 1.0)
    heads, width = theirs.number("num_attention_heads"), theirs.number("hidden_size")
    theirs.must_be("head_dim", None, width // heads)
    if theirs.rate("attention_dropout"):
        notes.append("Its dropout of attention weights is left out; for further training see --set model.dropout.")
    bias = theirs.yes("attention_bias") or theirs.yes("mlp_bias")  # the side that has none gets zeros
    return ModelConfig(
        n_layers=theirs.number("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads if theirs.values["num_key_value_heads"] is None else theirs.number("num_key_value_heads"),
        d_model=width,
        d_ff=theirs.number("intermediate_size"),
        vocab_size=theirs.number("vocab_size"),
        context_length=theirs.number("max_position_embeddings"),
        activation="swiglu",
        norm_type="rmsnorm",
        norm_eps=theirs.values["rms_norm_eps"],
        position="rope",
        rope_base=base,
        bias=bias,
        tie_embeddings=theirs.yes("tie_word_embeddings"),
    )


def _with_biases(names: dict[str, Place]) -> dict[str, Place]:
    """Beside each weight its bias, which lies as the weight's rows do."""
    both = {}
    for name, place in names.items():
        both[name] = place
        bias = tuple(theirs.removesuffix("weight") + "bias" for theirs in place.names)
        both[name.removesuffix("weight") + "bias"] = Place(bias, place.rows)
    return both


def _gpt2_places(c: ModelConfig) -> dict[str, Place]:
    places = {
        "token_embedding.weight": Place(("transformer.wte.weight",)),
        "position_embedding.weight": Place(("transformer.wpe.weight",)),
        **_with_biases({"final_norm.weight": Place(("transformer.ln_f.weight",))}),
    }
    if not c.tie_embeddings:
        places["head.weight"] = Place(("lm_head.weight",))
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        places |= _with_biases(
            {
                ours + "norm_1.weight": Place((theirs + "ln_1.weight",)),
                ours + "attention.qkv.weight": Place((theirs + "attn.c_attn.weight",), turned=True),
                ours + "attention.out.weight": Place((theirs + "attn.c_proj.weight",), turned=True),
                ours + "norm_2.weight": Place((theirs + "ln_2.weight",)),
                ours + "mlp.up.weight": Place((theirs + "mlp.c_fc.weight",), turned=True),
                ours + "mlp.down.weight": Place((theirs + "mlp.c_proj.weight",), turned=True),
            }
        )
    return places


def _llama_places(c: ModelConfig) -> dict[str, Place]:
    places = {
        "token_embedding.weight": Place(("model.embed_tokens.weight",)),
        "final_norm.weight": Place(("model.norm.weight",)),
    }
    if not c.tie_embeddings:
        places["head.weight"] = Place(("lm_head.weight",))
    kv = c.n_kv_heads * c.head_dim
    for i in range(c.n_layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        qkv = tuple(f"{theirs}self_attn.{x}_proj.weight" for x in "qkv")
        gate_up = (theirs + "mlp.gate_proj.weight", theirs + "mlp.up_proj.weight")
        linear = {
            ours + "attention.qkv.weight": Place(qkv, (c.d_model, kv, kv)),
            ours + "attention.out.weight": Place((theirs + "self_attn.o_proj.weight",)),
            ours + "mlp.up.weight": Place(gate_up, (c.d_ff, c.d_ff)),
            ours + "mlp.down.weight": Place((theirs + "mlp.down_proj.weight",)),
        }
        places[ours + "norm_1.weight"] = Place((theirs + "input_layernorm.weight",))
        places[ours + "norm_2.weight"] = Place((theirs + "post_attention_layernorm.weight",))
        places |= _with_biases(linear) if c.bias else linear
    return places


GPT2 = Layout(
    "GPT-2",
    "transformer.",
    re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias"),
    _refused_by_gpt2,
    _describe_gpt2,
    _read_gpt2,
    _gpt2_places,
    lambda config: dataclasses.replace(config, bias=True),
    lambda saved: [],
)
LLAMA = Layout(
    "Llama",
    "model.",
    re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
    _refused_by_llama,
    _describe_llama,
    _read_llama,
    _llama_places,
    lambda config: config,
    # biases may be in attention or in the MLP alone
    lambda saved: [part for part in ("attention", "mlp") if not saved.get(f"{part}_bias", False)],
)
