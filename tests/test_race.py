"""Races: the same items for all, nothing asked twice, and the same end whenever they are cut off."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from paper_family import BASELINES, SPACE

from heterosis.config import RacingConfig
from heterosis.evaluation.panel import Split, TaskOutcomes
from heterosis.evaluation.tasks import Item
from heterosis.ledger import Candidate, Record
from heterosis.ledger.record import Measurement
from heterosis.ledger.rungs import RungRecord
from heterosis.optimizers import make_optimizer
from heterosis.race import Race
from heterosis.recipe import Recipe
from heterosis.search import Budget, Stage, search
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare

TASKS = ("one", "two")
POPULATION = 6
POLICY = RacingConfig(rungs=(0.25, 0.5, 1.0), minimum=4)


def split_of(items: int) -> Split:
    """Two tasks of so many items, each a cluster of its own."""
    tasks: Any = {task: SimpleNamespace(score=lambda mean: mean) for task in TASKS}
    return Split(
        "search", tasks, {task: [Item(i, f"{task}{i}", f"p{task}{i}", ()) for i in range(items)] for task in TASKS}
    )


SPLIT = split_of(40)


class Killed(Exception):
    pass


class Hill:
    """Answers an item when the recipe is nearer to (0.9, 0.6) than the item is hard; counts what it is asked."""

    def __init__(self, flat: bool = False, failing: Sequence[str] = (), dies_after: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.flat, self.failing, self.dies_after = flat, failing, dies_after

    def measure(self, recipe: Recipe) -> Measurement:
        return self.ask(recipe, SPLIT)

    def ask(self, recipe: Recipe, part: Split) -> Measurement:
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise Killed
        self.asked.append((recipe.digest, part.size))
        seconds = {"merge": 0.1, "swap": 0.2, "score": 0.5, "total": 1.0}
        if recipe.digest in self.failing:
            return Measurement({}, {}, None, seconds, 0, "logits are NaN.")
        x, y = (float(recipe.parameters[parent]["all"].weight) for parent in ("x", "y"))
        far = 0.5 if self.flat else (x - 0.9) ** 2 + (y - 0.6) ** 2
        outcomes = {}
        for task, items in part.items.items():
            hard = [hash_unit(item.key) for item in items]
            outcomes[task] = TaskOutcomes(np.array([float(far < h) for h in hard]), np.ones(len(items)))
        return Measurement(part.scores(outcomes), outcomes, recipe.digest, seconds, part.size)


def hash_unit(key: str) -> float:
    return np.random.default_rng(list(key.encode())).random()


class Study:
    """A search with races on records in memory, which can be begun again."""

    def __init__(self) -> None:
        self.storage = optuna.storages.InMemoryStorage()

    def run(self, scorer: Hill, budget: Budget, policy: RacingConfig = POLICY, name: str = "cmaes") -> Record:
        objective = Objective("mean", {task: TaskShare(1.0, True) for task in TASKS})
        record = Record(self.storage, "study", SPACE.genes)
        pieces = RungRecord(self.storage, "study/rungs")
        race = Race(scorer, SPLIT, objective, record, pieces, policy, finalists=2)
        population = POPULATION if name == "cmaes" else 1
        stage = Stage(SPACE, lambda *_: make_optimizer(name, SPACE.initial, 0.3, population, 0), budget)
        search([stage], BASELINES, scorer, race, objective, record)
        return record


def plain(candidates: Sequence[Candidate]) -> list[Any]:
    return [
        (c.label, c.genome, c.value, c.items, c.race, {t: table.values.tobytes() for t, table in c.outcomes.items()})
        for c in candidates
    ]


def test_candidates_answer_nested_parts_of_the_split_the_same_for_all() -> None:
    proposed = Study().run(Hill(), Budget(18, None, None)).proposed
    known = {task: [~np.isnan(c.outcomes[task].values) for c in proposed] for task in TASKS}
    for masks in known.values():
        ordered = sorted(masks, key=lambda mask: mask.sum())
        assert all((small <= large).all() for small, large in itertools.pairwise(ordered))
    assert {c.items for c in proposed} <= {20, 40, 80}
    assert min(c.items for c in proposed) < 80


def test_no_item_is_asked_twice_of_a_recipe() -> None:
    hill = Hill()
    record = Study().run(hill, Budget(24, None, None))
    for candidate in record.proposed:
        assert candidate.items == sum(size for digest, size in hill.asked if digest == candidate.recipe_digest)
        assert SPLIT.known(candidate.outcomes) == candidate.items


def test_a_generation_whose_places_are_clear_costs_less_than_one_of_equal_candidates() -> None:
    strict = POLICY.model_copy(update={"reliability": 1.0})
    apart = Study().run(Hill(), Budget(POPULATION, None, None), strict)
    alike = Study().run(Hill(flat=True), Budget(POPULATION, None, None), strict)
    assert sum(c.items for c in apart.proposed) < sum(c.items for c in alike.proposed)
    assert all(c.items == 80 and c.race == {"place": "open", "rungs": 3} for c in alike.proposed)


def test_a_lower_reliability_ends_races_sooner() -> None:
    items = [
        sum(c.items for c in Study().run(Hill(), Budget(18, None, None), POLICY.model_copy(update=change)).proposed)
        for change in ({"reliability": 0.05}, {"reliability": 1.0})
    ]
    assert items[0] < items[1]


def test_a_value_from_a_part_of_the_items_is_an_estimate_for_all_of_them() -> None:
    record = Study().run(Hill(), Budget(12, None, None))
    truth = {c.label: Hill().measure(c.recipe).scores for c in record.proposed}
    partial = [c for c in record.proposed if c.is_partial]
    assert partial
    plain_errors, errors = [], []
    for candidate in partial:
        raw = np.mean([candidate.outcomes[task].mean() for task in TASKS])
        whole = np.mean(list(truth[candidate.label].values()))
        assert candidate.value is not None
        plain_errors.append((raw - whole) ** 2)
        errors.append((candidate.value - whole) ** 2)
    assert np.mean(errors) < np.mean(plain_errors)


@pytest.mark.parametrize("cut", [7, 9, 12, 16, 18])
def test_a_race_killed_anywhere_ends_as_one_never_killed_and_asks_nothing_again(cut: int) -> None:
    whole = Hill()
    expected = plain(Study().run(whole, Budget(14, None, None)).candidates)
    study, first, second = Study(), Hill(dies_after=cut), Hill()
    with pytest.raises(Killed):
        study.run(first, Budget(14, None, None))
    assert plain(study.run(second, Budget(14, None, None)).candidates) == expected
    assert first.asked + second.asked == whole.asked


def test_a_race_killed_while_it_was_being_written_down_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(Study().run(Hill(), Budget(14, None, None)).candidates)
    study, add, written = Study(), Record.add, []

    def dying(self: Record, *arguments: Any) -> Any:
        if len(written) == len(BASELINES) + 3:
            raise Killed
        written.append(arguments)
        return add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "add", dying)
        with pytest.raises(Killed):
            study.run(Hill(), Budget(14, None, None))
    assert plain(study.run(Hill(), Budget(14, None, None)).candidates) == expected


def test_a_budget_of_items_ends_a_race_at_the_next_question() -> None:
    used = sum(c.items for c in Study().run(Hill(), Budget(None, None, 7 * 80 + 90)).candidates)
    assert 7 * 80 + 90 <= used <= 7 * 80 + 90 + 40


def test_a_candidate_whose_turn_never_came_is_no_failure() -> None:
    record = Study().run(Hill(), Budget(None, None, len(BASELINES) * 80 + 30))
    assert [c.items for c in record.proposed] == [20, 20]
    assert all(c.error is None for c in record.proposed)


def test_a_candidate_that_fails_is_recorded_with_its_cause_and_the_others_race_on() -> None:
    broken = Study().run(Hill(), Budget(2, None, None)).proposed[1].recipe_digest
    record = Study().run(Hill(failing=[broken]), Budget(POPULATION, None, None))
    assert [c.error for c in record.proposed] == [None, "logits are NaN.", None, None, None, None]
    assert record.proposed[1].value is None


def test_a_sampler_that_proposes_one_at_a_time_races_against_the_best_so_far() -> None:
    proposed = Study().run(Hill(), Budget(30, None, None), name="random").proposed
    assert [c.items for c in proposed[:2]] == [80, 80]
    stopped = [c for c in proposed if c.race is not None and c.race["place"] == "out"]
    assert stopped
    best = sorted((c.value for c in proposed if not c.is_partial and c.value is not None), reverse=True)[:2]
    assert all(c.value is not None and c.value < best[-1] for c in stopped)


def test_dashboards_see_what_was_stopped_and_how_it_stood_after_each_rung() -> None:
    study = Study()
    record = study.run(Hill(), Budget(12, None, None))
    opened = optuna.load_study(study_name="study", storage=study.storage)
    trials = opened.trials
    assert {str(trial.state.name) for trial in trials} == {"COMPLETE", "PRUNED"}
    for candidate in record.proposed:
        out = candidate.is_partial and candidate.race is not None and candidate.race["place"] == "out"
        assert str(trials[candidate.number].state.name) == ("PRUNED" if out else "COMPLETE")
        assert list(trials[candidate.number].intermediate_values)[-1] == candidate.items
    # What led or was clear early counts, though it answered a part of the items: else few trials would.
    assert any(c.is_partial for c in record.proposed if str(trials[c.number].state.name) == "COMPLETE")
    assert set(optuna.importance.get_param_importances(opened)) == set(record.proposed[0].genes)


def test_a_candidate_that_was_stopped_goes_on_rung_by_rung_and_asks_only_what_is_missing() -> None:
    hill, study = Hill(), Study()
    record = study.run(hill, Budget(18, None, None))
    objective = Objective("mean", {task: TaskShare(1.0, True) for task in TASKS})

    def to_the_end(candidate: Candidate, scorer: Hill) -> Candidate | None:
        race = Race(scorer, SPLIT, objective, record, RungRecord(study.storage, "study/rungs"), POLICY, 2)
        found: Candidate | None = candidate
        while found is not None and found.is_partial:
            found = race.extend(found)
        return found

    partial, other, *_ = (candidate for candidate in record.proposed if candidate.is_partial)
    assert to_the_end(other, Hill(failing=(other.recipe.digest,))) is None
    before = sum(size for _, size in hill.asked)
    done = to_the_end(partial, hill)
    assert done is not None
    assert sum(size for _, size in hill.asked) - before == SPLIT.size - SPLIT.known(partial.outcomes)
    whole = hill.measure(partial.recipe)
    assert (done.scores, done.value) == (whole.scores, objective.number(whole.scores))
    assert all(np.array_equal(done.outcomes[task].values, whole.outcomes[task].values) for task in TASKS)
    assert to_the_end(partial, Hill(dies_after=0)) is not None  # it is all recorded by now
