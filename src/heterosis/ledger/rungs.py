"""What races scored, piece by piece: one finished Optuna trial per (recipe, rung), so a killed race repeats nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState, create_trial

from heterosis.evaluation.panel import Outcomes, TaskOutcomes
from heterosis.ledger.record import Measurement, storing


class Piece(NamedTuple):
    """One rung of one candidate: outcomes of the items that the rung adds."""

    outcomes: Outcomes
    weights_digest: str | None
    seconds: dict[str, float]
    items: int
    error: str | None = None


class RungRecord:
    """The pieces of a study, in an Optuna study of its own (`NAME/rungs`)."""

    def __init__(self, storage: optuna.storages.BaseStorage, name: str) -> None:
        self._name = name
        with storing(name):
            self._study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
            self._pieces = dict(_piece(trial.user_attrs) for trial in self._study.get_trials(deepcopy=False))
        self._listeners: list[Callable[[str, int, int], None]] = []

    def listen(self, listener: Callable[[str, int, int], None]) -> None:
        """Call `listener` with label, rung (from 0) and items of every piece written from now on."""
        self._listeners.append(listener)

    def find(self, recipe_digest: str, rung: int) -> Piece | None:
        """The piece, if it was scored."""
        return self._pieces.get((recipe_digest, rung))

    def add(self, label: str, recipe_digest: str, rung: int, measured: Measurement, value: float | None) -> Piece:
        """Write a piece: all of it or nothing. `value`: objective on the rung's own items; None if scoring failed."""
        attributes: dict[str, Any] = {
            "label": label,
            "rung": rung,
            "recipe_digest": recipe_digest,
            "weights_digest": measured.weights_digest,
            "items": measured.items,
            "seconds": {phase: round(seconds, 4) for phase, seconds in measured.seconds.items()},
            "outcomes": json.dumps({task: table.to_json() for task, table in measured.outcomes.items()}),
        }
        if measured.error is not None:
            attributes["error"] = measured.error
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with storing(self._name):
            self._study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))
        key, piece = _piece(attributes)
        self._pieces[key] = piece
        for listener in self._listeners:
            listener(label, rung, piece.items)
        return piece


def _piece(attributes: dict[str, Any]) -> tuple[tuple[str, int], Piece]:
    outcomes = {task: TaskOutcomes.from_json(table) for task, table in json.loads(attributes["outcomes"]).items()}
    piece = Piece(
        outcomes,
        attributes["weights_digest"],
        attributes["seconds"],
        attributes["items"],
        attributes.get("error"),
    )
    return (attributes["recipe_digest"], attributes["rung"]), piece
