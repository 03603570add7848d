"""Signals that a training answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)
SAVE = getattr(signal, "SIGUSR1", None)  # Windows has none
INTERRUPT_AT = 3  # a terminal and torchrun may both pass on one Ctrl-C: the third of them interrupts at once


class Caught(list[int]):
    """The signals that came, in their order."""

    deferring = False  # before the first step there is nothing to save, and Ctrl-C interrupts at once


@contextmanager
def caught_signals() -> Iterator[Caught]:
    """A list that SIGINT, SIGTERM and SIGUSR1 append themselves to. Main thread only."""
    caught = Caught()

    def catch(number: int, _frame: Any) -> None:
        caught.append(number)
        if number == signal.SIGINT and (not caught.deferring or caught.count(number) >= INTERRUPT_AT):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are then the caller's business
        yield caught
        return
    numbers = ENDING if SAVE is None else (*ENDING, SAVE)
    before = {number: signal.signal(number, catch) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ending(caught: Iterable[int]) -> int | None:
    """The first signal that asks for the end."""
    return next((number for number in caught if number in ENDING), None)


def take_save(caught: list[int]) -> bool:
    """Whether a save was asked for, once: what asked for it is taken out."""
    asked = SAVE in caught
    while SAVE in caught:
        caught.remove(SAVE)
    return asked
