"""Paired bootstrap over items (Efron & Tibshirani 1993, chapter 16; for benchmarks: Koehn 2004).

Every draw picks items with replacement within each task, the same items for all candidates, so what an easy or a hard
draw does to one it does to all, and differences between candidates are far more certain than their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

DRAWS = 4000
CHUNK = 250


class Interval(NamedTuple):
    """An estimate with its bootstrap percentile interval."""

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


def resample(tables: Mapping[str, TaskTable], seed: int, draws: int = DRAWS) -> dict[str, Array]:
    """Bootstrap task scores: task -> [candidates, draws], from a private generator."""
    rng = np.random.default_rng([seed, 0xB007])
    scores = {}
    for task in sorted(tables):
        table = tables[task]
        means = np.concatenate([_means(table, rng, min(CHUNK, draws - at)) for at in range(0, draws, CHUNK)], axis=1)
        scores[task] = table.score(means)
    return scores


def _means(table: TaskTable, rng: np.random.Generator, draws: int) -> Array:
    items = table.weights.size
    counts = rng.multinomial(items, np.full(items, 1.0 / items), size=draws).astype(np.float64)
    numerator = (table.values * table.weights) @ counts.T
    means: Array = numerator / (counts @ table.weights)
    return means


def interval(estimate: float, draws: Sequence[float] | Array, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws around an estimate."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.asarray(draws), [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high))
