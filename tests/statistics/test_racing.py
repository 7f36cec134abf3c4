"""Races: error rates, and when a ranking is good enough."""

from __future__ import annotations

import numpy as np
import pytest

from heterosis.statistics.influence import Influence, effective_df
from heterosis.statistics.racing import comparison_level, look, posterior, reliability, surely_better


def as_influence(outcomes: np.ndarray) -> tuple[np.ndarray, Influence]:
    """Estimates and influence of plain means over items, one cluster each."""
    items = outcomes.shape[1]
    estimates = outcomes.mean(axis=1)
    values = (outcomes - estimates[:, None]) / items * np.sqrt(items / (items - 1))
    return estimates, Influence(values, np.ones_like(outcomes))


def answers(abilities: np.ndarray, items: int, rng: np.random.Generator, own: float = 0.5) -> np.ndarray:
    """0/1 outcomes of candidates that find the same items hard."""
    difficulty = rng.normal(size=items)
    return (abilities[:, None] + own * rng.normal(size=(abilities.size, items)) > difficulty).astype(float)


def test_who_answers_nearly_all_that_the_others_miss_is_in_and_they_are_out() -> None:
    rng = np.random.default_rng(0)
    outcomes = answers(np.array([2.0, 2.1, -1.0, -1.1]), 200, rng)
    assert look(*as_influence(outcomes), keep=2, level=0.01).places == ["in", "in", "out", "out"]


def test_equal_candidates_stay_open() -> None:
    outcomes = np.tile(np.array([1.0, 0.0, 1.0, 1.0]), (4, 10))
    assert look(*as_influence(outcomes), keep=2, level=0.05).places == ["open"] * 4


def test_differences_are_paired_so_a_few_items_are_enough_where_candidates_answer_alike() -> None:
    rng = np.random.default_rng(1)
    common = rng.random(400) < 0.5
    worse, better = common.astype(float), common.astype(float)
    better[np.flatnonzero(~common)[:20]] = 1.0  # five points better, and never worse
    found = surely_better(*as_influence(np.stack([better, worse])), level=0.001)
    assert found.tolist() == [[False, True], [False, False]]
    shuffled = rng.permutation(worse)
    assert not surely_better(*as_influence(np.stack([better, shuffled])), level=0.001).any()


def test_a_candidate_that_belongs_among_the_best_is_stopped_no_more_often_than_stated() -> None:
    """All looks taken together, at the hardest spot: half the candidates are just below the last of the best."""
    rng = np.random.default_rng(2)
    rungs, keep, error, races, lost = (20, 40, 80), 4, 0.1, 400, 0
    abilities = np.array([0.5] * keep + [0.49] * 4)
    level = comparison_level(error, abilities.size - keep, len(rungs))
    for _ in range(races):
        outcomes = answers(abilities, 80, rng)
        out = False
        for items in rungs:
            out |= look(*as_influence(outcomes[:, :items]), keep, level).places[0] == "out"
        lost += out
    assert lost / races <= error + 3 * np.sqrt(error * (1 - error) / races)


def test_few_differing_answers_carry_few_degrees_of_freedom() -> None:
    differences = np.zeros(200)
    differences[:8] = 1.0
    assert effective_df(differences) == pytest.approx(7.0)
    assert effective_df(np.zeros(200)) == 1.0


def test_one_sided_comparisons_of_equal_candidates_err_no_more_often_than_their_level() -> None:
    rng = np.random.default_rng(3)
    trials, wrong = 4000, 0
    for _ in range(trials):
        wrong += surely_better(*as_influence(answers(np.zeros(2), 30, rng)), level=0.02)[0, 1]
    assert wrong / trials <= 0.02 + 3 * np.sqrt(0.02 * 0.98 / trials)


def test_reliability_is_high_where_spread_is_real_and_low_where_it_is_noise() -> None:
    rng = np.random.default_rng(4)
    real = [reliability(*as_influence(answers(np.linspace(-1, 1, 10), 100, rng))) for _ in range(50)]
    noise = [reliability(*as_influence(answers(np.zeros(10), 100, rng))) for _ in range(50)]
    assert np.mean(real) > 0.9
    assert np.mean(noise) < 0.25


def test_reliability_of_a_single_candidate_or_of_equal_ones_is_none() -> None:
    assert reliability(*as_influence(np.ones((1, 5)))) == 0.0
    assert reliability(*as_influence(np.tile([1.0, 0.0, 1.0], (3, 1)))) == 0.0


def test_the_posterior_draws_the_uncertain_further_than_the_certain() -> None:
    values = np.array([0.50, 0.60, 0.70, 0.80, 0.80])
    errors = np.array([0.01, 0.01, 0.01, 0.01, 0.20])
    drawn = posterior(values, errors, np.zeros(5, dtype=np.int64))
    assert drawn[4] < drawn[3] <= 0.8
    assert drawn[4] > values.mean()


def test_the_posterior_is_nearer_to_the_truth_than_the_scores() -> None:
    rng = np.random.default_rng(5)
    truth = rng.normal(0.5, 0.02, size=200)
    errors = rng.choice([0.01, 0.05], size=200)
    seen = truth + errors * rng.normal(size=200)
    drawn = posterior(seen, errors, np.repeat(np.arange(20), 10))
    assert np.square(drawn - truth).mean() < 0.5 * np.square(seen - truth).mean()


def test_where_all_spread_is_noise_the_posterior_is_the_mean() -> None:
    values = np.array([0.4, 0.6, 0.5])
    assert posterior(values, np.full(3, 0.5), np.zeros(3, dtype=np.int64)) == pytest.approx(np.full(3, 0.5))
