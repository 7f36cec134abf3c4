"""Anchors: everything first, then few items, the same ones after a restart, and an error beside every value."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from paper_family import BLANK

from heterosis.anchored import Anchored
from heterosis.config import AnchorsConfig
from heterosis.errors import StudyError
from heterosis.evaluation.panel import Split, TaskOutcomes
from heterosis.evaluation.tasks import Item
from heterosis.ledger import Proposal, Record
from heterosis.ledger.record import Measurement
from heterosis.ledger.rungs import RungRecord
from heterosis.recipe import Parameters, Recipe
from heterosis.space import blank_with
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare

ITEMS, WARM = 120, 12
CONFIG = AnchorsConfig(count=20, warmup=WARM)
TASK: Any = SimpleNamespace(score=lambda mean: mean)
SPLIT = Split("search", {"t": TASK}, {"t": [Item(i, f"i{i}", f"p{i}", ()) for i in range(ITEMS)]})
DIFFICULTY = np.random.default_rng(0).normal(size=ITEMS)


def recipe(weight: float) -> Recipe:
    parameters = {name: {"all": Parameters(weight=weight, density=1.0, drop=0.0)} for name in ("x", "y")}
    return blank_with(BLANK, parameters=parameters)


class Exam:
    """Answers what is easier than its weight, but for a little luck; counts the items that it is asked."""

    def __init__(self, graded: bool = False) -> None:
        self.asked: list[int] = []
        self.graded = graded

    def measure(self, recipe: Recipe) -> Measurement:
        return self.ask(recipe, SPLIT)

    def ask(self, recipe: Recipe, part: Split) -> Measurement:
        self.asked.append(part.size)
        weight = float(recipe.parameters["x"]["all"].weight)
        rows = [item.doc_id for item in part.items["t"]]
        luck = np.random.default_rng(int(weight * 1e6)).normal(size=ITEMS)[rows]
        values = (4 * weight - 2 + 0.3 * luck > DIFFICULTY[rows]).astype(float)
        outcomes = {"t": TaskOutcomes(values * 0.7 if self.graded else values, np.ones(len(rows)))}
        seconds = dict.fromkeys(("merge", "swap", "score", "total"), 0.1)
        return Measurement(part.scores(outcomes), outcomes, recipe.digest, seconds, part.size)


class Session:
    """A record and a scorer on it, as one process has them."""

    def __init__(self, storage: optuna.storages.InMemoryStorage, exam: Exam, config: AnchorsConfig = CONFIG) -> None:
        self.record, self.said = Record(storage, "study"), list[str]()
        objective = Objective("mean", {"t": TaskShare(1.0, True)})
        pieces = RungRecord(storage, "study/rungs")
        self.anchored = Anchored(exam, SPLIT, self.record, pieces, objective, config, ["x", "y"], 0, self.said.append)

    def score(self, weights: np.ndarray) -> list[Measurement]:
        found = []
        for weight in weights.tolist():
            known = len(self.record.candidates)
            found.append(self.anchored.measure(recipe(weight)))
            self.record.add(Proposal(f"c{known}", 1, recipe(weight)), found[-1], found[-1].scores["t"])
        return found


WEIGHTS = np.random.default_rng(1).random(WARM + 8)


def test_after_the_warm_up_only_anchors_are_asked_and_values_are_near_the_score_on_everything() -> None:
    exam = Exam()
    session = Session(optuna.storages.InMemoryStorage(), exam)
    found = session.score(WEIGHTS)
    assert exam.asked == [ITEMS] * WARM + [CONFIG.count] * 8
    errors = [m.scores["t"] - Exam().measure(recipe(w)).scores["t"] for w, m in zip(WEIGHTS, found, strict=True)]
    assert np.abs(errors[WARM:]).max() < 0.12
    assert all(SPLIT.known(m.outcomes) == CONFIG.count for m in found[WARM:])


def test_every_estimate_carries_its_measured_error_and_the_user_is_told() -> None:
    session = Session(optuna.storages.InMemoryStorage(), Exam())
    found = session.score(WEIGHTS)
    assert [m.race for m in found[:WARM]] == [None] * WARM
    for measurement in found[WARM:]:
        assert measurement.race is not None
        assert 0.0 < measurement.race["error"] < 0.1
    assert len(session.said) == 1
    assert "t: 20 anchors; error of the estimates, measured on 12 candidates: anchors ±" in session.said[0]


def test_a_study_that_goes_on_in_another_process_has_the_same_anchors_and_estimates() -> None:
    whole = Session(optuna.storages.InMemoryStorage(), Exam()).score(WEIGHTS)
    storage = optuna.storages.InMemoryStorage()
    parts = []
    for cut in (WEIGHTS[:5], WEIGHTS[5:WARM], WEIGHTS[WARM : WARM + 3], WEIGHTS[WARM + 3 :]):
        parts += Session(storage, Exam()).score(cut)
    assert [m.scores for m in parts] == [m.scores for m in whole]
    assert all(
        np.array_equal(one.outcomes["t"].values, other.outcomes["t"].values, equal_nan=True)
        for one, other in zip(parts, whole, strict=True)
    )


def test_an_equal_recipe_is_not_asked_again() -> None:
    exam = Exam()
    session = Session(optuna.storages.InMemoryStorage(), exam)
    first = session.score(WEIGHTS)[-1]
    asked = len(exam.asked)
    again = session.anchored.measure(recipe(float(WEIGHTS[-1])))
    assert len(exam.asked) == asked
    assert (again.scores, again.items) == (first.scores, 0)


def test_a_leader_is_asked_all_that_is_not_an_anchor_once_for_all_processes() -> None:
    exam, storage = Exam(), optuna.storages.InMemoryStorage()
    Session(storage, exam).score(WEIGHTS)
    for _ in range(2):
        session = Session(storage, exam)
        leader = session.anchored.extend(session.record.candidates[-1])
        assert leader is not None
        assert not leader.is_partial
        assert leader.value == leader.scores["t"] == Exam().measure(leader.proposal.recipe).scores["t"]
    assert exam.asked[WARM + 8 :] == [ITEMS - CONFIG.count]
    assert session.record.candidates[-1].is_partial


def test_a_leader_that_can_no_longer_be_scored_does_not_lead() -> None:
    class Broken(Exam):
        def ask(self, recipe: Recipe, part: Split) -> Measurement:
            return super().ask(recipe, part)._replace(error="no engine", outcomes={}, scores={})

    storage = optuna.storages.InMemoryStorage()
    Session(storage, Exam()).score(WEIGHTS)
    session = Session(storage, Broken())
    assert session.anchored.extend(session.record.candidates[-1]) is None


def test_graded_outcomes_and_too_many_anchors_are_refused() -> None:
    with pytest.raises(StudyError, match="anchors: t has outcomes other than 0 and 1"):
        Session(optuna.storages.InMemoryStorage(), Exam(graded=True)).score(WEIGHTS)
    many = AnchorsConfig(count=ITEMS, warmup=WARM)
    with pytest.raises(StudyError, match=r"anchors\.count: t has 120 search items"):
        Session(optuna.storages.InMemoryStorage(), Exam(), many).score(WEIGHTS)
