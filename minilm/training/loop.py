"""train(): from a configuration to a run folder that holds the trained model and everything that happened."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import kernels
from minilm import hardware
from minilm.config import RunConfig, check_resume
from minilm.corpus.dataset import BatchSampler, Dataset, prepared
from minilm.errors import UserError
from minilm.model import GPT
from minilm.training import checkpoint, journal
from minilm.training.evaluate import evaluate
from minilm.training.journal import RunFolder
from minilm.training.optimizer import build_optimizers, learning_rate, step_unless
from minilm.training.progress import ProgressLine, duration, facts_table, size

SAMPLE_TOKENS = 400
SAMPLE_TEMPERATURES = (0.8, 0.5, 1.0)  # the first at every sampling, all at the last
SPIKE_SIGMAS, SPIKE_AFTER = 6.0, 100  # a loss so far above its moving average, after so many steps, is an event


class NonFiniteError(UserError):
    """Too many steps in a row had a non-finite loss or gradient: the training has diverged."""


@dataclass
class State:
    """What a checkpoint keeps beside weights, optimizer and generators."""

    step: int = 0  # updates done
    tokens: int = 0
    wall: float = 0.0  # seconds of training, over all resumes
    best: dict[str, Any] = field(default_factory=dict)  # step, val_loss, val_bpb
    final: dict[str, Any] = field(default_factory=dict)
    bad_steps: int = 0  # non-finite, in a row
    loss_mean: float = 0.0  # moving, of the training loss, and its variance: what a spike is judged by
    loss_var: float = 0.0


@dataclass(frozen=True)
class Result:
    path: Path
    state: State
    signal: int | None  # that ended the run early


def train(
    config: RunConfig, out: Path, resume: bool = False, console: Console | None = None, command: str = ""
) -> Result:
    """Train a GPT as `config` says, in the run folder `out`; with resume, go on from its last checkpoint.

    Returns when all steps are done, or after SIGINT or SIGTERM once the step at hand is finished and saved.
    Raises UserError for whatever a person can mend; nothing of an earlier run is lost by that.
    """
    console = console or Console()
    with RunFolder(out, resume) as run, caught_signals() as caught:
        changes = []
        if resume:
            saved = read_config(out)
            if config.model.vocab_size is None:  # what the data has, as when the run was started
                model = dataclasses.replace(config.model, vocab_size=saved.model.vocab_size)
                config = dataclasses.replace(config, model=model)
            changes = check_resume(saved, config)
        loop = prepare_loop(config, run, console, caught, command)
        if resume:
            loop.resume(changes)
        else:
            loop.start()
        return loop.run_to_end()


def prepare_loop(config: RunConfig, run: RunFolder, console: Console, caught: list[int], command: str) -> Loop:
    """Everything that can fail before the first step: device, kernels, compiler, data, model."""
    device = hardware.resolve_device(config.train.device)
    dtype = hardware.resolve_dtype(config.train.dtype, device, config.model.d_model)
    residual = config.train.residual_dtype
    residual_dtype = dtype if residual == "auto" else hardware.DTYPES[residual]
    backend, why = kernels.explain(config.train.kernels, device)
    if config.train.compile and hardware.compiler_missing(device):
        raise UserError("train.compile needs a C++ compiler and none was found; install g++ or clang++, or set CXX.")
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks, for reproducible products
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.set_float32_matmul_precision(config.train.matmul_precision)  # the Triton kernels go by it too

    with console.status(f"Reading {config.data.source} ..."):
        data = prepared(config.data)
    sampler = BatchSampler(data.train, config.model.context_length, config.train.batch_size, config.train.seed)
    if len(data.val) < 2:
        raise UserError("The validation split has fewer than 2 tokens; give more text or another data.val_fraction.")
    config = with_vocabulary(config, data)

    torch.manual_seed(config.train.seed)
    ops = kernels.select(config.train.kernels, device)
    with torch.device(device):
        model = GPT(config.model, ops, dtype, residual_dtype)
    optimizers = build_optimizers(model, config.train)
    facts = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "device": str(device),
        "device_name": hardware.device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "residual_dtype": str(residual_dtype).removeprefix("torch."),
        "kernels": backend,
        "kernels_reason": why,
        "parameters": model.count_parameters(),
        "flops_per_token": model.flops_per_token(),
        "tokens_per_step": config.train.batch_size * config.model.context_length,
        "epochs": config.train.steps * config.train.batch_size * config.model.context_length / len(data.train),
        "peak_flops": hardware.peak_flops(device, dtype),
        "memory_estimate_bytes": estimate_memory(config, ops, dtype, residual_dtype),
        "versions": hardware.versions(),
        "git_revision": hardware.git_revision(),
        "data_sha256": data.meta["sha256"],
    }
    return Loop(config, data, sampler, model, optimizers, run, facts, console, caught)


class Loop:
    """One training in progress."""

    def __init__(self, config, data, sampler, model, optimizers, run, facts, console, caught):
        self.config, self.data, self.sampler = config, data, sampler
        self.model: GPT = model
        self.optimizers: list[torch.optim.Optimizer] = optimizers
        self.run: RunFolder = run
        self.facts, self.console, self.caught = facts, console, caught
        self.device = model.head.weight.device
        self.forward = torch.compile(model) if config.train.compile else model
        # float16 has too little range for gradients: they are scaled up, and the scale follows what overflows
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=model.dtype == torch.float16)
        self.state = State()
        self.kept = config.train.kept_steps()
        self.unread: list[tuple[dict[str, Any], torch.Tensor]] = []  # rows whose loss and norm are still on the device

    def start(self) -> None:
        saved = {**self.config.to_dict(), "format": 1, "name": self.run.path.name, "facts": self.facts}
        journal.write_json(self.run.path / journal.CONFIG, saved)
        journal.write_json(self.run.path / journal.DATA, self.data.meta)
        shutil.copyfile(self.data.folder / "tokenizer.json", self.run.path / "tokenizer.json")
        self.run.event(0, "started", self.facts["command"] or "started from Python")

    def resume(self, changes: list[str]) -> None:
        saved = journal.read_json(self.run.path / journal.CONFIG)
        if saved["facts"]["data_sha256"] != self.facts["data_sha256"]:
            raise UserError(f"The text behind {self.config.data.source} has changed since {self.run.path} was started.")
        path = checkpoint.find(self.run.path, "last")
        state = checkpoint.load(path, self.device)
        checkpoint.load_weights(self.model, state, path)
        for optimizer, saved_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        checkpoint.restore_generators(state["generators"])
        self.state = State(**state["state"])
        if self.config.train.steps < self.state.step:
            steps, done = self.config.train.steps, self.state.step
            raise UserError(f"train.steps is {steps} and {self.run.path} has done {done}; ask for more.")
        self.run.rewind(self.state.step or -1)  # step 0 is evaluated again
        self.run.event(self.state.step, "resume", f"resumed at step {self.state.step}")
        asked = {change.split()[0] for change in changes}
        for fact in ("device", "dtype", "residual_dtype", "kernels"):  # what "auto" came to here and there
            before, now = saved["facts"].get(fact), self.facts[fact]
            if before != now and f"train.{fact}" not in asked:
                changes = [*changes, f"{fact} in use from {before} to {now}"]
        for change in changes:
            self.run.event(self.state.step, "config_change", change)
            self.console.print(f"Changed: {change}", highlight=False)
        journal.write_json(
            self.run.path / journal.CONFIG,
            {**saved, **self.config.to_dict(), "facts": {**self.facts, "created": saved["facts"]["created"]}},
        )

    def run_to_end(self) -> Result:
        c, state = self.config.train, self.state
        self.introduce()
        if state.step >= c.steps:
            self.console.print(f"All {c.steps} steps are done already; give more by --set train.steps=N.")
            return Result(self.run.path, state, None)
        self.model.train()
        with ThreadPoolExecutor(1) as ahead, ProgressLine(self.console, c.steps, state.step) as line:
            upcoming = ahead.submit(self.fetch, state.step)
            self.clock, self.window_start, self.window_step = time.perf_counter() - state.wall, state.wall, state.step
            self.begun = (state.wall, state.step)
            if state.step == 0:
                self.save_last()  # from here on there is something to resume
                self.milestones(line)
            while state.step < c.steps and not self.caught:
                batch = upcoming.result()
                upcoming = ahead.submit(self.fetch, state.step + 1)
                self.update(batch)
                if state.step % c.log_interval == 0 or state.step == c.steps:
                    self.read_losses(line)
                self.milestones(line)
            self.read_losses(line)
            self.save_last()
        return self.conclude()

    def fetch(self, step: int) -> torch.Tensor:
        """The batch of a step, (batch_size, context_length + 1), on its way to the device."""
        batch = torch.from_numpy(self.sampler.batch(step))
        return batch.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else batch

    def update(self, batch: torch.Tensor) -> None:
        """One optimizer update. A non-finite loss or gradient leaves weights and moments untouched."""
        c, state = self.config.train, self.state
        if self.device.type == "mps":
            batch = batch.to(self.device)
        rate = learning_rate(state.step, c)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        loss = torch.zeros((), device=self.device)
        for part in batch.chunk(c.grad_accumulation):
            part_loss = self.forward(part[:, :-1], part[:, 1:]) / c.grad_accumulation
            self.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip or math.inf)
        bad = ~(norm.isfinite() & loss.isfinite())
        for optimizer in self.optimizers:  # not by scaler.step, which asks each optimizer about its own gradients only
            step_unless(bad, optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        state.step += 1
        state.tokens += batch[:, 1:].numel()
        state.wall = time.perf_counter() - self.clock
        row = {"step": state.step, "tokens": state.tokens, "lr": rate, "wall": state.wall}
        self.unread.append((row, torch.stack((loss, norm.to(loss.dtype)))))

    def read_losses(self, line: ProgressLine) -> None:
        """Journal the steps since the last reading: one synchronisation with the device for all of them."""
        c, state = self.config.train, self.state
        if not self.unread:
            return
        values = torch.stack([pair for _, pair in self.unread]).tolist()
        state.wall = time.perf_counter() - self.clock
        tokens = (state.step - self.window_step) * self.facts["tokens_per_step"]
        rate = tokens / max(state.wall - self.window_start, 1e-9)
        self.window_start, self.window_step = state.wall, state.step
        for (row, _), (loss, norm) in zip(self.unread, values, strict=True):
            self.run.metric({**row, "loss": loss, "grad_norm": norm, "tokens_per_s": rate})
            self.judge(row["step"], loss, norm, line)
        self.unread.clear()
        self.run.flush()
        mfu = rate * self.facts["flops_per_token"] / self.facts["peak_flops"] if self.facts["peak_flops"] else None
        wall, steps = self.begun  # the time left goes by all steps of this process: one slow window does not move it
        left = (c.steps - state.step) * (state.wall - wall) / (state.step - steps)
        best = f"  best val {state.best['val_loss']:.4f}" if state.best else ""
        line.update(
            state.step,
            f"loss {loss:.4f}{best}  {rate:,.0f} tokens/s  MFU {'n/a' if mfu is None else f'{mfu:.1%}'}  "
            f"{duration(left)} left",
        )
        if state.bad_steps >= c.max_bad_steps:
            raise NonFiniteError(
                f"{state.bad_steps} steps in a row had a non-finite loss or gradient, up to step {state.step}, and "
                "were skipped; start anew with a lower train.lr or with train.dtype=float32."
            )

    def judge(self, step: int, loss: float, norm: float, line: ProgressLine) -> None:
        """Events for what should not happen: non-finite numbers, sudden losses."""
        state = self.state
        if not (math.isfinite(loss) and math.isfinite(norm)):
            state.bad_steps += 1
            message = f"loss {loss}, gradient norm {norm}: the step was skipped"
            self.run.event(step, "non_finite", message)
            line.say(f"step {step}: {message}")
            return
        state.bad_steps = 0
        deviation = loss - state.loss_mean
        if step > SPIKE_AFTER and deviation > SPIKE_SIGMAS * math.sqrt(state.loss_var):
            message = f"loss {loss:.4f} against a moving average of {state.loss_mean:.4f}"
            self.run.event(step, "spike", message)
            line.say(f"step {step}: {message}")
        weight = max(0.02, 1 / step)  # a plain mean at first
        state.loss_mean += weight * deviation
        state.loss_var = (1 - weight) * (state.loss_var + weight * deviation**2)

    def milestones(self, line: ProgressLine) -> None:
        """What happens at some steps only: evaluation, samples, checkpoints. Its time is not training time."""
        c, step = self.config.train, self.state.step
        last = step == c.steps
        paused = time.perf_counter()
        evaluated = (c.eval_interval and step % c.eval_interval == 0) or last
        if evaluated:
            self.read_losses(line)
            paused = time.perf_counter()
            self.evaluate(line)
        if c.sample_interval and (step % c.sample_interval == 0 or last):
            self.sample()
        if step in self.kept:
            self.save(checkpoint.step_name(step), self.weights())
        if c.checkpoint_interval and step and step % c.checkpoint_interval == 0 and not last:
            self.read_losses(line)
            self.save_last()
        self.clock += time.perf_counter() - paused

    def evaluate(self, line: ProgressLine) -> None:
        state = self.state
        loss = evaluate(self.model, self.data.val, self.config.train.eval_tokens, self.forward)
        bpb = self.data.bits_per_byte(loss)
        row = {"step": state.step, "tokens": state.tokens, "val_loss": loss, "val_bpb": bpb, "wall": state.wall}
        self.run.metric(row)
        self.run.flush()
        state.final = {"step": state.step, "val_loss": loss, "val_bpb": bpb}
        line.say(f"step {state.step}: validation loss {loss:.4f} nats/token, {bpb:.4f} bits/byte")
        if math.isfinite(loss) and loss < state.best.get("val_loss", math.inf):
            state.best = dict(state.final)
            self.save(checkpoint.best_name(self.config.preset), self.weights())
            self.run.event(state.step, "best", f"validation loss {loss:.4f}", val_loss=loss, val_bpb=bpb)

    def sample(self) -> None:
        """What the model writes now, drawn from a generator of its own: training is the same with or without."""
        seed, samples = self.config.train.seed, []
        start = self.data.tokenizer.beginning()
        context = torch.tensor(start[None].tolist(), device=self.device)
        for temperature in (
            SAMPLE_TEMPERATURES if self.state.step == self.config.train.steps else SAMPLE_TEMPERATURES[:1]
        ):
            generator = torch.Generator(self.device).manual_seed(seed)
            out = self.model.generate(context, SAMPLE_TOKENS, temperature, generator=generator)
            known = [i for i in out[0, len(start) :].tolist() if i < self.data.vocab_size]  # not of a padded vocabulary
            text = self.data.tokenizer.decode(known)
            how = {"prompt": "", "temperature": temperature, "top_k": None, "top_p": None, "seed": seed}
            samples.append({**how, "text": text})
        self.run.sample(self.state.step, samples)

    def weights(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "config": self.config.to_dict(), "step": self.state.step}

    def save_last(self) -> None:
        everything = {
            **self.weights(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "generators": checkpoint.generator_states(),
            "state": dataclasses.asdict(self.state),
        }
        self.save(checkpoint.LAST, everything)

    def save(self, name: str, state: dict[str, Any]) -> None:
        checkpoint.save(self.run.path / checkpoint.FOLDER / name, state)

    def introduce(self) -> None:
        """Everything a person may want to know before the first step."""
        f, c = self.facts, self.config
        counts = f["parameters"]
        floor = self.data.floor
        self.console.print(
            facts_table(
                {
                    "run": self.run.path,
                    "device": f"{f['device']} ({f['device_name']})",
                    "precision": f"{f['dtype']}, residual stream {f['residual_dtype']}, weights float32",
                    "kernels": f"{f['kernels']} ({f['kernels_reason']})",
                    "model": f"{c.model.n_layers} layers, {c.model.n_heads} heads, d_model {c.model.d_model}, d_ff "
                    f"{c.model.d_ff}, context {c.model.context_length}",
                    "parameters": f"{counts['total']:,} in all; {counts['non_embedding']:,} without embeddings; "
                    f"{counts['matrices_and_head']:,} in matrices and head; {counts['embedding']:,} in embeddings",
                    "data": f"{c.data.source}: {len(self.data.train):,} tokens to train on, {len(self.data.val):,} "
                    f"held out, vocabulary {self.data.vocab_size} ({c.data.tokenizer})"
                    + (f", floor {floor:.4f} nats/token" if floor else ""),
                    "steps": f"{c.train.steps:,} of {f['tokens_per_step']:,} tokens: {f['epochs']:.2f} epochs",
                    "cost": f"{f['flops_per_token'] / 1e6:,.1f} MFLOP a token, about "
                    f"{size(f['memory_estimate_bytes'])} of memory",
                }
            ),
            highlight=False,
        )

    def conclude(self) -> Result:
        state, caught = self.state, self.caught[0] if self.caught else None
        if caught:
            name = signal.Signals(caught).name
            self.run.event(state.step, "stopped", f"stopped by {name} and saved")
            self.console.print(f"Stopped by {name} after step {state.step}, and saved. To go on:", highlight=False)
            self.console.print(f"  minilm train --out {self.run.path} --resume", highlight=False)
        else:
            self.run.event(state.step, "finished", f"{state.step} steps in {duration(state.wall)}", wall=state.wall)
        return Result(self.run.path, state, caught)


def with_vocabulary(config: RunConfig, data: Dataset) -> RunConfig:
    """The configuration with model.vocab_size from the data, or as given where that is enough."""
    given = config.model.vocab_size
    if given is not None and given < data.vocab_size:
        raise UserError(f"model.vocab_size is {given} and the data has {data.vocab_size} tokens; leave it out.")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=given or data.vocab_size))


def estimate_memory(config: RunConfig, ops: kernels.Backend, dtype: torch.dtype, residual_dtype: torch.dtype) -> int:
    """Bytes a training step needs at least: float32 weights, gradients and two moments, and what one micro-batch
    keeps for its backward, counted on meta tensors through the operations that will run."""
    with torch.device("meta"):
        model = GPT(config.model, ops, dtype, residual_dtype)
        rows = config.train.batch_size // config.train.grad_accumulation
        tokens = torch.empty(rows, config.model.context_length, dtype=torch.int64)
    return 16 * model.count_parameters()["total"] + hardware.saved_bytes(model, tokens, tokens)


@contextmanager
def caught_signals():
    """A list that SIGINT and SIGTERM append themselves to; a second SIGINT interrupts at once. Main thread only."""
    caught: list[int] = []

    def catch(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals are then the caller's business
        yield caught
        return
    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder; raises UserError where it has none."""
    saved = journal.read_json(run / journal.CONFIG)
    try:
        return RunConfig.from_dict(saved)
    except (KeyError, TypeError):
        raise UserError(f"{run / journal.CONFIG} is no configuration of a run: {json.dumps(saved)[:60]} ...") from None
