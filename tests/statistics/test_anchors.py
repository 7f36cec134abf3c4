"""Anchors: they stand for all items, beat as many random ones, and know how far off they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from scipy.special import expit

from heterosis.statistics import irt
from heterosis.statistics.anchors import Anchors, Estimator, MeasuredError, choose, pick
from heterosis.statistics.bootstrap import Array

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
PARENTS = (0, 1, 2)
WARMUP = 30
COUNT = 40


def responses(candidates: int, items: int, seed: int, spread: float = 1.0, agreement: float = 1.0) -> Array:
    """Outcomes of a two-parameter logistic model; `agreement` is how much of the noise belongs to the item."""
    rng = np.random.default_rng(seed)
    discrimination, intercept = np.exp(rng.normal(0.0, 0.4, items)), rng.normal(0.5, 1.5, items)
    ability = rng.normal(0.0, spread, candidates)
    own = rng.logistic(0.0, 1.0, (candidates, items)) / (1.0 + agreement)
    shared = agreement * rng.logistic(0.0, 1.0, items)
    return (np.multiply.outer(ability, discrimination) + intercept + shared + own > 0.0).astype(np.float64)


def plain(candidates: int, items: int, seed: int) -> Array:
    """Outcomes of the two-parameter logistic model itself."""
    rng = np.random.default_rng(seed)
    logits = np.multiply.outer(rng.normal(0.0, 1.0, candidates), np.exp(rng.normal(0.0, 0.4, items)))
    chance = expit(logits + rng.normal(0.5, 1.5, items))
    return (rng.random(chance.shape) < chance).astype(np.float64)


def errors(anchors: Anchors, table: Array) -> Array:
    return np.array([anchors.estimate(row[anchors.items]) - row.mean() for row in table])


def chosen(table: Array, estimator: Estimator = "gp-irt", count: int = COUNT, **changes: object) -> Anchors:
    parents: Sequence[int] = PARENTS if estimator in ("mp-irt", "gmp-irt") else ()
    return choose(table, count, estimator, parents=parents, **changes)  # type: ignore[arg-type]


def test_anchors_beat_as_many_random_items_on_candidates_they_have_not_seen() -> None:
    modelled: tuple[Estimator, ...] = ("p-irt", "gp-irt", "mp-irt", "gmp-irt")
    ours: dict[Estimator, list[Array]] = {estimator: [] for estimator in modelled}
    random = []
    for seed in range(4):
        table = plain(WARMUP + 40, 300, seed)
        anchors = chosen(table[:WARMUP], "gmp-irt")
        for estimator in modelled:
            ours[estimator].append(errors(anchors._replace(estimator=estimator), table[WARMUP:]))
        rng = np.random.default_rng(seed)
        for _ in range(20):
            subset = rng.permutation(300)[:COUNT]
            random.append(table[WARMUP:, subset].mean(axis=1) - table[WARMUP:].mean(axis=1))
    by_chance = np.sqrt(np.square(random).mean())
    assert all(np.sqrt(np.square(found).mean()) < 0.95 * by_chance for found in ours.values())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_are_unbiased_within_their_measured_error(estimator: Estimator) -> None:
    found, measured = [], []
    for seed in range(2):
        table = responses(WARMUP + 40, 250, 100 + seed)
        anchors = chosen(table[:WARMUP], estimator)
        assert anchors.error is not None
        found.append(errors(anchors, table[WARMUP:]))
        measured.append(anchors.error.rms)
    assert abs(np.mean(found)) < np.mean(measured) / 2
    assert np.sqrt(np.square(found).mean()) < 1.3 * np.mean(measured)
    assert np.sqrt(np.square(found).mean()) > 0.5 * np.mean(measured)


def test_the_random_error_is_that_of_a_sample_without_replacement() -> None:
    table = plain(WARMUP, 300, 7)
    error = chosen(table).error
    assert error is not None
    variance = table.var(axis=1).mean() / COUNT * (300 - COUNT) / 299
    assert error.random_rms == pytest.approx(np.sqrt(variance), rel=0.1)
    assert error.random_largest > error.random_rms
    assert error.candidates == WARMUP


def test_where_candidates_agree_on_most_items_scores_are_known_far_better_than_from_random_items() -> None:
    error = chosen(responses(WARMUP, 400, 1, spread=0.5, agreement=3.0), "p-irt").error
    assert error is not None
    assert error.rms < error.random_rms / 2


def test_anchors_pay_only_where_both_scores_and_differences_are_better_known() -> None:
    error = MeasuredError(30, 0.02, 0.05, 0.03, 0.06, 0.1, 0.04)
    assert error.pays
    assert not error._replace(difference=0.05).pays
    assert not error._replace(rms=0.07).pays
    expected = (
        "anchors ±2.0 points (at most 5.0; differences ±3.0) against random items ±6.0 points "
        "(at most 10.0; differences ±4.0)"
    )
    assert error.describe() == expected


def test_where_outcomes_are_coin_tosses_nothing_is_claimed() -> None:
    tosses = np.random.default_rng(0).integers(0, 2, (WARMUP, 300)).astype(np.float64)
    error = chosen(tosses, "weighted").error
    assert error is not None
    assert not error.pays


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_anchors_on_every_item_give_the_score_itself(estimator: Estimator) -> None:
    table = plain(12, 30, 2)
    anchors = chosen(table, estimator, count=99)
    assert anchors.items.tolist() == list(range(30))
    np.testing.assert_allclose(errors(anchors, table), 0.0, atol=1e-12)


def test_weights_of_items_enter_anchors_and_score() -> None:
    table = plain(12, 30, 3)
    weights = np.where(np.arange(30) < 10, 0.0, np.arange(30.0))
    anchors = chosen(table, count=99, weights=weights)
    for row in table:
        assert anchors.estimate(row) == pytest.approx(np.average(row, weights=weights))


@pytest.mark.parametrize("count", [1, 7, 60, 200])
def test_there_are_as_many_different_anchors_as_asked_for_and_they_stand_for_all(count: int) -> None:
    # most items coincide, so there are fewer distinct items than anchors
    table = np.hstack([np.ones((20, 120)), np.zeros((20, 60)), plain(20, 20, 4)])
    anchors = chosen(table, count=count)
    assert anchors.items.size == count
    assert (np.diff(anchors.items) > 0).all()
    assert anchors.weights.sum() == pytest.approx(1.0)
    assert (anchors.weights > 0.0).all()


def test_the_weight_of_an_anchor_is_the_share_of_the_items_like_it() -> None:
    model = irt.ItemModel(np.ones(10), np.repeat([3.0, 0.0, -3.0], [5, 3, 2]), np.zeros(4))
    items, weights = pick(model, 3, np.full(10, 0.1), seed=0)
    assert [model.difficulty[at] for at in items] == [-3.0, 0.0, 3.0]
    np.testing.assert_allclose(weights, [0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def all_estimators() -> tuple[Array, list[Anchors]]:
    """A warm-up, and its anchors with each estimator."""
    table = plain(WARMUP, 200, 5)
    anchors = chosen(table, "gmp-irt")
    return table, [anchors._replace(estimator=estimator) for estimator in ESTIMATORS]


def test_unknown_outcomes_on_anchors_are_left_out(all_estimators: tuple[Array, list[Anchors]]) -> None:
    table, each = all_estimators
    for anchors in each:
        outcomes = table[4][anchors.items]
        outcomes[::4] = np.nan
        assert anchors.estimate(outcomes) == pytest.approx(table[4].mean(), abs=0.15)


def test_who_answered_nothing_has_the_score_of_the_prior(all_estimators: tuple[Array, list[Anchors]]) -> None:
    for anchors in all_estimators[1]:
        estimate = anchors.estimate(np.full(COUNT, np.nan))
        assert np.isnan(estimate) if anchors.estimator == "weighted" else 0.3 < estimate < 0.9


def test_all_right_and_all_wrong_are_the_ends_of_the_scale(all_estimators: tuple[Array, list[Anchors]]) -> None:
    table, each = all_estimators
    for anchors in each:
        worst, best = (anchors.estimate(np.full(COUNT, outcome)) for outcome in (0.0, 1.0))
        found = [anchors.estimate(row[anchors.items]) for row in table]
        assert 0.0 <= worst < min(found)
        assert max(found) < best <= 1.0


def test_the_mixed_estimate_lies_between_its_two_parts(all_estimators: tuple[Array, list[Anchors]]) -> None:
    table, each = all_estimators
    named = {anchors.estimator: anchors for anchors in each}
    mixing = named["gp-irt"].mixing
    assert 0.0 < mixing < 1.0
    for row in table:
        mixed, modelled, weighted = (
            named[name].estimate(row[named[name].items]) for name in ("gp-irt", "p-irt", "weighted")
        )
        assert mixed == pytest.approx(mixing * weighted + (1.0 - mixing) * modelled)


def test_without_answers_a_merge_is_expected_between_its_parents() -> None:
    table = plain(WARMUP, 200, 9)
    anchors = chosen(table, "mp-irt")
    expected = anchors.model.probability(float(anchors.model.ability[list(PARENTS)].mean())).mean()
    assert anchors.estimate(np.full(COUNT, np.nan)) == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "table",
    [np.ones((24, 60)), np.zeros((24, 60)), np.ones((1, 50)), np.vstack([np.zeros(9), np.ones((5, 9))])],
    ids=["all right", "all wrong", "one candidate", "two kinds"],
)
def test_degenerate_warm_ups_still_give_estimates(estimator: Estimator, table: Array) -> None:
    parents = [0] if estimator in ("mp-irt", "gmp-irt") else []
    anchors = choose(table, 8, estimator, parents=parents)
    for row in table:
        assert anchors.estimate(row[anchors.items]) == pytest.approx(row.mean(), abs=0.03)


def test_an_error_is_only_reported_where_enough_candidates_answered_everything() -> None:
    table = plain(8, 60, 10)
    table[5:, 3] = np.nan
    assert chosen(table).error is not None
    table[3:, 3] = np.nan
    assert chosen(table).error is None


def test_the_same_warm_up_and_seed_give_the_same_anchors() -> None:
    table = plain(20, 150, 11)
    first, second, other = chosen(table), chosen(table.copy()), chosen(table, seed=1)
    assert first.to_json() == second.to_json()
    assert first.items.tolist() != other.items.tolist()


@pytest.mark.parametrize("candidates", [3, 20])
def test_anchors_survive_json_bit_for_bit(candidates: int) -> None:
    table = plain(candidates, 80, 12)
    anchors = chosen(table, "gmp-irt", count=15)
    again = Anchors.from_json(json.loads(json.dumps(anchors.to_json(), allow_nan=False)))
    assert again.to_json() == anchors.to_json()
    assert again.error == anchors.error
    for row in table:
        assert again.estimate(row[again.items]) == anchors.estimate(row[anchors.items])
