"""One stage of `python -m bench.gpu`, in a process of its own, so that a fault on the device ends that process only.

Every result is a line of rows.jsonl as soon as it is there. A line "start" goes before each unit of work: a worker that
is started again skips what is finished, and takes what was started and never finished for crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import breakdown, cases, contest, memory, peers, steps, timing
from bench.contest import OK
from bench.rows import START, Rows
from minilm import hardware
from minilm.config import build
from minilm.presets import CAPSTONE

CRASHED, DONE = "crashed", "done"
SHARE = {"cuda": 0.25}  # of --seconds for a pass of an operation: there it takes a hundredth of a CPU's time
DEATHS = 2  # cases in which a peer ended the process
EXERCISES = 4  # shapes of a family and dtype


def ops(rows: Rows, device: torch.device, until: float, seconds: float, **_: Any) -> None:
    """Every case, all its passes together. Whom a worker died of is left out when the next one takes the case again;
    a peer that several died of takes no more part in the operation."""
    died: dict[str, list[tuple[str, str]]] = {}  # op -> of whom, in which case
    seen: Counter[str] = Counter()
    for case in cases.in_order(device):
        key, taking = str(case), peers.providers(case.op, device)
        number, seen[case.op] = seen[case.op], seen[case.op] + 1
        at_fault = {
            who
            for who in (contest.JUDGE, contest.TURNS, *(p.name for p in taking))
            if _at_work(key, who) in rows.crashed
        }
        before = died.setdefault(case.op, [])
        left_out = {p.name: reason for p in taking if (reason := _left_out(p, number, at_fault, before))}
        before += [(name, key) for name in at_fault]
        if key in rows.finished:
            continue
        if time.time() > until:
            return
        begun = time.time()

        @contextlib.contextmanager
        def watch(who: str, key: str = key) -> Iterator[None]:
            rows.write(START, _at_work(key, who), [])
            yield
            rows.write(DONE, _at_work(key, who), [])

        share = SHARE.get(device.type, 1.0) * seconds
        alone = contest.TURNS in at_fault
        found = contest.measure(case, device, taking, case.passes, share, left_out, watch, alone)
        rows.write("ops", key, [row.to_dict() for row in found])
        print(f"{key}: {time.time() - begun:.1f} s", flush=True)


def _at_work(case: str, who: str) -> str:
    return f"{case}: {who}"


def _left_out(
    provider: peers.Provider, number: int, at_fault: set[str], before: list[tuple[str, str]]
) -> tuple[str, str] | None:
    """(status, reason) of who is not called in the case of this `number` of its operation."""
    if contest.JUDGE in at_fault:
        return CRASHED, contest.JUDGE
    if provider.name in at_fault:
        return CRASHED, "the process ended while this was at work"
    others = [case for name, case in before if name == provider.name]
    if len(others) >= DEATHS and provider.name not in peers.OURS:
        return contest.ABSENT, f"left out: the process ended in {' and '.join(others)}"
    if provider.first is not None and number >= provider.first:
        some = "case" if provider.first == 1 else f"{provider.first} cases"
        return contest.ABSENT, f"only in the first {some}: {provider.why}"
    return None


def train(rows: Rows, device: torch.device, until: float, seconds: float, nanogpt: Path | None, **_: Any) -> None:
    """Steps at the first size, where their time goes and what memory they take; steps at the other sizes; contexts.

    On a GPU, where compiling takes longer than all else, what tells most comes first, and memory is not counted:
    `python -m bench.memory` counts the same without a GPU.
    """
    first, *others = steps.sizes(device)
    chosen = steps.entries(device, nanogpt)

    def take_all(sizes: list[tuple[str, int, int]], some: list[steps.Entry], in_turns: float = 5 * seconds) -> None:
        for size in sizes:
            take(rows, size, some, device, until, in_turns, nanogpt)

    if device.type != "cuda":
        take_all([first], chosen)
        take_apart(rows, *first, device, until)
        weigh(rows, device, until)
        take_all(others, chosen)
        return
    uncompiled = [e for e in chosen if e.compile == "captured" or str(e) == "nanogpt eager"]
    take_all([first], [e for e in chosen if str(e) in steps.TELLING])
    take_apart(rows, *first, device, until)
    take_all(others[:1], [e for e in chosen if str(e) in steps.TELLING[:6]])
    take_all(others[1:], uncompiled)
    try_contexts(rows, device, until)
    take_all(others[1:], [*uncompiled, *(e for e in chosen if str(e) in steps.TELLING[2:4])])
    take_all([first], chosen, 0)


def take(
    rows: Rows, size: tuple[str, int, int], chosen: list[steps.Entry], device: torch.device, until: float,
    seconds: float, nanogpt: Path | None,
) -> None:  # fmt: skip
    """Steps of one size: a line an entry as soon as it was timed alone; then, in about `seconds`, all in turns, and
    their lines again. With 0 seconds they are not taken in turns."""
    preset, T, B = size
    keys = {f"{preset} {T} x {B} {entry}": entry for entry in chosen}
    turns = [f"{preset} {T} x {B} in turns: {', '.join(map(str, chosen))}"] if seconds else []
    if all(key in rows.finished for key in [*keys, *turns]):
        return
    prepared = steps.Size(*size, device, nanogpt)

    def write(key: str, row: steps.StepRow) -> None:
        rows.write("train", key, [{"preset": preset, **row.to_dict()}])

    def crashed(key: str) -> list[dict[str, Any]]:
        e = keys[key]
        row = steps.StepRow(str(e), e.kernels, e.compile != "off", T, B, status=CRASHED)
        return [{"preset": preset, **row.to_dict()}]

    found = {}
    for key in rows.units("train", list(keys), until, crashed):
        found[key] = prepared.alone(keys[key])
        write(key, found[key])
    for key in rows.units("train", turns, until, lambda _: []):
        for one, entry in keys.items():
            if one not in found and rows.finished[one][0]["status"] == OK:  # of a worker before this one
                found[one] = prepared.alone(entry)
        prepared.in_turns([found[one] for one in keys if one in found], seconds)
        for one, row in found.items():
            if row.status == OK and not row.reason:
                write(one, row)
        rows.write("train", key, [])


def take_apart(rows: Rows, preset: str, T: int, B: int, device: torch.device, until: float) -> None:
    """Where the time of a step goes, by the kernels that are best here, eager and compiled, and by PyTorch's. On a GPU
    as CUDA graphs, which launch the same kernels."""
    best, modes = "torch", ("off", "on", "on")
    if device.type == "cuda":
        best, modes = "triton", ("captured", "both", "both")
    chosen = {str(entry): entry for entry in map(steps.Entry, (best, best, "torch"), modes)}
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
    """On a GPU: contexts of one sequence of the capstone, doubled until one does not fit or its step would take too
    long, attention growing with the square; the fused kernels first."""
    for name, again in reversed(memory.ways()):
        T, before = memory.FIRST_TRIED, None
        while memory.LONGEST_TRIED >= T and (before is None or before["status"] == OK):
            key = f"{name}{', checkpointed' * again} at {T}"
            row = memory.row_of(CAPSTONE, name, again, T, torch.bfloat16)
            expected = 4 * before["step_s"] if before else 0.0
            for _ in rows.units("contexts tried", [key], until, lambda _, row=row: [row | {"status": CRASHED}]):
                if expected > memory.LONGEST_STEP:
                    found = row | {"status": f"not tried: a step might take {expected:.0f} s"}
                else:
                    found = memory.tried(row, CAPSTONE, device, torch.bfloat16)
                rows.write("contexts tried", key, [found])
            if key not in rows.finished:
                return  # no time
            before = rows.finished[key][0]
            T *= 2


def tune(rows: Rows, device: torch.device, until: float, **_: Any) -> None:
    """The tables of this chip, into the user's folder, which the later stages read. What is finished stays as it is."""
    from kernels import tune as tuning
    from kernels.tune_problems import problems

    for key in rows.crashed:
        problem = key.removesuffix(tuning.FINALS)
        if problem in map(str, problems()) and problem not in rows.finished:
            rows.write("tune", problem, [{"problem": problem, "status": CRASHED}])

    def say(outcome: tuning.Outcome) -> None:
        row = {
            "problem": str(outcome.problem), "before": outcome.before, "chosen": outcome.chosen,
            "before_ms": outcome.before_ms, "chosen_ms": outcome.chosen_ms, "speedup": outcome.speedup,
            "refused": len(outcome.refused), "timed": outcome.timed, "candidates": len(outcome.problem.candidates),
        }  # fmt: skip
        rows.write("tune", str(outcome.problem), [json.loads(json.dumps(row, default=dict))])

    def begin(key: str) -> None:
        rows.write(START, key, [])

    try:
        minutes = max((until - time.time()) / 60, 0.01) if until < float("inf") else None
        tuning.tune(minutes=minutes, say=say, begin=begin, skip=rows.finished)
    except tuning.TuneError as error:
        rows.write("tune", "none", [{"status": str(error)}])


