"""The end of a study: choose a winner on the selection split, then make the claim on the test split, once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heterosis.errors import CandidateError
from heterosis.evaluation.panel import Split
from heterosis.ledger.record import Candidate, Proposal, Record
from heterosis.optimizers.protocol import Genome
from heterosis.search import Scorer
from heterosis.space import Space
from heterosis.statistics import Interval, Objective, interval, resample
from heterosis.statistics.bootstrap import Array, TaskTable


class Choice(NamedTuple):
    """What the selection split decided, by label."""

    winner: str
    best_baseline: str


def finalists(searched: Record, space: Space, mean: Genome | None, count: int) -> list[Proposal]:
    """All baselines, the best proposals of the search, and the optimizer's own estimate of the best point."""
    scored = [candidate for candidate in searched.candidates if candidate.value is not None]
    chosen = [candidate for candidate in scored if candidate.is_baseline]
    proposed = [candidate for candidate in scored if not candidate.is_baseline]
    chosen += sorted(proposed, key=lambda c: (-_value(c), c.number))[:count]
    found = [Proposal(c.label, c.generation, c.recipe, c.genome, c.genes) for c in chosen]
    if mean is not None:
        generation = max((candidate.generation for candidate in proposed), default=0) + 1
        recipe = space.recipe(mean)
        # A longer search has another mean, and the selection split may already know this one: name it by content.
        found.append(Proposal(f"mean-{recipe.digest[:6]}", generation, recipe, mean, space.values(mean)))
    return found


def score_all(
    proposals: Sequence[Proposal], scorer: Scorer, objective: Objective, record: Record, required: Collection[str]
) -> None:
    """Score what the record does not have yet. A `required` one that fails is not recorded, so a rerun tries again."""
    known = {candidate.label for candidate in record.candidates}
    for proposal in proposals:
        if proposal.label not in known:
            measured = scorer.measure(proposal.recipe)
            if measured.error is not None and proposal.label in required:
                raise CandidateError(
                    f"{record.name}: {proposal.label} could not be scored ({measured.error}). Run again."
                )
            value = None if measured.error is not None else objective.number(measured.scores)
            record.add(proposal, measured, value)


def choose(selected: Record, among: Collection[str]) -> Choice:
    """The best on the selection split, of all and of the baselines; a tie goes to the one recorded first, a baseline.

    `among`: labels of this search's finalists. A shorter search of the same study may have left others in the record.
    """
    scored = [c for c in selected.candidates if c.value is not None and c.label in among]
    baselines = [candidate for candidate in scored if candidate.is_baseline]
    return Choice(*(max(group, key=_value).label for group in (scored, baselines)))


class Evidence:
    """Bootstrap intervals for candidates that were scored on one split, with items shared between them."""

    def __init__(self, candidates: Sequence[Candidate], split: Split, objective: Objective, seed: int) -> None:
        self._candidates = {candidate.label: candidate for candidate in candidates if candidate.value is not None}
        self._rows = {label: row for row, label in enumerate(self._candidates)}
        tables = {task: self._table(task, split) for task in split.items}
        self._draws = resample(tables, seed)
        self._objective: Array = np.asarray(objective.value(self._draws))

    def _table(self, task: str, split: Split) -> TaskTable:
        outcomes = [candidate.outcomes[task] for candidate in self._candidates.values()]
        values = np.stack([outcome.values for outcome in outcomes])
        return TaskTable(values, outcomes[0].weights, split.tasks[task].score)

    def row(self, label: str) -> dict[str, Any]:
        """Objective and task scores of one candidate, each with its interval."""
        candidate = self._candidates[label]
        at = self._rows[label]
        tasks = {task: interval(score, self._draws[task][at]) for task, score in candidate.scores.items()}
        return {
            "objective": interval(_value(candidate), self._objective[at])._asdict(),
            "tasks": {task: found._asdict() for task, found in tasks.items()},
        }

    def value(self, label: str) -> float:
        """Objective of one candidate."""
        return _value(self._candidates[label])

    def difference(self, label: str, others: Sequence[str]) -> Interval:
        """Objective of one candidate minus the mean of others, over the same draws of items."""
        rows = [self._rows[other] for other in others]
        draws = self._objective[self._rows[label]] - self._objective[rows].mean(axis=0)
        there = sum(_value(self._candidates[other]) for other in others) / len(others)
        return interval(_value(self._candidates[label]) - there, draws)


def claims(evidence: Evidence, choice: Choice, parents: Sequence[str], openings: int = 1) -> dict[str, Any]:
    """Best-parent and mid-parent heterosis and the gain over the best baseline, and the verdict in words.

    The best parent is the one with the highest score on this very split, which can only make the claim harder.
    """
    best = max(parents, key=evidence.value)
    against = {parent: evidence.difference(choice.winner, [parent]) for parent in parents}
    found = {
        "best_parent": {"against": best, **against[best]._asdict()},
        "mid_parent": {"against": list(parents), **evidence.difference(choice.winner, parents)._asdict()},
        "best_baseline": {
            "against": choice.best_baseline,
            **evidence.difference(choice.winner, [choice.best_baseline])._asdict(),
        },
    }
    words = verdict(choice, found, beats_all=all(each.low > 0.0 for each in against.values()))
    if openings > 1:
        words += f", which was opened {openings} times"
    return {
        "heterosis": found,
        "against_each_parent": {parent: each._asdict() for parent, each in against.items()},
        "verdict": words,
    }


def verdict(choice: Choice, heterosis: Mapping[str, Mapping[str, Any]], beats_all: bool) -> str:
    """The result in one sentence."""
    parent, baseline = heterosis["best_parent"], heterosis["best_baseline"]
    over = f"best-parent heterosis {_signed(parent)} against {parent['against']}"
    if not beats_all:
        return f"no improvement shown: {choice.winner} has {over} on the test split"
    if choice.winner == choice.best_baseline:
        return f"{choice.winner}, a baseline, is the best found and beats every parent: {over} on the test split"
    gain = f"{_signed(baseline)} against {choice.best_baseline}, the best baseline"
    if baseline["low"] <= 0.0:
        return f"{choice.winner} beats every parent ({over}); no improvement shown over baselines ({gain}), test split"
    return f"{choice.winner} beats every parent and the best baseline: {over}, {gain}, on the test split"


def _signed(found: Mapping[str, Any]) -> str:
    return f"{found['estimate']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _value(candidate: Candidate) -> float:
    assert candidate.value is not None
    return candidate.value
