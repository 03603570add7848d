"""A plugin of pytest for runs on a GPU: why a test failed is written at once, and one fault does not spoil the rest.

$MINILM_FAILURES names the file of the reasons, which pytest itself prints only at the end, and never if it is cut.
"""

import os
from pathlib import Path

import pytest
import torch


def _is_worker() -> bool:
    """Whether this is a worker of pytest-xdist, which sends its reports to the process that started it."""
    return "PYTEST_XDIST_WORKER" in os.environ


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and not _is_worker():
        with Path(os.environ["MINILM_FAILURES"]).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}, {report.when}\n{report.longreprtext}\n\n")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """After a fault on the GPU every later call of its process fails: the worker ends, and xdist starts another."""
    if _is_worker() and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)
