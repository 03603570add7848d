"""One stage of `python -m bench.gpu`, in a process of its own, so that a fault on the device ends that process only.

Every result is a line of rows.jsonl as soon as it is there. A line "start" goes before each unit of work: a worker that
is started again skips what is finished, and takes what was started and never finished for crashed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import breakdown, cases, contest, memory, peers, steps, timing
from bench.contest import OK
from bench.rows import Rows
from minilm import hardware
from minilm.config import build
from minilm.presets import CAPSTONE

CRASHED = "crashed"
EXERCISES = 4  # shapes of a family and dtype


def ops(rows: Rows, device: torch.device, until: float, seconds: float, **_: Any) -> None:
    """Every case and pass; families in turn, so that the first cases of all come before the last of any."""
    lists = [family(device) for family in cases.CASES.values()]
    longest = max(map(len, lists))
    ordered = [found[i] for i in range(longest) for found in lists if i < len(found)]
    units = {f"{case} {which}": (case, which) for case in ordered for which in case.passes}

    def crashed(key: str) -> list[dict[str, Any]]:
        case, which = units[key]
        return [
            contest.Row(str(case), case.op, case.shape, case.dtype, which, p.name, p.version, CRASHED).to_dict()
            for p in peers.providers(case.op, device)
        ]

    for key in rows.units("ops", list(units), until, crashed):
        case, which = units[key]
        found = contest.measure(case, device, peers.providers(case.op, device), [which], seconds)
        rows.write("ops", key, [row.to_dict() for row in found])


def train(rows: Rows, device: torch.device, until: float, seconds: float, nanogpt: Path | None, **_: Any) -> None:
    """Steps at the first size, where their time goes and what memory they take; steps at the other sizes; contexts."""
    beside = " beside nanoGPT" if nanogpt else ""  # a size that was measured without is measured again
    sizes = {f"{preset} {T} x {B}{beside}": (preset, T, B) for preset, T, B in steps.sizes(device)}
    chosen = steps.entries(device, nanogpt)

    def take(keys: list[str], chosen: list[steps.Entry]) -> None:
        def crashed(key: str) -> list[dict[str, Any]]:
            _, T, B = sizes[key]
            return [
                steps.StepRow(str(e), e.kernels, e.compile != "off", T, B, status=CRASHED).to_dict() for e in chosen
            ]

        for key in rows.units("train", keys, until, crashed):
            preset, T, B = sizes[key]
            found = steps.measure(preset, T, B, chosen, device, 5 * seconds, nanogpt)
            rows.write("train", key, [{"preset": preset, **row.to_dict()} for row in found])

    first, *others = sizes
    take([first], chosen)
    take_apart(rows, *sizes[first], device, until)
    weigh(rows, device, until)
    # compiling takes longer than all else on a GPU: at the other sizes ours and nanoGPT's only
    fewer = [e for e in chosen if e.compile == "off" or (e.compile == "on" and e.kernels in ("triton", "nanogpt"))]
    take(others, fewer if device.type == "cuda" else chosen)
    if device.type == "cuda":
        try_contexts(rows, device, until)


def take_apart(rows: Rows, preset: str, T: int, B: int, device: torch.device, until: float) -> None:
    """Where the time of a step goes, by the kernels that are best here, eager and compiled, and by PyTorch's."""
    best = "triton" if device.type == "cuda" else "torch"
    chosen = {str(entry): entry for entry in map(steps.Entry, (best, best, "torch"), ("off", "on", "on"))}
    rates = breakdown.rates(device, build(preset).model.d_model)

    def crashed(key: str) -> list[dict[str, Any]]:
        return []

    for key in rows.units("breakdown", [f"breakdown {label}" for label in chosen], until, crashed):
        entry = chosen[key.removeprefix("breakdown ")]
        whole, parts = breakdown.measure(preset, T, B, entry, device, rates)
        rows.write("breakdown", key, breakdown.rows(whole, parts, preset, (T, B), entry))


def weigh(rows: Rows, device: torch.device, until: float) -> None:
    """Memory of the capstone's step by part, and the longest context, by the count."""
    dtype = torch.bfloat16
    budget = hardware.memory(device)[1] if device.type == "cuda" else memory.GIGABYTES * 2**30
    found = {
        "memory": lambda: memory.parts(CAPSTONE, dtype),
        "contexts": lambda: list(memory.longest(CAPSTONE, budget, device, dtype)),
    }
    for kind, measure in found.items():
        for key in rows.units(kind, [kind], until, lambda _: []):
            rows.write(kind, key, measure())


