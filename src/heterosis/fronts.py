"""Pareto studies: which of a search's candidates go on, and which of them no other one beats."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from heterosis.evaluation.panel import Items
from heterosis.ledger.record import Candidate, Record
from heterosis.statistics import Objective
from heterosis.statistics.influence import tables_of
from heterosis.statistics.pareto import front, hypervolume


def spread_out(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most `count` candidates for the finals: the estimated front, thinned where it is crowded, then the next best.

    The best by normalised mean comes first; every further one is the one farthest from those taken (the greedy
    k-centre rule of Gonzalez 1985), so that the ends of the front are kept.
    """
    feasible = [c for c in candidates if c.fitness is not None and c.fitness.violation == 0.0] or list(candidates)
    layer = [candidate for candidate in feasible if not any(_beats(other, candidate) for other in feasible)]
    taken = sorted(layer, key=_value, reverse=True)[:1]
    rest = [candidate for candidate in layer if candidate not in taken]
    while rest and len(taken) < count:
        farthest = max(rest, key=lambda candidate: min(_distance(candidate, other) for other in taken))
        taken.append(farthest)
        rest.remove(farthest)
    others = [candidate for candidate in sorted(feasible, key=_value, reverse=True) if candidate not in layer]
    return [*taken, *others[: count - len(taken)]]


def front_of(record: Record, among: Collection[str], split: Items, objective: Objective, seed: int) -> list[str]:
    """Labels of the candidates on a split that no other one dominates beyond doubt; what misses a constraint is out."""
    scored = [c for c in record.candidates if c.label in among and c.fitness is not None]
    feasible = [c for c in scored if c.fitness is not None and c.fitness.violation == 0.0] or scored
    tables = tables_of([candidate.outcomes for candidate in feasible], split)
    return front([candidate.label for candidate in feasible], tables, objective, seed)


def covered(record: Record, labels: Collection[str]) -> float:
    """Hypervolume of candidates on a split, over the point where every task is as bad as its worst parent."""
    vectors = [c.fitness.vector for c in record.candidates if c.label in labels and c.fitness is not None]
    return hypervolume(vectors, [0.0] * len(vectors[0]))


def _beats(one: Candidate, other: Candidate) -> bool:
    here, there = _vector(one), _vector(other)
    return bool((here >= there).all() and (here > there).any())


def _distance(one: Candidate, other: Candidate) -> float:
    return float(np.abs(_vector(one) - _vector(other)).max())


def _vector(candidate: Candidate) -> np.ndarray:
    assert candidate.fitness is not None
    return np.asarray(candidate.fitness.vector)


def _value(candidate: Candidate) -> float:
    assert candidate.value is not None
    return candidate.value
