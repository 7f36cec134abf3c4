"""Paired bootstrap over clusters of items (Efron & Tibshirani 1993, chapter 16; for benchmarks: Koehn 2004).

Every draw picks clusters with replacement within each task, the same ones for all candidates, so what an easy or a hard
draw does to one it does to all, and differences between candidates are far more certain than their scores.

Two corrections make intervals honest on small panels. A draw takes n − 1 of a task's n clusters (Rao & Wu 1988), so
that the variance of a mean is s²/n and not (n − 1)/n of it; and quantiles are taken further out, where Student's t has
them (Hesterberg 2015, "What teachers should know about the bootstrap": expanded percentiles).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

DRAWS = 4000
CHUNK = 250
# How often an interval holds what it is for.
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with its bootstrap interval."""

    estimate: float
    low: float
    high: float


class TaskTable(NamedTuple):
    """One task's outcomes on the items that candidates share."""

    values: Array
    """[candidates, items]; NaN where an item was not scored."""
    weights: Array
    """[items]"""
    score: Callable[[Array], Array]
    """From means to scores."""
    clusters: npt.NDArray[np.int64]
    """[items]: items with equal numbers share a document."""


class ClusterSums(NamedTuple):
    """A table by cluster, of which a mean over any choice of clusters is a ratio of sums."""

    totals: Array
    """[candidates, clusters]: sum of weight · value over the known items."""
    weights: Array
    """[candidates, clusters], or [1, clusters] when all candidates know the same items: sum of their weights."""

    @property
    def means(self) -> Array:
        """[candidates]: weighted mean of the known values; NaN for a candidate that has none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Array = self.totals.sum(axis=1) / self.weights.sum(axis=1)
        return means

    @property
    def known(self) -> npt.NDArray[np.int64]:
        """[candidates]: in how many clusters a candidate knows anything."""
        count = (self.weights > 0.0).sum(axis=1)
        return np.broadcast_to(count, self.totals.shape[:1]).astype(np.int64)


def cluster_sums(table: TaskTable) -> ClusterSums:
    """Sums over the items of each cluster."""
    order = np.argsort(table.clusters, kind="stable")
    numbers = table.clusters[order]
    first = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    values, weights = table.values[:, order], table.weights[order]
    known = ~np.isnan(values)
    totals = np.add.reduceat(np.where(known, values, 0.0) * weights, first, axis=1)
    if (known == known[0]).all():
        known = known[:1]
    return ClusterSums(totals, np.add.reduceat(known * weights, first, axis=1))


def resample(tables: Mapping[str, TaskTable], seed: int, draws: int = DRAWS) -> dict[str, Array]:
    """Bootstrap task scores: task -> [candidates, draws]. The same seed gives the same draws."""
    parts = list(resampled(tables, seed, draws))
    return {task: np.concatenate([part[task] for part in parts], axis=1) for task in tables}


def resampled(tables: Mapping[str, TaskTable], seed: int, draws: int = DRAWS) -> Iterator[dict[str, Array]]:
    """The draws of `resample` in pieces of CHUNK, for those who need little of each.

    Means are over the items that a candidate knows; where a draw holds none of them, its own mean stands in. Every task
    has a private generator, so its draws do not depend on what other tasks there are.
    """
    sums = {task: cluster_sums(table) for task, table in tables.items()}
    rngs = {task: np.random.default_rng([seed, 0xB007, *task.encode()]) for task in tables}
    for at in range(0, draws, CHUNK):
        size = min(CHUNK, draws - at)
        yield {task: table.score(_means(sums[task], rngs[task], size)) for task, table in tables.items()}


def _means(sums: ClusterSums, rng: np.random.Generator, draws: int) -> Array:
    """[candidates, draws]"""
    clusters = sums.totals.shape[1]
    picks = rng.integers(clusters, size=(draws, clusters - 1)) + clusters * np.arange(draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=draws * clusters).reshape(draws, clusters).T.astype(np.float64)
    weights = np.broadcast_to(sums.weights @ counts, (sums.totals.shape[0], draws))
    means = np.repeat(sums.means[:, None], draws, axis=1)
    np.divide(sums.totals @ counts, weights, out=means, where=weights > 0.0)
    return means


def interval(estimate: float, draws: Sequence[float] | Array, df: float = math.inf, level: float = LEVEL) -> Interval:
    """Expanded percentile interval. `df`: degrees of freedom, the sum over tasks of clusters − 1."""
    tail = expanded_tail(df, level)
    low, high = np.quantile(np.asarray(draws), [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high))


def expanded_tail(df: float, level: float = LEVEL) -> float:
    """The normal tail beyond Student's t quantile. Hesterberg's √(n/(n − 1)) is left to the n − 1 clusters drawn."""
    if df < 1.0:
        return 0.0
    return float(stats.norm.sf(stats.t.isf((1.0 - level) / 2.0, df)))


def degrees_of_freedom(strata: Sequence[Array]) -> float:
    """Degrees of freedom of the variance Σ d² of a sum over strata (tasks) of clusters, d [clusters] each.

    Satterthwaite 1946: ν = 2 V² / Var(V), here with V = Σ d² and Var(V) = Σ_h (Σ d⁴ − (Σ d²)² / n_h), and never more
    than Σ_h (n_h − 1). For normal d it is that sum. Where few items tell two candidates apart it is far less: eight
    differing answers of two hundred carry about sixteen degrees of freedom, not a hundred and ninety-nine.
    """
    most = float(sum(part.size - 1 for part in strata))
    squares = [np.square(part) for part in strata]
    total = float(sum(part.sum() for part in squares))
    noise = float(sum(np.square(part).sum() - part.sum() ** 2 / part.size for part in squares))
    return most if 2.0 * total**2 >= noise * most else 2.0 * total**2 / noise
