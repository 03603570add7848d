"""One process of several: trains what a list of jobs says, breaks it as they say, and writes down what came of it.

Started by test_distributed.py with RANK, WORLD_SIZE and the rest in the environment: jobs.json, folder for results.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch

from minilm.config import build
from minilm.errors import UserError
from minilm.training import evaluate, loop, prepare

RANK = int(os.environ["RANK"])
STEP = 3  # after which things go wrong


class Broken(loop.Loop):
    fault = ""

    def update(self, batch):
        step = self.state.step
        weight = self.model.blocks[0].mlp.up.weight
        before = weight.detach().clone()
        forward = self.reduction.forward
        hook = None
        if self.fault == "nan" and RANK == 1 and step == STEP:
            hook = weight.register_hook(lambda grad: grad * math.nan)
        if self.fault == "nan" and RANK == 1 and step == STEP + 2:  # the loss alone: its gradient is sound
            self.reduction.forward = lambda x, y: forward(x, y) + math.nan
        if self.fault == "term" and RANK == 1 and step == STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.fault == "slow":
            time.sleep(0.2)
        super().update(batch)
        self.reduction.forward = forward
        if hook is not None:
            hook.remove()
        if self.fault == "nan":
            assert torch.equal(weight, before) == (step in (STEP, STEP + 2))

    def save_last(self):
        if self.fault == "disk" and RANK == 0 and self.state.step:
            raise UserError("the disk is full.")
        super().save_last()


def refuse(*_):
    raise UserError("this process has no data.")


def main(jobs: Path, results: Path) -> None:
    evaluate.BATCH_TOKENS = 100  # several batches, not a multiple of the number of processes
    evaluate.SAMPLE_TOKENS = 40  # as tests/conftest.py has it
    written: list[str] = []
    jobs = json.loads(jobs.read_text())
    root = jobs[0]["out"].rsplit("/", 1)[0]

    def watch(event: str, arguments: tuple) -> None:
        writing = event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writing and str(arguments[0]).startswith(root):
            written.append(str(arguments[0]))

    sys.addaudithook(watch)
    prepared = prepare.prepared
    said = []
    for job in jobs:
        Broken.fault = job.get("fault", "")
        loop.Loop = Broken
        os.environ["MASTER_PORT"] = str(job.get("port", os.environ["MASTER_PORT"]))
        prepare.prepared = refuse if Broken.fault == "no data" and RANK == 1 else prepared
        try:
            result = loop.train(build("tiny", job["overrides"]), Path(job["out"]), job.get("resume", False))
            outcome = f"step {result.state.step} signal {result.signal}"
        except UserError as error:
            outcome = f"UserError: {error}"
        said.append({"outcome": outcome})
        if "could not join" in outcome:  # nor would it for the jobs that are left
            break
    (results / f"{RANK}.json").write_text(json.dumps({"jobs": said, "written": written}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
