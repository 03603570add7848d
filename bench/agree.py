"""Do all ways to run a model agree, on the device that is here?

    python -m bench.agree --out results/agree [--preset tiny] [--layers 2] [--kernels torch] [--device cpu]

Three questions, a row each as soon as it is answered, in OUT/agree.jsonl:

resumed     is a training that was ended half-way and resumed the same, to the last bit, as one that went through?
            weights, moments, generators and journal; for eager steps, torch.compile and CUDA graphs. PyTorch's own
            gradient of an embedding adds in any order on a GPU, and what torch.compile makes of it everywhere;
            train.deterministic, with which such trainings are asked here, has it add in one order
losses      how far do the losses of these ways lie apart at any step? at most by the margin of bench.coincide
gradients   by the kernels, eager and through torch.compile without a break in the graph, judged by the error rule of
            the kernels' tests, in the norm of each parameter: at most twice the error of plain PyTorch in the same
            dtype; likewise the logits of decoding; and is the text of compiled decoding that of eager decoding?

On a GPU this is the capstone's shape in bfloat16, of two layers, which compile sooner and launch the same kernels.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import kernels
from bench import steps
from bench.contest import OK, WRONG
from bench.tables import plain_table
from minilm import decoding, hardware
from minilm.config import PRESETS, RunConfig, build
from minilm.errors import UserError
from minilm.model import GPT
from minilm.presets import CAPSTONE
from minilm.studies.ablation import MARGIN
from minilm.training import checkpoint, journal
from minilm.training.loop import train

TOKENS_DECODED = 32  # whose logits are judged
BEGINNING = 16  # tokens of a text that is continued
WHOLE, PARTS = "whole", "parts"  # folders of a training that went through, and of one that was resumed


@dataclass
class Row:
    """One answer. value is right where it is at most `allowed`; where: what is worst. seconds: what it took."""

    check: str
    value: float | None = None
    allowed: float = 0.0
    where: str = ""
    status: str = OK
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What is run: config with kernels, dtype and device by name; ways: values of train.compile."""

    config: RunConfig
    ways: tuple[str, ...]
    folder: Path

    @property
    def device(self) -> torch.device:
        return hardware.resolve_device(self.config.train.device)

    @property
    def dtype(self) -> torch.dtype:
        return hardware.resolve_dtype(self.config.train.dtype, self.device, self.config.model.d_model)


