"""Families whose best merge is known: do searches come near it?"""

from __future__ import annotations

import pytest
from simulation import Family, Nature, Plan, SimulatedPanel, search_for

from heterosis.config import RacingConfig

# Two modes and no roughness, so that four knots can express the optimum nearly.
NATURE = Nature(layers=8, parents=2, tasks=2, modes=2, roughness=0.0)
SIZES = {"search": 300, "selection": 1, "test": 1}
KNOTS = {"knots": 4}


# The best baseline is 0.04 to 0.07 below the optimum.
NEAR = 0.02


@pytest.mark.parametrize(
    "plan",
    [
        Plan("cmaes", KNOTS, candidates=300),
        Plan("cmaes", KNOTS, candidates=500, racing=RacingConfig()),
        Plan("tpe", KNOTS, candidates=200),
    ],
    ids=["cmaes", "cmaes racing", "tpe"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_ends_within_two_points_of_the_planted_optimum(plan: Plan, seed: int) -> None:
    family = Family(NATURE, seed)
    searched = search_for(SimulatedPanel(family, SIZES, seed), plan, seed)
    space, mean = searched.found
    found = max(searched.record.proposed, key=lambda c: c.value or 0.0).recipe if mean is None else space.recipe(mean)
    optimum = family.true_value(family.best)
    assert all(family.true_value(family.weights(recipe)) < optimum - 1.5 * NEAR for recipe in family.baselines.values())
    assert family.true_value(family.weights(found)) > optimum - NEAR
