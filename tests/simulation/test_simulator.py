"""The simulator itself: what it says of true scores holds for the answers that it gives."""

from __future__ import annotations

import numpy as np
import pytest
from simulation import Family, Nature, SimulatedPanel, SimulatedScorer

from heterosis.config import RacingConfig
from heterosis.evaluation.panel import fill

SMALL = Nature(layers=6)
SIZES = {"search": 40, "selection": 10, "test": 10}


def test_the_true_score_is_what_many_items_come_to() -> None:
    family = Family(SMALL, 3)
    panel = SimulatedPanel(family, {**SIZES, "test": 40_000}, seed=1)
    for recipe in family.baselines.values():
        found, true = SimulatedScorer(panel, "test").measure(recipe).scores, family.true_scores(family.weights(recipe))
        assert found == pytest.approx(true, abs=4 * 0.5 / 200)  # four standard errors of 40,000 items


def test_no_recipe_near_the_optimum_is_better_than_it() -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        family = Family(SMALL, seed)
        best = family.true_value(family.best)
        for step in (1e-3, 1e-2, 0.1):
            moved = family.best + step * rng.standard_normal(family.best.shape)
            assert family.true_value(moved) < best
        assert all(family.true_value(family.weights(recipe)) < best for recipe in family.baselines.values())


def test_answers_are_a_function_of_item_and_recipe() -> None:
    family = Family(SMALL)
    panel, again = (SimulatedPanel(family, SIZES, seed=1) for _ in range(2))
    recipe, split = family.baselines["average"], panel.splits["search"]
    one, other = panel.answers(recipe, split), again.answers(recipe, again.splits["search"])
    assert all((one[task].values == other[task].values).all() for task in family.tasks)


def test_a_split_scored_by_rungs_has_the_outcomes_of_the_whole() -> None:
    family = Family(SMALL)
    panel = SimulatedPanel(family, SIZES, seed=1, cluster=2)
    recipe, split = family.baselines["average"], panel.splits["search"]
    policy, outcomes = RacingConfig(), None
    for rung in split.rungs(policy.rungs, policy.minimum):
        outcomes = fill(outcomes, rung, panel.answers(recipe, rung.split), split)
    assert outcomes is not None
    whole = panel.answers(recipe, split)
    assert all((outcomes[task].values == whole[task].values).all() for task in family.tasks)


def test_near_recipes_answer_more_alike_than_equally_good_far_ones() -> None:
    family = Family(Nature(layers=6, curvature=0.0, uneven=0.0, disturbance=1.0))
    panel = SimulatedPanel(family, {**SIZES, "search": 2000})
    split = panel.splits["search"]
    start = np.full((3, 6), 0.5)

    def differing(distance: float) -> float:
        rows = [start, start + distance]
        answers = [panel.answers_at(weights, split) for weights in rows]
        return float(np.mean([(answers[0][task].values != answers[1][task].values).mean() for task in family.tasks]))

    assert differing(0.0) == 0.0
    assert 0.0 < differing(0.01) < differing(0.1) < differing(0.5) - 0.05


def test_items_of_one_document_are_answered_alike() -> None:
    family = Family(SMALL)
    panel = SimulatedPanel(family, {**SIZES, "search": 4000}, cluster=4)
    split = panel.splits["search"]
    values = panel.answers(family.baselines["average"], split)["t0"].values.reshape(-1, 4)
    assert np.corrcoef(values[:, 0], values[:, 1])[0, 1] > 0.2
    assert (split.clusters["t0"].reshape(-1, 4) == np.arange(1000)[:, None]).all()
