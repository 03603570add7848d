"""Question 8's test: runs a person's file in a process of its own, and says in which way its function is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from minilm.quiz.flaws import flawed, wrong_ways
from minilm.quiz.grading import Malformed, Verdict

FUNCTION = "multi_head_attention"
TO_START = 120  # seconds to load PyTorch, on a slow and busy machine
TO_ANSWER = 20  # seconds for a function to do all cases, of milliseconds each
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest number of the right answer
LONGEST_OUTPUT = 2000  # bytes of what the file printed that are told


@dataclass(frozen=True)
class Case:
    """One call of the function; `name` says what it is there for."""

    name: str
    x: Tensor
    w_qkv: Tensor
    w_out: Tensor
    n_heads: int

    @property
    def dtype(self) -> str:
        return str(self.x.dtype).removeprefix("torch.")

    def to_json(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).tolist() for name in ("x", "w_qkv", "w_out")}
        return {**tensors, "n_heads": self.n_heads, "dtype": self.dtype}

    def right(self) -> Tensor:
        """The reference, in float64: projections around kernels.reference.causal_attention_packed."""
        from kernels.reference import causal_attention_packed

        qkv = self.x.double() @ self.w_qkv.double().T
        return causal_attention_packed(qkv, self.n_heads) @ self.w_out.double().T


def draw_cases(seed: int) -> list[Case]:
    """The main one first, in which all sizes differ, so that no two mistakes look alike."""
    g = torch.Generator().manual_seed(seed)

    def draw(name: str, B: int, T: int, C: int, H: int, dtype: torch.dtype = torch.float32) -> Case:
        x = torch.randn(B, T, C, generator=g, dtype=dtype)
        w_qkv, w_out = (1.5 * torch.randn(n * C, C, generator=g, dtype=dtype) / math.sqrt(C) for n in (3, 1))
        return Case(name, x, w_qkv, w_out, H)

    main = draw("main", 2, 5, 24, 3)
    moved = main.x.clone()
    moved[:, -1] += 1
    return [
        main,
        replace(main, name="main again"),
        replace(main, name="last token changed", x=moved),
        draw("other sizes", 1, 9, 20, 5),
        draw("one head", 2, 4, 8, 1),
        draw("one token", 1, 1, 8, 2),
        draw("float64", 2, 6, 12, 2, torch.float64),
    ]


def try_file(file: Path, seed: int) -> tuple[Verdict, str]:
    """Run a person's file; the verdict, and what the file printed. Raises Malformed where there is no such file."""
    if not file.is_file():
        raise Malformed("is no file; write the template with minilm quiz --template FILE")
    cases = draw_cases(seed)
    results, printed = run(file, [FUNCTION], cases)
    return judge(results[FUNCTION], cases), printed


def run(file: Path, functions: Sequence[str], cases: Sequence[Case]) -> tuple[dict[str, dict[str, Any]], str]:
    """What runner.py tells of each function of a person's file, and the end of what the file printed.

    A function that takes longer than TO_ANSWER has {"hung": TO_ANSWER}, as do those after it, which are not tried; one
    in which the process ended has {"ended": exit status}.
    """
    with tempfile.TemporaryDirectory(prefix="minilm-quiz-") as folder:
        job, told, said = (Path(folder, name) for name in ("job.json", "results.jsonl", "printed"))
        what = {"file": str(file.resolve()), "functions": list(functions), "cases": [case.to_json() for case in cases]}
        job.write_text(json.dumps(what), encoding="utf-8")
        told.touch()
        runner = Path(__file__).with_name("runner.py")
        with open(said, "wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-P", str(runner), str(job), str(told)],
                cwd=file.resolve().parent,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it starts can be stopped with it
            )
            try:
                fate = _wait(process, told)
            finally:
                _stop(process)
        lines = _read(told)
        with open(said, "rb") as printed:
            printed.seek(max(0, said.stat().st_size - LONGEST_OUTPUT))
            output = printed.read().decode("utf-8", "replace").strip()
    whole = next((line for line in lines if "loading" in line), fate)
    done = {line["function"]: line for line in lines if "function" in line}
    return {name: done.get(name, whole) for name in functions}, output


def _wait(process: subprocess.Popen, told: Path) -> dict[str, Any]:
    """Until the process ends or is silent for too long; what that says of a function it told nothing of."""
    size, since = 0, time.monotonic()
    while process.poll() is None:
        if told.stat().st_size > size:
            size, since = told.stat().st_size, time.monotonic()
        limit = TO_ANSWER if size else TO_START
        if time.monotonic() - since > limit:
            return {"hung": limit}
        time.sleep(0.02)
    return {"ended": process.returncode}


