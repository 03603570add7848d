"""What a training looks out for: numbers that are not finite, sudden losses, memory that does not suffice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from minilm.config import RunConfig
from minilm.errors import UserError

SPIKE_SIGMAS, SPIKE_AFTER = 6.0, 100  # a loss so far above its moving average, after so many steps, is an event
MAX_REWINDS = 3  # of a run; then spikes are events only, for what comes back so often is not in the batches


class NonFiniteError(UserError):
    """Too many steps in a row had a non-finite loss or gradient: the training has diverged."""


class Spike(Exception):
    """The loss jumped, and the run is to go back to its last good checkpoint."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step, self.message = step, message


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
    skipped: int = 0  # batches passed over by going back from spikes: update n takes batch n + skipped
    rewinds: int = 0


def judge(state: State, step: int, loss: float, norm: float) -> tuple[str, str] | None:
    """The event and message that the numbers of a step deserve, if any; the moving averages in `state` take them in."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        state.bad_steps += 1
        return "non_finite", f"loss {loss}, gradient norm {norm}: the step was skipped"
    state.bad_steps = 0
    found = None
    deviation = loss - state.loss_mean
    if step > SPIKE_AFTER and deviation > SPIKE_SIGMAS * math.sqrt(state.loss_var):
        found = "spike", f"loss {loss:.4f} against a moving average of {state.loss_mean:.4f}"
    weight = max(0.02, 1 / step)  # a plain mean at first
    state.loss_mean += weight * deviation
    state.loss_var = (1 - weight) * (state.loss_var + weight * deviation**2)
    return found


@contextmanager
def memory_named(config: RunConfig, state: State | None = None) -> Iterator[None]:
    """Turns running out of memory, on a GPU or a CPU, into a sentence that names the option to lower and by how much.

    state: of the training; None while the model is built.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        size = f" (it asked for {asked[1]})" if asked else ""
        where = "building the model" if state is None else f"in update {state.step + 1}"
        raise UserError(f"There is not enough memory{size} {where}; {_remedy(config, state is None)}.") from None


def _remedy(config: RunConfig, building: bool) -> str:
    model, train = config.model, config.train
    if building:
        return f"halve --set model.d_model={model.d_model // 2 or 1}, or lower model.n_layers ({model.n_layers})"
    parts, batch = train.grad_accumulation, train.batch_size
    more = next((n for n in range(2 * parts, batch + 1) if batch % n == 0), None)
    if more is not None:
        return (
            f"an update goes in {parts} {'part' if parts == 1 else 'parts'} of {batch // parts} sequences: "
            f"--set train.grad_accumulation={more} makes them of {batch // more}, and the batch stays the same"
        )
    if not train.checkpoint_activations:
        return "a part is as small as it can be: --checkpoint-activations keeps a fraction of what each block keeps now"
    return f"a part is as small as it can be: lower --set model.context_length={model.context_length // 2 or 1}"
