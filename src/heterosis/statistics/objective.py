"""How the scores of several tasks become what a search raises, and what a merge may not lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heterosis.errors import RecordError, StudyError
from heterosis.optimizers import Fitness

Values = float | npt.NDArray[np.float64]
Scores = Mapping[str, float]

BEST_PARENT = "best_parent"


class TaskShare(NamedTuple):
    """A task's part in the objective."""

    weight: float
    higher_is_better: bool


class Bound(NamedTuple):
    """A constraint: no more than `margin` worse than a parent (or the best one), or at least as good as a number."""

    task: str
    against: str | None = None
    margin: float = 0.0
    at_least: float | None = None


class Objective:
    """Weighted mean, normalised mean, worst task, or every task by itself (pareto). Higher is better.

    All kinds but the weighted mean place each score between the worst (0) and the best (1) parent on the search split,
    so a task in bits per byte and one in accuracy weigh alike; `calibrate` fixes those ends once.
    """

    def __init__(self, kind: str, shares: Mapping[str, TaskShare], bounds: Sequence[Bound] = ()) -> None:
        self.kind = kind
        self.shares = dict(shares)
        self.bounds = tuple(bounds)
        self._ends: dict[str, tuple[float, float]] | None = None if kind != "mean" else {}
        self._parents: dict[str, Scores] = {}
        for bound in self.bounds:
            if bound.task not in self.shares:
                raise StudyError(f"constraints: {bound.task} is none of the tasks: {', '.join(self.shares)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what a multi-objective optimizer raises: the tasks of a pareto objective, else one."""
        return tuple(self.shares) if self.kind == "pareto" else ("objective",)

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the parents that it was calibrated with."""
        return tuple(self._parents)

    def calibrate(self, parents: Mapping[str, Scores]) -> None:
        """Fix the ends of the normalised kinds, and the bounds, from the parents' scores on the search split."""
        self._parents = dict(parents)
        if self.kind == "mean":
            return
        self._ends = {}
        for task, share in self.shares.items():
            scores = sorted((parent[task] for parent in parents.values()), reverse=not share.higher_is_better)
            self._ends[task] = (scores[0], scores[-1])

    def value(self, scores: Mapping[str, Values]) -> Values:
        """The objective of task scores: numbers, or arrays of equally many draws."""
        parts = [self.placed(task, scores[task]) for task in self.shares]
        if self.kind == "worst":
            lowest: Values = np.stack([np.asarray(part) for part in parts]).min(axis=0)
            return lowest
        weights = [share.weight for share in self.shares.values()]
        total: Values = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
        return total

    def number(self, scores: Scores) -> float:
        """The objective of one candidate's scores."""
        return float(self.value(scores))

    def judge(self, scores: Scores, parents: Mapping[str, Scores] | None = None) -> Fitness:
        """All that an optimizer or a choice needs to know of one candidate's scores.

        `parents`: the parents' scores on the same split, which bounds are taken from; the search split's if left out.
        """
        value = self.number(scores)
        vector: tuple[float, ...] = (value,)
        if self.kind == "pareto":
            vector = tuple(float(self.placed(task, scores[task])) for task in self.shares)
        missed = tuple(self._missed(bound, scores, parents or self._parents) for bound in self.bounds)
        return Fitness(value, vector, missed)

    def gradient(self, scores: Scores) -> dict[str, float]:
        """Derivative of the objective by each task's score; of the worst task alone where that decides."""
        slopes = {task: float(self.placed(task, 1.0)) - float(self.placed(task, 0.0)) for task in self.shares}
        if self.kind == "worst":
            worst = min(self.shares, key=lambda task: float(self.placed(task, scores[task])))
            return {task: slope if task == worst else 0.0 for task, slope in slopes.items()}
        total = sum(share.weight for share in self.shares.values())
        return {task: slope * self.shares[task].weight / total for task, slope in slopes.items()}

    def placed(self, task: str, score: Values) -> Values:
        """A score where higher is better: as it is, negative, or between the worst (0) and the best (1) parent."""
        if self._ends is None:
            raise RecordError("objective: the parents must be scored before a normalised objective has a scale.")
        if self.kind == "mean":
            return score if self.shares[task].higher_is_better else -score
        worst, best = self._ends[task]
        scale = best - worst
        if scale == 0.0:  # all parents alike: keep the score's own unit
            scale = 1.0 if self.shares[task].higher_is_better else -1.0
        return (score - worst) / scale

    def _missed(self, bound: Bound, scores: Scores, parents: Mapping[str, Scores]) -> float:
        """By how much a bound is missed, in the task's own unit; at most 0 where it is met."""
        sign = 1.0 if self.shares[bound.task].higher_is_better else -1.0
        return sign * (self.limit(bound, parents) - scores[bound.task])

    def limit(self, bound: Bound, parents: Mapping[str, Scores]) -> float:
        """The score that a bound asks for."""
        if bound.at_least is not None:
            return bound.at_least
        sign = 1.0 if self.shares[bound.task].higher_is_better else -1.0
        if not parents:
            raise RecordError("constraints: the parents must be scored before a bound against them can be met.")
        if bound.against != BEST_PARENT and bound.against not in parents:
            raise StudyError(f"constraints: {bound.against} is none of the parents: {', '.join(parents)}.")
        among = parents if bound.against == BEST_PARENT else {bound.against: parents[str(bound.against)]}
        best = max(sign * each[bound.task] for each in among.values())
        return sign * (best - bound.margin)
