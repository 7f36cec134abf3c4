"""Scoring with an engine: what is asked, what is known already, and what happens when an engine dies or hangs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from paper_family import BASELINES

from heterosis.errors import CanaryError, CandidateError, EngineError
from heterosis.evaluation.engine import Applied
from heterosis.evaluation.panel import Score, TaskOutcomes
from heterosis.ledger import Proposal, Record
from heterosis.recipe import Recipe
from heterosis.scoring import EngineScorer

AVERAGE = BASELINES["average"]
ITEMS = 5


def new_record() -> Record:
    return Record(optuna.storages.InMemoryStorage(), "study")


class Slow:
    """An engine that takes known times, and fails when told to."""

    max_length = 64

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.raises: Exception | None = None

    def restart(self, reason: str) -> None:
        """Nothing to replace."""

    def apply(self, recipe: Recipe) -> Applied:
        if self.raises is not None:
            raise self.raises
        self.applied.append(recipe.digest)
        time.sleep(0.02)
        return Applied(recipe.digest, 0.005)


class Items:
    """A split of five items on which everything scores the same."""

    size = ITEMS

    def score(self, _: Any, samples: bool = False) -> Score:
        time.sleep(0.01)
        return Score({"hill": TaskOutcomes(np.full(ITEMS, 0.5), np.ones(ITEMS))}, 0.01)

    def scores(self, outcomes: Mapping[str, TaskOutcomes]) -> dict[str, float]:
        return {task: table.mean() for task, table in outcomes.items()}


def scorer_of(engine: Slow, *records: Record, **patience: Any) -> EngineScorer:
    return EngineScorer(engine, Items(), records, **patience)  # type: ignore[arg-type]


def test_a_measurement_is_the_splits_score_of_the_applied_recipe() -> None:
    engine = Slow()
    recipe = AVERAGE
    found = scorer_of(engine).measure(recipe)
    assert engine.applied == [recipe.digest]
    assert (found.scores, found.items, found.weights_digest, found.error) == ({"hill": 0.5}, 5, recipe.digest, None)


def test_the_phases_leave_nothing_of_the_wall_time_out() -> None:
    started = time.perf_counter()
    scorer = scorer_of(Slow())
    measured = []
    for recipe in BASELINES.values():
        time.sleep(0.005)  # the time between candidates belongs to the next one
        measured.append(scorer.measure(recipe))
    wall = time.perf_counter() - started
    assert math.fsum(m.seconds["total"] for m in measured) == pytest.approx(wall, abs=0.02)
    for seconds in (m.seconds for m in measured):
        assert seconds["merge"] == 0.005
        assert seconds["swap"] >= 0.015
        assert seconds["score"] == 0.01
        assert seconds["total"] >= 0.005 + sum(seconds[phase] for phase in ("merge", "swap", "score"))


def test_an_equal_recipe_is_not_scored_twice() -> None:
    record, engine = new_record(), Slow()
    scorer = scorer_of(engine, new_record(), record)
    recipe = AVERAGE
    first = scorer.measure(recipe)
    record.add(Proposal("average", 0, recipe), first, 0.5)
    again = scorer.measure(recipe)
    assert engine.applied == [recipe.digest]
    assert (again.scores, again.weights_digest, again.items) == (first.scores, first.weights_digest, 0)
    assert again.outcomes["hill"].values.tobytes() == first.outcomes["hill"].values.tobytes()
    assert {phase: again.seconds[phase] for phase in ("merge", "swap", "score")} == {
        "merge": 0.0,
        "swap": 0.0,
        "score": 0.0,
    }


def test_a_recipe_that_failed_is_tried_again() -> None:
    record, engine = new_record(), Slow()
    scorer = scorer_of(engine, record)
    recipe = AVERAGE
    engine.raises = CanaryError("canary: no.")
    failed = scorer.measure(recipe)
    record.add(Proposal("average", 0, recipe), failed, None)
    assert (failed.error, failed.items, failed.scores, failed.outcomes) == ("canary: no.", 0, {}, {})
    engine.raises = None
    assert scorer.measure(recipe).error is None


class Mortal(Slow):
    """Dies, or fails its canary, on the first so many tries; a fresh one takes its place."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.restarts: list[str] = []

    def apply(self, recipe: Recipe) -> Applied:
        if self.errors:
            raise self.errors.pop(0)
        return super().apply(recipe)

    def restart(self, reason: str) -> None:
        self.restarts.append(reason)


def test_a_candidate_on_which_the_engine_dies_is_tried_again_on_a_fresh_one() -> None:
    engine = Mortal(EngineError("the worker died."), CanaryError("canary: stale."))
    found = scorer_of(engine, retries=2).measure(AVERAGE)
    assert (found.error, found.scores) == (None, {"hill": 0.5})
    assert engine.restarts == ["the worker died.", "canary: stale."]


def test_after_its_retries_a_candidate_has_failed_with_the_cause_and_the_next_is_scored() -> None:
    engine = Mortal(*[EngineError("out of memory.")] * 3)
    scorer = scorer_of(engine, retries=2)
    failed = scorer.measure(AVERAGE)
    assert (failed.error, failed.outcomes, failed.items) == ("out of memory.", {}, 0)
    assert len(engine.restarts) == 3
    assert scorer.measure(AVERAGE).error is None


def test_a_merge_that_is_not_finite_is_not_tried_again() -> None:
    engine = Mortal(CandidateError("holds NaN."))
    assert scorer_of(engine, retries=2).measure(AVERAGE).error == "holds NaN."
    assert engine.restarts == []


class Hanging(Mortal):
    """Answers only when it is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = threading.Event()

    def apply(self, recipe: Recipe) -> Applied:
        if not self.restarts:
            assert self.killed.wait(30)
            raise EngineError("the engine core is gone.")
        return super().apply(recipe)

    def kill(self) -> None:
        self.killed.set()


def test_an_engine_that_hangs_is_stopped_at_the_deadline_and_the_candidate_tried_again() -> None:
    engine = Hanging()
    found = scorer_of(engine, retries=1, deadline=0.05).measure(AVERAGE)
    assert found.error is None
    assert engine.restarts == ["the engine gave no answer within 0.05 s and was stopped."]
