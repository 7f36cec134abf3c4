"""The result document: what a search saw, what it is worth, and what the winner keeps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from heterosis.evaluation.panel import TaskOutcomes
from heterosis.ledger import Proposal, Record
from heterosis.ledger.record import Measurement
from heterosis.recipe import Recipe, Source
from heterosis.results import clusters_in, constraints_met, search_optimism, time_spent
from heterosis.statistics import Objective
from heterosis.statistics.objective import Bound, TaskShare

PARENTS = ("x", "y")
ITEMS = 100
OBJECTIVE = Objective("mean", {"t": TaskShare(1.0, True)})
SPLIT: Any = SimpleNamespace(
    items={"t": range(ITEMS)},
    tasks={"t": SimpleNamespace(score=lambda mean: mean)},
    clusters={"t": np.arange(ITEMS) // 2},
)
RECIPE = Recipe(
    method="linear",
    base=Source(name="base", model="b", digest="0"),
    parents=tuple(Source(name=name, model=name, digest=name) for name in PARENTS),
)


def measured(values: np.ndarray) -> Measurement:
    table = TaskOutcomes(values, np.ones(ITEMS))
    seconds = {"merge": 1.0, "swap": 0.5, "score": 2.0, "total": 4.0}
    return Measurement({"t": table.mean()}, {"t": table}, "w", seconds, int((~np.isnan(values)).sum()))


def searched(seed: int, chances: list[float], known: list[int] | None = None) -> Record:
    """Two parents at 0.5, and proposals that answered the first `known` items."""
    rng = np.random.default_rng(seed)
    record = Record(optuna.storages.InMemoryStorage(), "study")
    for name in PARENTS:
        found = measured((rng.random(ITEMS) < 0.5).astype(float))
        record.add(Proposal(name, 0, RECIPE), found, found.scores["t"])
    for number, chance in enumerate(chances, 1):
        values = (rng.random(ITEMS) < chance).astype(float)
        if known is not None:
            values[known[number - 1] :] = np.nan
        found = measured(values)
        record.add(Proposal(f"c{number}", 1 + number // 10, RECIPE, (number / 1000,)), found, found.scores["t"])
    return record


def test_the_best_of_many_equal_proposals_is_corrected_by_what_it_only_seems_to_be() -> None:
    seems, guessed = [], []
    for seed in range(20):
        record = searched(seed, [0.5] * 40)
        found = search_optimism(record, SPLIT, OBJECTIVE, PARENTS, seed)
        assert found is not None
        assert found["candidates"] == 40
        assert found["corrected"] == pytest.approx(found["estimate"] - found["optimism"])
        seems.append(next(c.value for c in record.proposed if c.label == found["candidate"]) - 0.5)
        guessed.append(found["optimism"])
    assert np.mean(seems) > 0.05
    assert np.mean(guessed) == pytest.approx(np.mean(seems), abs=0.02)


def test_a_truly_better_proposal_stays_better() -> None:
    found = search_optimism(searched(0, [0.9, *[0.3] * 20]), SPLIT, OBJECTIVE, PARENTS, 0)
    assert found is not None
    assert found["candidate"] == "c1"
    assert found["optimism"] == pytest.approx(0.0, abs=0.01)
    assert 0.1 < found["low"] < found["estimate"] < found["high"]


def test_proposals_that_a_race_stopped_cannot_have_been_the_best_until_they_are_scored_to_the_end() -> None:
    record = searched(1, [0.6] * 10, known=[ITEMS] * 5 + [20] * 5)
    found = search_optimism(record, SPLIT, OBJECTIVE, PARENTS, 1)
    assert found is not None
    assert found["candidates"] == 5
    values = np.ones(ITEMS)
    done = replace(record.proposed[7], outcomes={"t": TaskOutcomes(values, np.ones(ITEMS))}, value=1.0)
    with_it = search_optimism(record, SPLIT, OBJECTIVE, PARENTS, 1, [done])
    assert with_it is not None
    assert (with_it["candidates"], with_it["candidate"]) == (6, "c8")


def test_where_none_answered_everything_they_are_compared_on_what_they_answered() -> None:
    alone = searched(2, [1.0], known=[20])
    one = search_optimism(alone, SPLIT, OBJECTIVE, PARENTS, 2)
    assert one is not None
    parent = max((c for c in alone.baselines), key=lambda c: c.value or 0.0)
    assert one["against"] == parent.label
    assert one["estimate"] == pytest.approx(1.0 - parent.outcomes["t"].values[:20].mean())


def test_a_search_that_scored_no_proposal_has_no_best() -> None:
    assert search_optimism(searched(0, []), SPLIT, OBJECTIVE, PARENTS, 0) is None


def test_the_same_record_gives_the_same_numbers() -> None:
    one, two = (search_optimism(searched(3, [0.5] * 9), SPLIT, OBJECTIVE, PARENTS, 7) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(("margin", "met"), [(-0.2, False), (0.2, True)])
def test_constraints_are_checked_against_the_parents_of_the_test_split(margin: float, met: bool) -> None:
    objective = Objective("mean", {"t": TaskShare(1.0, True)}, [Bound("t", "best_parent", margin)])
    objective.calibrate({name: {"t": 0.0} for name in PARENTS})  # the search split's, which do not count here
    tested = searched(0, [0.5])
    best = max(c.value or 0.0 for c in tested.baselines)
    winner = tested.proposed[0]
    (found,) = constraints_met(winner, tested, objective)
    assert found["limit"] == pytest.approx(best - margin)
    assert found["score"] == winner.scores["t"]
    assert (found["met"], found["score"] >= found["limit"]) == (met, met)


def test_no_constraints_are_an_empty_list() -> None:
    tested = searched(0, [0.5])
    assert constraints_met(tested.proposed[0], tested, OBJECTIVE) == []


def test_a_split_says_how_many_documents_it_holds() -> None:
    assert clusters_in(SPLIT) == {"t": 50}


def test_time_is_split_into_phases_and_a_rest() -> None:
    found = time_spent(searched(0, [0.5]).candidates)
    assert found == {
        "merge": 3.0,
        "swap": 1.5,
        "score": 6.0,
        "total": 12.0,
        "rest": 1.5,
        "rest_share": 0.125,
        "candidates": 3,
        "items": 300,
    }
    assert time_spent([])["rest_share"] == 0.0