def try_contexts(rows: Rows, device: torch.device, until: float) -> None:
    """On a GPU: contexts of one sequence of the capstone, doubled until one does not fit; the fused kernels first."""
    for name, again in reversed(memory.ways()):
        T, status = memory.FIRST_TRIED, OK
        while T <= memory.LONGEST and status == OK:
            key = f"{name}{', checkpointed' * again} at {T}"
            row = memory.row_of(CAPSTONE, name, again, T, torch.bfloat16)
            for _ in rows.units("contexts tried", [key], until, lambda _, row=row: [row | {"status": CRASHED}]):
                rows.write("contexts tried", key, [memory.tried(row, CAPSTONE, device, torch.bfloat16)])
            if key not in rows.finished:
                return  # no time
            status = rows.finished[key][0]["status"]
            T *= 2


def tune(rows: Rows, device: torch.device, until: float, **_: Any) -> None:
    """The tables of this chip, into the user's folder, which the later stages read."""
    from kernels import tune as tuning

    def say(outcome: tuning.Outcome) -> None:
        row = {
            "problem": str(outcome.problem), "before": outcome.before, "chosen": outcome.chosen,
            "before_ms": outcome.before_ms, "chosen_ms": outcome.chosen_ms, "speedup": outcome.speedup,
            "refused": len(outcome.refused), "candidates": len(outcome.problem.candidates),
        }  # fmt: skip
        rows.write("tune", str(outcome.problem), [json.loads(json.dumps(row, default=dict))])

    try:
        tuning.tune(minutes=max((until - time.time()) / 60, 0.01), say=say)
    except tuning.TuneError as error:
        rows.write("tune", "none", [{"status": str(error)}])


def exercise(device: torch.device, **_: Any) -> None:
    """Every kernel on small, ragged shapes in 16 and 32 bits: what the sanitizer watches, and makes slow."""
    from kernels import fused
    from kernels.tune import TF32, problems

    calls: dict[Any, set[Any]] = {}
    for problem in problems():
        if problem.dtypes != TF32:
            family = problem.op if problem.op == "layer_norm_weight_grads" else problem.op.split("_")[0]
            done = calls.setdefault((family, problem.dtypes), set())
            for call in problem.checks:
                if call not in done and len(done) < EXERCISES:
                    done.add(call)
                    problem.run(fused, call, device)
                    timing.synchronize(device)
    print(f"{sum(map(len, calls.values()))} calls")


def facts(device: torch.device, **_: Any) -> None:
    """The machine, and what it can do at most: printed as JSON."""
    from minilm import hardware

    dtypes = (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,)
    floors: dict[str, Any] = {
        str(d).removeprefix("torch."): {"flops_per_s": timing.matmul_rate(device, d)} for d in dtypes
    }
    floors["bytes_per_s"] = timing.copy_bandwidth(device)
    found = {
        "device": hardware.device_name(device),
        "type": device.type,
        "threads": torch.get_num_threads(),
        "versions": {**hardware.versions(), **{name: p.version for p in _installed() for name in [p.package]}},
        "revision": hardware.git_revision(),
        "floors": floors,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"capability": f"{properties.major}.{properties.minor}", "memory": properties.total_memory}
        found |= {"cuda": torch.version.cuda}
    print(json.dumps(found))


def _installed() -> list[peers.Provider]:
    return [p for several in peers.PEERS.values() for p in several if p.version]


STAGES = {"ops": ops, "train": train, "tune": tune, "exercise": exercise, "facts": facts}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__.split("\n", 1)[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--rows", type=Path, default=Path(os.devnull))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--until", type=float, default=float("inf"), help="begin nothing after this time of the epoch")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring for each case and pass")
    parser.add_argument("--nanogpt", type=Path)
    options = vars(parser.parse_args())
    if options["device"].type == "cpu":
        torch.set_num_threads(1)  # else what is timed is the waiting for whoever else uses the other cores
    options["rows"] = Rows(options["rows"])
    STAGES[options.pop("stage")](**options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