def setting_of(
    preset: str, layers: int, steps_: int, kernels_: str, device: torch.device, ways: Sequence[str], folder: Path
) -> Setting:
    """A preset of few layers, on a small text of fables. The rate is constant, so that ending half-way and asking for
    more steps is the same training."""
    half = max(1, steps_ // 2)
    usual = {"steps": 2 * half, "warmup_steps": half // 2, "schedule": "constant", "grad_accumulation": 1}
    usual |= {
        "eval_interval": half,
        "checkpoint_interval": half,
        "sample_interval": 0,
        "save_at": "",
        "log_interval": 5,
    }
    train_ = usual | {"kernels": kernels_, "device": str(device)}
    data = {"source": "fables", "characters": 400_000, "val_fraction": 0.05, "tokenizer": "char"}
    return Setting(build(preset, {"model": {"n_layers": layers}, "train": train_, "data": data}), tuple(ways), folder)


def checks(setting: Setting) -> Iterator[Row]:
    """Every row, as soon as it is known."""
    for way in setting.ways:
        yield answer(f"resumed, {steps.MODES[way]}", lambda row, way=way: resumed(row, setting, way))
    eager, *others = setting.ways
    for way in others:
        yield answer(f"losses, {steps.MODES[way]}", lambda row, way=way: apart(row, setting, eager, way))
    judged = Judged(setting)
    for name, compiled in (("eager", False), ("compiled whole", True)):
        yield answer(f"gradients, {name}", lambda row, compiled=compiled: judged.gradients(row, compiled))
        yield answer(f"decoding, {name}", lambda row, compiled=compiled: judged.decoding(row, compiled))
    yield answer("text, decoding compiled", judged.text)


def answer(check: str, of: Callable[[Row], None]) -> Row:
    row, began = Row(check), time.perf_counter()
    with steps.failures(row, "while it was asked"):
        of(row)
        if row.value is None or not row.value <= row.allowed:  # NaN too
            row.status = WRONG
    row.seconds = time.perf_counter() - began
    return row


# --- trainings --------------------------------------------------------------------------------------------------------


def resumed(row: Row, setting: Setting, way: str) -> None:
    """How many tensors and numbers of two runs differ."""
    folder = setting.folder / way
    _train(setting, way, folder / WHOLE)
    _train(setting, way, folder / PARTS, steps_=setting.config.train.steps // 2)
    torch.manual_seed(99)  # whatever went on meanwhile
    _train(setting, way, folder / PARTS, resume=True)
    found = differences(folder / WHOLE, folder / PARTS)
    row.value, row.where = len(found), ", ".join(found[:3])


def _train(
    setting: Setting, way: str, out: Path, steps_: int | None = None, resume: bool = False, free: bool = False
) -> None:
    """free: without train.deterministic, on a GPU and compiled."""
    torch._dynamo.reset()
    own = setting.config.train
    deterministic = not free and (setting.device.type == "cuda" or way not in ("off", "captured"))
    compile, captured = steps.SETTINGS[way]
    changed = dataclasses.replace(own, compile=compile, graphs=captured, steps=steps_ or own.steps)
    changed = dataclasses.replace(changed, deterministic=deterministic)
    config = dataclasses.replace(setting.config, train=changed)
    try:
        if train(config, out, resume, Console(file=io.StringIO())).signal is not None:
            raise KeyboardInterrupt
    finally:
        torch.use_deterministic_algorithms(False)
    steps.clear(setting.device)


def differences(one: Path, other: Path) -> list[str]:
    """Names of what is not equal to the last bit in the last checkpoints and the journals of two runs; times apart."""
    sides = []
    for run in (one, other):
        saved = checkpoint.load(run / checkpoint.FOLDER / checkpoint.LAST)
        saved = {key: saved[key] for key in ("model", "optimizers", "scaler", "generators", "state")}
        saved["state"] = {key: value for key, value in saved["state"].items() if key != "wall"}
        rows = journal.read_rows(run / journal.METRICS)
        untimed = [{k: v for k, v in row.items() if k not in ("wall", "tokens_per_s")} for row in rows]
        sides.append(saved | {"journal": untimed})
    return list(_unequal("", *sides))


def _unequal(name: str, a: Any, b: Any) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _unequal(f"{name}.{key}" if name else str(key), a[key], b[key])
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for number, pair in enumerate(zip(a, b, strict=True)):
            yield from _unequal(f"{name}[{number}]", *pair)
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield name
    elif type(a) is not type(b) or repr(a) != repr(b):  # of floats the shortest that tells them apart; NaN is NaN
        yield name


def apart(row: Row, setting: Setting, way: str, other: str) -> None:
    """The largest difference of the training losses of two ways at one step. What has not been trained is, freely."""
    for one in (way, other):
        if not (setting.folder / one / WHOLE).exists():
            _train(setting, one, setting.folder / one / WHOLE, free=True)
    losses = [
        {r["step"]: r["loss"] for r in journal.read_rows(setting.folder / w / WHOLE / journal.METRICS) if "loss" in r}
        for w in (way, other)
    ]
    if len(losses[0]) != setting.config.train.steps or losses[0].keys() != losses[1].keys():
        raise RuntimeError("a training has not journalled all of its steps")
    found = {step: abs(loss - losses[1][step]) for step, loss in losses[0].items()}
    worst = max(found, key=lambda step: found[step])
    row.value, row.allowed, row.where = found[worst], MARGIN, f"at step {worst}"


# --- one step, and decoding -------------------------------------------------------------------------------------------


class Judged:
    """A model by the kernels, by plain PyTorch in the same dtype, and by plain PyTorch in float64, of equal weights."""

    def __init__(self, setting: Setting):
        self.device, self.dtype, name = setting.device, setting.dtype, setting.config.train.kernels
        config = dataclasses.replace(setting.config.model, vocab_size=steps.VOCABULARY, dropout=0.0)
        torch.manual_seed(0)
        with torch.device(self.device):
            self.model = GPT(config, kernels.select(name, self.device), self.dtype).eval()
        for parameter in self.model.parameters():  # biases and norms too, so that a wrong one shows
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        reference = kernels.select("reference", self.device)
        self.plain = copy.deepcopy(self.model).use(reference, self.dtype)
        self.exact = copy.deepcopy(self.model).double().use(reference, torch.float64)
        shape = (setting.config.train.batch_size, config.context_length + 1)
        self.ids = torch.randint(steps.VOCABULARY, shape, device=self.device)

    def gradients(self, row: Row, compiled: bool) -> None:
        torch._dynamo.reset()
        ours = torch.compile(self.model, fullgraph=True) if compiled else self.model
        found = [
            self._gradients(model, forward)
            for model, forward in ((self.model, ours), (self.plain, self.plain), (self.exact, self.exact))
        ]
        self._judge(row, {name: tuple(side[name] for side in found) for name in found[0]})

    def _gradients(self, model: GPT, forward: Callable[..., Tensor]) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        forward(self.ids[:, :-1], self.ids[:, 1:]).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    @torch.no_grad()
    def decoding(self, row: Row, compiled: bool) -> None:
        torch._dynamo.reset()
        next_step = decoding.compiled_step(self.model) if compiled else decoding.step
        found = [
            self._decoded(model, take)
            for model, take in ((self.model, next_step), (self.plain, decoding.step), (self.exact, decoding.step))
        ]
        self._judge(row, {f"token {n}": logits for n, logits in enumerate(zip(*found, strict=True))})

    def _decoded(self, model: GPT, next_step: Callable[..., Tensor]) -> list[Tensor]:
        """Logits after each of the first tokens of all sequences."""
        cache = decoding.KVCache(model, len(self.ids))
        length = min(TOKENS_DECODED, model.config.context_length)
        return [next_step(model, self.ids[:, n : n + 1], cache).clone() for n in range(length)]

    def _judge(self, row: Row, results: dict[str, tuple[Tensor, ...]]) -> None:
        """The largest error over what is allowed: twice plain PyTorch's, and 2 eps of the result, in the 2-norm."""
        eps, worst = torch.finfo(self.dtype).eps, {}
        for name, (ours, plain, exact) in results.items():
            error, theirs = (float((x.double() - exact.double()).norm()) for x in (ours, plain))
            worst[name] = error / (2 * theirs + 2 * eps * float(exact.double().norm()) + 1e-30)
        finite = all(bool(ours.isfinite().all()) for ours, *_ in results.values())
        row.where = max(worst, key=lambda name: worst[name])
        row.value, row.allowed = worst[row.where] if finite else float("nan"), 1.0

    def text(self, row: Row) -> None:
        """How many tokens of greedy texts differ. In float32, where two tokens are hardly ever equally likely."""
        torch._dynamo.reset()
        model = copy.deepcopy(self.model).use(self.model.ops, torch.float32)
        context = self.ids[:4, : min(BEGINNING, model.config.context_length // 2)]
        texts = []
        for next_step in (decoding.step, decoding.compiled_step(model)):
            decoder = decoding.Decoder(model, context, model.config.context_length, next_step=next_step)
            for _ in decoder.write(decoding.Sampling(temperature=0.0)):
                pass
            texts.append(decoder.tokens)
        unequal = (texts[0] != texts[1]).any(dim=0).nonzero()
        row.value = int((texts[0] != texts[1]).sum())
        row.where = f"from token {int(unequal[0])}" if len(unequal) else ""


def table_of(rows: Sequence[Row]) -> tuple[str, list[str], list[list[str]]]:
    cells = [
        [row.check, "" if row.value is None else f"{row.value:.3g}", f"{row.allowed:g}", row.where[:60]]
        + [f"{row.seconds:.1f}", f"{row.status}{': ' * bool(row.reason)}{row.reason}"]
        for row in rows
    ]
    return "Do all ways to run a model agree?", ["check", "found", "allowed", "worst", "s", "status"], cells


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.agree", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=list(PRESETS), help="capstone on a GPU, else tiny")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="of a training that is resumed half-way")
    parser.add_argument("--kernels", choices=("reference", "torch", "triton"), help="triton on a GPU, else torch")
    parser.add_argument(
        "--ways", help="of train.compile, separated by commas: off,captured,on,graphs on a GPU, else off,on"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    found = []
    try:
        device = hardware.resolve_device(a.device)
        on_gpu = device.type == "cuda"
        ways = (a.ways or (",".join(steps.MODES) if on_gpu else "off,on")).split(",")
        if not set(ways) <= set(steps.MODES):
            parser.error(f"--ways is {a.ways}; there are {', '.join(steps.MODES)}")
        a.out.mkdir(parents=True, exist_ok=True)
        name = a.kernels or ("triton" if on_gpu else "torch")
        kernels.select(name, device)
        runs = Path(tempfile.mkdtemp(dir=a.out, prefix="runs-"))
        setting = setting_of(a.preset or (CAPSTONE if on_gpu else "tiny"), a.layers, a.steps, name, device, ways, runs)
        try:
            for row in checks(setting):
                found.append(row)
                with (a.out / "agree.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
                console.print(f"{row.check}: {row.status}, {row.seconds:.1f} s")
        finally:
            shutil.rmtree(runs, ignore_errors=True)
    except (UserError, kernels.BackendUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    title, head, cells = table_of(found)
    console.print(plain_table(f"{title} {hardware.device_name(device)}, {setting.dtype}", head, cells))
    return 0 if all(row.status == OK for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
