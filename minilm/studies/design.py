"""What a study compares: a baseline, and arms that differ from it along named axes.

    depth        n_layers: a quarter, a half and one and a half times the baseline's (2, 4, 12 for 8 layers)
    width        d_model: a quarter and a half of the baseline's, its head width kept, d_ff = 4·d_model
    activation   ReLU, GELU and SwiGLU, the last with two thirds of d_ff (Shazeer 2020)
    norm         pre-norm, post-norm
    norm_type    LayerNorm, RMSNorm
    position     learned, rotary
    warmup       with and without
    kernels      reference, torch and, where it can run, triton: naive against fused

Any other field is an axis by "field=v1,v2". A crossed study takes every combination of several axes' values. One arm
is always the baseline again with seeds of its own (A/A): what differs there is chance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import kernels
from minilm.config import SECTIONS, RunConfig, parse_assignment
from minilm.errors import UserError
from minilm.hardware import resolve_device
from minilm.model import GPT

BASELINE, CONTROL, KERNELS, SPEED = "baseline", "A/A", "kernels", "speed"
NAIVE, REORDERED = "reference", "reference, sums in another order"
SPEED_STEPS = 30
CONTROL_SEED = 10_001  # its seeds begin here: none of theirs is a seed of an arm
MATCHED = 0.01  # parameters of an arm and of the baseline are matched when they differ by no more than this share
LR_TRIPLET = (0.5, 1.0, 2.0)

Override = dict[str, dict[str, Any]]  # section, key, value


@dataclass(frozen=True)
class Arm:
    """A way to train, but for the seed. axis: what it belongs to; label: how it is called in tables and figures."""

    label: str
    axis: str
    config: RunConfig
    lr_factor: float = 1.0


@dataclass(frozen=True)
class Trial:
    """One training: an arm and a seed, known by the hash of its whole configuration."""

    arm: str
    axis: str
    seed: int
    lr_factor: float
    config: RunConfig

    @property
    def id(self) -> str:
        text = json.dumps(self.config.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


# --- axes -------------------------------------------------------------------------------------------------------------


def _depth(base: RunConfig) -> list[tuple[str, Override]]:
    L = base.model.n_layers
    depths = sorted({max(1, L // 4), max(1, L // 2), L + max(1, L // 2)} - {L})
    return [(f"{depth} layer{'s' * (depth > 1)}", {"model": {"n_layers": depth}}) for depth in depths]


def _width(base: RunConfig) -> list[tuple[str, Override]]:
    m = base.model
    widths = sorted({m.d_model // 4, m.d_model // 2} - {0})
    usable = [w for w in widths if w % m.head_dim == 0 and (m.n_kv_heads == m.n_heads)]
    if not usable:
        raise UserError(
            f"The width axis keeps heads {m.head_dim} wide and the baseline has {m.n_heads} of them in {m.d_model}; "
            "name widths yourself by --axis model.d_model=..."
        )
    return [
        (
            f"width {w}",
            {
                "model": {
                    "d_model": w,
                    "n_heads": w // m.head_dim,
                    "n_kv_heads": None,
                    "d_ff": scaled_d_ff(base, d_model=w),
                }
            },
        )
        for w in usable
    ]


def _activation(base: RunConfig) -> list[tuple[str, Override]]:
    names = {"relu": "ReLU", "gelu": "GELU", "swiglu": "SwiGLU"}
    return [
        (label, {"model": {"activation": name, "d_ff": scaled_d_ff(base, activation=name)}})
        for name, label in names.items()
        if name != base.model.activation
    ]


def scaled_d_ff(base: RunConfig, d_model: int | None = None, activation: str | None = None) -> int:
    """d_ff in the baseline's proportion to d_model, two thirds of it for SwiGLU, to a multiple of 8 there."""
    m = base.model
    plain = m.d_ff * (1.5 if m.activation == "swiglu" else 1.0) * (d_model or m.d_model) / m.d_model
    if (activation or m.activation) != "swiglu":
        return max(1, round(plain))
    return max(8, round(plain * 2 / 3 / 8) * 8)


