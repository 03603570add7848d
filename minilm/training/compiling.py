"""Whether a training goes through torch.compile, and how: what train.compile=auto comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from minilm import hardware
from minilm.config import TrainConfig
from minilm.errors import UserError

OFF, ON, GRAPHS = "off", "on", "graphs"
# On a CPU compiling took 16 to 30 s and made a step 9 to 21% shorter, so a training has to last some five minutes to
# win anything; auto asks for twice that, by what small models reach on a thread (LOG.md, "compile").
CPU_SECONDS, CPU_FLOPS_PER_THREAD = 600, 5e10
GPU_STEPS = 2000  # some minutes; not measured yet


def check(config: TrainConfig, device: torch.device, processes: int = 1) -> None:
    """Raises UserError for what cannot be done here."""
    if config.compile in (ON, GRAPHS) and hardware.compiler_missing():
        raise UserError(
            f"train.compile is {config.compile!r}, which needs a C++ compiler, and none was found; install g++ or "
            f"clang++, set CXX, or take off."
        )
    several = config.grad_accumulation > 1 or config.exact_reduction or config.shard or processes > 1
    if config.compile == GRAPHS and (device.type != "cuda" or several):
        raise UserError(
            "train.compile is 'graphs', which is for one GPU, one process and one micro-batch an update; take on."
        )


def decide(
    config: TrainConfig, flops_per_token: int, tokens_per_step: int, device: torch.device, earlier: str | None = None
) -> tuple[str, str]:
    """("off", "on" or "graphs", why), by the arithmetic of the training, the device and the threads, not by the clock:
    the same training on the same machine is compiled or not, always. (Its bits are the same with train.deterministic:
    without, the gradient of an embedding that torch.compile makes adds in any order.)

    earlier: what a run that is resumed was begun with; auto keeps to it where it can.
    """
    if config.compile != "auto":
        return config.compile, "asked for"
    if earlier in (OFF, ON) and (earlier == OFF or not hardware.compiler_missing()):
        return earlier, "as the run was begun"
    if hardware.compiler_missing():
        return OFF, "there is no C++ compiler"
    if config.exact_reduction or config.shard:  # the same bits whatever the threads; and FSDP's hooks are not for it
        return OFF, f"not with {'exact reduction' if config.exact_reduction else 'shards'}"
    if device.type == "cuda":
        long = config.steps >= GPU_STEPS
        return (ON if long else OFF), f"{config.steps:,} steps {'repay' if long else 'do not repay'} compiling"
    if device.type != "cpu":
        return OFF, f"not on {device.type}"
    seconds = config.steps * tokens_per_step * flops_per_token / (CPU_FLOPS_PER_THREAD * torch.get_num_threads())
    long = seconds > CPU_SECONDS
    return (ON if long else OFF), f"about {_minutes(seconds)} of training {'repay' if long else 'do not repay'} it"


class Compiled:
    """A module through torch.compile; where it was not asked for by name and the compiler fails, the module itself."""

    def __init__(self, module: torch.nn.Module, how: str, asked: bool, warn: Callable[[str], None]):
        graphs: dict[str, Any] = {
            "triton.cudagraphs": True,
            "triton.cudagraph_or_error": True,
        }  # else they could be left out unsaid
        self.module, self.asked, self.warn = module, asked, warn
        self.call: Callable[..., Any] = torch.compile(module, options=graphs if how == GRAPHS else None)
        self.graphs = how == GRAPHS

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self.call(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            if self.asked:
                raise UserError(f"torch.compile failed ({reason}); take train.compile=off.") from None
            self.warn(f"torch.compile failed ({reason}), so this goes on without it")
            self.call = self.module
            return self.call(*inputs)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:,.0f} min"