def _stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(told: Path) -> list[dict[str, Any]]:
    lines = []
    for line in told.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # the last line of a process that was stopped
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def judge(result: dict[str, Any], cases: Sequence[Case]) -> Verdict:
    """Whether what a function gave is right, or the hint for the way in which it is wrong."""
    if "hung" in result:
        return Verdict(
            0, f"It did not come to an end within {result['hung']:g} seconds and was stopped: an endless loop?"
        )
    if "ended" in result:
        return Verdict(0, f"Its process ended (exit status {result['ended']}) before it returned: does it call exit?")
    if "loading" in result:
        return Verdict(0, f"The file cannot be loaded: {_error(result['loading'])}")
    if "missing" in result:
        return Verdict(0, f"The file has no function {FUNCTION}; the template shows its name and arguments.")
    first, second = (outcome.get("values") for outcome in result["cases"][:2])
    if first and second and not _same(torch.tensor(first), torch.tensor(second), cases[0].dtype):
        return Verdict(0, "The same input gives another answer the second time: leave out dropout and all chance.")
    for case, outcome in zip(cases, result["cases"], strict=True):
        if hint := _hint(case, outcome):
            return Verdict(0, hint if case.name == "main" else _why_only_here(case.name, hint))
    return Verdict(1)


def _hint(case: Case, outcome: dict[str, Any]) -> str:
    """Empty where the outcome is right."""
    if "error" in outcome:
        return _explain(outcome["error"])
    if "returned" in outcome:
        kind = outcome["returned"]
        more = {"NoneType": ": is the return missing?", "tuple": ": leave out the weights."}.get(kind, ".")
        return (
            f"It returned {'nothing' if kind == 'NoneType' else 'a ' + kind}; return the tensor (B, T, C) alone{more}"
        )
    if hint := _about_shape(case, tuple(outcome["shape"])):
        return hint
    if outcome["dtype"] != case.dtype:
        return f"The answer is {outcome['dtype']} for an x of {case.dtype}: keep the dtype of x."
    if outcome["changed"]:
        return "It changed its inputs in place: the caller still needs them."
    given = torch.tensor(outcome["values"], dtype=torch.float64).view(outcome["shape"])
    right = case.right()
    return "" if _same(given, right, case.dtype) else _name_the_flaw(case, given, right)


def _about_shape(case: Case, shape: tuple[int, ...]) -> str:
    (B, T, C), H = case.x.shape, case.n_heads
    D = C // H
    if shape == (B, T, C):
        return ""
    known = {
        (B, H, T, T): "It returned the attention weights; multiply them by V, merge the heads and project.",
        (B, T, T): "It returned attention weights, without their heads; multiply by V, merge and project.",
        (B, H, T, D): "The heads are not merged: (B, H, T, D) is to become (B, T, C).",
        (B, T, H, D): "The heads are not merged: flatten (B, T, H, D) to (B, T, C).",
        (B, T, D): "One head's worth came back: the heads are put side by side, not added up or chosen from.",
        (B, T, 3 * C): "It returned the projection to queries, keys and values; attention is still to come.",
        (B, C, T): "Time and width are exchanged: (B, C, T) instead of (B, T, C).",
        (T, C): "The batch is lost: (T, C) instead of (B, T, C).",
        (T, B, C): "Batch and time are exchanged: (T, B, C) instead of (B, T, C).",
    }
    return known.get(shape, f"The shape is wrong: {shape} for an x of (B, T, C) = {(B, T, C)}; it must be that of x.")


def _name_the_flaw(case: Case, given: Tensor, right: Tensor) -> str:
    arguments = (case.x.double(), case.w_qkv.double(), case.w_out.double(), case.n_heads)
    for options, hint in wrong_ways():
        for hidden in (-math.inf, -1e9):
            if _same(given, flawed(*arguments, **cast(Any, options), hidden=hidden), case.dtype):
                return hint
    if not given.isfinite().all():
        return "It gives NaN or infinity: is there a row in which every score is -∞?"
    if not _same(given[:, 0], right[:, 0], case.dtype):
        return (
            "No mistake known here. The first token is wrong already, and it sees only itself, so that scores do not "
            "matter to it: look at the projections, at how heads are split and merged, and at the mask."
        )
    return "No mistake known here. The first token is right, later ones are not: look at scores, mask and softmax."


def _same(a: Tensor, b: Tensor, dtype: str) -> bool:
    largest = b.nan_to_num(0, 0, 0).abs().max().item()
    return torch.allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * largest, equal_nan=True)


def _why_only_here(name: str, hint: str) -> str:
    return {
        "main again": f"Right the first time, but not the second. {hint}",
        "last token changed": f"Right at first, then wrong when the last token changes. {hint}",
        "other sizes": f"Right for (B, T, C) = (2, 5, 24) and 3 heads only: is a size written as a number? {hint}",
        "one head": f"Right, but not with a single head. {hint}",
        "one token": f"Right, but not for a single token. {hint}",
        "float64": f"Right in float32, but not in float64. {hint}",
    }[name]


def _error(error: dict[str, Any]) -> str:
    where = f", line {error['line']}" if error["line"] else ""
    return f"{error['type']}{where}: {error['message']}".rstrip(": ")


def _explain(error: dict[str, Any]) -> str:
    message = error["message"]
    if error["type"] == "NotImplementedError":
        return "It is not written yet: replace the line that raises NotImplementedError."
    if "view size is not compatible" in message:
        advice = "After a transpose a tensor cannot be viewed; use reshape."
    elif "cannot be multiplied" in message or "must match the size" in message or "Expected size for" in message:
        advice = "Shapes do not go together: a linear layer is x @ w.T, and scores are q @ k.transpose(-2, -1)."
    else:
        advice = "The line is of your file."
    return f"It raised {_error(error)}. {advice}" if error["line"] else f"It raised {_error(error)}."
