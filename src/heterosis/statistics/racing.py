"""Races: who is surely among the best few of a generation, who surely is not, and when its ranking is good enough.

The selection race of Heidrich-Meisner & Igel 2009 ("Hoeffding and Bernstein races for selecting policies in
evolutionary direct policy search"), with paired differences on shared items in place of their bounds: candidates of one
generation answer most items alike, so their differences are known long before their scores are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from heterosis.statistics.bootstrap import Array
from heterosis.statistics.influence import Influence, effective_df

# A variance of estimates that is no more than rounding.
ROUNDING = 1e-20

Place = Literal["in", "out", "open"]


class Look(NamedTuple):
    """What one look at a race says."""

    places: list[Place]
    """For each candidate: surely among the best, surely not, or open."""
    reliability: float
    """Part of the spread of the candidates' estimates that is not noise, 0 to 1 (the intraclass correlation)."""


def look(estimates: Array, influence: Influence, keep: int, level: float) -> Look:
    """Place candidates that have answered the same items.

    `estimates` [candidates]: objective. `keep`: how many are wanted. `level`: error rate of one comparison, one-sided.
    A candidate is out when `keep` others are surely better, in when it is surely better than all but `keep - 1` of the
    others. A candidate that belongs among the best is placed out only if one of the comparisons with those that do not
    belong there errs, so its error rate is at most `level` times their number.
    """
    better = surely_better(estimates, influence, level)
    count = estimates.size
    places: list[Place] = []
    for at in range(count):
        if better[:, at].sum() >= keep:
            places.append("out")
        elif better[at].sum() >= count - keep:
            places.append("in")
        else:
            places.append("open")
    return Look(places, reliability(estimates, influence))


def surely_better(estimates: Array, influence: Influence, level: float) -> npt.NDArray[np.bool_]:
    """[i, j]: whether i is better than j by a one-sided paired t test at `level`."""
    count = estimates.size
    found = np.zeros((count, count), dtype=np.bool_)
    for at in range(count):
        apart = influence.values[at] - influence.values
        error = np.sqrt(np.square(apart).sum(axis=1))
        gain = estimates[at] - estimates
        with np.errstate(invalid="ignore", divide="ignore"):
            score = np.where(error > 0.0, gain / error, 0.0)
        found[at] = score > stats.t.isf(level, effective_df(apart))
    return found


def reliability(estimates: Array, influence: Influence) -> float:
    """1 − (mean squared error of a candidate against its peers) / (variance of the estimates), within [0, 1]."""
    if estimates.size < 2:
        return 0.0
    spread = float(np.var(estimates, ddof=1))
    if spread <= ROUNDING:
        return 0.0
    apart = influence.values - influence.values.mean(axis=0)
    noise = float(np.square(apart).sum() / (estimates.size - 1))
    return min(max(1.0 - noise / spread, 0.0), 1.0)


def comparison_level(error: float, rivals: int, looks: int) -> float:
    """Level of one comparison so that a candidate's error rate over all looks is at most `error` (Bonferroni)."""
    return error / (max(rivals, 1) * max(looks, 1))


def posterior(estimates: Array, errors: Array, groups: npt.NDArray[np.int64]) -> Array:
    """Estimates drawn towards the mean of their group by as much as they are noise: empirical Bayes.

    θ̂ = μ_g + τ² / (τ² + s²) · (x − μ_g), with τ² the spread within groups beyond noise, pooled over groups
    (Morris 1983, "Parametric empirical Bayes inference"). `errors` [candidates] are standard errors against the group.
    """
    means = np.zeros_like(estimates)
    excess, freedom = 0.0, 0
    for group in np.unique(groups):
        rows = groups == group
        means[rows] = estimates[rows].mean()
        excess += float((np.square(estimates[rows] - means[rows]) - np.square(errors[rows])).sum())
        freedom += int(rows.sum()) - 1
    excess += float(np.square(errors).mean()) * np.unique(groups).size  # a group's mean takes one degree of freedom
    true_spread = max(excess / max(freedom, 1), 0.0)
    noise = np.square(errors)
    with np.errstate(invalid="ignore", divide="ignore"):
        trust = np.where(true_spread + noise > 0.0, true_spread / (true_spread + noise), 1.0)
    drawn: Array = means + trust * (estimates - means)
    return drawn
