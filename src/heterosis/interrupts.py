"""Stopping on request: the first SIGINT or SIGTERM stops at the next safe place, a second one at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from heterosis.errors import InterruptError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handlers for SIGINT and SIGTERM while a study runs.

    The first signal is kept until `check` is called, which a search does before every candidate: what was scored is
    recorded by then. The second kills the engine and ends the process.
    """

    def __init__(self, tell: Callable[[str], None], last_act: Callable[[], None]) -> None:
        """`tell`: say so to the user. `last_act`: what a second signal does before the process ends."""
        self._tell = tell
        self._last_act = last_act
        self._received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def check(self) -> None:
        """Raise InterruptError if a signal has come."""
        if self._received is not None:
            raise InterruptError(
                f"stopped by {self._received.name}; every candidate scored so far is recorded. "
                "The same command goes on from here.",
                128 + self._received,
            )

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            self._last_act()
            os._exit(128 + number)
        self._received = signal.Signals(number)
        text = f"{self._received.name}: stopping after this candidate; once more stops at once"
        # From a thread: the signal may have come in the middle of writing to the same stream.
        threading.Thread(target=self._tell, args=(text,), daemon=True).start()
