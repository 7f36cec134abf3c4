"""Paired bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from heterosis.statistics import interval, resample
from heterosis.statistics.bootstrap import TaskTable


def table(values: np.ndarray, weights: np.ndarray | None = None) -> TaskTable:
    return TaskTable(values, np.ones(values.shape[1]) if weights is None else weights, lambda mean: mean)


def test_the_same_seed_gives_the_same_draws_and_another_seed_others() -> None:
    tables = {"t": table(np.random.default_rng(0).random((2, 50)))}
    assert (resample(tables, 1)["t"] == resample(tables, 1)["t"]).all()
    assert (resample(tables, 1)["t"] != resample(tables, 2)["t"]).any()


def test_candidates_share_the_items_of_every_draw() -> None:
    values = np.random.default_rng(0).random(40)
    draws = resample({"t": table(np.stack([values, values + 0.25]))}, 0)["t"]
    assert draws[1] - draws[0] == pytest.approx(np.full(draws.shape[1], 0.25))


def test_the_spread_of_a_mean_is_its_standard_error() -> None:
    values = (np.random.default_rng(1).random((1, 400)) < 0.3).astype(float)
    draws = resample({"t": table(values)}, 0)["t"][0]
    p = values.mean()
    assert draws.mean() == pytest.approx(p, abs=2e-3)
    assert draws.std() == pytest.approx(np.sqrt(p * (1 - p) / 400), rel=0.05)


def test_a_weighted_mean_is_resampled_as_a_ratio() -> None:
    values, weights = np.array([[1.0, 3.0]]), np.array([1.0, 3.0])
    draws = set(np.round(resample({"t": table(values, weights)}, 0)["t"][0], 9).tolist())
    assert draws == {1.0, 3.0, 2.5}  # both the first, both the second, one of each: (1·1 + 3·3) / 4


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for study in range(300):
        outcomes = (rng.random((1, 120)) < 0.4).astype(float)
        draws = resample({"t": table(outcomes)}, study, draws=500)["t"][0]
        found = interval(float(outcomes.mean()), draws)
        covered += found.low <= 0.4 <= found.high
    assert 0.90 <= covered / 300 <= 0.98
