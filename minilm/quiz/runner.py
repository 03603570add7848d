"""The child process in which a person's own file runs, on their request: nothing of it enters the quiz's process.

Started as `python -P runner.py JOB RESULTS`. JOB is JSON: the file, the functions in it, and the cases they are called
with.

RESULTS gets a line of JSON when PyTorch is loaded and one a function as soon as it is through, so that what came
before a function that never returns is not lost.
"""

import copy
import importlib.machinery
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

MOST = 100_000  # numbers of an answer that are passed on; no right answer comes near


def main(job_path: str, results_path: str) -> None:
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    with open(results_path, "a", encoding="utf-8") as results:

        def tell(**what: Any) -> None:
            results.write(json.dumps(what) + "\n")
            results.flush()

        tell(ready=True)
        path = Path(job["file"])
        try:
            module = load(path)
        except BaseException as error:  # SystemExit at its top level too
            tell(loading=describe(error, path))
            return
        for name in job["functions"]:
            function = getattr(module, name, None)
            if not callable(function):
                tell(function=name, missing=True)
            else:
                tell(function=name, cases=[attempt(function, case, path) for case in job["cases"]])


def load(path: Path) -> ModuleType:
    sys.dont_write_bytecode = True  # leaves nothing beside the person's file
    sys.path.append(str(path.parent))
    loader = importlib.machinery.SourceFileLoader("answer", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("answer", loader))
    sys.modules["answer"] = module
    loader.exec_module(module)
    return module


def attempt(function: Any, case: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the function gave for one case: {shape, dtype, values}, {returned: a type's name} or {error}."""
    dtype = getattr(torch, case["dtype"])
    given = [torch.tensor(case[name], dtype=dtype) for name in ("x", "w_qkv", "w_out")]
    before = copy.deepcopy(given)
    try:
        y = function(*given, case["n_heads"])
        if not isinstance(y, torch.Tensor):
            return {"returned": type(y).__name__}
        what = {"shape": list(y.shape), "dtype": str(y.dtype).removeprefix("torch.")}
        if y.numel() <= MOST and not y.is_complex():
            what["values"] = y.detach().double().flatten().tolist()
    except BaseException as error:
        return {"error": describe(error, path)}
    return what | {"changed": not all(torch.equal(a, b) for a, b in zip(given, before, strict=True))}


def describe(error: BaseException, path: Path) -> dict[str, Any]:
    """The error's type, message and the last line of the person's file that led to it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    return {"type": type(error).__name__, "message": str(error)[:300], "line": line}


if __name__ == "__main__":
    main(*sys.argv[1:])
