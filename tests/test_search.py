"""The loop: what it asks, what it records, when it stops, and that it goes on exactly where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from paper_family import BASELINES, SPACE

from heterosis.errors import CandidateError, RecordError
from heterosis.evaluation.panel import TaskOutcomes
from heterosis.ledger import Candidate, Proposal, Record
from heterosis.ledger.record import Measurement
from heterosis.optimizers import Fitness, Optimizer, make_optimizer
from heterosis.optimizers.protocol import Genome
from heterosis.recipe import Recipe
from heterosis.scoring import OneByOne
from heterosis.search import Budget, Stage, search
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare

ITEMS = 5
POPULATION = 4
ENDLESS = Budget(None, None, None)


class Hill:
    """Scores a recipe by how near its weights are to (0.9, 0.6); fails the proposals that it is told to fail."""

    def __init__(self, failing: Sequence[int] = ()) -> None:
        self.measured: list[Recipe] = []
        self._failing = failing
        self._proposals = 0

    def measure(self, recipe: Recipe) -> Measurement:
        self.measured.append(recipe)
        proposed = recipe not in BASELINES.values()
        self._proposals += proposed
        seconds = {"merge": 0.1, "swap": 0.2, "score": 0.5, "total": 1.0}
        if proposed and self._proposals in self._failing:
            return Measurement({}, {}, None, seconds, 0, "logits are NaN.")
        x, y = (recipe.parameters[parent]["all"].weight for parent in ("x", "y"))
        value = -((float(x) - 0.9) ** 2) - (float(y) - 0.6) ** 2
        outcomes = {"hill": TaskOutcomes(np.full(ITEMS, value), np.ones(ITEMS))}
        return Measurement({"hill": value}, outcomes, "w" * 64, seconds, ITEMS)


class Told:
    """An optimizer that keeps what it was told."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.values: list[list[float | None]] = []

    def ask(self) -> list[Genome]:
        return self.inner.ask()

    def tell(self, genomes: Sequence[Genome], found: Sequence[Fitness | None]) -> None:
        self.values.append([None if fitness is None else fitness.value for fitness in found])
        self.inner.tell(genomes, found)

    def mean(self) -> Genome | None:
        return self.inner.mean()

    def converged(self) -> bool:
        return self.inner.converged()


def optimizer(name: str = "cmaes", seed: int = 0) -> Told:
    return Told(make_optimizer(name, SPACE.initial, 0.2, POPULATION, seed))


def objective(kind: str = "mean") -> Objective:
    return Objective(kind, {"hill": TaskShare(1.0, True)})


def new_record() -> Record:
    return Record(optuna.storages.InMemoryStorage(), "study", SPACE.genes)


def searched(
    budget: Budget, record: Record | None = None, scorer: Any = None, told: Told | None = None, kind: str = "mean"
) -> Record:
    record = new_record() if record is None else record
    stage = Stage(SPACE, lambda *_: told or optimizer(), budget)
    scorer = scorer or Hill()
    search([stage], BASELINES, scorer, OneByOne(scorer), objective(kind), record)
    return record


def plain(candidates: Sequence[Candidate]) -> list[Mapping[str, Any]]:
    """Candidates as values that compare bit for bit."""

    def bits(candidate: Candidate) -> Mapping[str, Any]:
        return {task: (t.values.tobytes(), t.weights.tobytes()) for task, t in candidate.outcomes.items()}

    return [{**vars(candidate), "outcomes": bits(candidate)} for candidate in candidates]


def prefix(record: Record, count: int) -> Record:
    """A record that holds the first so many candidates: what a killed study left."""
    cut = new_record()
    for c in record.candidates[:count]:
        measured = Measurement(c.scores, c.outcomes, c.weights_digest, c.seconds, c.items, c.error)
        cut.add(Proposal(c.label, c.generation, c.recipe, c.genome, c.genes), measured, c.value)
    return cut


def test_baselines_come_first_and_in_order() -> None:
    record = searched(Budget(3, None, None))
    assert [c.label for c in record.candidates] == [*BASELINES, "c1", "c2", "c3"]
    assert [c.generation for c in record.candidates] == [0] * len(BASELINES) + [1] * 3
    assert all(c.recipe == BASELINES[c.label] and c.genome is None for c in record.baselines)


def test_a_candidates_recipe_and_genes_are_those_of_its_genome() -> None:
    for candidate in searched(Budget(6, None, None)).proposed:
        assert candidate.genome is not None
        assert candidate.recipe == SPACE.recipe(candidate.genome)
        assert candidate.genes == pytest.approx(SPACE.values(candidate.genome))


def test_the_search_climbs() -> None:
    record = searched(Budget(120, None, None))
    best = max(c.value for c in record.proposed if c.value is not None)
    assert best > max(c.value for c in record.baselines if c.value is not None)
    assert best > -1e-3


def test_every_generation_is_told_whole_and_in_order() -> None:
    told = optimizer()
    record = searched(Budget(3 * POPULATION, None, None), told=told)
    assert [value for values in told.values for value in values] == [c.value for c in record.proposed]
    assert [len(values) for values in told.values] == [POPULATION] * 3
    assert [c.generation for c in record.proposed] == [1] * POPULATION + [2] * POPULATION + [3] * POPULATION


