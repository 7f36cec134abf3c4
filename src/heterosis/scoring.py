"""Scoring: from a recipe to its outcomes, with a live engine, on a split or a part of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from heterosis.errors import CandidateError
from heterosis.evaluation.engine import Engine
from heterosis.evaluation.panel import Split
from heterosis.ledger.record import Measurement, Proposal, Record
from heterosis.recipe import Recipe


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


class EngineScorer:
    """Scores recipes with a live engine, and accounts for the time."""

    def __init__(self, engine: Engine, split: Split, records: Sequence[Record]) -> None:
        """`records`: where outcomes of an equal recipe on the same split may already be."""
        self._engine = engine
        self._split = split
        self._records = records
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
        try:
            applied = self._engine.apply(recipe)
            ready = time.perf_counter()
            score = part.score(self._engine)
        except CandidateError as error:
            return Measurement({}, {}, None, self._seconds(0.0, time.perf_counter() - started, 0.0), 0, str(error))
        swap = ready - started - applied.merge_seconds
        seconds = self._seconds(applied.merge_seconds, swap, score.seconds)
        return Measurement(part.scores(score.outcomes), score.outcomes, applied.weights_digest, seconds, part.size)

    def _seconds(self, merge: float, swap: float, score: float) -> dict[str, float]:
        """Phases of this candidate; `total` runs from the end of the one before, so nothing is left out."""
        now = time.perf_counter()
        total, self._clock = now - self._clock, now
        return {"merge": merge, "swap": swap, "score": score, "total": total}


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
