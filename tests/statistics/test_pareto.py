"""Fronts under uncertainty, and hypervolumes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from heterosis.statistics import Interval, Objective
from heterosis.statistics.bootstrap import Array, TaskTable
from heterosis.statistics.objective import TaskShare
from heterosis.statistics.pareto import dominates, front, hypervolume, undominated

ONE, TWO = Interval(0.1, 0.05, 0.15), Interval(0.1, -0.05, 0.25)
EQUAL, LESS = Interval(0.0, -0.1, 0.1), Interval(-0.01, -0.1, 0.1)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([ONE, ONE], True),
        ([ONE, TWO], True),
        ([ONE, EQUAL], True),
        ([TWO, TWO], False),
        ([EQUAL, EQUAL], False),
        ([ONE, LESS], False),
        ([Interval(0.0, 0.01, 0.02), EQUAL], False),
    ],
)
def test_to_dominate_is_to_look_no_worse_anywhere_and_to_be_better_somewhere(
    gains: list[Interval], expected: bool
) -> None:
    assert dominates(gains) is expected


def certain(estimates: dict[str, tuple[float, ...]]) -> list[str]:
    """The front when every difference is known exactly."""
    return undominated(
        estimates,
        lambda a, b: [Interval(x - y, x - y, x - y) for x, y in zip(estimates[a], estimates[b], strict=True)],
    )


def test_without_uncertainty_the_front_is_paretos() -> None:
    rng = np.random.default_rng(0)
    for objectives in (1, 2, 3):
        points = {f"c{i}": tuple(rng.integers(0, 6, objectives).astype(float)) for i in range(30)}
        expected = {
            a
            for a, here in points.items()
            if not any(
                all(y >= x for x, y in zip(here, there, strict=True)) and there != here for there in points.values()
            )
        }
        assert set(certain(points)) == expected


def test_the_front_is_in_the_same_order_whatever_order_candidates_came_in() -> None:
    points = {"d": (1.0, 4.0), "a": (3.0, 2.0), "c": (1.0, 4.0), "b": (4.0, 1.0), "out": (0.0, 0.0)}
    for order in itertools.permutations(points):
        assert certain({label: points[label] for label in order}) == ["b", "a", "c", "d"]


def test_nobody_is_excluded_on_a_difference_that_could_be_chance() -> None:
    points = {"a": (1.0, 1.0), "b": (0.5, 0.5)}
    assert undominated(points, lambda *_: [Interval(0.5, -0.1, 1.1)] * 2) == ["a", "b"]


SHARES = {"right": TaskShare(1.0, True), "bits": TaskShare(1.0, False)}


def tables(right: Array, bits: Array) -> dict[str, TaskTable]:
    return {
        task: TaskTable(values, np.ones(values.shape[1]), lambda mean: mean, np.arange(values.shape[1]))
        for task, values in (("right", right), ("bits", bits))
    }


def objective() -> Objective:
    found = Objective("pareto", SHARES)
    found.calibrate({"x": {"right": 0.3, "bits": 2.0}, "y": {"right": 0.7, "bits": 1.0}})
    return found


def test_a_front_takes_the_direction_of_each_task_and_pairs_items() -> None:
    rng = np.random.default_rng(0)
    right, bits = rng.random(80), rng.random(80)
    noise = 0.02 * rng.standard_normal((2, 80))
    values = tables(
        np.stack([right, right + 0.05 + noise[0], right - 0.05]), np.stack([bits, bits - 0.05 + noise[1], bits - 0.2])
    )
    assert front(["base", "better", "other"], values, objective(), 0) == ["better", "other"]


def test_a_front_is_a_function_of_its_seed() -> None:
    rng = np.random.default_rng(3)
    values = tables((rng.random((12, 40)) < 0.5).astype(float), rng.random((12, 40)))
    labels = [f"c{number}" for number in range(12)]
    assert front(labels, values, objective(), 5) == front(labels, values, objective(), 5)


def test_of_two_equal_candidates_one_dominates_in_a_twentieth_of_panels_at_most() -> None:
    """Tasks that go together are the hard case: then looking better in one is looking better in all."""
    rng = np.random.default_rng(1)
    wrong, panels = 0, 300
    for _ in range(panels):
        shared = rng.standard_normal((2, 60))
        right, bits = (0.7 * shared + 0.7 * rng.standard_normal((2, 60)) for _ in range(2))
        wrong += len(front(["a", "b"], tables(right, -bits), objective(), 0, draws=1000)) == 1
    assert wrong <= panels * 0.05 + 2 * np.sqrt(panels * 0.05 * 0.95)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_the_hypervolume_is_the_volume_of_the_union(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    points, reference = rng.random((7, objectives)), rng.random(objectives) * 0.2
    sides = points[(points > reference).all(axis=1)] - reference
    union = sum(  # inclusion and exclusion
        (-1) ** (size + 1) * np.min(sides[list(some)], axis=0).prod()
        for size in range(1, len(sides) + 1)
        for some in itertools.combinations(range(len(sides)), size)
    )
    assert hypervolume(points, reference.tolist()) == pytest.approx(union)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_the_hypervolume_ignores_order_and_what_is_covered_and_grows_with_what_is_not(objectives: int) -> None:
    rng = np.random.default_rng(9)
    points, reference = rng.random((20, objectives)), [0.0] * objectives
    volume = hypervolume(points, reference)
    assert hypervolume(rng.permutation(points), reference) == pytest.approx(volume, rel=1e-12)
    assert hypervolume(np.concatenate([points, points[:3], points[:3] * 0.9]), reference) == pytest.approx(volume)
    assert hypervolume(np.concatenate([points, [[1.1] + [0.01] * (objectives - 1)]]), reference) > volume
    assert hypervolume(np.concatenate([points, [[2.0] * (objectives - 1) + [-1.0]]]), reference) == pytest.approx(
        volume
    )


def test_no_point_covers_nothing() -> None:
    assert hypervolume(np.empty((0, 2)), [0.0, 0.0]) == 0.0
    assert hypervolume([[-1.0, 2.0]], [0.0, 0.0]) == 0.0
