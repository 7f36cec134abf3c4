"""Corrections for having looked at many things."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heterosis.statistics.bootstrap import Array, TaskTable, resample
from heterosis.statistics.multiple import groups_of, holm, optimism, simultaneous, smallest_difference


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    bonferroni = [min(1.0, len(p_values) * p) for p in p_values]
    assert all(p <= more <= most for p, more, most in zip(p_values, adjusted, bonferroni, strict=True))
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    assert [adjusted[at] for at in order] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_the_smallest_difference_is_shown_in_four_of_five_studies() -> None:
    assert smallest_difference(0.01) == pytest.approx(0.028016, abs=1e-5)
    rng = np.random.default_rng(0)
    seen = smallest_difference(1.0) + rng.standard_normal(20_000) - 1.959964 > 0.0
    assert seen.mean() == pytest.approx(0.8, abs=0.01)


def answers(chances: Array, items: int, seed: int) -> Array:
    return (np.random.default_rng(seed).random((chances.size, items)) < chances[:, None]).astype(float)


def bootstrap(values: Array, seed: int, draws: int = 800) -> Any:
    items = values.shape[1]
    known = np.nanmean(values, axis=1)
    return known, resample({"t": TaskTable(values, np.ones(items), lambda m: m, np.arange(items))}, seed, draws)["t"]


def test_the_best_of_a_hundred_equal_candidates_looks_twelve_points_better_and_is_corrected_to_none() -> None:
    chances = np.full(100, 0.5)
    looked, corrected = [], []
    for study in range(40):
        estimates, draws = bootstrap(answers(chances, 100, study), study)
        looked.append(estimates.max() - 0.5)
        corrected.append(estimates.max() - optimism(estimates, draws, np.zeros(100, dtype=np.int64)) - 0.5)
    assert np.mean(looked) == pytest.approx(0.125, abs=0.01)
    assert np.mean(corrected) == pytest.approx(0.0, abs=0.02)


def test_candidates_that_truly_differ_are_corrected_by_less() -> None:
    bias, guessed = [], []
    for study in range(40):
        chances = np.clip(0.5 + 0.1 * np.random.default_rng([study, 1]).standard_normal(50), 0.02, 0.98)
        estimates, draws = bootstrap(answers(chances, 100, study), study)
        best = int(estimates.argmax())
        bias.append(estimates[best] - chances[best])
        guessed.append(optimism(estimates, draws, np.zeros(50, dtype=np.int64)))
    assert np.mean(guessed) == pytest.approx(np.mean(bias), abs=0.015)
    assert np.mean(guessed) < 0.08


def test_generations_of_their_own_level_hide_no_optimism() -> None:
    """A converged search: poor early generations do not make the last one's spread look real."""
    level = np.repeat([0.1, 0.3, 0.7], 20)
    bias, guessed = [], []
    for study in range(40):
        estimates, draws = bootstrap(answers(level, 100, study), study)
        bias.append(estimates.max() - 0.7)
        guessed.append(optimism(estimates, draws, np.repeat([0, 1, 2], 20)))
    assert np.mean(guessed) == pytest.approx(np.mean(bias), abs=0.015)


def test_a_single_candidate_has_no_optimism() -> None:
    estimates, draws = bootstrap(answers(np.array([0.4]), 50, 0), 0)
    assert optimism(estimates, draws, np.zeros(1, dtype=np.int64)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("spread", [0.0, 0.08])
def test_simultaneous_intervals_cover_whichever_candidate_was_chosen(spread: float) -> None:
    plain = together = 0
    for study in range(200):
        chances = np.clip(0.5 + spread * np.random.default_rng([study, 2]).standard_normal(30), 0.02, 0.98)
        values = answers(chances, 80, study)
        values[10:, 40:] = np.nan  # stopped half way
        estimates, draws = bootstrap(values, study, 400)
        best = int(estimates.argmax())
        found = simultaneous(estimates, draws, df=79)[best]
        together += found.low <= chances[best] <= found.high
        low, high = np.quantile(draws[best], [0.025, 0.975])
        plain += low <= chances[best] <= high
    assert together / 200 >= 0.93
    assert plain < together
    if spread == 0.0:
        assert plain / 200 < 0.7


def test_candidates_that_answered_few_items_do_not_widen_the_others_intervals() -> None:
    values = answers(np.full(10, 0.5), 200, 0)
    estimates, draws = bootstrap(values, 0)
    values[5:, 20:] = np.nan
    few_estimates, few_draws = bootstrap(values, 0)
    whole, partial = simultaneous(estimates, draws, 199)[0], simultaneous(few_estimates, few_draws, 199)[0]
    assert partial.high - partial.low == pytest.approx(whole.high - whole.low, rel=0.15)


def test_what_does_not_vary_is_known() -> None:
    found = simultaneous(np.array([0.0, 0.5]), np.repeat([[0.0], [0.5]], 100, axis=1), df=10)
    assert [tuple(each) for each in found] == [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5)]


def test_groups_are_generations_and_small_ones_are_taken_together() -> None:
    assert groups_of([1] * 10 + [2] * 10).tolist() == [0] * 10 + [1] * 10
    assert groups_of(range(20)).tolist() == [0] * 8 + [1] * 8 + [2] * 4
    assert groups_of([1, 1, 1, 2, 2, 2, 3, 3, 3, 4]).tolist() == [0] * 9 + [1]
    assert groups_of([]).tolist() == []
