"""Which merges no other one beats in every task, when scores are uncertain; and how much such a front covers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from heterosis.statistics.bootstrap import (
    DRAWS,
    Array,
    Interval,
    TaskTable,
    cluster_sums,
    degrees_of_freedom,
    interval,
    resample,
)
from heterosis.statistics.influence import influence
from heterosis.statistics.objective import Objective

LEVEL = 0.95

Gains = Callable[[str, str], Sequence[Interval]]
"""By how much the first is better than the second, in every objective."""


def dominates(gains: Sequence[Interval]) -> bool:
    """Whether one candidate dominates another: paired differences by objective, positive where it is better.

    Pareto's order with evidence: at least as good in every objective's estimate, and in at least one so much better
    that the interval excludes zero. What only looks better everywhere does not dominate.
    """
    return all(gain.estimate >= 0.0 for gain in gains) and any(gain.estimate > 0.0 and gain.low > 0.0 for gain in gains)


def undominated(estimates: Mapping[str, Sequence[float]], gains: Gains) -> list[str]:
    """Labels of those that no other one dominates, the best in the first objective first; never empty.

    Estimates are ordered, so dominance has no cycles. It need not carry over: a candidate that is dominated by one
    outside the front is out, though none of the front may dominate it. Intervals are asked for only where the
    estimates leave dominance open.
    """
    table = {label: np.asarray(values, dtype=np.float64) for label, values in estimates.items()}

    def beaten(label: str) -> bool:
        here = table[label]
        rivals = (other for other, there in table.items() if (there >= here).all() and (there > here).any())
        return any(dominates(gains(other, label)) for other in rivals)

    kept = [label for label in table if not beaten(label)]
    return sorted(kept, key=lambda label: (*(-table[label]).tolist(), label))


def front(
    labels: Sequence[str], tables: Mapping[str, TaskTable], objective: Objective, seed: int, draws: int = DRAWS
) -> list[str]:
    """The front of candidates that answered the same items, every task being an objective.

    `tables`: outcomes by task, one row for each of `labels`. With m tasks the intervals have level 1 − 0.05/m, so that
    two equal candidates dominate one another in at most 5 % of panels (Bonferroni); with four tasks that go together it
    would be 12 % otherwise. That is a statement about each pair: of very many equal candidates the luckiest seems to
    dominate some, so a front is for a split that did not choose them. Leave out those that miss a constraint.
    """
    row = {label: at for at, label in enumerate(labels)}
    drawn = resample(tables, seed, draws)
    estimates, errors, parts = [], [], []
    for task in objective.shares:
        table = tables[task]
        estimates.append(np.asarray(objective.placed(task, table.score(cluster_sums(table).means))))
        errors.append(np.asarray(objective.placed(task, drawn[task])))
        parts.append(influence({task: table}, lambda scores: dict.fromkeys(scores, 1.0)).values)
    level = 1.0 - (1.0 - LEVEL) / len(parts)

    def gains(label: str, other: str) -> list[Interval]:
        here, there = row[label], row[other]
        return [
            interval(
                float(estimate[here] - estimate[there]),
                error[here] - error[there],
                degrees_of_freedom([part[here] - part[there]]),
                level,
            )
            for estimate, error, part in zip(estimates, errors, parts, strict=True)
        ]

    return undominated({label: [each[at] for each in estimates] for label, at in row.items()}, gains)


def hypervolume(points: npt.ArrayLike, reference: Sequence[float]) -> float:
    """Volume between a reference point and the points [n, objectives] above it; higher is better in all objectives.

    Exact, by exclusive volumes (While, Bradstreet & Barone 2012, "A fast way of calculating exact hypervolumes"): quick
    for four objectives and a hundred points, slow far beyond. A point that is not above the reference in some objective
    adds nothing.
    """
    corner = np.asarray(reference, dtype=np.float64)
    sides = np.asarray(points, dtype=np.float64).reshape(-1, corner.size) - corner
    return _volume(_best(sides[(sides > 0.0).all(axis=1)]))


def _volume(sides: Array) -> float:
    """Volume of the union of boxes from the origin; `sides` [n, objectives], none inside another."""
    if sides.shape[0] == 0:
        return 0.0
    if sides.shape[1] == 1:
        return float(sides.max())
    if sides.shape[1] == 2:  # a staircase: narrower steps are higher
        stairs = sides[np.argsort(sides[:, 1])]
        return float((stairs[:, 0] * np.diff(stairs[:, 1], prepend=0.0)).sum())
    # Each box without what the later ones, longer in the last objective, cover of it: one objective fewer.
    ordered = sides[np.argsort(sides[:, -1])]
    total = 0.0
    for at, side in enumerate(ordered):
        shared = np.minimum(ordered[at + 1 :, :-1], side[:-1])
        total += float(side[-1]) * (float(side[:-1].prod()) - _volume(_best(shared)))
    return total


def _best(points: Array) -> Array:
    """Those that no other point equals or exceeds in every objective, equal ones once."""
    points = np.unique(points, axis=0)
    at_least = np.all(points[None] >= points[:, None], axis=2)
    kept: Array = points[at_least.sum(axis=1) == 1]  # itself alone
    return kept
