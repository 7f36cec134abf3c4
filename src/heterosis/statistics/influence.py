"""How much each item moves a candidate's objective: the linear part of it, from which standard errors follow.

The delta method for stratified, clustered samples: an objective is a smooth function of task means, so its error is to
first order a sum over clusters of items (Särndal, Swensson & Wretman 1992, section 5.5; Davison & Hinkley 1997,
section 2.7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heterosis.evaluation.panel import Items, Outcomes
from heterosis.statistics.bootstrap import Array, ClusterSums, TaskTable, cluster_sums
from heterosis.statistics.objective import Objective

# Step of the numerical derivative of a task's score by its mean.
STEP = 1e-6

Gradient = Callable[[Mapping[str, float]], Mapping[str, float]]


class Influence(NamedTuple):
    """One row a candidate, one column a cluster of items of some task."""

    values: Array
    """[candidates, clusters]: what the cluster adds to the objective; 0 where it is not known. Scaled so that the sum
    of squares of a row, or of a difference of two rows, is a variance."""
    known: Array
    """[candidates, clusters]: 1 where the candidate has outcomes."""


def influence(tables: Mapping[str, TaskTable], gradient: Gradient) -> Influence:
    """Influence of every cluster on every candidate's objective.

    `gradient` gives the derivative of the objective by each task's score, at a candidate's scores.
    """
    sums = {task: cluster_sums(table) for task, table in tables.items()}
    scores = {task: table.score(sums[task].means) for task, table in tables.items()}
    candidates = next(iter(sums.values())).totals.shape[0]
    slopes = [gradient({task: float(scores[task][at]) for task in tables}) for at in range(candidates)]
    parts, known = [], []
    for task, table in tables.items():
        slope = np.array([each[task] for each in slopes]) * _derivative(table, sums[task].means)
        part, there = _task_influence(sums[task])
        parts.append(slope[:, None] * part)
        known.append(there)
    return Influence(np.concatenate(parts, axis=1), np.concatenate(known, axis=1))


def tables_of(outcomes: Sequence[Outcomes], split: Items) -> dict[str, TaskTable]:
    """Outcomes on a split's items by task, one row for each of `outcomes`."""
    return {
        task: TaskTable(
            values=np.stack([each[task].values for each in outcomes]),
            weights=outcomes[0][task].weights,
            score=split.tasks[task].score,
            clusters=split.clusters[task],
        )
        for task in split.clusters
    }


def influence_of(outcomes: Sequence[Outcomes], split: Items, objective: Objective) -> Influence:
    """Influence of every cluster of a split's items on the objective of candidates with these outcomes."""
    return influence(tables_of(outcomes, split), objective.gradient)


def _derivative(table: TaskTable, means: Array) -> Array:
    above, below = table.score(means + STEP), table.score(means - STEP)
    slope: Array = np.nan_to_num((above - below) / (2 * STEP))
    return slope


def _task_influence(sums: ClusterSums) -> tuple[Array, Array]:
    total = np.maximum(sums.weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    parts = (sums.totals - np.nan_to_num(sums.means)[:, None] * sums.weights) / total
    known = np.broadcast_to(sums.weights > 0.0, parts.shape).astype(np.float64)
    count = known.sum(axis=1, keepdims=True)
    scale = np.sqrt(count / np.maximum(count - 1.0, 1.0))
    return parts * scale, known


def effective_df(differences: Array) -> Array:
    """Degrees of freedom of a variance estimated by Σ d²: (Σ d²)² / Σ d⁴ − 1, at least 1. Last axis: clusters.

    Where few items tell two candidates apart, few count: eight differing answers of two hundred carry seven degrees of
    freedom, not a hundred and ninety-nine (after Satterthwaite 1946).
    """
    squares = np.square(differences)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.square(squares.sum(axis=-1)) / np.square(squares).sum(axis=-1) - 1.0
    effective: Array = np.maximum(np.nan_to_num(found), 1.0)
    return effective
