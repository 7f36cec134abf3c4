"""The thread that keeps the lineage up to date while a search runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from heterosis.errors import HeterosisError
from heterosis.ledger.lineage import Lineage
from heterosis.ledger.merges import Records
from heterosis.ledger.redact import masked


class BackgroundMirror:
    """Keeps the lineage up to date from a thread while the search runs; MLflow's troubles never reach the search.

    The thread starts at the first `wake`: by then, whatever forks processes has done so.
    """

    FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0

    def __init__(self, lineage: Lineage, records: Records, tell: Callable[[str], None], patience: float = 60.0) -> None:
        """`tell` hears of the first trouble, and of what is left at the end.

        `patience`: seconds to wait at the end for what is not mirrored yet.
        """
        self.problem: str | None = None
        self._tell = tell
        self._told = False
        self._lineage = lineage
        self._records = records
        self._patience = patience
        self._result: Mapping[str, Any] | None = None
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heterosis-lineage", daemon=True)

    def __enter__(self) -> BackgroundMirror:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def wake(self) -> None:
        """Say that the record has grown."""
        self._awake.set()
        if self._thread.ident is None:
            self._thread.start()

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Mirror what is left, and the study's result if it has one; then stop. A second call does nothing."""
        if self._closing.is_set():
            return
        self._result = result
        self._closing.set()
        self.wake()
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self.problem = self.problem or f"MLflow did not take everything within {self._patience:g} s"
        if self.problem is not None:
            self._tell(f"lineage: {self._sentence} The same command catches up, without scoring anything again.")

    @property
    def _sentence(self) -> str:
        return f"{(self.problem or '').removesuffix('.')}."

    def _run(self) -> None:
        delay = self.FIRST_DELAY
        last = False
        while not last:
            self._awake.wait()
            self._awake.clear()
            last = self._closing.is_set()
            try:
                self._lineage.sync(self._records, self._result if last else None)
                self.problem, delay = None, self.FIRST_DELAY
            except Exception as error:
                reason = masked(" ".join(str(error).split()))
                own = isinstance(error, HeterosisError)
                self.problem = reason.removeprefix("lineage: ") if own else f"{type(error).__name__}: {reason[:300]}"
                if not self._told and not last:
                    self._told = True
                    self._tell(f"lineage: {self._sentence} The work goes on without it, and is mirrored later.")
                self._closing.wait(delay)
                delay = min(2 * delay, self.LONGEST_DELAY)
