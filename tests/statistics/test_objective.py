"""From task scores to one number."""

from __future__ import annotations

import numpy as np
import pytest

from heterosis.errors import RecordError
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare

SHARES = {"accuracy": TaskShare(1.0, True), "bits": TaskShare(3.0, False)}
PARENTS = [{"accuracy": 0.5, "bits": 1.0}, {"accuracy": 0.9, "bits": 5.0}]


def test_the_mean_is_weighted_and_counts_losses_negatively() -> None:
    assert Objective("mean", SHARES).number({"accuracy": 0.8, "bits": 2.0}) == pytest.approx((0.8 - 3 * 2.0) / 4)


def test_the_normalised_mean_places_scores_between_the_parents() -> None:
    objective = Objective("normalized_mean", SHARES)
    objective.calibrate(PARENTS)
    assert objective.number({"accuracy": 0.9, "bits": 1.0}) == pytest.approx(1.0)
    assert objective.number({"accuracy": 0.5, "bits": 5.0}) == pytest.approx(0.0)
    assert objective.number({"accuracy": 0.7, "bits": 3.0}) == pytest.approx(0.5)
    assert objective.number({"accuracy": 0.9, "bits": 0.0}) == pytest.approx((1.0 + 3 * 1.25) / 4)


def test_the_worst_task_decides() -> None:
    objective = Objective("worst", SHARES)
    objective.calibrate(PARENTS)
    assert objective.number({"accuracy": 0.9, "bits": 4.0}) == pytest.approx(0.25)


def test_arrays_of_draws_give_arrays() -> None:
    objective = Objective("normalized_mean", SHARES)
    objective.calibrate(PARENTS)
    values = objective.value({"accuracy": np.array([0.9, 0.5]), "bits": np.array([1.0, 5.0])})
    assert values == pytest.approx(np.array([1.0, 0.0]))


def test_parents_that_are_alike_leave_a_task_in_its_own_unit() -> None:
    objective = Objective("normalized_mean", {"bits": TaskShare(1.0, False)})
    objective.calibrate([{"bits": 2.0}, {"bits": 2.0}])
    assert objective.number({"bits": 1.5}) == pytest.approx(0.5)


def test_a_normalised_objective_has_no_scale_before_the_parents_are_scored() -> None:
    with pytest.raises(RecordError, match="parents must be scored"):
        Objective("worst", SHARES).number({"accuracy": 0.9, "bits": 4.0})
