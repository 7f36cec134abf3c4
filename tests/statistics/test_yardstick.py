"""Scores of those who answered a part of the items, on the scale of those who answered all."""

from __future__ import annotations

import numpy as np
import pytest

from heterosis.evaluation.panel import TaskOutcomes
from heterosis.statistics.yardstick import Yardstick


def outcomes(values: list[float]) -> dict[str, TaskOutcomes]:
    return {"t": TaskOutcomes(np.array(values), np.ones(len(values)))}


NAN = float("nan")
# Four easy items, then four hard ones: each of the complete knows the easy ones and some of the others.
COMPLETE = [outcomes([1, 1, 1, 1, *hard]) for hard in ([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1])]


def test_one_that_answered_the_easy_half_is_not_taken_at_its_word() -> None:
    known = outcomes([1, 1, 1, 0, NAN, NAN, NAN, NAN])
    estimate = Yardstick(COMPLETE).means(known)["t"]
    assert 0.3 < estimate < 0.6 < known["t"].mean()


def test_where_everything_is_known_the_mean_is_the_mean() -> None:
    known = outcomes([1, 0, 1, 0, 1, 0, 1, 1])
    assert Yardstick(COMPLETE).means(known)["t"] == known["t"].mean()
    assert Yardstick([]).means(outcomes([1, NAN, 0, NAN]))["t"] == 0.5


def test_an_estimate_lies_among_the_values() -> None:
    """All hard items right: harder ones than the rest, so the plain regression goes beyond 1."""
    above = Yardstick(COMPLETE).means(outcomes([NAN, NAN, NAN, NAN, 1, 1, 1, 1]))["t"]
    below = Yardstick(COMPLETE).means(outcomes([0, 0, 0, 0, NAN, NAN, NAN, NAN]))["t"]
    assert (above, below) == (1.0, 0.0)
    scale = [outcomes([100 * v for v in c["t"].values]) for c in COMPLETE]
    assert Yardstick(scale).means(outcomes([NAN] * 4 + [100.0] * 4))["t"] == pytest.approx(100.0)
