"""train(): from a configuration to a run folder that holds the trained model and everything that happened."""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from minilm import hardware
from minilm.config import RunConfig, check_resume
from minilm.errors import UserError
from minilm.files import write_atomically
from minilm.training import checkpoint, compiling, distributed, graphs, guards, journal, loggers
from minilm.training.evaluate import evaluate, sample
from minilm.training.guards import NonFiniteError, Spike, State
from minilm.training.journal import RunFolder, read_config
from minilm.training.optimizer import set_rates, step_unless
from minilm.training.prepare import Parts, prepare
from minilm.training.progress import ProgressLine, duration, facts_table, introduction
from minilm.training.reduction import reduction_for
from minilm.training.signals import caught_signals, ending, take_save
from minilm.training.start import Start, check_resumable

SAMPLE_TEMPERATURES = (0.8, 0.5, 1.0)  # the first at every sampling, all at the last


@dataclass(frozen=True)
class Result:
    path: Path
    state: State
    signal: int | None  # that ended the run early
    first: bool = True  # among several processes: the one that writes and speaks


def train(
    config: RunConfig,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
    command: str = "",
    start: Start | None = None,
    figure: Callable[[Path], bytes] | None = None,
) -> Result:
    """Train a GPT as `config` says, in the run folder `out`; with resume, go on from its last checkpoint.

    start: the weights and the tokenizer of another model, to begin from in place of random numbers. figure: draws the
    run folder as PNG, for the logs that config.train.log names and that show figures.

    Returns when all steps are done, or after SIGINT or SIGTERM once the step at hand is finished and saved.
    Raises UserError for whatever a person can mend; nothing of an earlier run is lost by that. Where torchrun started
    several processes, all of them call this and the first one's arguments count.
    """
    with (
        caught_signals() as caught,  # first: torchrun's SIGTERM must not silence what a team has to say at its end
        distributed.join(config.train) as team,
        team.folder(lambda path: RunFolder(path, resume), out) as run,
    ):
        console, config = team.console(console), RunConfig.from_dict(team.tell(config.to_dict))
        changes = []
        if start is not None:
            config = start.fit(config)
        if resume:
            team.tell(lambda: check_resumable(run.path))
            saved = RunConfig.from_dict(team.tell(lambda: read_config(run.path).to_dict()))
            if config.model.vocab_size is None:  # what the data has, as when the run was started
                model = dataclasses.replace(config.model, vocab_size=saved.model.vocab_size)
                config = dataclasses.replace(config, model=model)
            changes = check_resume(saved, config)
        names = config.train.loggers()
        team.tell(lambda: loggers.check_installed(names))
        earlier = team.tell(lambda: journal.read_facts(run.path)) if resume else None
        loop = Loop(prepare(config, console, command, team, start, earlier), run, console, caught, team)
        if names and team.first:
            run.log = loggers.Loggers(loggers.loggers_of(names, run.path), loop.warn)
        if not (resume and loop.resume(changes)):
            loop.start()
        team.sync()
        caught.deferring = True
        finished = loop.finished()
        result = loop.run_to_end()
        if figure is not None and team.first and result.signal is None and not finished:
            run.log.figure(result.state.step, lambda: figure(run.path))
        return result


