"""Who leads a search in which some were scored on few items."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from paper_family import BLANK

from heterosis.evaluation.panel import TaskOutcomes
from heterosis.ledger import Candidate, Proposal, Record
from heterosis.ledger.record import Measurement
from heterosis.standings import leaders, standings
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare

ITEMS, FEW = 200, 20
OBJECTIVE = Objective("mean", {"t": TaskShare(1.0, True)})
SPLIT: Any = SimpleNamespace(
    tasks={"t": SimpleNamespace(score=lambda mean: mean)}, clusters={"t": np.arange(ITEMS)}, items={"t": range(ITEMS)}
)


class Search:
    """Candidates of one generation whose answers to all items are known here, and to the record in part."""

    def __init__(self, chances: list[float], few: set[int], seed: int = 0, generation: int = 1000) -> None:
        rng = np.random.default_rng(seed)
        self.answers = [(rng.random(ITEMS) < chance).astype(float) for chance in chances]
        self.extended: list[str] = []
        record = Record(optuna.storages.InMemoryStorage(), "study")
        for number, values in enumerate(self.answers):
            known = np.where(np.arange(ITEMS) < FEW, values, np.nan) if number in few else values
            record.add(
                Proposal(f"c{number}", 1 + number // generation, BLANK, (number / 100,)),
                measured(known),
                float(np.nanmean(known)),
            )
        self.candidates = record.proposed

    def extend(self, candidate: Candidate) -> Candidate:
        """Four times as many items, as far as there are."""
        self.extended.append(candidate.label)
        known = 4 * int((~np.isnan(candidate.outcomes["t"].values)).sum())
        values = np.where(np.arange(ITEMS) < known, self.answers[candidate.number], np.nan)
        return replace(candidate, outcomes={"t": TaskOutcomes(values, np.ones(ITEMS))}, value=float(np.nanmean(values)))


def measured(values: np.ndarray) -> Measurement:
    table = TaskOutcomes(values, np.ones(ITEMS))
    seconds = dict.fromkeys(("merge", "swap", "score", "total"), 0.0)
    return Measurement({"t": table.mean()}, {"t": table}, "w", seconds, int((~np.isnan(values)).sum()))


def test_nobody_leads_on_an_estimate() -> None:
    for seed in range(10):
        search = Search(list(np.linspace(0.3, 0.8, 20)), set(range(0, 20, 2)), seed)
        best = leaders(search.candidates, SPLIT, OBJECTIVE, 5, search.extend)
        assert len(best) == 5
        assert not any(candidate.is_partial for candidate in best)
        assert set(search.extended) <= {f"c{number}" for number in range(0, 20, 2)}


def test_a_lucky_one_does_not_take_a_better_ones_place() -> None:
    """A first generation far apart makes differences look real that in the second are luck."""
    kept, lost = 0, 0
    for seed in range(10):
        chances = [*np.linspace(0.05, 0.65, 20), *[0.8] * 3, *[0.6] * 17]
        search = Search(chances, set(range(23, 40)), seed, generation=20)
        kept += sum(20 <= c.number < 23 for c in leaders(search.candidates, SPLIT, OBJECTIVE, 3, search.extend))
        lost += sum(not 20 <= c.number < 23 for c in standings(search.candidates, SPLIT, OBJECTIVE)[:3])
    assert kept == 30
    assert lost > 0


def test_complete_candidates_are_not_touched() -> None:
    search = Search([0.4, 0.6, 0.5], set())
    best = leaders(search.candidates, SPLIT, OBJECTIVE, 2, search.extend)
    assert best == standings(search.candidates, SPLIT, OBJECTIVE)[:2]
    assert search.extended == []


def test_one_that_can_no_longer_be_scored_does_not_lead() -> None:
    search = Search([0.9, 0.5, 0.5], {0})
    best = leaders(search.candidates, SPLIT, OBJECTIVE, 2, lambda candidate: None)
    assert {candidate.label for candidate in best} == {"c1", "c2"}


def test_an_extension_that_adds_nothing_is_an_error_and_no_endless_loop() -> None:
    search = Search([0.9, 0.5, 0.5], {0})
    with pytest.raises(AssertionError, match="answers more items"):
        leaders(search.candidates, SPLIT, OBJECTIVE, 2, lambda candidate: candidate)


def test_where_all_are_alike_the_search_for_leaders_ends() -> None:
    search = Search([0.5] * 60, set(range(60)))
    best = leaders(search.candidates, SPLIT, OBJECTIVE, 2, search.extend)
    assert len(best) == 2
    assert not any(candidate.is_partial for candidate in best)
    assert len(set(search.extended)) <= 4 * 2 + 1


@pytest.mark.parametrize("count", [1, 5])
def test_no_candidates_have_no_leaders(count: int) -> None:
    assert leaders([], SPLIT, OBJECTIVE, count, lambda candidate: candidate) == []
