"""Which candidates of a Pareto study go on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from heterosis.fronts import spread_out
from heterosis.optimizers import Fitness


def candidate(label: str, *vector: float, missed: float = 0.0) -> Any:
    value = sum(vector) / len(vector)
    return SimpleNamespace(label=label, value=value, fitness=Fitness(value, vector, (missed,)))


FRONT = [
    candidate("left", 1.0, 0.0),
    candidate("middle", 0.6, 0.6),
    candidate("near", 0.62, 0.57),
    candidate("right", 0.0, 1.0),
]
BEATEN = candidate("beaten", 0.5, 0.5)


def labels(found: list[Any]) -> list[str]:
    return [each.label for each in found]


def test_the_best_mean_comes_first_and_then_the_ends_of_the_front() -> None:
    assert labels(spread_out([*FRONT, BEATEN], 3)) == ["middle", "left", "right"]


def test_what_is_beaten_comes_after_the_whole_front() -> None:
    assert labels(spread_out([BEATEN, *FRONT], 5))[-1] == "beaten"
    assert len(spread_out([BEATEN, *FRONT], 9)) == 5


def test_what_misses_a_constraint_is_left_out_unless_all_do() -> None:
    best = candidate("best", 2.0, 2.0, missed=0.1)
    assert "best" not in labels(spread_out([best, *FRONT], 9))
    assert labels(spread_out([best], 3)) == ["best"]
