"""Paired, stratified, clustered bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from heterosis.statistics import interval, resample
from heterosis.statistics.bootstrap import TaskTable, cluster_sums, degrees_of_freedom, expanded_tail

Generator = np.random.Generator


def table(values: Any, weights: Any = None, clusters: Any = None) -> TaskTable:
    values = np.asarray(values, dtype=float)
    items = values.shape[1]
    return TaskTable(
        values,
        np.ones(items) if weights is None else np.asarray(weights, dtype=float),
        lambda mean: mean,
        np.arange(items) if clusters is None else np.asarray(clusters),
    )


def test_the_same_seed_gives_the_same_draws_and_another_seed_others() -> None:
    tables = {"t": table(np.random.default_rng(0).random((2, 50)))}
    assert (resample(tables, 1)["t"] == resample(tables, 1)["t"]).all()
    assert (resample(tables, 1)["t"] != resample(tables, 2)["t"]).any()


def test_a_tasks_draws_do_not_depend_on_the_other_tasks() -> None:
    one, two = (table(np.random.default_rng(seed).random((2, 30))) for seed in (0, 1))
    alone = resample({"one": one}, 1)["one"]
    assert (resample({"two": two, "one": one}, 1)["one"] == alone).all()
    assert not np.allclose(resample({"two": one}, 1)["two"], alone)


def test_candidates_share_the_items_of_every_draw() -> None:
    values = np.random.default_rng(0).random(40)
    draws = resample({"t": table(np.stack([values, values + 0.25]))}, 0)["t"]
    assert draws[1] - draws[0] == pytest.approx(np.full(draws.shape[1], 0.25))


def test_the_spread_of_a_mean_is_its_standard_error() -> None:
    """Also of few items, which plain resampling understates by (n − 1) / n."""
    values = np.random.default_rng(1).standard_normal((1, 8))
    draws = resample({"t": table(values)}, 0, draws=40_000)["t"][0]
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)
    assert draws.std() == pytest.approx(values.std(ddof=1) / np.sqrt(8), rel=0.02)


def test_items_of_a_cluster_come_together() -> None:
    values = np.repeat(np.random.default_rng(1).standard_normal(20), 5)[None]
    numbers = np.repeat(np.arange(20), 5)
    shuffled = np.random.default_rng(2).permutation(100)
    draws = resample({"t": table(values[:, shuffled], clusters=numbers[shuffled])}, 0)["t"]
    assert draws.std() == pytest.approx(resample({"t": table(values[:, ::5])}, 0)["t"].std(), rel=0.05)


def test_a_weighted_mean_is_resampled_as_a_ratio() -> None:
    found = resample({"t": table([[1.0, 3.0, 7.0]], [1.0, 3.0, 2.0])}, 0)["t"][0]
    pairs = [(1, 1, 3, 3), (1, 1, 7, 2), (3, 3, 7, 2)]
    means = {(a * v + b * w) / (v + w) for a, v, b, w in pairs} | {1.0, 3.0, 7.0}
    assert set(np.round(found, 9)) == {round(mean, 9) for mean in means}


def test_means_are_over_the_items_that_a_candidate_knows() -> None:
    values = np.random.default_rng(3).random((1, 60))
    partial = np.where(np.arange(60) < 20, values, np.nan)
    both = table(np.concatenate([values, partial]))
    assert cluster_sums(both).means == pytest.approx([values.mean(), values[0, :20].mean()])
    draws = resample({"t": both}, 0)["t"]
    assert draws[1].mean() == pytest.approx(values[0, :20].mean(), abs=0.01)
    assert draws[1].std() == pytest.approx(values[0, :20].std(ddof=1) / np.sqrt(20), rel=0.1)


def test_a_draw_without_a_known_item_falls_back_to_the_candidates_own_mean() -> None:
    values = np.full((2, 5), np.nan)
    values[0], values[1, 3] = 0.5, 0.75
    draws = resample({"t": table(values)}, 0)["t"]
    assert (draws[1] == 0.75).all()
    alone = resample({"t": table([[0.25]])}, 0)["t"]
    assert (alone == 0.25).all()


def test_quantiles_are_taken_where_students_t_has_them() -> None:
    assert expanded_tail(math.inf) == pytest.approx(0.025)
    assert expanded_tail(9) == pytest.approx(0.01184, abs=1e-4)  # Φ(−2.262)
    assert expanded_tail(0) == 0.0
    draws = np.random.default_rng(0).standard_normal(200_000)
    found = interval(0.0, draws, df=9)
    assert (found.low, found.high) == pytest.approx((-2.262, 2.262), abs=0.03)


def test_degrees_of_freedom_go_with_how_many_clusters_tell_two_apart() -> None:
    rng = np.random.default_rng(0)
    normal = [rng.standard_normal(5000), rng.standard_normal(3000)]
    assert degrees_of_freedom(normal) == pytest.approx(7998, rel=0.1)
    few = np.zeros(200)
    few[:8] = [1, -1, 1, 1, 1, -1, 1, 1]
    assert degrees_of_freedom([few]) == pytest.approx(16, rel=0.1)
    assert degrees_of_freedom([np.zeros(10), np.zeros(5)]) == 13
    assert degrees_of_freedom([np.array([1.0, -1.0] * 10)]) == 19


def paired(items: int, better: float, worse: float) -> Callable[[Generator], tuple[TaskTable, float]]:
    """Two candidates that answer most items alike; `better` and `worse`: how often one alone is right."""

    def draw(rng: Generator) -> tuple[TaskTable, float]:
        base, luck = rng.random(items) < 0.5, rng.random(items)
        one = np.where(luck < better, True, np.where(luck < better + worse, False, base))
        two = np.where(luck < better, False, np.where(luck < better + worse, True, base))
        return table(np.stack([one, two])), better - worse

    return draw


def in_clusters(clusters: int, size: int) -> Callable[[Generator], tuple[TaskTable, float]]:
    def draw(rng: Generator) -> tuple[TaskTable, float]:
        shared = np.repeat(rng.standard_normal(clusters), size)
        values = 0.1 + shared + rng.standard_normal(clusters * size)
        return table(np.stack([values, 0 * values]), clusters=np.repeat(np.arange(clusters), size)), 0.1

    return draw


def skewed(items: int) -> Callable[[Generator], tuple[TaskTable, float]]:
    def draw(rng: Generator) -> tuple[TaskTable, float]:
        values = rng.exponential(size=items)
        return table(np.stack([values, 0 * values])), 1.0

    return draw


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        ([paired(60, 0.2, 0.1)], "60 items"),
        ([paired(200, 0.05, 0.02)], "few items that differ"),
        ([in_clusters(20, 5)], "clusters"),
        ([skewed(60)], "skewed"),
        ([paired(60, 0.2, 0.1), in_clusters(12, 5), paired(100, 0.1, 0.1)], "several tasks"),
    ],
)
def test_intervals_of_differences_cover_the_truth_as_often_as_they_say(kinds: list[Any], name: str) -> None:
    covered = 0
    for study in range(600):
        rng = np.random.default_rng([study, 5])
        drawn = [kind(rng) for kind in kinds]
        tables = {str(number): one for number, (one, _) in enumerate(drawn)}
        truth = float(np.mean([true for _, true in drawn]))
        sums = [cluster_sums(one) for one in tables.values()]
        draws = np.mean([found[0] - found[1] for found in resample(tables, study, 600).values()], axis=0)
        estimate = float(np.mean([each.means[0] - each.means[1] for each in sums]))
        apart = [
            (each.totals[0] - each.totals[1] - (each.means[0] - each.means[1]) * each.weights[0])
            / each.weights[0].sum()
            for each in sums
        ]
        found = interval(estimate, draws, degrees_of_freedom(apart))
        covered += found.low - 1e-12 <= truth <= found.high + 1e-12
    assert 0.925 <= covered / 600 <= 0.975, name  # 95 % within 2.8 standard errors of 600 studies
