"""Rungs and clusters of a split, and outcomes that are known in part."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from heterosis.evaluation.panel import Outcomes, Rung, Split, TaskOutcomes, fill
from heterosis.evaluation.tasks import Item

EIGHTHS = (0.125, 0.25, 0.5, 1.0)


def listed(name: str, clusters: list[int]) -> list[Item]:
    """Items of a task, clustered by what they share."""
    return [
        Item(row, f"{name} {row}", f"{name} {row}", (), (f"{name} shares {cluster}",), 1.0 + row % 3)
        for row, cluster in enumerate(clusters)
    ]


def split_of(clusters: dict[str, list[int]], seed: int = 0) -> Split:
    items = {task: listed(task, own) for task, own in clusters.items()}
    return Split("search", dict.fromkeys(items), items, seed=seed)  # type: ignore[arg-type]


def rows_of(rungs: list[Rung], task: str) -> list[int]:
    return [int(row) for rung in rungs for row in rung.at[task]]


CLUSTERINGS = {
    "alone": {"one": list(range(80)), "other": list(range(40))},
    "threes": {"one": [row // 3 for row in range(80)], "other": [row % 13 for row in range(40)]},
    "uneven": {"one": [int(row**0.5) for row in range(100)], "other": [0] * 10 + list(range(1, 9))},
    "few": {"one": list(range(500)), "other": [0, 1, 2]},
    "only one": {"one": list(range(50)), "other": [7, 7, 7]},
}


def test_items_of_one_cluster_have_one_number_and_numbers_run_from_zero() -> None:
    clusters = split_of({"one": [5, 9, 5, 7, 9, 5]}).clusters["one"]
    assert clusters.tolist() == [0, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("clusters", CLUSTERINGS.values(), ids=CLUSTERINGS)
@pytest.mark.parametrize("minimum", [1, 16, 1000])
def test_rungs_part_a_split_into_whole_clusters_of_every_task(clusters: dict[str, list[int]], minimum: int) -> None:
    split = split_of(clusters)
    rungs = split.rungs(EIGHTHS, minimum)
    assert rungs
    for task, numbers in clusters.items():
        assert sorted(rows_of(rungs, task)) == list(range(len(numbers)))
        found = [{numbers[row] for row in rung.at[task]} for rung in rungs]
        assert sum(map(len, found)) == len(set(numbers)), "no cluster lies in two rungs"
        assert all(found)
        assert len(found[0]) >= min(2, len(set(numbers)))
        assert all([split.items[task][row] for row in rung.at[task]] == rung.split.items[task] for rung in rungs)
    if len(rungs) > 1:
        assert min(rung.split.size for rung in rungs) >= minimum


def test_rungs_grow_as_their_fractions_say_in_every_task() -> None:
    rungs = split_of({"one": list(range(80)), "other": list(range(40))}).rungs(EIGHTHS, 8)
    assert [len(rung.at["one"]) for rung in rungs] == [10, 10, 20, 40]
    assert [len(rung.at["other"]) for rung in rungs] == [5, 5, 10, 20]


def test_a_rung_that_is_too_small_is_joined_with_the_next() -> None:
    split = split_of({"one": list(range(80))})
    assert [rung.split.size for rung in split.rungs(EIGHTHS, 11)] == [20, 20, 40]
    assert [rung.split.size for rung in split.rungs(EIGHTHS, 21)] == [40, 40]
    assert [rung.split.size for rung in split.rungs(EIGHTHS, 41)] == [80]
    assert [rung.split.size for rung in split.rungs((0.5, 0.9, 1.0), 16)] == [40, 40]


def test_rungs_are_a_random_sample_that_the_seed_decides() -> None:
    clusters = {"one": list(range(400))}
    first = {seed: rows_of(split_of(clusters, seed).rungs(EIGHTHS, 1)[:1], "one") for seed in range(20)}
    assert first[0] == rows_of(split_of(clusters).rungs(EIGHTHS, 1)[:1], "one")
    assert len(set(map(tuple, first.values()))) == 20
    mean = np.mean([row for rows in first.values() for row in rows])
    assert abs(mean - 199.5) < 4 * 115.5 / math.sqrt(20 * 50)


def test_rungs_with_other_fractions_are_prefixes_of_one_order() -> None:
    split = split_of({"one": list(range(80)), "other": [row // 2 for row in range(40)]})
    coarse, fine = split.rungs((0.5, 1.0), 1), split.rungs(EIGHTHS, 1)
    for task in split.items:
        assert set(rows_of(coarse[:1], task)) == set(rows_of(fine[:3], task))


def answered(split: Split) -> Outcomes:
    """Outcomes of a candidate, a function of the item."""
    return {
        task: TaskOutcomes(np.array([math.sin(item.doc_id) for item in items]), np.array([i.weight for i in items]))
        for task, items in split.items.items()
    }


@pytest.mark.parametrize("clusters", CLUSTERINGS.values(), ids=CLUSTERINGS)
def test_rungs_filled_in_any_order_give_the_outcomes_of_the_whole_split(clusters: dict[str, list[int]]) -> None:
    split = split_of(clusters)
    whole, rungs = answered(split), split.rungs(EIGHTHS, 4)
    for order in (rungs, rungs[::-1]):
        found: Outcomes | None = None
        for rung in order:
            before = 0 if found is None else split.known(found)
            found = fill(found, rung, answered(rung.split), split)
            assert split.known(found) == before + rung.split.size
        assert found is not None
        for task in whole:
            assert found[task].values.tobytes() == whole[task].values.tobytes()
            assert found[task].weights.tobytes() == whole[task].weights.tobytes()


def test_filling_leaves_what_was_known_as_it_was() -> None:
    split = split_of({"one": list(range(40))})
    first, second = split.rungs((0.5, 1.0), 1)
    half = fill(None, first, answered(first.split), split)
    before = half["one"].values.copy()
    fill(half, second, answered(second.split), split)
    assert np.array_equal(half["one"].values, before, equal_nan=True)
    assert np.isnan(before[second.at["one"]]).all()


def test_the_mean_is_over_known_values_and_unknown_weights_are_kept() -> None:
    partial = TaskOutcomes(np.array([1.0, np.nan, 4.0]), np.array([2.0, 9.0, 1.0]))
    assert partial.mean() == 2.0
    after = TaskOutcomes.from_json(json.loads(json.dumps(partial.to_json(), allow_nan=False)))
    assert np.array_equal(after.values, partial.values, equal_nan=True)
    assert after.weights.tobytes() == partial.weights.tobytes()
    assert math.isnan(TaskOutcomes(np.full(2, np.nan), np.ones(2)).mean())
