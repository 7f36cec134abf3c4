"""Scoring: from a recipe to its outcomes, with a live engine, on a split or a part of one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from heterosis.errors import CanaryError, CandidateError, EngineError
from heterosis.evaluation.engine import Engine
from heterosis.evaluation.panel import Split
from heterosis.evaluation.samples import Sample
from heterosis.ledger.record import Measurement, Proposal, Record
from heterosis.recipe import Recipe

# A candidate may take so many times as long as the longest before it, and never less than this many seconds.
PATIENCE, SHORTEST_DEADLINE = 10.0, 600.0
# Takes a recipe's digest and, by task, what its merge was asked and answered.
Keep = Callable[[str, Mapping[str, list[Sample]]], None]


class Scorer(Protocol):
    """Turns a recipe into a measurement."""

    def measure(self, recipe: Recipe) -> Measurement:
        """Merge and score on the whole split; a candidate that cannot be scored is a measurement with an error."""
        ...


class PartScorer(Scorer, Protocol):
    """A scorer that can also ask a part of the items."""

    def ask(self, recipe: Recipe, part: Split) -> Measurement:
        """Merge and score on `part`; its outcomes are of that part alone."""
        ...


class GenerationScorer(Protocol):
    """Scores the candidates of a generation, in any order, and hands them out in theirs."""

    def generation(
        self, proposals: Sequence[Proposal], recorded: int, spent: Callable[[int], bool]
    ) -> Iterator[Measurement]:
        """Measurements of `proposals[recorded:]`, the others being in the record already.

        `spent(items)`: whether the budget is used up when so many items were scored since the record last grew. The
        iterator ends early then.
        """
        ...


class Restartable(Engine, Protocol):
    """An engine that can be replaced by a fresh one."""

    def restart(self, reason: str) -> None:
        """Let go of it; the next question goes to another."""
        ...


class EngineScorer:
    """Scores recipes with a live engine, and accounts for the time."""

    def __init__(
        self,
        engine: Restartable,
        split: Split,
        records: Sequence[Record],
        retries: int = 0,
        deadline: float | None = None,
        keep: Keep | None = None,
    ) -> None:
        """`records`: where outcomes of an equal recipe on the same split may already be.

        A candidate on which the engine dies, or that fails the canary, is tried again on a fresh engine `retries` times
        before it counts as failed. `deadline`: seconds that one try may take; None: ten times the longest so far, and
        at least ten minutes, with none for the first. `keep` takes what a merge answered, before anything is recorded.
        """
        self._engine = engine
        self._split = split
        self._records = records
        self._retries = retries
        self._deadline = deadline
        self._keep = keep
        self._longest: float | None = None
        self._clock = time.perf_counter()

    def measure(self, recipe: Recipe) -> Measurement:
        """The recipe on the whole split, asked again only if no record has it."""
        known = complete(recipe, self._records)
        if known is not None:
            return known._replace(seconds=self._seconds(0.0, 0.0, 0.0))
        return self.ask(recipe, self._split)

    def ask(self, recipe: Recipe, part: Split) -> Measurement:
        """Become the recipe, prove it, answer the part."""
        started = time.perf_counter()
        reason = ""
        for _ in range(self._retries + 1):
            try:
                return self._try(recipe, part)
            except (CanaryError, EngineError) as error:
                reason = str(error)
                self._engine.restart(reason)  # also after the last try: the next candidate needs one that lives
            except CandidateError as error:
                reason = str(error)
                break
        return Measurement({}, {}, None, self._seconds(0.0, time.perf_counter() - started, 0.0), 0, reason)

    def _try(self, recipe: Recipe, part: Split) -> Measurement:
        started = time.perf_counter()
        with _deadline(self._engine, self._seconds_allowed()):
            applied = self._engine.apply(recipe)
            ready = time.perf_counter()
            score = part.score(self._engine, samples=self._keep is not None)
        if self._keep is not None:
            self._keep(recipe.digest, score.samples)
        self._longest = max(self._longest or 0.0, time.perf_counter() - started)
        swap = ready - started - applied.merge_seconds
        seconds = self._seconds(applied.merge_seconds, swap, score.seconds)
        return Measurement(part.scores(score.outcomes), score.outcomes, applied.weights_digest, seconds, part.size)

    def _seconds_allowed(self) -> float | None:
        if self._deadline is not None or self._longest is None:
            return self._deadline
        return max(PATIENCE * self._longest, SHORTEST_DEADLINE)

    def _seconds(self, merge: float, swap: float, score: float) -> dict[str, float]:
        """Phases of this candidate; `total` runs from the end of the one before, so nothing is left out."""
        now = time.perf_counter()
        total, self._clock = now - self._clock, now
        return {"merge": merge, "swap": swap, "score": score, "total": total}


@contextlib.contextmanager
def _deadline(engine: Engine, seconds: float | None) -> Iterator[None]:
    """Kill an engine that has not answered in time; what waits for it then raises EngineError."""
    if seconds is None:
        yield
        return
    late = threading.Event()

    def kill() -> None:
        late.set()
        engine.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    except EngineError as error:
        if late.is_set():
            raise EngineError(f"the engine gave no answer within {seconds:g} s and was stopped.") from error
        raise
    finally:
        timer.cancel()


def complete(recipe: Recipe, records: Sequence[Record]) -> Measurement | None:
    """What a record has of an equal recipe that was scored on every item; it costs nothing."""
    digest = recipe.digest
    for record in records:
        found = record.find(digest)
        if found is not None and not found.is_partial:
            return Measurement(found.scores, found.outcomes, found.weights_digest, dict(found.seconds), 0)
    return None


class OneByOne:
    """Every candidate on the whole split, one after the other, each recorded as soon as it is scored."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def generation(
        self, proposals: Sequence[Proposal], recorded: int, spent: Callable[[int], bool]
    ) -> Iterator[Measurement]:
        """Lazily, so that the record has each candidate before the next is scored."""
        for proposal in proposals[recorded:]:
            if spent(0):
                return
            yield self._scorer.measure(proposal.recipe)
