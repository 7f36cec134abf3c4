"""How the scores of several tasks become the one number that a search raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heterosis.errors import RecordError

Values = float | npt.NDArray[np.float64]


class TaskShare(NamedTuple):
    """A task's part in the objective."""

    weight: float
    higher_is_better: bool


class Objective:
    """Weighted mean, normalised mean, or worst task. Higher is better.

    The normalised kinds place each score between the worst (0) and the best (1) parent on the search split, so a task
    in bits per byte and one in accuracy weigh alike; `calibrate` fixes those ends once.
    """

    def __init__(self, kind: str, shares: Mapping[str, TaskShare]) -> None:
        self.kind = kind
        self.shares = dict(shares)
        self._ends: dict[str, tuple[float, float]] | None = None if kind != "mean" else {}

    def calibrate(self, parents: Sequence[Mapping[str, float]]) -> None:
        """Fix the ends of the normalised kinds from the parents' scores on the search split."""
        if self.kind == "mean":
            return
        self._ends = {}
        for task, share in self.shares.items():
            scores = sorted((parent[task] for parent in parents), reverse=not share.higher_is_better)
            self._ends[task] = (scores[0], scores[-1])

    def value(self, scores: Mapping[str, Values]) -> Values:
        """The objective of task scores: numbers, or arrays of equally many draws."""
        parts = [self._placed(task, scores[task]) for task in self.shares]
        if self.kind == "worst":
            lowest: Values = np.stack([np.asarray(part) for part in parts]).min(axis=0)
            return lowest
        weights = [share.weight for share in self.shares.values()]
        total: Values = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
        return total

    def number(self, scores: Mapping[str, float]) -> float:
        """The objective of one candidate's scores."""
        return float(self.value(scores))

    def _placed(self, task: str, score: Values) -> Values:
        if self._ends is None:
            raise RecordError("objective: the parents must be scored before a normalised objective has a scale.")
        if self.kind == "mean":
            return score if self.shares[task].higher_is_better else -score
        worst, best = self._ends[task]
        scale = best - worst
        if scale == 0.0:  # all parents alike: keep the score's own unit
            scale = 1.0 if self.shares[task].higher_is_better else -1.0
        return (score - worst) / scale
