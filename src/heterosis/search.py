"""The search: ask a generation, merge and score each candidate, tell the optimizer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from heterosis.errors import CandidateError, RecordError
from heterosis.evaluation.engine import Engine
from heterosis.evaluation.panel import Split
from heterosis.ledger.record import Candidate, Measurement, Proposal, Record
from heterosis.optimizers import Optimizer
from heterosis.recipe import Recipe
from heterosis.space import Space
from heterosis.statistics import Objective


class Budget(NamedTuple):
    """When to stop: whichever ends first. None: no limit."""

    candidates: int | None
    seconds: float | None
    items: int | None

    def spent(self, record: Record) -> bool:
        """Whether the record has used this budget up."""
        used = (
            len(record.proposed),
            sum(candidate.seconds["total"] for candidate in record.candidates),
            sum(candidate.items for candidate in record.candidates),
        )
        return any(limit is not None and value >= limit for limit, value in zip(self, used, strict=True))


class Scorer(Protocol):
    """Turns a recipe into a measurement."""

    def measure(self, recipe: Recipe) -> Measurement:
        """Merge and score; a candidate that cannot be scored is a measurement with an error."""
        ...


def search(
    space: Space,
    baselines: Mapping[str, Recipe],
    optimizer: Optimizer,
    scorer: Scorer,
    objective: Objective,
    record: Record,
    budget: Budget,
) -> None:
    """Score the baselines, then generations of the optimizer until the budget is spent.

    What the record already holds is taken from it, so the same call resumes: the optimizer is told the recorded
    values and arrives in the state it had.
    """
    score_baselines(baselines, scorer, objective, record)
    generation, told = 1, 0
    while not optimizer.converged():
        genomes = optimizer.ask()
        values = []
        for genome in genomes:
            if told == len(record.proposed):
                if budget.spent(record):
                    return
                recipe = space.recipe(genome)
                proposal = Proposal(f"c{told + 1}", generation, recipe, genome, space.values(genome))
                measured = scorer.measure(recipe)
                record.add(proposal, measured, _value(objective, measured))
            candidate = record.proposed[told]
            if candidate.genome != genome:
                raise RecordError(
                    f"{record.name}: candidate {candidate.label} was recorded at another point than is proposed now: "
                    "other library versions began this study. Install those, or start a new study."
                )
            values.append(candidate.value)
            told += 1
        if all(value is None for value in values) and len(values) > 1:
            reason = record.proposed[told - 1].error
            raise CandidateError(f"Every candidate of generation {generation} failed, so the search stops: {reason}")
        optimizer.tell(genomes, values)
        generation += 1


def score_baselines(
    baselines: Mapping[str, Recipe], scorer: Scorer, objective: Objective, record: Record
) -> list[Candidate]:
    """Generation 0. The parents are scored before anything is recorded: they give a normalised objective its scale."""
    known = {candidate.label for candidate in record.baselines}
    parents = {parent.name for recipe in baselines.values() for parent in recipe.parents} & set(baselines)
    if parents <= known:
        objective.calibrate([c.scores for c in record.baselines if c.label in parents])
    else:
        measured = {label: scorer.measure(baselines[label]) for label in baselines if label in parents}
        if broken := next((f"{label}: {m.error}" for label, m in measured.items() if m.error is not None), None):
            raise CandidateError(f"A parent cannot be scored, so there is nothing to compare with. {broken}")
        objective.calibrate([m.scores for m in measured.values()])
        for label, measurement in measured.items():
            if label not in known:
                record.add(Proposal(label, 0, baselines[label]), measurement, _value(objective, measurement))
    for label in baselines:
        if label not in parents | known:
            measurement = scorer.measure(baselines[label])
            record.add(Proposal(label, 0, baselines[label]), measurement, _value(objective, measurement))
    return record.baselines


def _value(objective: Objective, measured: Measurement) -> float | None:
    return None if measured.error is not None else objective.number(measured.scores)


class EngineScorer:
    """Scores recipes on one split with a live engine, and accounts for the time."""

    def __init__(self, engine: Engine, split: Split, records: Sequence[Record]) -> None:
        """`records`: where outcomes of an equal recipe on the same split may already be."""
        self._engine = engine
        self._split = split
        self._records = records
        self._clock = time.perf_counter()

    def measure(self, recipe: Recipe) -> Measurement:
        """Become the recipe, prove it, answer the split."""
        digest = recipe.digest
        known = next((found for record in self._records if (found := record.find(digest)) is not None), None)
        if known is not None:
            return Measurement(known.scores, known.outcomes, known.weights_digest, self._seconds(0.0, 0.0, 0.0), 0)
        started = time.perf_counter()
        try:
            applied = self._engine.apply(recipe)
            ready = time.perf_counter()
            score = self._split.score(self._engine)
        except CandidateError as error:
            return Measurement({}, {}, None, self._seconds(0.0, time.perf_counter() - started, 0.0), 0, str(error))
        swap = ready - started - applied.merge_seconds
        seconds = self._seconds(applied.merge_seconds, swap, score.seconds)
        scores = self._split.scores(score.outcomes)
        return Measurement(scores, score.outcomes, applied.weights_digest, seconds, self._split.size)

    def _seconds(self, merge: float, swap: float, score: float) -> dict[str, float]:
        """Phases of this candidate; `total` runs from the end of the one before, so nothing is left out."""
        now = time.perf_counter()
        total, self._clock = now - self._clock, now
        return {"merge": merge, "swap": swap, "score": score, "total": total}