class Loop:
    """One training in progress."""

    def __init__(self, parts: Parts, run: RunFolder, console: Console, caught: list[int], team: distributed.Team):
        self.config, self.data, self.sampler = parts.config, parts.data, parts.sampler
        self.model, self.optimizers, self.facts, self.origin = parts.model, parts.optimizers, parts.facts, parts.origin
        self.run, self.console, self.caught, self.team = run, console, caught, team
        self.asked: list[int] = []  # the signals that all processes know of
        self.device = self.model.head.weight.device
        if self.device.type == "cpu":
            hardware.keep_freed_memory()
        self.reduction = reduction_for(self.model, self.config.train, team, self.compiled)
        # float16 has too little range for gradients: they are scaled up, and the scale follows what overflows
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.model.dtype == torch.float16)
        captured = self.config.train.graphs == graphs.ON
        self.captured = graphs.CapturedUpdate(self.advance, self.optimizers, self.device) if captured else None
        self.state = State()
        self.kept = self.config.train.kept_steps()
        self.saved: int | None = None  # the step of last.pt, where it is sound
        self.best_on_disk = math.inf  # going back, or other kernels, must not replace better weights by worse
        self.unread: list[tuple[dict[str, Any], torch.Tensor]] = []  # rows whose loss and norm are still on the device

    def start(self) -> None:
        if not self.team.first:
            return
        saved = {**self.config.to_dict(), "format": 1, "name": self.run.path.name, "facts": self.facts}
        saved |= {"init": self.origin} if self.origin else {}
        journal.write_json(self.run.path / journal.CONFIG, saved)
        journal.write_json(self.run.path / journal.DATA, self.data.meta)
        tokenizer = self.data.folder / "tokenizer.json"
        write_atomically(self.run.path / tokenizer.name, lambda part: shutil.copyfile(tokenizer, part))
        self.run.rewind(-1)  # a kill before the first checkpoint may have cut a line
        self.run.event(0, "started", self.facts["command"] or "started from Python")

    def resume(self, changes: list[str]) -> bool:
        """Go on from the newest checkpoint that is sound; False where the run was killed before it wrote one."""
        saved = self.team.tell(lambda: journal.read_json(self.run.path / journal.CONFIG))
        earlier = self.team.tell(lambda: journal.read_facts(self.run.path))
        if earlier["data_sha256"] != self.facts["data_sha256"]:
            raise UserError(f"The text behind {self.config.data.source} has changed since {self.run.path} was started.")
        path, damage = self.team.tell(lambda: checkpoint.newest(self.run.path))
        if path is None:
            if self.run.has_rows():
                raise UserError(f"{self.run.path} has done steps and has no checkpoint to go on from; start a new run.")
            return False
        path = Path(path)
        lost = self.restore(path)
        if path.name == checkpoint.LAST:
            self.saved = self.state.step
        self.best_on_disk = self.team.tell(lambda: checkpoint.best_loss(self.run.path, self.config.preset))
        if self.config.train.steps < self.state.step:
            steps, done = self.config.train.steps, self.state.step
            raise UserError(f"train.steps is {steps} and {self.run.path} has done {done}; ask for more.")
        self.run.rewind(self.state.step or -1, self.state.rewinds)  # step 0 is evaluated again
        for warning in filter(None, [*damage, lost, self.run.gap(self.state.step)]):
            self.warn(self.state.step, warning)
        self.run.event(self.state.step, "resume", f"resumed at step {self.state.step}")
        asked = {change.split()[0] for change in changes}
        for fact in ("device", "dtype", "residual_dtype", "kernels", "world_size"):  # what "auto" came to, and torchrun
            before, now = earlier.get(fact, self.facts[fact]), self.facts[fact]
            if before != now and f"train.{fact}" not in asked:
                changes = [*changes, f"{fact} in use from {before} to {now}"]
        for change in changes:
            self.run.event(self.state.step, "config_change", change)
            self.console.print(f"Changed: {change}", highlight=False)
        if self.team.first:
            if self.saved is not None:  # a kill may have come between the newest and the removal of the oldest
                checkpoint.prune(self.run.path / checkpoint.FOLDER, self.config.train.keep_last)
            journal.write_json(
                self.run.path / journal.CONFIG,
                {**saved, **self.config.to_dict(), "facts": {**self.facts, "created": earlier["created"]}},
            )
        return True

    def restore(self, path: Path) -> str | None:
        """Put everything where a checkpoint has it; returns a sentence about what could not be. Raises UserError."""
        device = self.device if self.team.size == 1 else "cpu"
        state = self.team.share(lambda: checkpoint.load(path, device), self.reduction.keep)
        checkpoint.load_weights(self.model, state, path)
        try:
            for optimizer, saved_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved_state)
            if self.captured is not None:
                self.captured.forget()
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            lost = checkpoint.restore_generators(state["generators"])
            there = State(**state["state"])
            if there.step == 0:  # the first evaluation is still to come
                there = State(skipped=there.skipped, rewinds=there.rewinds)
            vars(self.state).update(vars(there))  # in place, for others hold on to it
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(f"{path} does not continue this run ({str(error)[:100]}).") from None
        return lost

    def run_to_end(self) -> Result:
        c, state = self.config.train, self.state
        self.introduce()
        if self.finished():
            self.console.print(f"All {c.steps} steps are done already; give more by --set train.steps=N.")
            self.run.finish(state.step, f"{state.step} steps in {duration(state.wall)}", wall=state.wall)
            return Result(self.run.path, state, None, self.team.first)
        self.model.train()
        memory = guards.memory_named(self.config, state)
        with memory, ThreadPoolExecutor(1) as ahead, ProgressLine(self.console, c.steps, state.step) as line:
            upcoming = ahead.submit(self.fetch, state.step)
            self.set_clock()
            if state.step == 0:
                self.save_last()  # from here on there is something to resume
            left = state.step > 0 and self.lacks_evaluation()
            if state.step == 0 or left:
                self.milestones(line)
            stopping = self.stopping()
            while state.step < c.steps and not stopping:
                batch = upcoming.result()
                upcoming = ahead.submit(self.fetch, state.step + 1)
                self.update(batch)
                stopping = self.stopping()
                try:
                    if state.step % c.log_interval == 0 or state.step == c.steps or stopping:
                        self.read_losses(line)
                    self.milestones(line)
                except Spike as spike:
                    self.go_back(spike, line)
                    upcoming = ahead.submit(self.fetch, state.step)
                stopping = stopping or (self.lacks_evaluation() and self.stopping())
            if state.step != self.saved or left:
                self.save_last()
        self.captured = None  # else it, this loop and the graph's memory would wait for Python's collector
        return self.conclude()

    def finished(self) -> bool:
        return self.state.step >= self.config.train.steps and not self.lacks_evaluation()

    def warn(self, step: int, warning: str) -> None:
        self.run.event(step, "warning", warning)
        self.console.print(f"Warning: {warning}", highlight=False, markup=False, soft_wrap=True)

    def compiled(self, module: torch.nn.Module) -> Callable:
        how, asked = self.facts["compile"], self.config.train.compile != "auto"
        if how == compiling.OFF:
            return module
        return compiling.Compiled(module, how, asked, self.not_compiled)

    def not_compiled(self, warning: str) -> None:
        self.warn(self.state.step, warning)
        self.facts |= {"compile": compiling.OFF, "compile_reason": "the compiler failed"}
        if self.team.first:
            path = self.run.path / journal.CONFIG
            journal.write_json(path, journal.read_json(path) | {"facts": self.facts})

    def set_clock(self) -> None:
        """Time runs from where the state has it."""
        wall, step = self.state.wall, self.state.step
        self.clock, self.window_start, self.window_step = time.perf_counter() - wall, wall, step
        self.begun = (wall, step)

    def stopping(self) -> int | None:
        """The signal that asks for the end, if any: all processes learn of it at the same step."""
        self.asked = self.team.agree(self.caught)
        return ending(self.asked)

    def fetch(self, step: int) -> torch.Tensor:
        """This process's rows of the batch of a step, (rows, context_length + 1), on their way to the device."""
        batch = torch.from_numpy(self.team.rows(self.sampler.batch(step + self.state.skipped)))
        return batch.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else batch

    def update(self, batch: torch.Tensor) -> None:
        """One optimizer update. A non-finite loss or gradient leaves weights and moments untouched."""
        c, state = self.config.train, self.state
        if self.device.type == "mps":
            batch = batch.to(self.device)
        rate = set_rates(self.optimizers, state.step, c)
        values = self.advance(batch) if self.captured is None else self.captured(batch)
        state.step += 1
        state.tokens += self.facts["tokens_per_step"]
        state.wall = time.perf_counter() - self.clock
        row = {"step": state.step, "tokens": state.tokens, "lr": rate, "wall": state.wall}
        self.unread.append((row, values))

    def advance(self, batch: torch.Tensor, rates: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
        """All that an update does on the device; returns the loss and the gradient's norm, (2,). rates: see graphs."""
        loss = self.reduction.backward(batch, self.state.step, self.scaler)
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        norm = self.reduction.clip()
        bad = ~(norm.isfinite() & loss.isfinite())
        # not by scaler.step, which asks each optimizer about its own gradients only
        for number, optimizer in enumerate(self.optimizers):
            step_unless(bad, optimizer, None if rates is None else rates[number])
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return torch.stack((loss, norm.to(loss.dtype)))

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
        diverged = None
        for (row, _), (loss, norm) in zip(self.unread, values, strict=True):
            self.run.metric({**row, "loss": loss, "grad_norm": norm, "tokens_per_s": rate})
            self.judge(row["step"], loss, norm, line)
            if state.bad_steps >= c.max_bad_steps:  # even where later steps of this reading were good
                diverged = row["step"]
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
        if diverged is not None:
            raise NonFiniteError(
                f"{c.max_bad_steps} steps in a row had a non-finite loss or gradient, up to step {diverged}, and "
                f"were skipped; start anew with a lower train.lr or with train.dtype=float32. The last good checkpoint "
                f"is {self.run.path / checkpoint.FOLDER / checkpoint.LAST}, of step {self.saved}."
            )

    def judge(self, step: int, loss: float, norm: float, line: ProgressLine) -> None:
        """Events for what should not happen: non-finite numbers, sudden losses."""
        found = guards.judge(self.state, step, loss, norm)
        if found is None:
            return
        event, message = found
        self.run.event(step, event, message)
        line.say(f"step {step}: {message}")
        if event == "spike" and self.config.train.on_spike == "rewind" and self.state.rewinds < guards.MAX_REWINDS:
            raise Spike(step, message)

    def go_back(self, spike: Spike, line: ProgressLine) -> None:
        """To the last checkpoint of the regular interval, and from there on past the batches that led to the spike."""
        state, rewinds = self.state, self.state.rewinds
        path = Path(self.team.tell(self.regular_checkpoint))
        self.unread.clear()
        self.restore(path)
        passed = spike.step - state.step
        state.skipped += passed
        state.rewinds = rewinds + 1
        message = f"{spike.message} at step {spike.step}: back to step {state.step}, past {passed} batches"
        self.run.event(state.step, "rewind", message)
        line.say(message)
        self.save_last()  # before its rows go: a kill in between ends in the same place
        self.run.rewind(state.step or -1, state.rewinds)
        self.set_clock()
        if state.step == 0:
            self.milestones(line)

    def regular_checkpoint(self) -> Path:
        paths = checkpoint.to_go_on_from(self.run.path)
        return next((p for p in paths if self.is_regular(checkpoint.verify(p)["step"])), paths[0])

    def is_regular(self, step: int) -> bool:
        """Whether a checkpoint of this step is one of the interval, rather than asked for by a signal."""
        interval = self.config.train.checkpoint_interval
        return step % interval == 0 if interval else step == 0

    def milestones(self, line: ProgressLine) -> None:
        """What happens at some steps only: evaluation, samples, checkpoints. Its time is not training time."""
        c, step = self.config.train, self.state.step
        last = step == c.steps
        paused = time.perf_counter()
        if self.evaluates():
            self.read_losses(line)
            paused = time.perf_counter()
            self.evaluate(line)
            if self.lacks_evaluation():
                return  # to save and end at once: all that belongs to this step is done when the run goes on
        if c.sample_interval and (step % c.sample_interval == 0 or last):
            self.sample()
        if step in self.kept:
            self.save(checkpoint.step_name(step), self.weights())
        if c.checkpoint_interval and step and step % c.checkpoint_interval == 0 and not last:
            self.read_losses(line)
            self.save_last()
        if take_save(self.asked):
            self.read_losses(line)
            self.save_last()
            self.run.event(step, "saved", f"saved at step {step}, as asked for by SIGUSR1")
            line.say(f"step {step}: saved, as asked for by SIGUSR1")
        self.clock += time.perf_counter() - paused

    def evaluates(self) -> bool:
        c, step = self.config.train, self.state.step
        return bool(c.eval_interval and step % c.eval_interval == 0) or step == c.steps

    def lacks_evaluation(self) -> bool:
        """Whether a signal cut short the evaluation of this step."""
        return self.evaluates() and self.state.final.get("step") != self.state.step

    def evaluate(self, line: ProgressLine) -> None:
        state = self.state
        cut = (lambda: ending(self.caught) is not None) if self.team.size == 1 else None  # several end after it
        loss = evaluate(self.model, self.data.val, self.config.train.eval_tokens, self.team, cut)
        if loss is None:
            return
        bpb = self.data.bits_per_byte(loss)
        row = {"step": state.step, "tokens": state.tokens, "val_loss": loss, "val_bpb": bpb, "wall": state.wall}
        self.run.metric(row)
        self.run.flush()
        state.final = {"step": state.step, "val_loss": loss, "val_bpb": bpb}
        line.say(f"step {state.step}: validation loss {loss:.4f} nats/token, {bpb:.4f} bits/byte")
        better = math.isfinite(loss) and loss < state.best.get("val_loss", math.inf)
        # where the file was damaged, worse weights beat none; an equal loss is that of a step done again after a kill
        if math.isfinite(loss) and (loss < self.best_on_disk or (better and loss == self.best_on_disk)):
            self.best_on_disk = loss
            self.save(checkpoint.best_name(self.config.preset), {**self.weights(), "val_loss": loss})
        if better:
            state.best = dict(state.final)
            self.run.event(state.step, "best", f"validation loss {loss:.4f}", val_loss=loss, val_bpb=bpb)

    def sample(self) -> None:
        """What the model writes now, drawn from a generator of its own: training is the same with or without."""
        last = self.state.step == self.config.train.steps
        samples = []
        for temperature in SAMPLE_TEMPERATURES if last else SAMPLE_TEMPERATURES[:1]:
            with self.reduction.sampling() as takes_part:
                if not takes_part:
                    return
                samples.append(sample(self.model, self.data, temperature, self.config.train.seed))
        self.run.sample(self.state.step, samples)

    def weights(self) -> dict[str, Any]:
        return {"model": self.reduction.weights(), "config": self.config.to_dict(), "step": self.state.step}

    def save_last(self) -> None:
        everything = {
            **self.weights(),
            "optimizers": [self.reduction.whole(optimizer.state_dict()) for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "generators": checkpoint.generator_states(),
            "state": dataclasses.asdict(self.state),
        }
        self.run.flush(durable=True)  # no row before a checkpoint may be lost where the checkpoint is not
        step, saved = self.state.step, self.saved
        earlier = saved if saved is not None and saved != step and self.is_regular(saved) else None
        if self.team.first:
            checkpoint.save_last(self.run.path / checkpoint.FOLDER, everything, self.config.train.keep_last, earlier)
        self.saved = step

    def save(self, name: str, state: dict[str, Any]) -> None:
        if self.team.first:
            checkpoint.save(self.run.path / checkpoint.FOLDER / name, state)

    def introduce(self) -> None:
        """Everything a person may want to know before the first step."""
        self.console.print(
            facts_table(introduction(self.run.path, self.config, self.facts, self.data)), highlight=False
        )

    def conclude(self) -> Result:
        state, caught = self.state, ending(self.asked)
        if caught:
            name = signal.Signals(caught).name
            self.run.event(state.step, "stopped", f"stopped by {name} and saved")
            self.console.print(f"Stopped by {name} after step {state.step}, and saved. To go on:", highlight=False)
            self.console.print(f"  minilm train --out {self.run.path} --resume", highlight=False)
        else:
            self.run.finish(state.step, f"{state.step} steps in {duration(state.wall)}", wall=state.wall)
        return Result(self.run.path, state, caught, self.team.first)
