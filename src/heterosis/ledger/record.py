"""The record: everything a study has learnt, in Optuna storage, one finished trial per scored candidate.

A trial is written once, complete, in one transaction, so a killed process leaves no half candidate behind. Four
Optuna studies share the storage: `NAME` (the search), `NAME/rungs` (what races scored, piece by piece),
`NAME/selection` and `NAME/test`.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import OptunaError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from heterosis.errors import RecordError
from heterosis.evaluation.panel import Outcomes, TaskOutcomes, known_items
from heterosis.ledger.identity import check_same
from heterosis.ledger.redact import masked
from heterosis.optimizers.protocol import Fitness
from heterosis.recipe import Recipe
from heterosis.space import GeneSlot, Genome

FORMAT = 2
# Note: outcomes of leaders of a search that answered more items after their trials had ended.
LATER = "scored_in_full"


@dataclass(frozen=True)
class Proposal:
    """A merge to be scored: a baseline (generation 0), or a genome from the optimizer."""

    label: str
    """What people call it: a baseline's name, or `c12`."""
    generation: int
    recipe: Recipe
    genome: Genome | None = None
    genes: Mapping[str, float] = field(default_factory=dict)
    """Gene name -> value in its own range."""


@dataclass(frozen=True)
class Candidate:
    """A scored (or failed) merge, as the record has it."""

    number: int
    label: str
    generation: int
    recipe: Recipe
    recipe_digest: str
    genome: Genome | None
    genes: Mapping[str, float]
    value: float | None
    """The objective; None if scoring failed."""
    scores: Mapping[str, float]
    outcomes: Outcomes
    weights_digest: str | None
    seconds: Mapping[str, float]
    """Wall time by phase: merge, swap, score, total."""
    items: int
    """Items scored for it; 0 when the outcomes of an equal recipe were used again."""
    error: str | None = None
    fitness: Fitness | None = None
    """What the optimizer was told; None if scoring failed."""
    race: Mapping[str, Any] | None = None
    """How its race ended: `place` (in, out, open), `rung`, the generation's `limit`. None: it did not race."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """Items scored -> objective estimated from them, after each rung of its race."""

    @property
    def is_baseline(self) -> bool:
        """Whether it belongs to generation 0."""
        return self.generation == 0

    @property
    def proposal(self) -> Proposal:
        """What was proposed, to be scored again elsewhere."""
        return Proposal(self.label, self.generation, self.recipe, self.genome, self.genes)

    @property
    def known(self) -> int:
        """Number of items that it has outcomes for, whoever asked them."""
        return known_items(self.outcomes)

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better (`Fitness.rank_key`), of one that was scored."""
        assert self.fitness is not None
        return self.fitness.rank_key

    @property
    def is_partial(self) -> bool:
        """Whether items were left out because its race was over."""
        return any(np.isnan(table.values).any() for table in self.outcomes.values())


class Measurement(NamedTuple):
    """What scoring one proposal gave."""

    scores: Mapping[str, float]
    outcomes: Outcomes
    weights_digest: str | None
    seconds: Mapping[str, float]
    items: int
    error: str | None = None
    race: Mapping[str, Any] | None = None
    curve: Mapping[int, float] = {}
    """Items scored -> objective estimated from them, after each rung."""


