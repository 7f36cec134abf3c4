"""Scores of candidates that answered a part of the items, on the scale of those that answered all.

A part of the items may be easier or harder than the whole. How hard each item is for merges of this family is known
from the candidates that answered all of them, and a regression estimate uses that (Cochran 1977, Sampling techniques,
chapter 7): mean = mean of the known outcomes + β · (difficulty over all items − difficulty over the known ones).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heterosis.evaluation.panel import Outcomes, TaskOutcomes
from heterosis.statistics.bootstrap import Array

# Enough to know an item's difficulty; the latest are the most alike.
REFERENCES = 64


class Yardstick:
    """What complete candidates say about the items of a split."""

    def __init__(self, complete: Sequence[Outcomes]) -> None:
        """`complete`: outcomes of candidates that answered everything; none of them gives plain means."""
        latest = complete[-REFERENCES:]
        self._tasks = {task: _Task([each[task].values for each in latest]) for task in (latest[0] if latest else ())}

    def means(self, outcomes: Outcomes) -> dict[str, float]:
        """Estimated weighted mean of every task's outcomes over all its items."""
        return {task: self._mean(task, table) for task, table in outcomes.items()}

    def _mean(self, task: str, table: TaskOutcomes) -> float:
        known = ~np.isnan(table.values)
        if known.all() or task not in self._tasks:
            return table.mean()
        about = self._tasks[task]
        here = float((about.level * table.weights)[known].sum() / table.weights[known].sum())
        everywhere = float((about.level * table.weights).sum() / table.weights.sum())
        # A mean lies among the values: an accuracy is never estimated above 1.
        low, high = min(about.low, float(table.values[known].min())), max(about.high, float(table.values[known].max()))
        return min(max(table.mean() + about.slope * (everywhere - here), low), high)


class _Task:
    """Difficulty of a task's items, and how far a candidate's outcomes follow it."""

    def __init__(self, values: Sequence[Array]) -> None:
        table = np.stack(values)
        self.level: Array = table.mean(axis=0)
        self.slope = _slope(table)
        self.low, self.high = float(table.min()), float(table.max())


def _slope(table: Array) -> float:
    """Mean regression coefficient of a candidate's outcomes on the mean of the others', within [0, 1]."""
    count = table.shape[0]
    if count < 2:
        return 0.0
    others = (table.sum(axis=0) - table) / (count - 1)
    others -= others.mean(axis=1, keepdims=True)
    spread = float(np.square(others).sum())
    if spread == 0.0:
        return 0.0
    return min(max(float((others * table).sum()) / spread, 0.0), 1.0)