def exercise(device: torch.device, share: str | None = None, family: str | None = None, **_: Any) -> None:
    """Every kernel on small, ragged shapes in 16 and 32 bits: what the sanitizer watches, and makes slow.

    share: "i/n", the i-th of n parts of the calls. family: those of one family, or loss_alone. A line is printed for
    each call once it has ended.
    """
    from kernels import fused
    from kernels.tune_problems import TF32, problems

    if family == "loss_alone":
        return exercise_loss(device)

    done: dict[Any, set[Any]] = {}
    chosen = []
    for problem in problems():
        if problem.dtypes != TF32 and family in (None, problem.family):
            kernel = problem.op if problem.op == "layer_norm_weight_grads" else problem.op.split("_")[0]
            before = done.setdefault((kernel, problem.dtypes), set())
            for call in problem.checks:
                if call not in before and len(before) < EXERCISES:
                    before.add(call)
                    chosen.append((problem, call))
    part, parts = map(int, (share or "1/1").split("/"))
    chosen = chosen[part - 1 :: parts]
    print(f"exercise: {len(chosen)} calls", flush=True)
    for number, (problem, call) in enumerate(chosen, 1):
        problem.run(fused, call, device)
        timing.synchronize(device)
        width, shape = call
        print(f"call {number} of {len(chosen)}: {problem.op}, {problem.dtype}, {width} x {shape}", flush=True)


