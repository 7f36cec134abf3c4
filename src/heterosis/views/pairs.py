"""Two candidates on the items that both answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from heterosis.errors import RecordError
from heterosis.evaluation.panel import Items
from heterosis.finals import Evidence
from heterosis.ledger.record import Candidate
from heterosis.statistics import Objective


class Pair(NamedTuple):
    """What two candidates answered both, and what it says of them."""

    evidence: Evidence
    one: Candidate
    other: Candidate
    items: int


def paired(one: Candidate, other: Candidate, split: Items, objective: Objective, seed: int) -> Pair | None:
    """The two on the items that both answered, scored on those alone.

    A candidate that its race stopped is so compared on what it answered, and not by an estimate of the rest. None where
    some task has no item that both answered, or the objective has no scale yet.
    """
    missing = {
        task: np.isnan(one.outcomes[task].values) | np.isnan(other.outcomes[task].values) for task in split.clusters
    }
    if any(gaps.all() for gaps in missing.values()):
        return None
    items = sum(int((~gaps).sum()) for gaps in missing.values())
    try:
        if any(gaps.any() for gaps in missing.values()):
            one, other = (_restricted(each, missing, split, objective) for each in (one, other))
        return Pair(Evidence([one, other], split, objective, seed), one, other, items)
    except RecordError:  # a normalised objective has no scale before the parents are scored
        return None


def _restricted(candidate: Candidate, missing: dict[str, Any], split: Items, objective: Objective) -> Candidate:
    """The candidate as if it had answered nothing else."""
    outcomes = {
        task: candidate.outcomes[task]._replace(values=np.where(gaps, np.nan, candidate.outcomes[task].values))
        for task, gaps in missing.items()
    }
    scores = {task: float(split.tasks[task].score(table.mean())) for task, table in outcomes.items()}
    return replace(candidate, outcomes=outcomes, scores=scores, value=objective.number(scores))
