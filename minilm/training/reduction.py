"""From the batch of a step to its mean gradient, on one process or over several.

Plain            one process, micro-batches in turn: what training is without torchrun
DataParallel     every process its own rows; gradients are averaged while the backward still runs
Lanes            --exact-reduction: sums whose order does not depend on the number of processes
Sharded          --shard: every process holds its part of weights, gradients and moments
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minilm.config import TrainConfig
from minilm.errors import UserError
from minilm.model import GPT
from minilm.training.distributed import Team

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


Compile = Callable[[nn.Module], Callable]  # makes of the module that computes the loss what is called in its place
LANES = 8  # at most: the largest number of processes that exact reduction can have


def as_it_is(module: nn.Module) -> Callable:
    return module


class Plain:
    """One process. The loss and the gradients are those of the whole batch, in as many parts as train.grad_accumulation
    says; with several processes a part is no larger."""

    def __init__(self, model: GPT, config: TrainConfig, team: Team, compiled: Compile = as_it_is):
        self.model, self.config, self.team = model, config, team
        self.parts = micro_batches(config.batch_size // team.size, config)
        self.forward: Callable[[Tensor, Tensor], Tensor] = compiled(self.module())

    def module(self) -> nn.Module:
        """What computes the loss of a micro-batch."""
        return self.model

    def backward(self, batch: Tensor, step: int, scaler: torch.amp.GradScaler) -> Tensor:
        """Leave the mean gradient of the global batch in .grad, from this process's rows of it, (rows, T + 1) int64;
        return its mean loss, 0-d, which every process then has."""
        return self.accumulate(batch, scaler)

    def accumulate(self, rows: Tensor, scaler: torch.amp.GradScaler, share: int = 1) -> Tensor:
        """Add the gradient of the mean loss of `rows`, divided by `share`, to .grad in micro-batches; return that loss,
        divided likewise."""
        loss = torch.zeros((), device=rows.device)
        parts = rows.chunk(self.parts)
        for number, part in enumerate(parts, 1):
            with self.exchange(number == len(parts)):
                part_loss = self.forward(part[:, :-1], part[:, 1:]) / (len(parts) * share)
                scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        return loss

    def exchange(self, last: bool) -> AbstractContextManager:
        """What a micro-batch runs in: gradients are exchanged once an update, in its last backward."""
        return nullcontext()

    def clip(self) -> Tensor:
        """The global norm of the gradients, 0-d, which are scaled down to train.grad_clip where it is larger."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)

    def keep(self, tensor: Tensor) -> Tensor:
        """What this process holds of a tensor of weights or moments that a checkpoint holds whole."""
        return tensor

    def weights(self) -> dict[str, Tensor]:
        """The model's weights as a checkpoint holds them. Every process must call this, and whole()."""
        return self.model.state_dict()

    def whole(self, state: Any) -> Any:
        """The state of an optimizer as a checkpoint holds it."""
        return state

    @contextmanager
    def sampling(self) -> Iterator[bool]:
        """Whether this process takes part in computing samples, and the model in a state to do so."""
        yield self.team.first

    def reseed(self, step: int, part: int) -> None:
        """Dropout of this step draws from a stream of its own for each process or lane: a run that is resumed draws
        what it would have drawn, and no state of another process has to be saved."""
        if self.model.config.dropout:
            seed = np.random.SeedSequence((self.config.seed, step, part)).generate_state(1, np.uint64)
            torch.manual_seed(int(seed[0] >> np.uint64(1)))


