"""An update launched whole, as one CUDA graph: train.graphs=on.

An eager update of a small model takes the host longer to launch than a GPU to compute: the capstone's is 9 ms of
kernels on an H100, in 515 launches for which a slow host took 44 ms. A CUDA graph holds them all, with their
addresses, and is launched as one. The first updates are eager, so that all that is made once is there: the optimizer's
moments, the libraries' workspaces, what torch.compile makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minilm.config import TrainConfig
from minilm.errors import UserError

OFF, ON = "off", "on"
EAGER_UPDATES = 3  # before the capture

Advance = Callable[[Tensor, "list[list[Tensor]] | None"], Tensor]


def check(config: TrainConfig, device: torch.device, dtype: torch.dtype, processes: int = 1) -> None:
    """Raises UserError where an update is to be captured and cannot be."""
    if config.graphs == ON and (reason := why_not(config, device, dtype, processes)):
        raise UserError(f"train.graphs is 'on', and {reason}; take off.")


def why_not(config: TrainConfig, device: torch.device, dtype: torch.dtype, processes: int) -> str | None:
    """Why an update cannot be captured, as the end of a sentence, or None."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU of NVIDIA where the device is {device.type}"
    if processes > 1 or config.exact_reduction or config.shard:
        return "it is for one process, without exact reduction or shards"
    if config.compile == "graphs":
        return "train.compile is 'graphs', which makes CUDA graphs of its own"
    if dtype == torch.float16:
        return "float16 needs a scale that follows what overflows"
    if config.checkpoint_activations:
        return "computing activations again asks for the state of the random generator, which a graph has not"
    return None


class CapturedUpdate:
    """Calls `advance`, which does all that an update does on the device, EAGER_UPDATES times and then as a graph.

    advance(batch, rates): rates are the learning rates of each optimizer's groups as 0-d float32 tensors on the device,
    for a number would be captured with the rest; eager updates are given them too, so that both have the same bits.
    """

    def __init__(self, advance: Advance, optimizers: Sequence[torch.optim.Optimizer], device: torch.device):
        self.advance, self.optimizers = advance, optimizers
        self.rates = [[torch.zeros((), device=device) for _ in o.param_groups] for o in optimizers]
        self.forget()

    def forget(self) -> None:
        """Capture anew: tensors that the graph knows by their addresses have been replaced."""
        self.updates = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                rate.fill_(group["lr"])
        if self.replay is None and self.updates < EAGER_UPDATES:
            self.updates += 1
            return self.advance(batch, self.rates)
        if self.replay is None:
            self.batch = batch.clone()
            self.replay = self.capture()
        self.batch.copy_(batch, non_blocking=True)
        self.replay()
        return self.result.clone()  # which the next replay overwrites

    def capture(self) -> Callable[[], None]:
        """Sets result, the tensor that every replay writes; returns the replay."""
        graph = torch.cuda.CUDAGraph()
        # of this thread alone: another one fetches the next batch meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.result = self.advance(self.batch, self.rates)
        return graph.replay
