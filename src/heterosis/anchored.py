"""Scoring on anchor items: everything for the first candidates, then few items and an estimate of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from heterosis.config import AnchorsConfig
from heterosis.errors import StudyError
from heterosis.evaluation.panel import Rung, Split, fill
from heterosis.ledger.record import Candidate, Measurement, Record
from heterosis.ledger.rungs import RungRecord
from heterosis.recipe import Recipe
from heterosis.scoring import PartScorer
from heterosis.statistics import Objective
from heterosis.statistics.anchors import Anchors, choose
from heterosis.statistics.irt import is_binary

NOTE = "anchors"


class Anchored:
    """A scorer that chooses anchors once enough candidates have answered everything.

    Which candidates those are follows from the record, and the anchors are kept in it, so a resumed study goes on with
    the same items and the same estimates.
    """

    def __init__(
        self,
        scorer: PartScorer,
        split: Split,
        record: Record,
        pieces: RungRecord,
        objective: Objective,
        config: AnchorsConfig,
        parents: Sequence[str],
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        """`pieces` keeps what leaders answer later. `parents`: their labels in the record.

        `tell`: is told how good the estimates are.
        """
        self._scorer, self._split, self._record, self._config = scorer, split, record, config
        self._pieces, self._objective = pieces, objective
        self._parents, self._seed, self._tell = list(parents), seed, tell
        self._anchors: dict[str, Anchors] | None = None
        self._part: Rung | None = None

    def measure(self, recipe: Recipe) -> Measurement:
        """The whole split while the warm-up lasts; then the anchors, and an estimate."""
        found = self._record.find(recipe.digest)
        if (found is not None and not found.is_partial) or not self._ready():
            return self._scorer.measure(recipe)
        assert self._part is not None
        if found is not None:
            nothing = dict.fromkeys(found.seconds, 0.0)
            return Measurement(found.scores, found.outcomes, found.weights_digest, nothing, 0, race=found.race)
        measured = self._scorer.ask(recipe, self._part.split)
        if measured.error is not None:
            return measured
        outcomes = fill(None, self._part, measured.outcomes, self._split)
        scores = {task: self._estimate(task, outcomes[task].values) for task in self._split.items}
        race = {"place": "anchors", "error": round(self._error(scores), 6)}
        return measured._replace(scores=scores, outcomes=outcomes, race=race)

    def extend(self, candidate: Candidate) -> Candidate | None:
        """The candidate with the answers to all that is not an anchor, asked now and kept; None if that fails.

        Its trial stays as it is: what an optimizer was told is no longer changed.
        """
        asked = {task: np.isnan(table.values) for task, table in candidate.outcomes.items()}
        rest = self._split.part({task: np.flatnonzero(missing) for task, missing in asked.items()})
        recipe = candidate.proposal.recipe
        piece = self._pieces.find(recipe.digest, 0)
        if piece is None:
            measured = self._scorer.ask(recipe, rest.split)
            value = None if measured.error is not None else self._objective.number(measured.scores)
            piece = self._pieces.add(candidate.label, recipe.digest, 0, measured, value)
        if piece.error is not None:
            return None
        outcomes = fill(candidate.outcomes, rest, piece.outcomes, self._split)
        scores = self._split.scores(outcomes)
        fitness = self._objective.judge(scores)
        return replace(candidate, outcomes=outcomes, scores=scores, fitness=fitness, value=fitness.value)

    def _error(self, scores: Mapping[str, float]) -> float:
        """Error of the objective, from the measured ones of the tasks' estimates, taken as independent."""
        slopes = self._objective.gradient(scores)
        measured = {task: each.error.rms for task, each in (self._anchors or {}).items() if each.error is not None}
        return math.hypot(*(slopes[task] * error for task, error in measured.items()))

    def _estimate(self, task: str, values: np.ndarray) -> float:
        assert self._anchors is not None
        anchors = self._anchors[task]
        return float(self._split.tasks[task].score(anchors.estimate(values[anchors.items])))

    def _ready(self) -> bool:
        """Whether there are anchors; chooses them when the warm-up is over."""
        if self._anchors is not None:
            return True
        kept: Mapping[str, dict[str, object]] | None = self._record.noted(NOTE)
        if kept is not None:
            chosen = {task: Anchors.from_json(content) for task, content in kept.items()}
        else:
            whole = [c for c in self._record.candidates if c.value is not None and not c.is_partial]
            if len(whole) < self._config.warmup:
                return False
            chosen = {task: self._choose(task, whole[: self._config.warmup]) for task in self._split.items}
            self._record.note(NOTE, {task: each.to_json() for task, each in chosen.items()})
        self._anchors = chosen
        self._part = self._split.part({task: each.items for task, each in chosen.items()})
        for task, each in chosen.items():
            self._tell(f"{task}: {each.items.size} anchors; {_quality(each)}")
        return True

    def _choose(self, task: str, warm: Sequence[Candidate]) -> Anchors:
        responses = np.stack([candidate.outcomes[task].values for candidate in warm])
        if not is_binary(responses):
            raise StudyError(
                f"anchors: {task} has outcomes other than 0 and 1, which item response theory does not model. "
                "Choose an accuracy-like metric, or remove anchors."
            )
        if responses.shape[1] <= self._config.count:
            raise StudyError(
                f"anchors.count: {task} has {responses.shape[1]} search items, no more than the {self._config.count} "
                "anchors. Ask for fewer."
            )
        parents = [row for row, candidate in enumerate(warm) if candidate.label in self._parents]
        weights = warm[0].outcomes[task].weights
        return choose(
            responses, self._config.count, self._config.estimator, parents=parents, weights=weights, seed=self._seed
        )


def _quality(anchors: Anchors) -> str:
    if anchors.error is None:
        return "too few candidates to measure the error of the estimates"
    verdict = "" if anchors.error.pays else "; random items would do as well, so anchors do not pay here"
    on = f"measured on {anchors.error.candidates} candidates"
    return f"error of the estimates, {on}: {anchors.error.describe()}{verdict}"
