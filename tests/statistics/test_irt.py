"""The item model: planted parameters come back, and matrices that say little do no harm."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import expit

from heterosis.statistics import irt
from heterosis.statistics.bootstrap import Array


class Planted(NamedTuple):
    responses: Array
    discrimination: Array
    difficulty: Array
    ability: Array


def planted(candidates: int, items: int, seed: int = 0, spread: float = 1.0) -> Planted:
    """Outcomes drawn from a two-parameter logistic model."""
    rng = np.random.default_rng(seed)
    discrimination = np.exp(rng.normal(0.0, 0.4, items))
    difficulty, ability = rng.normal(-0.5, 1.5, items), rng.normal(0.0, spread, candidates)
    chance = expit(discrimination * np.subtract.outer(ability, difficulty))
    outcomes = (rng.random(chance.shape) < chance).astype(np.float64)
    return Planted(outcomes, discrimination, difficulty, ability)


def chances(model: irt.ItemModel) -> Array:
    return np.stack([model.probability(at) for at in model.ability])


def test_planted_abilities_and_difficulties_come_back() -> None:
    truth = planted(60, 400)
    model = irt.fit(truth.responses)
    assert np.corrcoef(model.ability, truth.ability)[0, 1] > 0.98
    assert np.corrcoef(model.intercept, -truth.discrimination * truth.difficulty)[0, 1] > 0.95
    assert model.ability.mean() == pytest.approx(0.0, abs=1e-9)
    assert model.ability.std() == pytest.approx(1.0)


def test_planted_discriminations_come_back_where_there_are_many_candidates() -> None:
    truth = planted(400, 100)
    model = irt.fit(truth.responses)
    assert np.corrcoef(model.discrimination, truth.discrimination)[0, 1] > 0.85


def test_predicted_and_observed_means_agree() -> None:
    truth = planted(30, 300)
    assert chances(irt.fit(truth.responses)).mean() == pytest.approx(truth.responses.mean(), abs=1e-3)


def test_unknown_outcomes_are_not_wrong_ones() -> None:
    truth = planted(40, 300, seed=1)
    responses = truth.responses.copy()
    responses[::2, ::3] = np.nan
    model = irt.fit(responses)
    assert np.corrcoef(model.ability, truth.ability)[0, 1] > 0.97
    scale = truth.ability.std()
    gap = (truth.ability[::2].mean() - truth.ability[1::2].mean()) / scale
    assert model.ability[::2].mean() - model.ability[1::2].mean() == pytest.approx(gap, abs=0.2)


def test_the_order_of_items_and_candidates_does_not_matter() -> None:
    truth = planted(20, 80)
    rng = np.random.default_rng(3)
    rows, columns = rng.permutation(20), rng.permutation(80)
    straight, shuffled = irt.fit(truth.responses), irt.fit(truth.responses[rows][:, columns])
    np.testing.assert_allclose(shuffled.ability, straight.ability[rows], atol=1e-4)
    np.testing.assert_allclose(shuffled.intercept, straight.intercept[columns], atol=1e-3)


def test_a_start_saves_iterations_and_decides_nothing() -> None:
    truth = planted(20, 80)
    whole = irt.fit(truth.responses)
    kept = np.arange(1, 20)
    warm = irt.fit(truth.responses[kept], whole._replace(ability=whole.ability[kept]))
    np.testing.assert_allclose(chances(warm), chances(irt.fit(truth.responses[kept])), atol=5e-3)


def test_the_same_responses_give_the_same_model_bit_for_bit() -> None:
    truth = planted(20, 80)
    first, second = irt.fit(truth.responses), irt.fit(truth.responses.copy())
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "responses",
    [
        np.ones((20, 100)),
        np.zeros((20, 100)),
        np.ones((1, 50)),
        np.zeros((1, 1)),
        np.full((3, 5), np.nan),
        np.vstack([np.ones(40), np.zeros(40)]),
        np.hstack([np.ones((24, 30)), np.zeros((24, 30))]),
        np.zeros((0, 5)),
    ],
    ids=["all right", "all wrong", "one candidate", "one outcome", "nothing known", "one of each", "split", "nobody"],
)
def test_degenerate_responses_give_a_finite_model(responses: Array) -> None:
    model = irt.fit(responses)
    assert all(np.isfinite(values).all() for values in model)


def test_items_that_the_more_able_miss_have_negative_discriminations() -> None:
    # merges that lean to "yes" solve the one half and miss the other
    rng = np.random.default_rng(0)
    leaning = rng.normal(0.0, 1.0, 40)
    loads = np.repeat([2.0, -2.0], 60)
    chance = expit(np.multiply.outer(leaning, loads) + 0.3)
    model = irt.fit((rng.random(chance.shape) < chance).astype(np.float64))
    assert abs(np.corrcoef(model.ability, leaning)[0, 1]) > 0.95
    assert abs(np.corrcoef(model.discrimination, loads)[0, 1]) > 0.9
    assert chances(model).mean() == pytest.approx(chance.mean(), abs=0.02)


def test_what_all_solve_is_expected_to_be_solved() -> None:
    model = irt.fit(np.hstack([np.ones((24, 60)), np.zeros((24, 20)), planted(24, 120).responses]))
    assert chances(model)[:, :60].mean() > 0.96
    assert chances(model)[:, 60:80].mean() < 0.04


def test_ability_is_where_the_posterior_is_highest() -> None:
    truth = planted(30, 60)
    model = irt.fit(truth.responses)
    found = irt.ability(model, truth.responses[3], (0.2, 0.7))

    def log_posterior(at: float) -> float:
        chance = model.probability(at)
        right = truth.responses[3] == 1.0
        return float(np.log(np.where(right, chance, 1.0 - chance)).sum()) - (at - 0.2) ** 2 / (2 * 0.7**2)

    assert all(log_posterior(found) >= log_posterior(found + step) for step in (-0.01, 0.01, -1.0, 1.0))


def test_who_answered_nothing_is_where_the_prior_is() -> None:
    model = irt.fit(planted(30, 60).responses)
    assert irt.ability(model, np.full(60, np.nan), (0.4, 0.5)) == pytest.approx(0.4)
    assert irt.ability_error(model, np.zeros(60, dtype=np.bool_), 0.4, 0.5) == pytest.approx(0.5)


def test_one_more_right_answer_raises_ability_where_items_discriminate() -> None:
    truth = planted(30, 60)
    model = irt.ItemModel(truth.discrimination, -truth.discrimination * truth.difficulty, truth.ability)
    answers = np.zeros(60)
    found = []
    for item in range(60):
        answers[item] = 1.0
        found.append(irt.ability(model, answers))
    assert (np.diff(found) > 0.0).all()


def test_the_standard_error_of_an_ability_is_the_spread_of_its_estimates() -> None:
    truth = planted(200, 150)
    model = irt.ItemModel(truth.discrimination, -truth.discrimination * truth.difficulty, truth.ability)
    rng = np.random.default_rng(5)
    chance = model.probability(0.5)
    found = [irt.ability(model, (rng.random(150) < chance).astype(np.float64), (0.0, 100.0)) for _ in range(400)]
    expected = irt.ability_error(model, np.ones(150, dtype=np.bool_), 0.5, 100.0)
    assert np.std(found) == pytest.approx(expected, rel=0.15)


def test_the_difficulty_of_an_item_is_the_ability_that_has_an_even_chance() -> None:
    model = irt.fit(planted(30, 20).responses)
    for at, difficulty in enumerate(model.difficulty):
        assert model.probability(difficulty)[at] == pytest.approx(0.5)


def test_a_model_survives_json_bit_for_bit() -> None:
    model = irt.fit(planted(10, 30).responses)
    again = irt.ItemModel.from_json(json.loads(json.dumps(model.to_json())))
    for one, other in zip(model, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_zeros_and_ones_are_binary() -> None:
    assert irt.is_binary([0.0, 1.0, np.nan])
    assert irt.is_binary([])
    assert not irt.is_binary([0.0, 0.5])
    assert not irt.is_binary([-1.2, np.nan])
