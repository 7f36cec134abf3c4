"""The search: ask a generation, merge and score its candidates, tell the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from heterosis.errors import CandidateError, RecordError
from heterosis.ledger.record import Candidate, Measurement, Proposal, Record
from heterosis.optimizers import Fitness, Genome, Optimizer
from heterosis.recipe import Recipe
from heterosis.scoring import GenerationScorer, Scorer
from heterosis.space import Space
from heterosis.statistics import Objective

# Failures in a row after which nothing better is to be expected.
HOPELESS = 10
# First step size of a stage after the first, as a part of the first stage's. At the full one a finer space loses what a
# coarser one found before it has learnt anything (docs/search-cost.md).
LATER_STEP = 0.4


class Budget(NamedTuple):
    """When to stop: whichever ends first. None: no limit."""

    candidates: int | None
    seconds: float | None
    items: int | None

    def spent(self, candidates: Sequence[Candidate], items: int = 0) -> bool:
        """Whether these candidates, and `items` more, use this budget up."""
        used = (
            sum(not candidate.is_baseline for candidate in candidates),
            sum(candidate.seconds["total"] for candidate in candidates),
            sum(candidate.items for candidate in candidates) + items,
        )
        return any(limit is not None and value >= limit for limit, value in zip(self, used, strict=True))

    def room(self, proposed: int, wanted: int) -> int:
        """How many of `wanted` further candidates it leaves room for."""
        return wanted if self.candidates is None else max(0, min(wanted, self.candidates - proposed))

    def share(self, part: float) -> Budget:
        """The first part of it."""
        candidates, seconds, items = self
        return Budget(
            None if candidates is None else round(candidates * part),
            None if seconds is None else seconds * part,
            None if items is None else round(items * part),
        )


class Stage(NamedTuple):
    """A space, who searches it, and how far into the study. `begin` takes the stage before and its mean."""

    space: Space
    begin: Callable[[Space | None, Genome | None], Optimizer]
    budget: Budget


class Found(NamedTuple):
    """Where a search ended: the optimizer's own estimate of the best point, if it has one."""

    space: Space
    mean: Genome | None


def search(
    stages: Sequence[Stage],
    baselines: Mapping[str, Recipe],
    scorer: Scorer,
    generations: GenerationScorer,
    objective: Objective,
    record: Record,
) -> Found:
    """Score the baselines, then generations of each stage's optimizer until its budget is spent.

    What the record already holds is taken from it, so the same call resumes: the optimizer is told the recorded
    values and arrives in the state it had.
    """
    score_baselines(baselines, scorer, objective, record)
    found, told, generation = Found(stages[0].space, None), 0, 1
    for number, stage in enumerate(stages):
        optimizer = stage.begin(found.space if number else None, found.mean)
        while not optimizer.converged() and not stage.budget.spent(_first(record, told)):
            genomes = optimizer.ask()
            room = stage.budget.room(told, len(genomes))
            candidates = score_generation(stage, genomes[:room], generation, told, generations, objective, record)
            told += len(candidates)
            if len(candidates) < len(genomes):
                break
            optimizer.tell(genomes, [candidate.fitness for candidate in candidates])
            generation += 1
        mean = optimizer.mean()
        found = Found(stage.space, mean) if mean is not None or number == 0 else found
    return found


def score_generation(
    stage: Stage,
    genomes: Sequence[Genome],
    generation: int,
    told: int,
    scorer: GenerationScorer,
    objective: Objective,
    record: Record,
) -> list[Candidate]:
    """The candidates of a generation, from the record as far as it goes; fewer when the budget ends."""
    proposals = []
    for at, genome in enumerate(genomes, told):
        label = f"c{at + 1}"
        proposals.append(Proposal(label, generation, stage.space.recipe(genome), genome, stage.space.values(genome)))
    recorded = record.proposed[told : told + len(proposals)]
    for candidate, proposal in zip(recorded, proposals, strict=False):
        if candidate.genome != proposal.genome:
            raise RecordError(
                f"{record.name}: candidate {candidate.label} was recorded at another point than is proposed now: "
                "other library versions began this study. Install those, or start a new study."
            )
    measured = scorer.generation(proposals, len(recorded), lambda items: stage.budget.spent(record.candidates, items))
    for proposal, measurement in zip(proposals[len(recorded) :], measured, strict=False):
        record.add(proposal, measurement, _fitness(objective, measurement))
    _stop_if_hopeless(record.proposed[: told + len(proposals)], generation)
    return record.proposed[told : told + len(proposals)]


def _stop_if_hopeless(proposed: Sequence[Candidate], generation: int) -> None:
    """CandidateError when a whole generation failed, or so many single candidates in a row."""
    last = [candidate for candidate in proposed if candidate.generation == generation]
    if len(last) > 1 and all(candidate.fitness is None for candidate in last):
        raise CandidateError(
            f"Every candidate of generation {generation} failed, so the search stops: {last[-1].error}"
        )
    streak = proposed[-HOPELESS:]
    if len(streak) == HOPELESS and all(candidate.fitness is None for candidate in streak):
        raise CandidateError(f"The last {HOPELESS} candidates failed, so the search stops: {streak[-1].error}")


def score_baselines(
    baselines: Mapping[str, Recipe], scorer: Scorer, objective: Objective, record: Record
) -> list[Candidate]:
    """Generation 0. The parents are scored before anything is recorded: they give a normalised objective its scale."""
    known = {candidate.label for candidate in record.baselines}
    parents = {parent.name for recipe in baselines.values() for parent in recipe.parents} & set(baselines)
    if parents <= known:
        objective.calibrate({c.label: c.scores for c in record.baselines if c.label in parents})
    else:
        measured = {label: scorer.measure(baselines[label]) for label in baselines if label in parents}
        if broken := next((f"{label}: {m.error}" for label, m in measured.items() if m.error is not None), None):
            raise CandidateError(f"A parent cannot be scored, so there is nothing to compare with. {broken}")
        objective.calibrate({label: m.scores for label, m in measured.items()})
        for label, measurement in measured.items():
            if label not in known:
                record.add(Proposal(label, 0, baselines[label]), measurement, _fitness(objective, measurement))
    for label in baselines:
        if label not in parents | known:
            measurement = scorer.measure(baselines[label])
            record.add(Proposal(label, 0, baselines[label]), measurement, _fitness(objective, measurement))
    return record.baselines


def _fitness(objective: Objective, measured: Measurement) -> Fitness | None:
    return None if measured.error is not None else objective.judge(measured.scores)


def _first(record: Record, proposed: int) -> list[Candidate]:
    """The baselines and the first so many proposals."""
    return [*record.baselines, *record.proposed[:proposed]]