@pytest.mark.parametrize("name", ["cmaes", "tpe", "random"])
def test_a_study_cut_anywhere_ends_as_one_never_cut(name: str) -> None:
    budget = Budget(10, None, None)
    whole = searched(budget, told=optimizer(name), scorer=Hill())
    assert len(whole.candidates) == len(BASELINES) + 10
    for count in range(len(whole.candidates) + 1):
        scorer = Hill()
        resumed = searched(budget, prefix(whole, count), scorer, optimizer(name))
        assert plain(resumed.candidates) == plain(whole.candidates), f"cut after {count}"
        again = max(0, len(BASELINES) - count) if count >= 2 else len(BASELINES)
        assert len(scorer.measured) == again + 10 - max(0, count - len(BASELINES))


def test_a_resumed_study_with_a_failure_ends_as_one_never_cut() -> None:
    budget = Budget(9, None, None)
    whole = searched(budget, scorer=Hill(failing=[2, 6]))
    for count in range(len(BASELINES) + 2, len(whole.candidates) + 1):
        done = count - len(BASELINES)
        resumed = searched(budget, prefix(whole, count), Hill(failing=[n - done for n in (2, 6)]))
        assert plain(resumed.candidates) == plain(whole.candidates)


def test_a_larger_budget_goes_on_with_the_same_candidates() -> None:
    whole = searched(Budget(14, None, None))
    short = searched(Budget(5, None, None))
    assert plain(short.candidates) == plain(whole.candidates)[: len(short.candidates)]
    assert plain(searched(Budget(14, None, None), short).candidates) == plain(whole.candidates)


def test_a_finished_study_measures_nothing() -> None:
    record, scorer = searched(Budget(6, None, None)), Hill()
    searched(Budget(6, None, None), record, scorer)
    assert scorer.measured == []


@pytest.mark.parametrize(
    ("budget", "proposed"),
    [
        (Budget(7, None, None), 7),
        (Budget(None, None, ITEMS * (len(BASELINES) + 6)), 6),
        (Budget(None, None, ITEMS * (len(BASELINES) + 6) + 1), 7),
        (Budget(None, len(BASELINES) + 5.0, None), 5),
        (Budget(9, 1e9, ITEMS * (len(BASELINES) + 4)), 4),
        (Budget(None, None, 1), 0),
    ],
)
def test_a_budget_ends_the_search_whichever_is_first(budget: Budget, proposed: int) -> None:
    assert len(searched(budget).proposed) == proposed


def test_a_converged_optimizer_ends_the_search() -> None:
    told = optimizer()
    told.converged = lambda: len(told.values) == 2  # type: ignore[method-assign]
    assert len(searched(ENDLESS, told=told).proposed) == 2 * POPULATION


def test_a_failed_candidate_is_recorded_with_its_reason_and_told_as_worst() -> None:
    told = optimizer()
    record = searched(Budget(2 * POPULATION, None, None), scorer=Hill(failing=[3]), told=told)
    failed = record.proposed[2]
    assert (failed.label, failed.value, failed.error) == ("c3", None, "logits are NaN.")
    assert told.values[0][2] is None
    assert len(record.proposed) == 2 * POPULATION


def test_a_generation_in_which_all_fail_ends_the_search() -> None:
    record = new_record()
    with pytest.raises(CandidateError, match=r"Every candidate of generation 2 failed.*logits are NaN\."):
        searched(ENDLESS, record, Hill(failing=range(POPULATION + 1, 100)))
    assert len(record.proposed) == 2 * POPULATION


def test_ten_failures_in_a_row_end_a_search_that_has_no_generations() -> None:
    scorer, record = Hill(failing=range(3, 100)), new_record()
    with pytest.raises(CandidateError, match=r"The last 10 candidates failed, so the search stops: logits are NaN\."):
        searched(ENDLESS, record, scorer, Told(make_optimizer("random", SPACE.initial, 0.2, 1, 0)))
    assert len(record.proposed) == 12


def test_a_parent_that_cannot_be_scored_ends_the_study_before_anything_is_recorded() -> None:
    class Broken(Hill):
        def measure(self, recipe: Recipe) -> Measurement:
            found = super().measure(recipe)
            return found._replace(error="no luck.") if recipe == BASELINES["y"] else found

    record = new_record()
    with pytest.raises(CandidateError, match=r"A parent cannot be scored.* y: no luck\."):
        searched(ENDLESS, record, Broken())
    assert record.candidates == ()


def test_another_optimizer_than_the_recorded_one_is_noticed() -> None:
    record = searched(Budget(5, None, None))
    with pytest.raises(RecordError, match="c1 was recorded at another point than is proposed"):
        searched(Budget(8, None, None), record, told=optimizer(seed=1))


@pytest.mark.parametrize("kind", ["normalized_mean", "worst"])
def test_a_normalised_objective_takes_its_scale_from_the_parents(kind: str) -> None:
    record = searched(Budget(4, None, None), kind=kind)
    values = {c.label: c.value for c in record.baselines}
    assert sorted([values["x"], values["y"]]) == [0.0, 1.0]  # type: ignore[type-var]
    whole = searched(Budget(8, None, None), kind=kind)
    resumed = searched(Budget(8, None, None), record, kind=kind)
    assert plain(resumed.candidates) == plain(whole.candidates)


# EngineScorer: a recipe through an engine and a split.