def exercise_loss(device: torch.device) -> None:
    """The loss's own kernels on logits that are there, without a matrix product."""
    from kernels.fused import tuning
    from kernels.fused.cross_entropy import _loss_and_dlogits, _scale

    rows = 77
    calls = [(dtype, V) for dtype in (torch.bfloat16, torch.float32) for V in (96, 1000, 4096, 50_257)]
    print(f"exercise: {len(calls)} calls", flush=True)
    for number, (dtype, V) in enumerate(calls, 1):
        padded = -(-V // 64) * 64
        logits, losses = torch.randn(rows, padded, device=device).to(dtype), torch.empty(rows, device=device)
        targets = torch.arange(rows, device=device) * 7919 % V
        targets[3] = -100
        config = tuning.lookup("cross_entropy", device, dtype, width=padded, length=rows)
        _loss_and_dlogits[(rows,)](
            logits, targets, losses, 1, -100, V=V, PADDED=padded, GRADIENT=True, **config
        )  # fmt: skip
        x, one = torch.randn(rows, 64, device=device).to(dtype), torch.ones((), device=device)
        config = tuning.lookup("cross_entropy_scale", device, dtype, width=64, length=rows)
        _scale[(-(-x.numel() // config["BLOCK"]),)](x, torch.empty_like(x), one, targets.sum(), x.numel(), **config)
        timing.synchronize(device)
        print(f"call {number} of {len(calls)}: loss, {dtype}, {V}", flush=True)


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
    parser.add_argument("--seconds", type=float, default=1.0, help="a pass of a case; on a GPU a quarter")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--share", help="of exercise alone: i/n, the i-th of n parts")
    parser.add_argument(
        "--family", help="of exercise alone: attention, decode, layer_norm, swiglu, cross_entropy or loss_alone"
    )
    options = vars(parser.parse_args())
    if (share := options["share"]) and (options["stage"] != "exercise" or not re.fullmatch(r"\d+/\d+", share)):
        parser.error(f"--share is {share!r}; it is i/n, and of the stage exercise alone")
    if options["device"].type == "cpu":
        torch.set_num_threads(1)  # else what is timed is the waiting for whoever else uses the other cores
    options["rows"] = Rows(options["rows"])
    STAGES[options.pop("stage")](**options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
