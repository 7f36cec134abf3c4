"""From task scores to one number."""

from __future__ import annotations

import numpy as np
import pytest

from heterosis.errors import RecordError, StudyError
from heterosis.statistics import Objective
from heterosis.statistics.objective import Bound, TaskShare

SHARES = {"accuracy": TaskShare(1.0, True), "bits": TaskShare(3.0, False)}
PARENTS = {"x": {"accuracy": 0.5, "bits": 1.0}, "y": {"accuracy": 0.9, "bits": 5.0}}


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
    objective.calibrate({"x": {"bits": 2.0}, "y": {"bits": 2.0}})
    assert objective.number({"bits": 1.5}) == pytest.approx(0.5)


def test_a_normalised_objective_has_no_scale_before_the_parents_are_scored() -> None:
    with pytest.raises(RecordError, match="parents must be scored"):
        Objective("worst", SHARES).number({"accuracy": 0.9, "bits": 4.0})


@pytest.mark.parametrize("kind", ["mean", "normalized_mean", "worst", "pareto"])
def test_the_gradient_is_the_slope_of_the_value(kind: str) -> None:
    objective = Objective(kind, SHARES)
    objective.calibrate(PARENTS)
    at = {"accuracy": 0.7, "bits": 2.0}
    for task, slope in objective.gradient(at).items():
        step = {**at, task: at[task] + 1e-6}
        assert (objective.number(step) - objective.number(at)) / 1e-6 == pytest.approx(slope, abs=1e-6)


def test_a_pareto_objective_has_one_entry_a_task_and_the_normalised_mean_as_its_number() -> None:
    objective = Objective("pareto", SHARES)
    objective.calibrate(PARENTS)
    found = objective.judge({"accuracy": 0.7, "bits": 2.0})
    assert objective.names == ("accuracy", "bits")
    assert found.vector == pytest.approx((0.5, 0.75))
    assert found.value == pytest.approx((0.5 + 3 * 0.75) / 4)
    assert Objective("mean", SHARES).names == ("objective",)


@pytest.mark.parametrize(
    ("bound", "missed"),
    [
        (Bound("accuracy", "best_parent"), 0.2),
        (Bound("accuracy", "best_parent", margin=0.05), 0.15),
        (Bound("accuracy", "x"), -0.2),
        (Bound("accuracy", at_least=0.8), 0.1),
        (Bound("bits", "best_parent"), 1.0),
        (Bound("bits", "best_parent", margin=0.25), 0.75),
        (Bound("bits", "y"), -3.0),
        (Bound("bits", at_least=2.5), -0.5),
    ],
)
def test_a_bound_is_missed_by_what_is_worse_in_the_tasks_own_unit(bound: Bound, missed: float) -> None:
    objective = Objective("mean", SHARES, [bound])
    objective.calibrate(PARENTS)
    found = objective.judge({"accuracy": 0.7, "bits": 2.0})
    assert found.violations == pytest.approx((missed,))
    assert found.violation == pytest.approx(max(0.0, missed))


def test_on_another_split_bounds_are_the_parents_scores_there() -> None:
    objective = Objective("mean", SHARES, [Bound("accuracy", "best_parent")])
    objective.calibrate(PARENTS)
    there = {"x": {"accuracy": 0.6, "bits": 1.0}, "y": {"accuracy": 0.65, "bits": 1.0}}
    assert objective.judge({"accuracy": 0.7, "bits": 2.0}, there).violations == pytest.approx((-0.05,))


def test_a_bound_on_an_unknown_task_is_refused() -> None:
    with pytest.raises(StudyError, match="constraints: maths is none of the tasks: accuracy, bits"):
        Objective("mean", SHARES, [Bound("maths", "best_parent")])


def test_a_bound_against_an_unknown_parent_is_refused() -> None:
    objective = Objective("mean", SHARES, [Bound("accuracy", "z")])
    objective.calibrate(PARENTS)
    with pytest.raises(StudyError, match="constraints: z is none of the parents: x, y"):
        objective.judge({"accuracy": 0.7, "bits": 2.0})


def test_a_parent_keeps_a_bound_against_itself_exactly() -> None:
    objective = Objective("mean", SHARES, [Bound(task, parent) for task in SHARES for parent in PARENTS])
    objective.calibrate(PARENTS)
    for name, scores in PARENTS.items():
        missed = objective.judge(scores).violations
        assert [m for m, bound in zip(missed, objective.bounds, strict=True) if bound.against == name] == [0.0, 0.0]
