"""Sign-flip tests of paired differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from heterosis.statistics.bootstrap import TaskTable
from heterosis.statistics.permutation import max_t_p_value, p_value, sign_flips


def table(values: Any, clusters: Any = None, score: Any = lambda mean: mean) -> TaskTable:
    values = np.asarray(values, dtype=float)
    items = values.shape[1]
    return TaskTable(values, np.ones(items), score, np.arange(items) if clusters is None else np.asarray(clusters))


def mean(scores: Any) -> Any:
    return sum(scores.values()) / len(scores)


def test_few_discordant_items_are_enumerated_and_give_the_sign_tests_p_value() -> None:
    one = np.array([1, 1, 1, 1, 1, 0, 1, 0, 1, 1.0])
    two = np.array([0, 0, 0, 0, 0, 1, 1, 0, 1, 1.0])
    flips = sign_flips({"t": table([one, two])}, [(0, 1)], mean, seed=0)
    assert flips.exact
    assert flips.observed == pytest.approx([0.4])
    assert p_value(flips) == pytest.approx(stats.binomtest(5, 6, alternative="greater").pvalue)
    assert p_value(flips.other_way) == pytest.approx(stats.binomtest(1, 6, alternative="greater").pvalue)


def test_the_exact_test_is_worked_by_hand_for_a_curved_score_and_two_tasks() -> None:
    first = table([[0.3, 0.9], [0.1, 0.2]], score=np.exp)
    second = table([[0.5], [0.9]])
    flips = sign_flips({"a": first, "b": second}, [(0, 1)], mean, seed=0)

    def difference(swaps: tuple[bool, ...]) -> float:
        a, b = first.values.copy(), second.values.copy()
        a[:, 0], a[:, 1] = a[::-1, 0] if swaps[0] else a[:, 0], a[::-1, 1] if swaps[1] else a[:, 1]
        b[:, 0] = b[::-1, 0] if swaps[2] else b[:, 0]
        values = (np.exp(a.mean(axis=1)) + b.mean(axis=1)) / 2
        return float(values[0] - values[1])

    all_swaps = [difference(swaps) for swaps in itertools.product((False, True), repeat=3)]
    assert sorted(flips.drawn[0]) == pytest.approx(sorted(all_swaps))
    assert p_value(flips) == np.mean(np.array(all_swaps) >= all_swaps[0] - 1e-12)


def test_more_items_are_drawn_at_random_and_come_near_the_exact_value() -> None:
    one, two = np.zeros(60), np.zeros(60)
    one[:30], two[30:45] = 1.0, 1.0
    flips = sign_flips({"t": table([one, two])}, [(0, 1)], mean, seed=0)
    assert not flips.exact
    assert flips.drawn.shape == (1, 9999)
    exact = stats.binomtest(30, 45, alternative="greater").pvalue
    assert p_value(flips) == pytest.approx(exact, rel=0.25)
    again = sign_flips({"t": table([one, two])}, [(0, 1)], mean, seed=0)
    assert (again.drawn == flips.drawn).all()


def test_candidates_that_answer_alike_are_not_told_apart() -> None:
    flips = sign_flips({"t": table([[1, 0, 1], [1, 0, 1]])}, [(0, 1)], mean, seed=0)
    assert p_value(flips) == p_value(flips.other_way) == 1.0
    assert max_t_p_value(flips, 0) == 1.0


def test_a_tie_counts_against_the_claim() -> None:
    flips = sign_flips({"t": table([[0.1 + 0.2, 0.0], [0.0, 0.3]])}, [(0, 1)], mean, seed=0)
    assert p_value(flips) == 0.75  # the two swaps that give zero differ from the observed zero by rounding alone


def test_a_cluster_is_swapped_as_a_whole() -> None:
    one, two = np.ones((1, 40)), np.zeros((1, 40))
    flips = sign_flips({"t": table(np.concatenate([one, two]), np.repeat([0, 1], 20))}, [(0, 1)], mean, seed=0)
    assert p_value(flips) == 0.25  # two clusters have four patterns, however many items they hold


def test_items_that_one_of_the_two_does_not_know_take_no_part() -> None:
    flips = sign_flips({"t": table([[1, np.nan, 1], [0, 1, np.nan]])}, [(0, 1)], mean, seed=0)
    assert flips.observed == pytest.approx([1.0])
    assert p_value(flips) == 0.5


@pytest.mark.parametrize("items", [4, 8, 30])
@pytest.mark.parametrize("level", [0.05, 0.25])
def test_equal_candidates_are_called_better_no_more_often_than_the_level(items: int, level: float) -> None:
    studies, rejected = 400, 0
    for study in range(studies):
        rng = np.random.default_rng([study, items])
        chance = rng.random(items)
        tables = {
            name: table((rng.random((2, items)) < chance).astype(float), np.arange(items) // size)
            for name, size in (("a", 1), ("b", 2))
        }
        rejected += p_value(sign_flips(tables, [(0, 1)], mean, study, draws=199)) <= level
    assert rejected / studies <= level + 2.5 * np.sqrt(level * (1 - level) / studies)


def test_the_best_of_several_equal_candidates_is_called_better_no_more_often_than_the_level() -> None:
    studies, by_itself, together = 300, 0, 0
    for study in range(studies):
        rng = np.random.default_rng([study, 9])
        tables = {"t": table((rng.random((9, 80)) < 0.5).astype(float))}
        flips = sign_flips(tables, [(row, 8) for row in range(8)], mean, study, draws=199)
        best = int(flips.observed.argmax())
        by_itself += p_value(flips, best) <= 0.05
        together += max_t_p_value(flips, best) <= 0.05
    assert by_itself / studies > 0.12
    assert together / studies <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / studies)


def test_a_real_difference_is_found_and_other_candidates_cost_little() -> None:
    rng = np.random.default_rng(0)
    chances = np.array([0.8, 0.5, 0.5, 0.5])[:, None]
    tables = {"t": table((rng.random((4, 100)) < chances).astype(float))}
    flips = sign_flips(tables, [(0, 3), (1, 3), (2, 3)], mean, seed=0)
    assert p_value(flips, 0) <= 0.002
    assert p_value(flips, 0) <= max_t_p_value(flips, 0) <= 0.01
