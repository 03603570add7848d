"""One trial of a study in a process of its own: `python -m minilm.studies.trial STUDY ID`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from minilm.config import RunConfig
from minilm.errors import UserError
from minilm.studies.trials import BUSY_EXIT, DIVERGED, FAILED, STOPPED_EXIT, TRIALS, Study, outcome_of, result_of
from minilm.training.checkpoint import FOLDER, LAST
from minilm.training.journal import write_json
from minilm.training.loop import NonFiniteError, train


def main(study_path: str, trial_id: str) -> int:
    """0 when the trial has ended and its result is written, else STOPPED_EXIT or BUSY_EXIT.

    The lock is this process's own: a trial whose runner was killed goes on and is not run a second time meanwhile.
    """
    study = Study(Path(study_path))
    try:
        with FileLock(study.path / TRIALS / f"{trial_id}.lock", timeout=0):
            return run(study, trial_id)
    except Timeout:
        return BUSY_EXIT


def run(study: Study, trial_id: str) -> int:
    row = next(row for row in study.rows if row["id"] == trial_id)
    folder, target = study.folder(trial_id), study.path / TRIALS / f"{trial_id}.json"
    console = Console(width=120)
    resume = (folder / FOLDER / LAST).exists()
    if folder.exists() and not resume:  # killed before there was anything to go on from
        shutil.rmtree(folder)
    try:
        config = RunConfig.from_dict(row["config"])
        result = train(config, folder, resume, console, f"trial {trial_id} of {study.path.name}")
    except UserError as error:
        status = DIVERGED if isinstance(error, NonFiniteError) else FAILED
        write_json(target, {"status": status, "reason": str(error)})
        console.print(str(error))
        return 0
    if result.signal is not None:
        return STOPPED_EXIT
    write_json(target, {**result_of(outcome_of(folder)), "peak_bytes": _peak_bytes()})
    return 0


def _peak_bytes() -> int | None:
    """Device memory at its peak on a GPU, else the resident memory of this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
