"""How far a search has come: the best so far against parents and baselines, its pace, what is left, where time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from heterosis.errors import RecordError
from heterosis.evaluation.panel import Items
from heterosis.finals import Evidence
from heterosis.ledger.record import Candidate
from heterosis.results import time_spent
from heterosis.search import Budget
from heterosis.standings import standings
from heterosis.statistics import Objective
from heterosis.views.pairs import paired

# The pace is that of the last so many candidates: an engine's start says little of what is left.
RECENT = 20


class Standing(NamedTuple):
    """A candidate's objective on the search split."""

    label: str
    value: float
    low: float | None
    """95 % interval over items; None while the objective has no scale."""
    high: float | None
    items: int
    """How many it answered."""
    error: float | None = None
    """Standard error of an estimate from anchors, which stands in place of the interval."""


class Gain(NamedTuple):
    """The best so far minus another, on the items that both answered."""

    against: str
    estimate: float
    low: float
    high: float
    items: int


class Pace(NamedTuple):
    """What a candidate took lately."""

    seconds: float
    items: float

    @property
    def items_per_second(self) -> float:
        """Items scored in a second, merging and swapping included."""
        return self.items / self.seconds if self.seconds > 0.0 else 0.0


class Left(NamedTuple):
    """What the budget leaves, at the recent pace. None: no limit, or no pace yet."""

    candidates: int | None
    items: int | None
    seconds: float | None
    ends_by: str | None
    """The part of the budget that ends first: candidates, items or hours."""


class Failure(NamedTuple):
    """A candidate that could not be scored."""

    label: str
    error: str


class Progress(NamedTuple):
    """A search, as its record has it."""

    generation: int
    candidates: int
    """Proposals recorded; the baselines are not counted."""
    baselines: int
    items: int
    """Items scored, those of the baselines included."""
    seconds: float
    failures: tuple[Failure, ...]
    best: Standing | None
    """The best proposal: drawn towards its generation by as much as its score is noise."""
    best_parent: Standing | None
    best_baseline: Standing | None
    over_parent: Gain | None
    over_baseline: Gain | None
    pace: Pace | None
    left: Left
    shares: dict[str, float]
    """Phase (merge, swap, score, rest) -> its share of the time."""


class Tracker:
    """Describes the progress of one search. What is costly is kept until the candidates that it is about change."""

    def __init__(self, split: Items, objective: Objective, parents: Sequence[str], budget: Budget, seed: int) -> None:
        self._split, self._objective, self._seed = split, objective, seed
        self._parents, self._budget = frozenset(parents), budget
        self._standings: dict[tuple[int, int], Standing] = {}
        self._gains: dict[tuple[int, int], Gain | None] = {}

    def progress(self, candidates: Sequence[Candidate]) -> Progress:
        """What these candidates, in the order in which they were recorded, say of the search."""
        proposed = [candidate for candidate in candidates if not candidate.is_baseline]
        baselines = [candidate for candidate in candidates if candidate.is_baseline]
        best = self._best(proposed)
        parent = _highest([candidate for candidate in baselines if candidate.label in self._parents])
        baseline = _highest(baselines)
        pace = _pace(proposed)
        time = time_spent(candidates)
        return Progress(
            generation=max((candidate.generation for candidate in candidates), default=0),
            candidates=len(proposed),
            baselines=len(baselines),
            items=sum(candidate.items for candidate in candidates),
            seconds=time["total"],
            failures=tuple(Failure(c.label, c.error) for c in candidates if c.error is not None),
            best=self._standing(best),
            best_parent=self._standing(parent),
            best_baseline=self._standing(baseline),
            over_parent=self._gain(best, parent),
            over_baseline=self._gain(best, baseline),
            pace=pace,
            left=_left(self._budget, candidates, pace),
            shares=_shares(time),
        )

    def _best(self, proposed: Sequence[Candidate]) -> Candidate | None:
        scored = [candidate for candidate in proposed if candidate.fitness is not None]
        try:
            return standings(scored, self._split, self._objective)[0] if scored else None
        except RecordError:
            return _highest(scored)

    def _standing(self, candidate: Candidate | None) -> Standing | None:
        if candidate is None or candidate.value is None:
            return None
        key = (candidate.number, candidate.items)
        if key not in self._standings:
            self._standings[key] = self._measured(candidate, candidate.value)
        return self._standings[key]

    def _measured(self, candidate: Candidate, value: float) -> Standing:
        error = (candidate.race or {}).get("error")
        low = high = None
        if error is None:
            try:
                found = Evidence([candidate], self._split, self._objective, self._seed).row(candidate.label)
                low, high = found["objective"]["low"], found["objective"]["high"]
            except RecordError:  # a normalised objective has no scale before the parents are scored
                low = high = None
        return Standing(candidate.label, value, low, high, candidate.known, error)

    def _gain(self, best: Candidate | None, other: Candidate | None) -> Gain | None:
        if best is None or other is None:
            return None
        key = (best.number, other.number)
        if key not in self._gains:
            pair = paired(best, other, self._split, self._objective, self._seed)
            self._gains[key] = (
                None
                if pair is None
                else Gain(other.label, *pair.evidence.difference(best.label, [other.label]), pair.items)
            )
        return self._gains[key]


def _highest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first of those with the highest fitness."""
    scored = [candidate for candidate in candidates if candidate.fitness is not None]
    return max(scored, key=lambda candidate: candidate.rank, default=None)


def _pace(proposed: Sequence[Candidate]) -> Pace | None:
    recent = proposed[-RECENT:]
    seconds = sum(candidate.seconds["total"] for candidate in recent)
    if not recent or seconds <= 0.0:
        return None
    return Pace(seconds / len(recent), sum(candidate.items for candidate in recent) / len(recent))


def _left(budget: Budget, candidates: Sequence[Candidate], pace: Pace | None) -> Left:
    proposed = sum(not candidate.is_baseline for candidate in candidates)
    used = sum(candidate.seconds["total"] for candidate in candidates)
    more = None if budget.candidates is None else max(0, budget.candidates - proposed)
    items = None if budget.items is None else max(0, budget.items - sum(c.items for c in candidates))
    ends: dict[str, float] = {}
    if budget.seconds is not None:
        ends["hours"] = max(0.0, budget.seconds - used)
    if pace is not None:
        if more is not None:
            ends["candidates"] = more * pace.seconds
        if items is not None and pace.items_per_second > 0.0:
            ends["items"] = items / pace.items_per_second
    if not ends:
        return Left(more, items, None, None)
    first = min(ends, key=lambda name: ends[name])
    if pace is not None:  # what is left by one limit is an estimate of the rest
        expected = round(ends[first] * pace.items_per_second)
        items = expected if items is None else min(items, expected)
        if pace.seconds > 0.0:
            fit = round(ends[first] / pace.seconds)
            more = fit if more is None else min(more, fit)
    return Left(more, items, ends[first], first)


def _shares(time: dict[str, float]) -> dict[str, float]:
    total = time["total"]
    return {phase: time[phase] / total if total else 0.0 for phase in ("merge", "swap", "score", "rest")}
