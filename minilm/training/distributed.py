"""The processes of one training: who is here, what they tell each other, and what happens when one of them ends.

torchrun starts the same command several times; join() makes a team of these processes, and without torchrun a team of
one that has no process group and costs nothing. The first process writes and speaks, the others compute. What all must
know goes through the store of the job as JSON, tensors through collectives, nothing as pickle.

A collective waits for ever for a process that is dead, and NCCL says nothing. So each process shows the others every
few seconds that it lives, on a connection of its own, and ends itself soon after one of them has not.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from minilm import hardware
from minilm.config import TrainConfig
from minilm.errors import UserError
from minilm.training.signals import ENDING, SAVE, take_save

BEAT_S = 2.0  # between two signs of life
DEAD_AFTER_S = 30.0  # without one
GRACE_S = 10.0  # for what a process is doing, once another has failed
JOIN_TIMEOUT = timedelta(minutes=5)
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # the first process may save or sample so long while the others wait
SIGNALS = (*ENDING, SAVE) if SAVE else ENDING
# how gloo and NCCL speak of a process that is gone
LOST = re.compile(r"gloo|nccl|connection|peer|socket|broken pipe|timed? ?out|store", re.IGNORECASE)
_joined = itertools.count()  # one process may train several times


class Team:
    """A training of one process: everything is here, nothing waits."""

    rank, size = 0, 1
    backend: str | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def tell(self, what: Callable[[], Any]) -> Any:
        """What `what` returns on the first process, on all of them: as JSON, paths as text. Only the first calls it."""
        return what()

    def first_then_all(self, act: Callable[[], Any]) -> Any:
        """`act` on every process, the first alone before the others: what it leaves in a cache is there for them."""
        return act()

    def sync(self) -> None:
        """Wait until every process has come so far. Raises UserError where one has failed."""

    def agree(self, caught: list[int]) -> list[int]:
        """The signals that any process has caught, on all of them at the same step."""
        return caught

    def add(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in place; adding zeros to a number leaves its every bit."""
        return values

    def share(self, load: Callable[[], dict[str, Any]], keep: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The checkpoint that `load` returns on the first process, on all of them. Only the first calls it: it alone
        needs the file. Several processes pass the tensors of weights and moments through `keep` as they come."""
        return load()

    def folder(self, open_folder: Callable[[Path], Any], out: Path) -> Any:
        """The run folder, open on the first process; the others get the same path and write nothing."""
        return open_folder(out)

    def rows(self, batch: Any) -> Any:
        """The rows of the batch of a step that are this process's own."""
        share = len(batch) // self.size
        return batch[self.rank * share : (self.rank + 1) * share]

    def console(self, console: Console | None) -> Console:
        return console or Console()


class Processes(Team):
    """Several processes, as the environment says: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK."""

    def __init__(self, device: torch.device):
        self.rank, self.size = (_number(name) for name in ("RANK", "WORLD_SIZE"))
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self._waits = itertools.count()
        self._left = threading.Event()
        self._lost = ""

    def __enter__(self) -> Team:
        host, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT")
        if not host or not port:
            raise UserError(
                f"WORLD_SIZE is {self.size} in the environment and MASTER_ADDR is {host!r}, MASTER_PORT {port}; start "
                "several processes by torchrun --standalone, or name the address and a free port."
            )
        prefix = f"minilm/{next(_joined)}"
        try:
            joint, *_ = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
            # a connection of one's own: on the shared one a wait of the process group would hold up the signs of life
            own = dist.TCPStore(host, port, is_master=False, timeout=JOIN_TIMEOUT)
            self._store = dist.PrefixStore(f"{prefix}/team", own)
            self._store.set(f"beat/{self.rank}", "0")
            # all must have come before the process group is made, which would wait for them as for a collective
            self._store.wait([f"beat/{rank}" for rank in range(self.size)], JOIN_TIMEOUT)
            self._watcher = threading.Thread(target=self._watch, name="signs of life", daemon=True)
            self._watcher.start()
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.backend == "nccl" else "gloo",
                store=dist.PrefixStore(f"{prefix}/group", joint),
                rank=self.rank,
                world_size=self.size,
                timeout=COLLECTIVE_TIMEOUT,
            )
        except RuntimeError as error:
            self._left.set()
            raise UserError(
                f"Process {self.rank} could not join the {self.size} of this training at {host}:{port} "
                f"({_first_line(error)}); check that all of them run and reach each other."
            ) from None
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        cause = None
        try:
            if error is None:
                dist.barrier()  # the first may still be saving
            else:
                cause = self._cause(error)
        except RuntimeError as late:
            cause = self._cause(late) or UserError(f"A process of this training was lost ({_first_line(late)}).")
        finally:
            self._left.set()
            self._watcher.join()
            if kind is None or self.backend == "gloo":  # NCCL would wait for what is under way
                dist.destroy_process_group()
        if cause is not None:
            raise cause from None

    def _cause(self, error: BaseException) -> UserError | None:
        """What to say instead of `error` where it only follows from the end of another process; else None, and the
        others learn of it."""
        if isinstance(error, _Elsewhere):
            return UserError(str(error))
        if not (isinstance(error, RuntimeError) and LOST.search(str(error))):
            text = _first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            try:
                self._store.compare_set("failed", "", json.dumps([self.rank, text]))
            except RuntimeError:
                return None  # nobody is there to be told
            return None
        for _ in range(20):  # another process may need a moment to say why
            if reason := self._lost or self._failure():
                break
            time.sleep(0.1)
        # gloo begins with a place in its own source and goes on with advice
        symptom = re.sub(r"^\[[^]]*\] ", "", _first_line(error)).split(". ")[0]
        reason = reason or f"another process of this training is gone ({symptom})."
        return UserError(f"{reason}\nThe last checkpoint is whole: the same command with --resume goes on from it.")

    def _failure(self) -> str:
        """Which process has failed and why, or nothing."""
        try:
            if not self._store.check(["failed"]):
                return ""
            rank, text = json.loads(self._store.get("failed"))
        except RuntimeError:
            return "the process that holds the job together is gone."
        return "" if rank == self.rank else f"process {rank} of {self.size}: {text}"

    def _watch(self) -> None:
        """Show that this process lives, look whether the others do, and end this one where one of them does not."""
        seen = dict.fromkeys(range(self.size), (b"", time.monotonic()))
        for beat in itertools.count(1):
            if self._left.wait(BEAT_S):
                return
            now = time.monotonic()
            try:
                self._store.set(f"beat/{self.rank}", str(beat))
                beats = self._store.multi_get([f"beat/{rank}" for rank in seen])
            except RuntimeError:
                beats, self._lost = [], "the process that holds the job together is gone."
            for rank, last in enumerate(beats):
                if last != seen[rank][0]:
                    seen[rank] = (last, now)
                elif now - seen[rank][1] > DEAD_AFTER_S:
                    self._lost = f"process {rank} of {self.size} gave no sign of life for {DEAD_AFTER_S:.0f} s."
            self._lost = self._lost or self._failure()
            if self._lost:
                break
        if self._left.wait(GRACE_S):
            return
        print(f"minilm: {self._lost} Process {self.rank} ends too.", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread is inside a collective that will never end

    def _wait_for(self, key: str) -> bytes:
        while not self._store.check([key]):
            if reason := self._lost or self._failure():
                raise _Elsewhere(reason)
            time.sleep(0.02)
        return self._store.get(key)

    def tell(self, what: Callable[[], Any]) -> Any:
        key = f"told/{next(self._waits)}"
        if self.first:
            self._store.set(key, json.dumps(what(), default=str))
        return json.loads(self._wait_for(key))

    def first_then_all(self, act: Callable[[], Any]) -> Any:
        key = f"done/{next(self._waits)}"
        if not self.first:
            self._wait_for(key)
        result = act()
        if self.first:
            self._store.set(key, "")
        return result

    def sync(self) -> None:
        number = next(self._waits)
        self._store.set(f"here/{number}/{self.rank}", "")
        for rank in range(self.size):
            self._wait_for(f"here/{number}/{rank}")

    def agree(self, caught: list[int]) -> list[int]:
        flags = torch.tensor([number in caught for number in SIGNALS], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        take_save(caught)  # all of them know of it now
        return [number for number, flag in zip(SIGNALS, flags.tolist(), strict=True) if flag]

    def add(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def share(self, load: Callable[[], dict[str, Any]], keep: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        tensors: list[Tensor] = []
        state: dict[str, Any] = {}

        def outline() -> Any:
            state.update(load())
            return _outline(state, tensors)

        plan = self.tell(outline)
        source = iter(tensors)

        def receive(dtype: str, shape: list[int]) -> Tensor:
            here = next(source).contiguous() if self.first else torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(here, 0)
            return here

        def receive_part(dtype: str, shape: list[int]) -> Tensor:
            here = receive(dtype, shape)
            return keep(here) if here.ndim else here

        return {
            key: _from_outline(value, receive_part if key in ("model", "optimizers") else receive)
            for key, value in plan["dict"]
        }

    def folder(self, open_folder: Callable[[Path], Any], out: Path) -> Any:
        path = Path(self.tell(lambda: str(out)))
        return open_folder(path) if self.first else Bystander(path)

    def console(self, console: Console | None) -> Console:
        return super().console(console) if self.first else Console(quiet=True, force_terminal=False)


class _Elsewhere(UserError):
    """Another process failed; it has said why."""


class Bystander:
    """A run folder for the processes that do not write: whatever it is told, it does nothing."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Bystander:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def join(config: TrainConfig) -> Team:
    """The team this process belongs to. Raises UserError where the processes and the configuration do not fit."""
    size = _number("WORLD_SIZE", 1)
    if size <= 1:
        if config.shard:
            raise UserError(
                "train.shard cuts a model over several processes and there is one; start by torchrun "
                "--nproc-per-node N -m minilm train ..., or go on with --no-shard."
            )
        return Team()
    if config.batch_size % size:
        raise UserError(
            f"train.batch_size is {config.batch_size} and there are {size} processes; it must be a multiple of their "
            "number."
        )
    if ":" in config.device:
        raise UserError(f"train.device is {config.device!r} and there are {size} processes; leave out the number.")
    device = hardware.resolve_device(config.device)
    if device.type == "mps":
        raise UserError("Several processes train on CPUs or NVIDIA GPUs; use --device cpu.")
    if device.type == "cuda":
        local, gpus = _number("LOCAL_RANK"), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(f"Process {local} of this machine has no GPU: it has {gpus}; use --nproc-per-node {gpus}.")
        torch.cuda.set_device(local)
    return Processes(device)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise UserError(f"{name} is {text!r} in the environment; start several processes by torchrun, which sets it.")
    return int(text)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _outline(value: Any, tensors: list[Tensor]) -> Any:
    """A state as JSON, its tensors put into `tensors`; dicts become lists of pairs, which keeps whole-number keys."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape)]}
    if isinstance(value, dict):
        return {"dict": [[key, _outline(v, tensors)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_outline(v, tensors) for v in value]}
    return value


def _from_outline(plan: Any, receive: Callable[[str, list[int]], Tensor]) -> Any:
    if not isinstance(plan, dict):
        return plan
    (kind, content), = plan.items()  # fmt: skip
    if kind == "tensor":
        return receive(*content)
    if kind == "dict":
        return {key: _from_outline(v, receive) for key, v in content}
    values = [_from_outline(v, receive) for v in content]
    return tuple(values) if kind == "tuple" else values
