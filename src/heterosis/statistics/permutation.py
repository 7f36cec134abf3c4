"""Sign-flip tests of a difference between two candidates on shared items.

Where two candidates are equally good, it is chance which of them answered a cluster of items the better way, so their
outcomes there may be swapped (Fisher 1935; for paired systems: Noreen 1989; Yeh 2000). Whole clusters are swapped, each
task's by themselves, and everything is computed again from the swapped outcomes: task means, scores, objective. Any
objective can be tested so.

Several candidates against one are tested together by giving all of them the same swaps (Westfall & Young 1993; joint
flips as in Nichols & Holmes 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heterosis.statistics.bootstrap import Array, TaskTable, cluster_sums

PERMUTATIONS = 9999
CHUNK = 1000
# Up to so many discordant clusters all swaps are tried: 2^12 = 4096.
EXACT = 12
# What differs by less is a tie, and a tie counts against the claim.
ROUNDING = 1e-9

Value = Callable[[Mapping[str, Array]], Any]
"""From task scores, arrays of one shape, to an objective of that shape. Higher is better."""


class Flips(NamedTuple):
    """Differences of objectives under swapped outcomes."""

    observed: Array
    """[pairs]"""
    drawn: Array
    """[pairs, draws]"""
    exact: bool
    """Whether the draws are all possible swaps, the observed outcomes among them."""

    @property
    def other_way(self) -> Flips:
        """The same for the second minus the first of every pair."""
        return Flips(-self.observed, -self.drawn, self.exact)


def sign_flips(
    tables: Mapping[str, TaskTable],
    pairs: Sequence[tuple[int, int]],
    value: Value,
    seed: int,
    draws: int = PERMUTATIONS,
) -> Flips:
    """Differences of the first minus the second row of every pair, with the same swaps for all pairs.

    Only items that both know take part. A task with fewer items weighs no less: means are per task.
    """
    tasks = [_Pairs(table, pairs) for table in tables.values()]
    sizes = [task.apart.shape[1] for task in tasks]
    rng = np.random.default_rng([seed, 0xF11B])
    exact = sum(sizes) <= EXACT
    parts = []
    for flips in _patterns(sum(sizes), rng, draws, exact):
        pieces = np.split(flips, np.cumsum(sizes)[:-1])
        scores = [task.swapped(piece) for task, piece in zip(tasks, pieces, strict=True)]
        first, second = (dict(zip(tables, side, strict=True)) for side in zip(*scores, strict=True))
        parts.append(np.asarray(value(first)) - np.asarray(value(second)))
    drawn = np.concatenate(parts, axis=1)
    return Flips(drawn[:, 0], drawn if exact else drawn[:, 1:], exact)


class _Pairs:
    """One task's outcomes of several pairs, by cluster."""

    def __init__(self, table: TaskTable, pairs: Sequence[tuple[int, int]]) -> None:
        rows = np.array(pairs)
        both = np.isnan(table.values[rows[:, 0]]) | np.isnan(table.values[rows[:, 1]])
        sums = [
            cluster_sums(table._replace(values=np.where(both, np.nan, table.values[rows[:, side]]))) for side in (0, 1)
        ]
        apart = sums[0].totals - sums[1].totals
        self.apart: Array = apart[:, (apart != 0.0).any(axis=0)]
        """[pairs, discordant clusters]: what the first has more than the second."""
        self._totals = [each.totals.sum(axis=1, keepdims=True) for each in sums]
        self._weight = sums[0].weights.sum(axis=1, keepdims=True)
        self._score = table.score

    def swapped(self, flips: Array) -> tuple[Array, Array]:
        """Scores [pairs, draws] of both sides; flips [discordant clusters, draws] is 1 where outcomes are swapped."""
        moved = self.apart @ flips
        one, other = self._totals
        return self._score((one - moved) / self._weight), self._score((other + moved) / self._weight)


def _patterns(clusters: int, rng: np.random.Generator, draws: int, exact: bool) -> Iterator[Array]:
    """Swaps [clusters, chunk]: first none, then all others or so many random ones."""
    if exact:
        yield (np.arange(2**clusters) >> np.arange(clusters)[:, None] & 1).astype(np.float64)
        return
    yield np.zeros((clusters, 1))
    for at in range(0, draws, CHUNK):
        yield rng.integers(2, size=(clusters, min(CHUNK, draws - at)), dtype=np.int8).astype(np.float64)


def p_value(flips: Flips, pair: int = 0) -> float:
    """One-sided p-value of a pair by itself: its first is better than its second."""
    return _share(flips.drawn[pair], float(flips.observed[pair]), flips.exact)


def max_t_p_value(flips: Flips, pair: int) -> float:
    """One-sided p-value of a pair that may have been picked among all pairs because it looked best.

    Differences are compared in units of their standard deviations, the pair's observed one with the largest of each
    draw, so the error rate holds for whichever pair was picked.
    """
    spread = flips.drawn.std(axis=1)
    usable = spread > 0.0
    if not usable[pair]:
        return 1.0
    largest = (flips.drawn[usable] / spread[usable, None]).max(axis=0)
    return _share(largest, float(flips.observed[pair] / spread[pair]), flips.exact)


def _share(drawn: Array, observed: float, exact: bool) -> float:
    """(1 + draws that reach it) / (1 + draws): never 0, and valid for any number of draws (Davison & Hinkley 1997)."""
    slack = ROUNDING * max(float(np.abs(drawn).max()), abs(observed))
    reached = int((drawn >= observed - slack).sum())
    return reached / drawn.size if exact else (1 + reached) / (1 + drawn.size)
