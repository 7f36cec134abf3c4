"""What a person sees while a study runs: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from heterosis.ledger.record import Candidate, Record
from heterosis.views.progress import Progress, Tracker
from heterosis.views.tables import (
    against,
    duration,
    failures_line,
    grid,
    left_line,
    pace_line,
    shares_line,
    standing,
)

if TYPE_CHECKING:
    from heterosis.search import Budget
    from heterosis.study import Prepared

# Failures that stay on the panel; all are printed above it.
FAILURES = 3
# Describing a long search takes a processor that its engine may want: at most one part in so many.
THRIFT = 20.0


class Watcher:
    """Told of stages and recorded candidates; shows them on standard error."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._live: Live | None = None
        self._stage, self._starting = "", ""
        self._started = time.monotonic()
        self._prepared: Prepared | None = None
        self._budget: Budget | None = None
        self._record: Record | None = None
        self._tracker: Tracker | None = None
        self._progress: Progress | None = None
        self._stale, self._due = False, 0.0
        self._generation = 0
        self._finals: dict[str, int] = {}
        self._last = ""
        self._rung: tuple[int, int, int] = (0, 0, 0)

    def __enter__(self) -> Watcher:
        if self.console.is_terminal and not self._quiet:
            self._live = Live(
                get_renderable=self.view,
                console=self.console,
                refresh_per_second=2,
                transient=True,
                vertical_overflow="crop",
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        self._stage, self._starting, self._last = text, "", ""
        self._rung, self._due = (0, 0, 0), 0.0
        self._say(text)

    def starting(self, engine: str) -> None:
        """An engine starts; what goes on before goes on after."""
        self._starting = f"starting {engine}"
        self._say(self._starting)

    def _say(self, text: str) -> None:
        if self._live is None and not self._quiet:
            self.console.print(f"{self._clock()} {escape(text)}", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something the user should know, once."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)

    def begin(self, prepared: Prepared, budget: Budget, record: Record) -> None:
        """The search begins, or goes on."""
        self._prepared, self._budget, self._record = prepared, budget, record
        config, split = prepared.config, prepared.panel.splits["search"]
        self._tracker = Tracker(split, prepared.objective, list(config.parents), budget, config.seed)
        if not self._quiet:
            self._describe()
        known = len(record.proposed)
        done = f", {known} candidates are already recorded" if known else ""
        genes = len(prepared.space.genes)
        self.stage(f"searching {genes} genes on {split.size} items in generations of {prepared.population}{done}")

    def recorded(self, split: str, candidate: Candidate) -> None:
        """A candidate was scored and recorded."""
        if candidate.error is not None:
            self.warn(f"{candidate.label} failed: {candidate.error}")
        if self._quiet:
            return
        shown = "failed" if candidate.value is None else f"{candidate.value:.4f}"
        self._last = f"{candidate.label} {shown}, {split} split"
        self._rung = (0, 0, 0)
        if split != "search":
            self._finals[split] = self._finals.get(split, 0) + 1
        begins = split == "search" and candidate.generation != self._generation
        # Off a terminal only the first of a generation is told of, so no more is computed.
        self._starting, self._stale = "", True
        if self._live is None:
            if begins:
                self._describe()
            self._plain(split, candidate, begins)
        self._generation = candidate.generation if split == "search" else self._generation

    def _describe(self) -> None:
        if self._tracker is not None and self._record is not None:
            began, self._stale = time.monotonic(), False
            try:
                self._progress = self._tracker.progress(self._record.candidates)
            except Exception as error:  # a picture of the search must not end it
                self._tracker = None
                self.warn(f"progress cannot be shown ({type(error).__name__}: {error}). The study goes on.")
            ended = time.monotonic()
            self._due = ended + THRIFT * (ended - began)

    def answered(self, label: str, rung: int, items: int) -> None:
        """A candidate answered a rung of its race; it is recorded when the race is over."""
        number, candidates, total = self._rung
        candidates = candidates + 1 if number == rung + 1 else 1
        self._rung = (rung + 1, candidates, total + items)
        self._last, self._starting = f"{label} answered {items} items", ""

    def _plain(self, split: str, candidate: Candidate, begins: bool) -> None:
        if split != "search" or candidate.is_baseline:
            shown = "failed" if candidate.value is None else f"{candidate.value:.4f}"
            self.console.print(f"{self._clock()} {split}: {escape(candidate.label)} {shown}", soft_wrap=True)
        elif begins and self._progress is not None:
            done = f"generation {candidate.generation}, candidate {candidate.label.removeprefix('c')}"
            line = "; ".join(_summary(self._progress, self._items))
            self.console.print(f"{self._clock()} {done}: {escape(line)}", soft_wrap=True)

    @property
    def _items(self) -> int:
        return self._prepared.panel.splits["search"].size if self._prepared is not None else 0

    def view(self) -> Group:
        """The live panel as it is at this moment. Called twice a second, from a thread of its own."""
        if self._stale and time.monotonic() >= self._due:
            self._describe()
        name = self._prepared.config.name if self._prepared is not None else "heterosis"
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(style="bold", no_wrap=True)
        head.add_column(ratio=1, overflow="fold")
        head.add_column(justify="right", no_wrap=True)
        head.add_row(escape(name), escape(self._starting or self._stage), self._clock())
        if self._progress is None or self._budget is None:
            return Group(head)
        rows = grid()
        for title, text in _rows(self._progress, self._budget, self._items):
            rows.add_row(title, escape(text))
        number, candidates, total = self._rung
        if number:
            rows.add_row("racing", f"rung {number}, answered by {candidates}; {total:,} items so far")
        if self._finals:
            rows.add_row("finals", ", ".join(f"{count} scored on {split}" for split, count in self._finals.items()))
        if self._last:
            rows.add_row("last", escape(self._last))
        return Group(head, _bar(self._progress, self._budget), rows)

    def _clock(self) -> str:
        return duration(time.monotonic() - self._started)


def _summary(progress: Progress, items: int) -> Iterator[str]:
    """One line's worth of a search."""
    if progress.best is not None:
        yield f"best so far {standing(progress.best, items)}, search split"
    if progress.over_parent is not None:
        gain = progress.over_parent
        yield f"{gain.estimate:+.4f} over {gain.against}"
    if progress.pace is not None:
        yield f"{progress.pace.items_per_second:.0f} items/s"
    if progress.left.seconds is not None:
        yield f"about {duration(progress.left.seconds)} left"


def _rows(progress: Progress, budget: Budget, items: int) -> Iterator[tuple[str, str]]:
    """The panel line by line."""
    spent = f"{progress.items:,}" + (f" of {budget.items:,}" if budget.items is not None else "")
    hours = f" of {duration(budget.seconds)}" if budget.seconds is not None else ""
    yield "spent", f"{spent} items, {duration(progress.seconds)}{hours}"
    if progress.best is not None:
        yield "best so far", f"{standing(progress.best, items)}, search split"
    if progress.best_parent is not None:
        yield "best parent", against(progress.best_parent, progress.over_parent, items)
    if progress.best_baseline is not None:
        yield "best baseline", against(progress.best_baseline, progress.over_baseline, items)
    if progress.pace is not None:
        yield "pace", pace_line(progress)
    if line := left_line(progress.left):
        yield "left", line
    if progress.seconds > 0.0:
        yield "time", shares_line(progress)
    if progress.failures:
        yield "failed", failures_line(progress.failures, FAILURES)


def _bar(progress: Progress, budget: Budget) -> Table:
    """How much of the budget is used, by the part of it that is furthest."""
    parts = {
        "candidates": (progress.candidates, budget.candidates),
        "items": (progress.items, budget.items),
        "hours": (progress.seconds, budget.seconds),
    }
    used = {name: value / limit for name, (value, limit) in parts.items() if limit}
    share = min(1.0, max(used.values(), default=0.0))
    table = Table.grid(padding=(0, 2))
    of = f" of {budget.candidates}" if budget.candidates is not None else ""
    table.add_row(
        f"generation {progress.generation}",
        ProgressBar(total=1.0, completed=share, width=24),
        f"{share:.0%}",
        f"{progress.candidates}{of} candidates",
    )
    return table
