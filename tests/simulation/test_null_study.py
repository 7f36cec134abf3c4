"""Studies in which no merge is better than another: how often does the program claim an improvement?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scipy import stats
from simulation import Family, Nature, Plan, SimulatedPanel, certify, search_for, select

from heterosis.config import RacingConfig

EQUAL = Nature(layers=4, tasks=2, ability=0.3, uneven=0.0, curvature=0.0, disturbance=1.0)
RACING = RacingConfig(minimum=8)
SIZES = {"search": 24, "selection": 30, "test": 50}
LARGEST_RATE = 0.05


class Design(NamedTuple):
    """A kind of null study."""

    nature: Nature
    plan: Plan
    is_false: Callable[[str], bool]
    """Whether a verdict claims what is not so."""
    cluster: int = 1


def claims_something(verdict: str) -> bool:
    """No merge is better than any parent here, so every claim is false."""
    return not verdict.startswith("no improvement shown")


def claims_more_than_baselines(verdict: str) -> bool:
    """Here merges are better than parents, but none is better than another."""
    return "beats every parent and the best baseline" in verdict


KNOTS = Plan(depth={"knots": 2}, candidates=16)
# One parent is the hardest case: with more, a claim has to hold against each of them.
DESIGNS = (
    Design(EQUAL._replace(parents=1), KNOTS, claims_something),
    Design(EQUAL._replace(parents=1), KNOTS._replace(racing=RACING), claims_something, cluster=2),
    Design(EQUAL._replace(parents=2), KNOTS._replace(optimizer="tpe"), claims_something),
    Design(EQUAL._replace(parents=2, parents_lack=1.5), KNOTS._replace(racing=RACING), claims_more_than_baselines),
)


def verdict(design: Design, seed: int) -> str:
    """The verdict of one simulated study, from its search to its claim."""
    panel = SimulatedPanel(Family(design.nature, seed), SIZES, seed, design.cluster)
    searched = search_for(panel, design.plan, seed)
    chosen = select(panel, searched, design.plan)
    found: str = certify(panel, chosen, searched.found.space, seed).claims["verdict"]
    return found


def test_an_improvement_that_is_none_is_claimed_in_at_most_five_studies_of_a_hundred() -> None:
    studies = 200
    false = [
        DESIGNS[seed % len(DESIGNS)].is_false(verdict(DESIGNS[seed % len(DESIGNS)], seed)) for seed in range(studies)
    ]
    rate = stats.binomtest(sum(false), studies).proportion_ci(confidence_level=0.9)
    assert rate.high <= LARGEST_RATE, f"{sum(false)} false claims"  # the upper bound of a one-sided 95 % interval


def test_merges_that_answer_alike_are_never_claimed_to_differ() -> None:
    alike = Design(EQUAL._replace(parents=2, disturbance=0.0), KNOTS._replace(racing=RACING), claims_something)
    assert not any(claims_something(verdict(alike, seed)) for seed in range(12))


def test_a_real_improvement_is_claimed() -> None:
    """That the program is not merely silent."""
    real = Design(Nature(layers=4, tasks=2, parents=2), KNOTS._replace(candidates=40), claims_something)
    assert sum(claims_something(verdict(real, seed)) for seed in range(6)) >= 5
