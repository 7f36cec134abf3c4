"""Studies with real effects: how often do the intervals that are reported hold the truth?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from simulation import Chosen, Family, Nature, Plan, SimulatedPanel, certify, search_for, select

from heterosis.config import RacingConfig
from heterosis.space import Space

STUDIES, PANELS, ITEMS = 12, 30, 60
PLAN = Plan(depth={"knots": 2}, candidates=24, racing=RacingConfig())
NOMINAL, TOLERANCE = 0.95, 0.02

Bounds = dict[str, tuple[float, float]]


def decided(seed: int) -> tuple[Family, Chosen, Space]:
    """A study up to the opening of its test split."""
    family = Family(Nature(layers=8), seed)
    panel = SimulatedPanel(family, {"search": 40, "selection": 40, "test": 2}, seed)
    searched = search_for(panel, PLAN, seed)
    return family, select(panel, searched, PLAN), searched.found.space


def truths(family: Family, chosen: Chosen) -> dict[str, float]:
    """What the intervals of a study should hold."""
    weights = {label: family.weights(proposal.recipe) for label, proposal in chosen.proposals.items()}
    values = {label: family.true_value(at) for label, at in weights.items()}
    winner, parents = chosen.choice.winner, [values[name] for name in family.names]
    return {
        "objective": values[winner],
        **family.true_scores(weights[winner]),
        "best_parent": values[winner] - max(parents),
        "mid_parent": values[winner] - float(np.mean(parents)),
        "best_baseline": values[winner] - values[chosen.choice.best_baseline],
    }


def reports(family: Family, chosen: Chosen, space: Space, cluster: int, seed: int) -> Iterator[Bounds]:
    """What the study reports, for one test split after another."""
    for number in range(PANELS):
        panel = SimulatedPanel(family, {"search": 2, "selection": 2, "test": ITEMS}, PANELS * seed + number, cluster)
        found = certify(panel, chosen, space, number)
        row = found.evidence.row(chosen.choice.winner)
        rows = {"objective": row["objective"], **row["tasks"], **found.claims["heterosis"]}
        yield {name: (each["low"], each["high"]) for name, each in rows.items()}


@pytest.mark.parametrize("cluster", [1, 3])
def test_reported_intervals_hold_the_truth_nineteen_times_of_twenty(cluster: int) -> None:
    hits: dict[str, list[bool]] = defaultdict(list)
    for seed in range(STUDIES):
        family, chosen, space = decided(seed)
        truth = truths(family, chosen)
        if chosen.choice.winner == chosen.choice.best_baseline:
            del truth["best_baseline"]  # it differs from itself by exactly nothing
        for bounds in reports(family, chosen, space, cluster, seed):
            for name, true in truth.items():
                kind = "task" if name in family.tasks else name
                hits[kind].append(bounds[name][0] <= true <= bounds[name][1])
    for kind, held in hits.items():
        # The test is of 93–97 %; a rate of so many panels may be off by two standard errors. Tasks of a panel are
        # independent, panels of a study too: they share recipes, not items.
        margin = 2.0 * math.sqrt(NOMINAL * (1.0 - NOMINAL) / len(held))
        assert abs(np.mean(held) - NOMINAL) <= TOLERANCE + margin, f"{kind}: {np.mean(held):.3f} of {len(held)}"
