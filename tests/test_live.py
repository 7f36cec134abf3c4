"""The engine of a running study: a recipe gives the weights that it gave before, or is not scored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from paper_family import BASELINES

from heterosis.errors import CanaryError
from heterosis.evaluation.engine import Applied
from heterosis.live import LiveEngine

AVERAGE, OTHER = list(BASELINES.values())[-2:]


def live(recorded: dict[str, str], gives: str, monkeypatch: pytest.MonkeyPatch) -> LiveEngine:
    candidates = [SimpleNamespace(recipe_digest=digest, weights_digest=w) for digest, w in recorded.items()]
    record: Any = SimpleNamespace(candidates=candidates, note=lambda *_: None)
    watcher: Any = SimpleNamespace(starting=lambda _: None, warn=lambda _: None)
    prepared: Any = SimpleNamespace(config=SimpleNamespace(engine=SimpleNamespace(kind="test")))
    engine = SimpleNamespace(apply=lambda _: Applied(gives, 0.0), describe=dict)
    monkeypatch.setattr("heterosis.live.start_engine", lambda _: engine)
    return LiveEngine(prepared, record, watcher)


def test_weights_as_recorded_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = live({AVERAGE.digest: "same"}, "same", monkeypatch)
    assert engine.apply(AVERAGE).weights_digest == "same"
    assert engine.apply(OTHER).weights_digest == "same"


def test_other_weights_than_recorded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = live({AVERAGE.digest: "before"}, "now", monkeypatch)
    with pytest.raises(CanaryError, match="gave weights before before and gives now now"):
        engine.apply(AVERAGE)


def test_other_weights_than_in_an_earlier_rung_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = live({}, "first", monkeypatch)
    engine.apply(AVERAGE)
    monkeypatch.setattr(engine._engine, "apply", lambda _: Applied("second", 0.0))
    with pytest.raises(CanaryError, match="first before and gives second now"):
        engine.apply(AVERAGE)
