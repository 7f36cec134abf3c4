"""A generation scored in rungs of items, the same for all: whose place is clear stops, and nothing is asked twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from heterosis.config import RacingConfig
from heterosis.evaluation.panel import Outcomes, Rung, Split, fill
from heterosis.ledger.record import Candidate, Measurement, Proposal, Record
from heterosis.ledger.rungs import RungRecord
from heterosis.optimizers import Fitness
from heterosis.scoring import PartScorer
from heterosis.statistics import Objective
from heterosis.statistics.influence import influence_of
from heterosis.statistics.racing import Look, comparison_level, look
from heterosis.statistics.yardstick import Yardstick

PHASES = ("merge", "swap", "score", "total")


class Runner:
    """One candidate in a race."""

    def __init__(self, proposal: Proposal, outcomes: Outcomes | None = None, weights_digest: str | None = None) -> None:
        """`outcomes`: what is known of an equal recipe already."""
        self.proposal = proposal
        self.outcomes = outcomes
        self.weights_digest = weights_digest
        self.place = "open"
        self.error: str | None = None
        self.items = 0
        self.seconds: Counter[str] = Counter(dict.fromkeys(PHASES, 0.0))
        self.curve: dict[int, float] = {}

    @property
    def running(self) -> bool:
        """Whether its place is still open."""
        return self.place == "open" and self.error is None


class Field(NamedTuple):
    """Whom a race is run against, and for how many places."""

    keep: int
    """How many places there are."""
    recorded: bool = False
    """Whether it is run against the best that the record has; who holds out is then scored to the end."""
    outcomes: Sequence[Outcomes] = ()
    """Those recorded candidates."""


class Race:
    """Scores generations in rungs."""

    def __init__(
        self,
        scorer: PartScorer,
        split: Split,
        objective: Objective,
        record: Record,
        pieces: RungRecord,
        policy: RacingConfig,
        finalists: int,
    ) -> None:
        """`record` holds the search so far, `pieces` what its races have scored; `finalists`: how many go on."""
        self._scorer, self._split, self._objective = scorer, split, objective
        self._record, self._pieces, self._policy, self._finalists = record, pieces, policy, finalists
        self._rungs = split.rungs(policy.rungs, policy.minimum)

    def generation(
        self, proposals: Sequence[Proposal], recorded: int, spent: Callable[[int], bool]
    ) -> Iterator[Measurement]:
        """Race all proposals; what was scored before a kill is known already. Yields those not recorded yet."""
        if recorded < len(proposals) and spent(0):
            return
        # A killed run may have recorded a part of this generation; what comes out must not depend on it.
        before = [
            c for c in self._record.candidates if c.generation < proposals[0].generation and c.fitness is not None
        ]
        runners = [_runner(proposal, before) for proposal in proposals]
        complete = [candidate.outcomes for candidate in before if not candidate.is_partial]
        self._run(runners, self._field(len(proposals), before), Yardstick(complete), spent)
        complete += [runner.outcomes for runner in runners if runner.outcomes and _is_whole(runner.outcomes)]
        yardstick = Yardstick(complete)
        for runner in runners[recorded:]:
            if runner.outcomes is None and runner.error is None:
                return  # the budget ended before its turn; it was never a candidate
            yield self._measurement(runner, yardstick)

    def extend(self, candidate: Candidate) -> Candidate | None:
        """The candidate with the answers to one more rung, asked now and kept; None if that fails.

        Its trial stays as the race ended it: what an optimizer was told is no longer changed.
        """
        runner = Runner(candidate.proposal, dict(candidate.outcomes))
        missing = next(number for number, rung in enumerate(self._rungs) if not _has(candidate.outcomes, rung))
        self._answer(runner, missing, self._rungs[missing], lambda _: False, [runner])
        if runner.error is not None or runner.outcomes is None:
            return None
        complete = [known.outcomes for known in self._record.candidates if known.outcomes and not known.is_partial]
        scores = estimated_scores(runner.outcomes, self._split, Yardstick(complete))
        fitness = self._objective.judge(scores)
        return replace(candidate, outcomes=runner.outcomes, scores=scores, fitness=fitness, value=fitness.value)

    def _field(self, generation: int, before: Sequence[Candidate]) -> Field:
        """A generation races against itself for its better half; a single candidate against the best so far."""
        if generation > 1:
            return Field(generation // 2)
        scored = [c for c in before if not c.is_baseline and not c.is_partial]
        best = sorted(scored, key=lambda candidate: candidate.rank, reverse=True)[: self._finalists]
        return Field(self._finalists, recorded=True, outcomes=[c.outcomes for c in best])

    def _run(self, runners: list[Runner], field: Field, yardstick: Yardstick, spent: Callable[[int], bool]) -> None:
        keep = field.keep
        for number, rung in enumerate(self._rungs):
            for runner in runners:
                if runner.running and not self._answer(runner, number, rung, spent, runners):
                    return
            running = [runner for runner in runners if runner.running]
            for runner in running:
                runner.curve[self._split.known(runner.outcomes or {})] = self._fitness(runner, yardstick).value
            if number == len(self._rungs) - 1 or not running:
                return
            found = self._look(running, field, keep)
            for runner, place in zip(running, found.places, strict=False):
                runner.place = place if place == "out" or not field.recorded else "open"
            keep -= sum(runner.place == "in" for runner in running)
            if not field.recorded and found.reliability >= self._policy.reliability:
                return

    def _answer(
        self, runner: Runner, number: int, rung: Rung, spent: Callable[[int], bool], runners: Sequence[Runner]
    ) -> bool:
        """Have the rung's outcomes, from the records or from the engine. False: the budget is used up."""
        if runner.outcomes and _has(runner.outcomes, rung):
            return True
        digest = runner.proposal.recipe.digest
        piece = self._pieces.find(digest, number)
        if piece is None:
            if spent(sum(each.items for each in runners)):
                return False
            measured = self._scorer.ask(runner.proposal.recipe, rung.split)
            value = None if measured.error is not None else self._objective.number(measured.scores)
            piece = self._pieces.add(runner.proposal.label, digest, number, measured, value)
        runner.items += piece.items
        runner.seconds.update(piece.seconds)
        runner.error = piece.error
        if piece.error is None:
            runner.weights_digest = piece.weights_digest
            runner.outcomes = fill(runner.outcomes, rung, piece.outcomes, self._split)
        return True

    def _look(self, running: Sequence[Runner], field: Field, keep: int) -> Look:
        """Compare on the items that the running have all answered."""
        known = [runner.outcomes or {} for runner in running]
        outcomes = [*known, *(_on_items_of(known[0], theirs) for theirs in field.outcomes)]
        estimates = np.array([self._objective.number(self._split.scores(each)) for each in outcomes])
        level = comparison_level(self._policy.error, len(outcomes) - keep, len(self._rungs) - 1)
        return look(estimates, influence_of(outcomes, self._split, self._objective), keep, level)

    def _fitness(self, runner: Runner, yardstick: Yardstick) -> Fitness:
        return self._objective.judge(estimated_scores(runner.outcomes or {}, self._split, yardstick))

    def _measurement(self, runner: Runner, yardstick: Yardstick) -> Measurement:
        seconds = dict(runner.seconds)
        if runner.error is not None or runner.outcomes is None:
            return Measurement({}, {}, None, seconds, runner.items, runner.error)
        scores = estimated_scores(runner.outcomes, self._split, yardstick)
        race = {"place": runner.place, "rungs": len(runner.curve)}
        return Measurement(
            scores, runner.outcomes, runner.weights_digest, seconds, runner.items, race=race, curve=runner.curve
        )


def estimated_scores(outcomes: Outcomes, split: Split, yardstick: Yardstick) -> dict[str, float]:
    """Task scores on the whole split, estimated where items are unknown."""
    return {task: float(split.tasks[task].score(mean)) for task, mean in yardstick.means(outcomes).items()}


def _runner(proposal: Proposal, before: Sequence[Candidate]) -> Runner:
    """With the outcomes of an equal recipe, if there is one."""
    digest = proposal.recipe.digest
    equal = next((candidate for candidate in before if candidate.recipe_digest == digest), None)
    return Runner(proposal) if equal is None else Runner(proposal, dict(equal.outcomes), equal.weights_digest)


def _is_whole(outcomes: Outcomes) -> bool:
    return not any(np.isnan(table.values).any() for table in outcomes.values())


def _has(outcomes: Outcomes, rung: Rung) -> bool:
    return all(not np.isnan(outcomes[task].values[at]).any() for task, at in rung.at.items())


def _on_items_of(like: Mapping[str, Any], theirs: Outcomes) -> Outcomes:
    """Outcomes with those items left out that `like` does not know."""
    return {
        task: table._replace(values=np.where(np.isnan(like[task].values), np.nan, table.values))
        for task, table in theirs.items()
    }
