"""Candidates compared by one number: the objective, or the score on one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heterosis.statistics.bootstrap import (
    LEVEL,
    Array,
    Interval,
    TaskTable,
    degrees_of_freedom,
    expanded_tail,
    interval,
)
from heterosis.statistics.influence import Gradient, influence
from heterosis.statistics.multiple import simultaneous, smallest_difference
from heterosis.statistics.permutation import Flips, Value, max_t_p_value, p_value, sign_flips


class Scale(NamedTuple):
    """A number that task scores give; higher is better."""

    value: Value
    gradient: Gradient
    """Its derivative by each task's score."""


class Comparison:
    """Estimates, intervals and tests on one scale, for candidates by row."""

    def __init__(
        self, tables: Mapping[str, TaskTable], scale: Scale, estimates: Array, draws: Array, seed: int
    ) -> None:
        """`tables`: those of the tasks that the scale reads; `estimates` [candidates], `draws` [candidates, draws]."""
        self._tables, self._scale, self._seed = tables, scale, seed
        self.estimates, self._draws = estimates, draws
        ends = np.cumsum([np.unique(table.clusters).size for table in tables.values()])
        self._influence = np.split(influence(tables, scale.gradient).values, ends[:-1], axis=1)

    def interval(self, row: int) -> Interval:
        """One candidate's value."""
        df = degrees_of_freedom([part[row] for part in self._influence])
        return interval(float(self.estimates[row]), self._draws[row], df)

    def difference(self, row: int, others: Sequence[int], family: Sequence[int] = ()) -> Interval:
        """One candidate minus the mean of others, over the same draws of items.

        `family`: rows that might have been claimed in place of this one; the interval then holds for all of them.
        """
        rows, there = [row, *(each for each in family if each != row)], list(others)
        estimates = self.estimates[rows] - self.estimates[there].mean()
        draws = self._draws[rows] - self._draws[there].mean(axis=0)
        df = degrees_of_freedom([part[row] - part[there].mean(axis=0) for part in self._influence])
        if len(rows) == 1:
            return interval(float(estimates[0]), draws[0], df)
        return simultaneous(estimates, draws, df)[0]

    def least_difference(self, row: int, others: Sequence[int], family: Sequence[int] = ()) -> Interval:
        """One candidate minus the best of others: min_k d_k over its differences d_k from each.

        Lower bound: min_k low_k, which errs only if the bound of the truly best one does (intersection-union, Berger
        1982). Upper bound: min_k high_k errs if any of the bounds does. Where several others are truly alike that is
        where all of the interval's error lies, so the bounds are taken so far out that together they err in at most
        1 − `level` (5 %) of studies, and never further in than each by itself.
        """
        each = [self.difference(row, [other], family) for other in others]
        apart = self._draws[row] - self._draws[list(others)]
        errors = apart.std(axis=1)
        estimates = np.array([found.estimate for found in each])
        high = min(found.high for found in each)
        if (errors > 0.0).all():
            off = (estimates[:, None] - apart) / errors[:, None]
            df = degrees_of_freedom([part[row] - part[others[int(estimates.argmin())]] for part in self._influence])
            beyond = 1.0 - expanded_tail(df, 1.0 - 2.0 * (1.0 - LEVEL))
            high = max(high, float((estimates + np.quantile(off.max(axis=0), beyond) * errors).min()))
        return Interval(float(estimates.min()), min(found.low for found in each), high)

    def p_values(self, row: int, other: int, family: Sequence[int] = ()) -> tuple[float, float]:
        """One-sided sign-flip p-values: that `row` is better than `other`, and that it is worse.

        `family` as in `difference`.
        """
        if row == other:
            return 1.0, 1.0
        rivals = [each for each in family if each not in (row, other)]
        pairs = [(each, other) for each in (row, *rivals)]
        flips = sign_flips(self._tables, pairs, self._scale.value, self._seed)
        return self._p_value(flips), self._p_value(flips.other_way)

    def _p_value(self, flips: Flips) -> float:
        return p_value(flips) if len(flips.observed) == 1 else max_t_p_value(flips, 0)

    def smallest_difference(self, row: int, other: int) -> float:
        """The true difference between two candidates that these items would have shown."""
        return smallest_difference(float((self._draws[row] - self._draws[other]).std()))