class Record:
    """One of a study's Optuna studies, read and written through Optuna's public interface."""

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        genes: Sequence[GeneSlot] = (),
        objectives: Sequence[str] = ("objective",),
    ) -> None:
        """`objectives`: names of what is raised; more than one makes it a multi-objective Optuna study."""
        self.name = name
        directions = [StudyDirection.MAXIMIZE] * len(objectives)
        self._ranges: dict[str, BaseDistribution] = {g.name: FloatDistribution(g.low, g.high) for g in genes}
        with storing(name):
            self._study = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
            if list(self._study.metric_names or ()) != list(objectives):
                self._name_objectives(objectives)
            self._candidates = [_candidate(trial) for trial in self._study.get_trials(deepcopy=False)]
        self._listeners: list[Callable[[Candidate], None]] = []

    def _name_objectives(self, objectives: Sequence[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names(list(objectives))

    def bind(self, identity: Mapping[str, Any]) -> None:
        """Tie the record to what a study may not change; RecordError names the first difference.

        `identity` is plain JSON: models, space, tasks, panel, seed.
        """
        stored = self.noted("identity")
        if stored is None:
            self.note("format", FORMAT)
            self.note("identity", dict(identity))
            return
        check_same(self.name, stored, json.loads(json.dumps(identity)))

    def listen(self, listener: Callable[[Candidate], None]) -> None:
        """Call `listener` with every candidate recorded from now on."""
        self._listeners.append(listener)

    @property
    def candidates(self) -> Sequence[Candidate]:
        """All candidates in the order in which they were recorded."""
        return tuple(self._candidates)

    @property
    def baselines(self) -> list[Candidate]:
        """Generation 0."""
        return [candidate for candidate in self._candidates if candidate.is_baseline]

    @property
    def proposed(self) -> list[Candidate]:
        """What the optimizer proposed."""
        return [candidate for candidate in self._candidates if not candidate.is_baseline]

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Gene name -> the least and the greatest value that the search gives it, of all genes that it has moved."""
        with storing(self.name):
            trials = self._study.get_trials(deepcopy=False)
        seen = {name: found for trial in trials for name, found in trial.distributions.items()}
        return {name: (found.low, found.high) for name, found in seen.items() if isinstance(found, FloatDistribution)}

    def find(self, recipe_digest: str) -> Candidate | None:
        """A scored candidate with this recipe."""
        return next((c for c in self._candidates if c.value is not None and c.recipe_digest == recipe_digest), None)

    def add(self, proposal: Proposal, measured: Measurement, fitness: Fitness | float | None) -> Candidate:
        """Write a candidate: all of it or nothing. One that was out of its race before the end is a pruned trial.

        Who led a race, or was still in it when its generation's ranking was clear, is complete, with an estimate as its
        value: Optuna leaves pruned trials out of importances, slices and plots of parameters.
        """
        fitness = Fitness.of(fitness) if isinstance(fitness, float | int) else fitness
        partial = any(np.isnan(table.values).any() for table in measured.outcomes.values())
        out = partial and measured.race is not None and measured.race["place"] == "out"
        done = TrialState.PRUNED if out else TrialState.COMPLETE
        trial = create_trial(
            state=done if fitness is not None else TrialState.FAIL,
            values=None if fitness is None else list(fitness.vector),
            params=dict(proposal.genes),
            distributions={name: self._ranges[name] for name in proposal.genes},
            intermediate_values=dict(measured.curve),
            user_attrs=_attributes(proposal, measured, fitness),
        )
        assert trial.datetime_complete is not None
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=measured.seconds["total"])
        with storing(self.name):
            self._study.add_trial(trial)
            candidate = _candidate(self._study.get_trials(deepcopy=False)[len(self._candidates)])
        self._candidates.append(candidate)
        for listener in self._listeners:
            listener(candidate)
        return candidate

    def note(self, key: str, value: Any) -> None:
        """Keep a fact with the study."""
        with storing(self.name):
            self._study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """A fact kept with `note`, or None."""
        with storing(self.name):
            return self._study.user_attrs.get(key)

    def keep_later(self, candidates: Iterable[Candidate]) -> None:
        """Keep what candidates scored that answered more items after their trials had ended."""
        known = {candidate.label: candidate.known for candidate in self.candidates}
        later = {
            candidate.label: {
                "outcomes": {task: table.to_json() for task, table in candidate.outcomes.items()},
                "scores": dict(candidate.scores),
                "fitness": list(candidate.fitness),
            }
            for candidate in candidates
            if candidate.fitness is not None and candidate.known > known[candidate.label]
        }
        self.note(LATER, later)

    @property
    def later(self) -> dict[str, Candidate]:
        """Label -> a candidate that answered more items after its trial had ended (`keep_later`), with all of them."""
        kept = self.noted(LATER) or {}
        return {c.label: _finished(c, kept[c.label]) for c in self.candidates if c.label in kept}


def _finished(candidate: Candidate, kept: Mapping[str, Any]) -> Candidate:
    value, vector, violations = kept["fitness"]
    fitness = Fitness(value, tuple(vector), tuple(violations))
    return replace(
        candidate, outcomes=outcomes_from(kept["outcomes"]), scores=kept["scores"], fitness=fitness, value=value
    )


def outcomes_from(tables: Mapping[str, Any]) -> Outcomes:
    """Outcomes by task, from their JSON."""
    return {task: TaskOutcomes.from_json(table) for task, table in tables.items()}


# What databases say, and what to do about it.
_REMEDIES = {
    r"locked|lock timeout": "Another process holds it: wait for it, or stop it",
    r"read-?only|permission": "Let this user write to it, or give another output",
    r"disk i/o|full|no space|quota": "Make room on the disk, or give another output",
    r"DB access module": "Install the database's driver, such as psycopg2-binary for PostgreSQL",
    r"malformed|not a database": "The file is damaged: put a backup in its place, or start in another output",
}


@contextlib.contextmanager
def storing(name: str) -> Iterator[None]:
    """Say in one line why a storage does not take or give what it should: RecordError."""
    try:
        yield
    except (OptunaError, SQLAlchemyError) as error:
        reason, remedy = _reason_and_remedy(error.__cause__ or error)
        raise RecordError(
            f"{name}: the record is not at hand ({reason}). {remedy}; the same command then goes on from the last "
            "candidate that was recorded."
        ) from error


def _reason_and_remedy(error: BaseException) -> tuple[str, str]:
    text = masked(" ".join(re.split(r"\[SQL|\(Background", str(error))[0].split())[:200])
    remedies = (remedy for said, remedy in _REMEDIES.items() if re.search(said, text, re.IGNORECASE))
    return text, next(remedies, "Check the database and its URL")


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """The Optuna storage behind a URL; RecordError when it cannot be opened."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # SQLAlchemy and drivers raise their own types
        reason, remedy = _reason_and_remedy(error)
        raise RecordError(
            f"record: the storage cannot be opened ({type(error).__name__}: {reason}). {remedy}."
        ) from error


def existing_record(storage: optuna.storages.BaseStorage, name: str) -> Record | None:
    """A study's record as it is, or None. Opening it changes nothing."""
    with storing(name):
        try:
            number = storage.get_study_id_from_name(name)
        except KeyError:
            return None
        objectives: Any = storage.get_study_system_attrs(number).get("study:metric_names")
    return Record(storage, name, objectives=objectives or ["objective"])


def in_memory() -> optuna.storages.BaseStorage:
    """A storage that is gone with the process."""
    return optuna.storages.InMemoryStorage()


def sqlite_url(path: Path) -> str:
    """URL of an SQLite file."""
    return f"sqlite:///{path.resolve()}"


def _attributes(proposal: Proposal, measured: Measurement, fitness: Fitness | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "label": proposal.label,
        "generation": proposal.generation,
        "genome": None if proposal.genome is None else list(proposal.genome),
        "recipe_digest": proposal.recipe.digest,
        "weights_digest": measured.weights_digest,
        "scores": dict(measured.scores),
        "items": measured.items,
        "seconds": {phase: round(seconds, 4) for phase, seconds in measured.seconds.items()},
        "recipe": proposal.recipe.model_dump_json(),
        "outcomes": json.dumps({task: table.to_json() for task, table in measured.outcomes.items()}),
    }
    if fitness is not None:
        attributes |= {"value": fitness.value}
        attributes |= {"violations": list(fitness.violations)} if fitness.violations else {}
    attributes |= {"race": dict(measured.race)} if measured.race is not None else {}
    return attributes if measured.error is None else attributes | {"error": measured.error}


def _candidate(trial: FrozenTrial) -> Candidate:
    attributes = trial.user_attrs
    try:
        genome = attributes["genome"]
        outcomes = json.loads(attributes["outcomes"])
        fitness = None
        if trial.state != TrialState.FAIL:
            fitness = Fitness(attributes["value"], tuple(trial.values), tuple(attributes.get("violations", ())))
        return Candidate(
            number=trial.number,
            label=attributes["label"],
            generation=attributes["generation"],
            recipe=Recipe.parse(json.loads(attributes["recipe"]), f"candidate {trial.number}"),
            recipe_digest=attributes["recipe_digest"],
            genome=None if genome is None else tuple(genome),
            genes=trial.params,
            value=None if fitness is None else fitness.value,
            scores=attributes["scores"],
            outcomes=outcomes_from(outcomes),
            weights_digest=attributes["weights_digest"],
            seconds=attributes["seconds"],
            items=attributes["items"],
            error=attributes.get("error"),
            fitness=fitness,
            race=attributes.get("race"),
            curve=trial.intermediate_values,
        )
    except KeyError as error:
        raise RecordError(
            f"trial {trial.number} has no {error}: not written by heterosis. Use another study name or URL."
        ) from error
