"""What having looked at many things does to a claim: several tests, the best of many candidates, small panels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from heterosis.statistics.bootstrap import LEVEL, Array, Interval, expanded_tail

# Candidates in a group whose spread says how much of a difference between them is noise.
SMALLEST_GROUP = 8


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those at most α may be claimed together, with at most α chance of any false claim.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the i-th smallest of m is multiplied by
    m − i + 1 and is no smaller than those before it.
    """
    adjusted = [1.0] * len(p_values)
    least = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return adjusted


def smallest_difference(sd: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The difference that a panel shows with probability `power`, in the unit of `sd`: (z_{1−α/2} + z_power) · sd.

    `sd`: standard error of the paired difference. A true difference of this size has an interval above zero in 80 % of
    studies; differences much below it mostly stay unseen (Card et al. 2020, "With little power comes great
    responsibility").
    """
    return float((stats.norm.ppf(1.0 - alpha / 2.0) + stats.norm.ppf(power)) * sd)


def simultaneous(estimates: Array, draws: Array, df: float, level: float = LEVEL) -> list[Interval]:
    """Intervals that hold for all candidates at once, and so for whichever was chosen by looking at them.

    `estimates` [candidates], `draws` [candidates, draws] of the same bootstrap. Single-step maxima (Westfall & Young
    1993, section 2.6): estimate − s·q(max_c (draw_c − estimate_c) / s_c) and estimate + s·q(max_c (estimate_c −
    draw_c) / s_c), each at half the error rate. s is a candidate's standard error: in its unit one that answered few
    items does not widen the others' intervals.
    """
    errors = draws.std(axis=1)
    usable = errors > 0.0
    if not usable.any():
        return [Interval(float(estimate), float(estimate), float(estimate)) for estimate in estimates]
    off = (draws[usable] - estimates[usable, None]) / errors[usable, None]
    beyond = 1.0 - expanded_tail(df, level)
    above, below = (float(np.quantile(side.max(axis=0), beyond)) for side in (off, -off))
    return [
        Interval(float(estimate), float(estimate - above * error), float(estimate + below * error))
        for estimate, error in zip(estimates, errors, strict=True)
    ]


def optimism(estimates: Array, draws: Array, groups: npt.NDArray[np.int64]) -> float:
    """How much better the best of many candidates looks, on average, than it is on the items that chose it.

    Bootstrap of the maximum (Efron & Tibshirani 1993, section 17.6; Efron 2014, "Estimation and accuracy after model
    selection"): in every draw the best is chosen again, and its value in the draw is compared with that on the sample.
    The sample's candidates are further apart than they truly are, by their own noise, which would hide up to 30 % of
    the optimism. So the draws are taken around estimates that are drawn together until their spread is the true one,
    within groups and between them (Louis 1984, "Estimating a population of parameter values using Bayes and empirical
    Bayes methods").

    `estimates` [candidates], `draws` [candidates, draws], `groups` [candidates]: candidates with equal numbers were
    proposed together and are drawn towards their mean.
    """
    errors = draws - draws.mean(axis=1, keepdims=True)
    members = (groups == np.unique(groups)[:, None]).astype(np.float64)
    members /= members.sum(axis=1, keepdims=True)
    levels, level_trust = _trust(members @ estimates, members @ errors, np.zeros(len(members), dtype=np.int64))
    means, trust = _trust(estimates, errors, groups)
    level = levels + np.sqrt(level_trust) * (members @ estimates - levels)
    own = np.unique(groups, return_inverse=True)[1]
    drawn = (level[own] + np.sqrt(trust) * (estimates - means))[:, None] + errors
    # As the program chooses: by posterior, in which what was scored on few items counts for less.
    there = (members @ drawn)[own]
    chosen = (there + trust[:, None] * (drawn - there)).argmax(axis=0)
    return float(errors[chosen, np.arange(errors.shape[1])].mean())


def groups_of(generations: Sequence[int], smallest: int = SMALLEST_GROUP) -> npt.NDArray[np.int64]:
    """Groups of candidates in the order of their proposal: generations, small ones taken together."""
    groups = np.zeros(len(generations), dtype=np.int64)
    size = 0
    for at in range(1, len(generations)):
        size += 1
        ends = size >= smallest and generations[at] != generations[at - 1]
        groups[at] = groups[at - 1] + ends
        size = 0 if ends else size
    return groups


def _trust(estimates: Array, errors: Array, groups: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Each candidate's group mean, and the part τ² / (τ² + s²) of its distance from it that is real.

    τ² is the spread within groups beyond noise, pooled (method of moments). Noise is what candidates of a group do not
    share, so what an easy draw does to all of them is none.
    """
    means, noise = np.zeros_like(estimates), np.zeros_like(estimates)
    excess, freedom = 0.0, 0
    for group in np.unique(groups):
        rows = groups == group
        count = int(rows.sum())
        means[rows] = estimates[rows].mean()
        own = np.square(errors[rows] - errors[rows].mean(axis=0)).mean(axis=1)
        noise[rows] = own * count / max(count - 1, 1)
        excess += float((np.square(estimates[rows] - means[rows]) - own).sum())
        freedom += count - 1
    floor = 1e-6 * float(noise.mean())  # keeps the order of candidates where all of their spread is noise
    spread = max(excess / max(freedom, 1), floor)
    trust: Array = np.divide(spread, spread + noise, out=np.ones_like(noise), where=spread + noise > 0.0)
    return means, trust
