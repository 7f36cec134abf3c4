"""Who did best in a search, when some were scored on many items and some on few."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from heterosis.evaluation.panel import Items
from heterosis.ledger.record import Candidate
from heterosis.statistics import Objective
from heterosis.statistics.bootstrap import Array
from heterosis.statistics.influence import influence_of
from heterosis.statistics.racing import posterior

# Samplers that propose one candidate at a time have no generations: so many neighbours stand in for one.
NEIGHBOURS = 8
# So many candidates for each place may come back into the race for the lead.
CONTENDERS = 4


def leaders(
    candidates: Sequence[Candidate],
    split: Items,
    objective: Objective,
    count: int,
    extend: Callable[[Candidate], Candidate | None],
) -> list[Candidate]:
    """The best `count` scored proposals, each on all items.

    A race leaves some with few items, and the luckiest of those would lead. So whoever leads without having answered
    everything answers more of them (`extend`), and the standings are made again, until all leaders are complete:
    nobody goes on for an estimate, and the lucky fall back after few items. Where all are alike everyone would lead
    once; after `CONTENDERS` for each place no others are let in.
    """
    known = {candidate.label: candidate for candidate in candidates}
    entered: set[str] = set()
    while True:
        ranked = standings(list(known.values()), split, objective)
        if len(entered) >= CONTENDERS * count:
            ranked = [candidate for candidate in ranked if candidate.label in entered or not candidate.is_partial]
        partial = [candidate for candidate in ranked[:count] if candidate.is_partial]
        if not partial:
            return ranked[:count]
        for candidate in partial:
            entered.add(candidate.label)
            further = extend(candidate)
            assert further is None or further.known > candidate.known, "an extended candidate answers more items"
            if further is None:
                del known[candidate.label]
            else:
                known[candidate.label] = further


def standings(candidates: Sequence[Candidate], split: Items, objective: Objective) -> list[Candidate]:
    """Scored proposals from best to worst by posterior: each drawn towards its generation by as much as it is noise.

    Feasible candidates come first; equal ones in the order in which they were proposed.
    """
    groups = _groups(candidates)
    errors = np.zeros(len(candidates))
    for rows in groups:
        errors[rows] = _errors([candidates[row] for row in rows], split, objective)
    group = np.zeros(len(candidates), dtype=np.int64)
    for number, rows in enumerate(groups):
        group[rows] = number
    values = np.array([candidate.value for candidate in candidates], dtype=np.float64)
    drawn = posterior(values, errors, group) if len(candidates) else values

    def key(row: int) -> tuple[float, float, int]:
        fitness = candidates[row].fitness
        assert fitness is not None
        return (-fitness.violation, float(drawn[row]), -row)

    return [candidates[row] for row in sorted(range(len(candidates)), key=key, reverse=True)]


def _groups(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Rows by generation; generations of one are taken together with their neighbours."""
    found: list[list[int]] = []
    for _, members in itertools.groupby(range(len(candidates)), key=lambda row: candidates[row].generation):
        rows = list(members)
        if found and len(rows) == 1 and len(found[-1]) < NEIGHBOURS:
            found[-1] += rows
        else:
            found.append(rows)
    return found


def _errors(candidates: Sequence[Candidate], split: Items, objective: Objective) -> Array:
    """Standard error of each candidate against the mean of those that answered the same items."""
    found = influence_of([candidate.outcomes for candidate in candidates], split, objective)
    answered = np.maximum(found.known.sum(axis=0), 1.0)
    typical = found.values.sum(axis=0) / answered
    errors: Array = np.sqrt(np.square((found.values - typical) * found.known).sum(axis=1))
    return errors