def _others(section: str, key: str, values: dict[Any, str]) -> Callable[[RunConfig], list[tuple[str, Override]]]:
    def axis(base: RunConfig) -> list[tuple[str, Override]]:
        now = getattr(getattr(base, section), key)
        return [(label, {section: {key: value}}) for value, label in values.items() if value != now]

    return axis


def _warmup(base: RunConfig) -> list[tuple[str, Override]]:
    steps = base.train.warmup_steps
    if steps:
        return [("no warm-up", {"train": {"warmup_steps": 0}})]
    return [("warm-up", {"train": {"warmup_steps": max(1, base.train.steps // 20)}})]


def _kernels(base: RunConfig) -> list[tuple[str, Override]]:
    """The other backends; and naive with its sums in another order, which is the noise that they are held against."""
    names = [name for name in kernels.available(resolve_device(base.train.device)) if name != base.train.kernels]
    arms: list[tuple[str, Override]] = [(f"{name} kernels", {"train": {"kernels": name}}) for name in names]
    parts = base.train.grad_accumulation * 2
    if base.train.batch_size % parts == 0:
        arms.append((REORDERED, {"train": {"kernels": NAIVE, "grad_accumulation": parts}}))
    return arms


def speed_arms(base: RunConfig) -> list[Arm]:
    """Short trainings by backend and context length, the tokens a step kept: for speed and memory, not for losses."""
    T, B = base.model.context_length, base.train.batch_size
    arms = []
    for name in kernels.available(resolve_device(base.train.device)):
        for factor in (0.5, 1, 2, 4):
            length, batch = int(T * factor), int(B / factor)
            if length and batch:
                train = {"steps": SPEED_STEPS, "batch_size": batch, "grad_accumulation": 1, "kernels": name}
                train |= {
                    "warmup_steps": 0,
                    "eval_interval": 0,
                    "sample_interval": 0,
                    "save_at": "",
                    "eval_tokens": 1000,
                }
                config = changed(base, {"model": {"context_length": length}, "train": train})
                arms.append(Arm(f"{name} at {length}", SPEED, config))
    return arms


AXES: dict[str, Callable[[RunConfig], list[tuple[str, Override]]]] = {
    "depth": _depth,
    "width": _width,
    "activation": _activation,
    "norm": _others("model", "norm", {"pre": "pre-norm", "post": "post-norm"}),
    "norm_type": _others("model", "norm_type", {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}),
    "position": _others("model", "position", {"learned": "learned positions", "rope": "rotary positions"}),
    "warmup": _warmup,
    "kernels": _kernels,
}


def field_axis(text: str) -> tuple[str, Callable[[RunConfig], list[tuple[str, Override]]]]:
    """("model.dropout", axis) from "model.dropout=0.1,0.2" or "dropout=0.1,0.2"; raises UserError for another form."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(f"--axis {text!r} is not of the form field=v1,v2, such as model.dropout=0.1,0.2.")
    if "." not in name:
        homes = [s for s, kind in SECTIONS.items() if name in {f.name for f in dataclasses.fields(kind)}]
        if len(homes) != 1:
            what = "is in several sections" if homes else "is in no section"
            raise UserError(f"--axis {text!r}: the field {name} {what}; write section.field=v1,v2.")
        name = f"{homes[0]}.{name}"
    parsed = [parse_assignment(f"{name}={value}") for value in values.split(",")]
    section, key, _ = parsed[0]

    def axis(base: RunConfig) -> list[tuple[str, Override]]:
        now = getattr(getattr(base, section), key)
        return [(f"{key} {value}", {section: {key: value}}) for _, _, value in parsed if value != now]

    return name, axis


# --- arms and trials --------------------------------------------------------------------------------------------------


def arms_of(
    base: RunConfig, axes: Sequence[str], fields: Sequence[str] = (), cross: Sequence[str] = (), match: str = "none"
) -> list[Arm]:
    """The baseline, then an arm for every other value of every axis, then every combination of the crossed axes.

    match="params" changes d_ff until an arm has the baseline's parameters to 1%, where some d_ff does. Raises UserError
    for an axis that does not exist or has no other value here.
    """
    axes = _checked(axes, "--axes")
    chosen = {name: AXES[name] for name in axes} | dict(map(field_axis, fields))
    arms = [Arm(BASELINE, BASELINE, base)]
    for name, axis in chosen.items():
        values = axis(base)
        if not values:
            raise UserError(f"The axis {name} has no value here but the baseline's own; leave it out.")
        arms += [Arm(label, name, changed(base, override)) for label, override in values]
    if cross:
        several = [[("", {}), *AXES[name](base)] for name in _checked(cross, "--cross")]
        for combination in itertools.product(*several):
            labels = [label for label, _ in combination if label]
            if len(labels) > 1 or (labels and not any(a.label == labels[0] for a in arms)):
                config = base
                for _, override in combination:
                    config = changed(config, override)
                arms.append(Arm(", ".join(labels), " x ".join(cross), config))
    if match == "params":
        arms = [arm if arm.label == BASELINE else _matched(arm, base) for arm in arms]
    seen: dict[str, str] = {}
    for arm in arms:
        key = json.dumps(arm.config.to_dict(), sort_keys=True)
        if key in seen:
            raise UserError(f"The arms {seen[key]} and {arm.label} are the same training; name one of them.")
        seen[key] = arm.label
    return arms


def _checked(names: Iterable[str], option: str) -> list[str]:
    names = [name for name in names if name]
    for name in names:
        if name not in AXES:
            raise UserError(
                f"{option} names {name!r}; there are {', '.join(AXES)}, and any other field by --axis field=v1,v2."
            )
    return list(dict.fromkeys(names))


def changed(config: RunConfig, override: Override) -> RunConfig:
    sections = {s: dataclasses.replace(getattr(config, s), **values) for s, values in override.items()}
    return dataclasses.replace(config, **sections)


def parameters(config: RunConfig) -> dict[str, int]:
    """The four counts of a configuration whose vocabulary is known."""
    with torch.device("meta"):
        return GPT(config.model).count_parameters()


def flops_per_token(config: RunConfig) -> int:
    with torch.device("meta"):
        return GPT(config.model).flops_per_token()


def is_matched(config: RunConfig, base: RunConfig) -> bool:
    n, n_base = parameters(config)["total"], parameters(base)["total"]
    return abs(n - n_base) <= MATCHED * n_base


def _matched(arm: Arm, base: RunConfig) -> Arm:
    """The arm with the d_ff, a multiple of 8, that comes nearest to the baseline's parameters, if that is within 1%."""
    if is_matched(arm.config, base):
        return arm
    wanted = parameters(base)["total"]

    def at(d_ff: int) -> RunConfig:
        return changed(arm.config, {"model": {"d_ff": d_ff}})

    low, high = (parameters(at(d_ff))["total"] for d_ff in (8, 16))
    d_ff = 8 * round(1 + (wanted - low) / (high - low))  # parameters grow by the same for every 8
    if d_ff < 8 or not is_matched(at(d_ff), base):
        return arm
    return dataclasses.replace(arm, label=f"{arm.label}, d_ff {d_ff}", config=at(d_ff))


def trials_of(arms: Sequence[Arm], seeds: Sequence[int], lr_triplet: bool) -> list[Trial]:
    """Every arm at every seed, seed by seed, so that a study that is stopped early has whole comparisons; A/A with it.

    Arms of the axis speed are run once, at the first seed.
    """
    return list(_trials(arms, seeds, LR_TRIPLET if lr_triplet else (1.0,)))


def _trials(arms: Sequence[Arm], seeds: Sequence[int], factors: Sequence[float]) -> Iterator[Trial]:
    control = Arm(CONTROL, CONTROL, arms[0].config)
    for number, seed in enumerate(seeds):
        for arm in arms:
            if arm.axis == SPEED and number > 0:
                continue
            for factor in factors if arm.axis not in (SPEED, KERNELS) else (1.0,):
                yield _trial(arm, seed, factor)
        for factor in factors:
            yield _trial(control, CONTROL_SEED + number, factor)


def _trial(arm: Arm, seed: int, factor: float) -> Trial:
    train = arm.config.train
    train = dataclasses.replace(train, seed=seed, lr=train.lr * factor, min_lr=train.min_lr * factor)
    return Trial(arm.label, arm.axis, seed, factor, dataclasses.replace(arm.config, train=train))
