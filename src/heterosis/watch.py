"""What a person sees while a study runs: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from heterosis.errors import RecordError
from heterosis.ledger.record import Candidate, Record

if TYPE_CHECKING:
    from heterosis.search import Budget
    from heterosis.study import Prepared

RECENT = 20


class Watcher:
    """Told of stages and recorded candidates; shows them on standard error."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._live: Live | None = None
        self._stage = ""
        self._started = time.monotonic()
        self._prepared: Prepared | None = None
        self._budget: Budget | None = None
        self._record: Record | None = None
        self._finished: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._interval: tuple[str, str] = ("", "")
        self._generation = 0

    def __enter__(self) -> Watcher:
        if self.console.is_terminal and not self._quiet:
            self._live = Live(self._view(), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        self._stage = text
        self._show(f"{self._clock()} {text}")

    def warn(self, text: str) -> None:
        """Something the user should know, once."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)

    def begin(self, prepared: Prepared, budget: Budget, record: Record) -> None:
        """The search begins, or goes on."""
        self._prepared, self._budget, self._record = prepared, budget, record
        known = len(record.proposed)
        done = f", {known} candidates are already recorded" if known else ""
        genes, size = len(prepared.space.genes), prepared.panel.splits["search"].size
        self.stage(f"searching {genes} genes on {size} items in generations of {prepared.population}{done}")

    def recorded(self, split: str, candidate: Candidate) -> None:
        """A candidate was scored and recorded."""
        if split == "search":
            self._finished.append((time.monotonic(), candidate.items))
        if candidate.error is not None:
            self.warn(f"{candidate.label} failed: {candidate.error}")
        if self._live is not None:
            self._live.update(self._view())
        elif not self._quiet:
            self._plain(split, candidate)

    def _plain(self, split: str, candidate: Candidate) -> None:
        if split != "search" or candidate.is_baseline:
            shown = "failed" if candidate.value is None else f"{candidate.value:.4f}"
            self.console.print(f"{self._clock()} {split}: {candidate.label} {shown}", soft_wrap=True)
            return
        if candidate.generation != self._generation:
            self._generation = candidate.generation
            parts = [self._best_line(), self._rate_line()]
            done = f"generation {candidate.generation}, candidate {candidate.label.removeprefix('c')}"
            self.console.print(f"{self._clock()} {done}: " + "; ".join(part for part in parts if part), soft_wrap=True)

    def _show(self, line: str) -> None:
        if self._live is not None:
            self._live.update(self._view())
        elif not self._quiet:
            self.console.print(line, soft_wrap=True)

    def _view(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_row("[bold]" + (self._prepared.config.name if self._prepared else "heterosis"), self._stage)
        if self._record is not None and self._record.candidates:
            for name, text in (
                ("best", self._best_line()),
                ("best parent", self._compared("parent")),
                ("best baseline", self._compared("baseline")),
                ("pace", self._rate_line()),
            ):
                table.add_row(name, text)
        return Group(table, self._progress())

    def _progress(self) -> Progress:
        progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        total = self._budget.candidates if self._budget else None
        done = len(self._record.proposed) if self._record else 0
        generation = self._record.proposed[-1].generation if self._record and self._record.proposed else 0
        progress.add_task(f"generation {generation}", total=total, completed=done)
        return progress

    def _best(self, kind: str = "any") -> Candidate | None:
        if self._record is None or self._prepared is None:
            return None
        scored = [candidate for candidate in self._record.candidates if candidate.value is not None]
        if kind == "parent":
            scored = [candidate for candidate in scored if candidate.label in self._prepared.config.parents]
        elif kind == "baseline":
            scored = [candidate for candidate in scored if candidate.is_baseline]
        return max(scored, key=lambda candidate: candidate.value or 0.0, default=None)

    def _compared(self, kind: str) -> str:
        found = self._best(kind)
        return "" if found is None or found.value is None else f"{found.value:.4f} ({found.label})"

    def _best_line(self) -> str:
        best = self._best()
        if best is None or best.value is None:
            return ""
        if self._interval[0] != best.label:
            self._interval = (best.label, self._bounds(best))
        estimated = (best.race or {}).get("error")
        spread = self._interval[1] if estimated is None else f"± {estimated:.4f} (estimated from anchors)"
        return f"best so far {best.value:.4f} {spread} ({best.label}, search split)"

    def _bounds(self, best: Candidate) -> str:
        from heterosis.finals import Evidence

        assert self._prepared is not None
        try:
            split = self._prepared.panel.splits["search"]
            found = Evidence([best], split, self._prepared.objective, 0).row(best.label)["objective"]
        except RecordError:  # a normalised objective has no scale before the parents are scored
            return ""
        return f"[{found['low']:.4f}, {found['high']:.4f}]".replace("[", r"\[")

    def _rate_line(self) -> str:
        if len(self._finished) < 2 or self._budget is None or self._record is None:
            return ""
        seconds = self._finished[-1][0] - self._finished[0][0]
        candidates, items = len(self._finished) - 1, sum(n for _, n in list(self._finished)[1:])
        if seconds <= 0.0:
            return ""
        line = f"{items / seconds:.0f} items/s"
        if self._budget.candidates is not None:
            left = max(0, self._budget.candidates - len(self._record.proposed))
            line += f", about {_duration(left * seconds / candidates)} left"
        return line

    def _clock(self) -> str:
        return _duration(time.monotonic() - self._started)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