class DataParallel(Plain):
    """torch's DistributedDataParallel (Li et al. 2020): buckets of gradients are all-reduced while the backward of
    earlier layers runs. The model itself stays unwrapped beside it, so that state-dict keys are what they were."""

    def module(self) -> nn.Module:
        # torch.compile goes around it, so that the graph is cut where a bucket is full
        self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        return self.parallel

    def backward(self, batch: Tensor, step: int, scaler: torch.amp.GradScaler) -> Tensor:
        self.reseed(step, self.team.rank)
        return self.team.add(super().backward(batch, step, scaler)) / self.team.size

    def exchange(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.parallel.no_sync()


class Lanes(Plain):
    """The batch is cut into lanes, their number a power of two that does not depend on the number of processes. Each
    lane's gradient is computed alone, and lanes are added as a binary tree: neighbours, then neighbouring pairs. A
    process holds a whole branch of the tree, so that 1, 2, 4 and 8 processes add the same numbers in the same order.

    Float addition is commutative and not associative: the tree must be fixed, the side of an operand need not be.
    """

    def __init__(self, model: GPT, config: TrainConfig, team: Team, compiled: Compile = as_it_is):
        super().__init__(model, config, team, compiled)
        self.lanes = lanes(config.batch_size)
        if self.lanes % team.size:
            raise UserError(
                f"train.exact_reduction adds {self.lanes} lanes of a batch of {config.batch_size} and there are "
                f"{team.size} processes; their number must divide {self.lanes}, or go without exact reduction."
            )
        if model.head.weight.device.type == "cpu":
            torch.set_num_threads(1)  # a matrix product adds in another order on another number of threads
        self.rows = config.batch_size // self.lanes
        self.parts = micro_batches(self.rows, config)
        self.parameters = list(model.parameters())

    def backward(self, batch: Tensor, step: int, scaler: torch.amp.GradScaler) -> Tensor:
        begun: list[tuple[int, Tensor]] = []  # branches that wait for their neighbour: (height, sum)
        for number, rows in enumerate(batch.split(self.rows), self.team.rank * self.lanes // self.team.size):
            self.reseed(step, number)
            height, branch = 0, self.lane(rows, scaler)
            while begun and begun[-1][0] == height:
                branch = begun.pop()[1].add_(branch)
                height += 1
            begun.append((height, branch))
        ((_, total),) = begun
        distance = 1
        while distance < self.team.size:
            total += swapped(total, self.team.rank ^ distance)
            distance *= 2
        self.point_gradients_into(total)
        return total[-1].clone()

    def lane(self, rows: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
        """The gradients of a lane and its loss behind them, one vector, both divided by the number of lanes: exact,
        because that is a power of two."""
        own = torch.zeros(sum(p.numel() for p in self.parameters) + 1, device=rows.device)
        self.point_gradients_into(own)
        own[-1] = self.accumulate(rows, scaler, self.lanes)
        return own

    def point_gradients_into(self, vector: Tensor) -> None:
        start = 0
        for parameter in self.parameters:
            parameter.grad = vector[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()


class Sharded(Plain):
    """torch's fully_shard (Zhao et al. 2023): weights are gathered block by block as they are needed, gradients summed
    and scattered at every micro-batch, so that no process ever holds them whole. Checkpoints hold whole tensors."""

    def __init__(self, model: GPT, config: TrainConfig, team: Team, compiled: Compile = as_it_is):
        super().__init__(model, config, team, compiled)
        self.placed: Any = next(model.parameters())  # all are cut alike, along their first dimension

    def backward(self, batch: Tensor, step: int, scaler: torch.amp.GradScaler) -> Tensor:
        self.reseed(step, self.team.rank)
        return self.team.add(super().backward(batch, step, scaler)) / self.team.size

    def clip(self) -> Tensor:
        return cast("DTensor", super().clip()).full_tensor()

    def keep(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = self.placed.device_mesh, self.placed.placements
        return distribute_tensor(tensor.to(self.placed.device), mesh, placements, src_data_rank=None)

    def weights(self) -> dict[str, Tensor]:
        return self._whole(self.model.state_dict(keep_vars=True), {})

    def whole(self, state: Any) -> Any:
        return self._whole(state, {})

    def _whole(self, value: Any, seen: dict[int, Tensor]) -> Any:
        if isinstance(value, dict):
            return {key: self._whole(v, seen) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._whole(v, seen) for v in value)
        if not hasattr(value, "full_tensor"):
            return value.cpu() if isinstance(value, Tensor) else value
        if id(value) not in seen:  # tied weights stay one tensor
            tensor = value.detach().full_tensor()
            seen[id(value)] = tensor.cpu() if self.team.first else tensor.new_empty(0)
        return seen[id(value)]

    @contextmanager
    def sampling(self) -> Iterator[bool]:
        cast("FSDPModule", self.model).unshard()  # embeddings and head; blocks gather themselves
        try:
            yield True
        finally:
            cast("FSDPModule", self.model).reshard()


def shard(model: GPT, team: Team, device: torch.device) -> None:
    """Cut the weights of a model on the CPU over the processes and put each part on its device, block by block.

    Products and gathers keep the dtypes that they have on one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    team.sync()  # what fails on one process is heard of here, not as a broken connection inside
    # a block hands on views of its results; nothing here writes into them
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device.type, (team.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def reduction_for(model: GPT, config: TrainConfig, team: Team, compiled: Compile = as_it_is) -> Plain:
    team.sync()
    kind = Sharded if config.shard else Lanes if config.exact_reduction else DataParallel if team.size > 1 else Plain
    return kind(model, config, team, compiled)


def lanes(batch_size: int) -> int:
    """The largest power of two, up to LANES, that divides a batch."""
    return math.gcd(batch_size, LANES)


def micro_batches(rows: int, config: TrainConfig) -> int:
    """In how many equal parts `rows` are computed, so that none is larger than one process alone would have."""
    most = config.batch_size // config.grad_accumulation
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= most)


def swapped(vector: Tensor, partner: int) -> Tensor:
    """What the process `partner` has where this one has `vector`."""
    theirs = torch.empty_like(vector)
    exchange = [dist.P2POp(dist.isend, vector, partner), dist.P2POp(dist.irecv, theirs, partner)]
    for work in dist.batch_isend_irecv(exchange):
        work.wait()
    return theirs
