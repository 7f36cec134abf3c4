"""What the pages and plots of a report are made from: a stored study, arranged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heterosis.evaluation.panel import SPLITS, SplitName
from heterosis.finals import VARIANT, Evidence
from heterosis.inspection.wording import printable
from heterosis.ledger.importance import Importance, importance
from heterosis.ledger.record import Candidate
from heterosis.results import time_spent
from heterosis.standings import NEIGHBOURS, standings
from heterosis.statistics.bootstrap import cluster_sums
from heterosis.statistics.influence import tables_of
from heterosis.stored import Stored

# Importance needs so many candidates that answered the same items, and so many for each gene.
FEWEST, PER_GENE = 20, 2

OBJECTIVES = {
    "mean": "weighted mean of task scores",
    "normalized_mean": "weighted mean, each task from the worst parent (0) to the best (1)",
    "worst": "worst task, each from the worst parent (0) to the best (1)",
    "pareto": "mean of all tasks, each from the worst parent (0) to the best (1)",
}


class Seen(NamedTuple):
    """A proposal as plots show it."""

    candidate: Candidate
    number: int
    """Counted from 1, in the order of the record."""
    known: int
    """Items of the search split that it answered."""
    spent: int
    """Items scored in the whole search up to it."""

    @property
    def value(self) -> float:
        """Its objective; NaN if scoring failed."""
        return math.nan if self.candidate.value is None else self.candidate.value


class Generation(NamedTuple):
    """Proposals that were made at once; of one-at-a-time samplers, neighbours."""

    number: int
    members: list[Seen]

    @property
    def values(self) -> list[float]:
        """Objectives of those that could be scored."""
        return [seen.value for seen in self.members if seen.candidate.value is not None]


class View(NamedTuple):
    """A study, arranged."""

    stored: Stored
    result: Mapping[str, Any] | None
    rows: list[dict[str, Any]]
    """Winner, parents, baselines and finalists with their scores by split, as in result.json."""
    seen: list[Seen]
    """What the optimizer proposed."""
    generations: list[Generation]
    ranges: dict[str, tuple[float, float]]
    """Gene name -> the least and the greatest value that the search gives it."""
    time: Mapping[str, float]

    @property
    def total(self) -> int:
        """Items of the search split."""
        return self.stored.items["search"].size

    @property
    def winner(self) -> str | None:
        """Its label, once the study is complete."""
        return None if self.result is None else str(self.result["winner"])

    @property
    def baselines(self) -> list[Candidate]:
        """Generation 0, as far as it could be scored."""
        return [c for c in self.stored.records["search"].baselines if c.value is not None]

    @property
    def scored(self) -> list[Seen]:
        """Proposals that could be scored."""
        return [seen for seen in self.seen if seen.candidate.value is not None]

    @property
    def failed(self) -> list[Candidate]:
        """Candidates that could not be scored."""
        return [c for c in self.stored.records["search"].candidates if c.value is None]

    @property
    def finalists(self) -> set[str]:
        """Labels of the proposals that the selection split scored."""
        return {c.label for c in self.stored.records["selection"].proposed if VARIANT not in c.label}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.stored.objective.shares)


def arranged(stored: Stored) -> View:
    """Arrange a study; nothing is computed anew that result.json holds."""
    record = stored.records["search"]
    spent = itertools.accumulate(candidate.items for candidate in record.candidates)
    after = {candidate.number: items for candidate, items in zip(record.candidates, spent, strict=True)}
    seen = [
        Seen(candidate, number, candidate.known, after[candidate.number])
        for number, candidate in enumerate(record.proposed, start=1)
    ]
    result = stored.result
    return View(
        stored,
        result,
        _rows_so_far(stored) if result is None else [_counted(row, stored) for row in result["table"]],
        seen,
        _generations(seen),
        record.ranges,
        time_spent(record.candidates) if result is None else result["time"],
    )


def _counted(row: Mapping[str, Any], stored: Stored) -> dict[str, Any]:
    """A row of result.json with the number of items behind each score."""
    found = dict(row)
    for split in SPLITS:
        if split in found and "items" not in found[split]:
            known = next((c for c in stored.records[split].candidates if c.label == row["label"]), None)
            items = stored.items[split].size if known is None else known.known
            found[split] = {**found[split], "items": items}
    return found


def _rows_so_far(stored: Stored) -> list[dict[str, Any]]:
    """Baselines and the best proposals of a study under way, on the splits that have scored them by now."""
    objective, parents = stored.objective, list(stored.config.parents)
    if objective.kind != "mean" and not objective.parents:
        return []  # a normalised objective has no scale before all parents are scored
    rows: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        for candidate, scores in _scored_rows(stored, split):
            role = "parent" if candidate.label in parents else "baseline" if candidate.is_baseline else "candidate"
            row = rows.setdefault(candidate.label, {"label": candidate.label, "role": role})
            row[split] = {"items": candidate.known, **scores}
    return list(rows.values())


def _scored_rows(stored: Stored, split: SplitName) -> list[tuple[Candidate, dict[str, Any]]]:
    items, objective = stored.items[split], stored.objective
    shown = [c for c in stored.records[split].candidates if c.value is not None and VARIANT not in c.label]
    if split == "search":
        best = standings([c for c in shown if not c.is_baseline], items, objective)[: stored.config.finalists]
        shown = [*(c for c in shown if c.is_baseline), *best]
    if not shown:
        return []
    evidence = Evidence(shown, items, objective, stored.config.seed)
    return [(candidate, evidence.row(candidate.label)) for candidate in shown]


def _generations(seen: Sequence[Seen]) -> list[Generation]:
    found = [
        Generation(number, list(members))
        for number, members in itertools.groupby(seen, key=lambda each: each.candidate.generation)
    ]
    if not found or any(len(each.members) > 1 for each in found):
        return found
    parts = [list(seen[at : at + NEIGHBOURS]) for at in range(0, len(seen), NEIGHBOURS)]
    return [Generation(number, members) for number, members in enumerate(parts, start=1)]


class Weighed(NamedTuple):
    """Importance of genes, and what it rests on."""

    found: Importance | None
    """None: too few candidates."""
    candidates: int
    items: int


def weighed(view: View) -> Weighed:
    """Importance over candidates that answered the same items: as many items as leave enough candidates.

    Each is scored anew on the items that all of them answered, so that no difference comes from other items. Where
    stages searched different genes, those of the last one count.
    """
    if not view.scored:
        return Weighed(None, 0, 0)
    genes = list(view.scored[-1].candidate.genes)
    among = [seen for seen in view.scored if list(seen.candidate.genes) == genes]
    needed = max(FEWEST, PER_GENE * len(genes))
    ranked = sorted(among, key=lambda seen: -seen.known)
    if len(ranked) < needed or not genes:
        return Weighed(None, len(among), 0)
    fewest = ranked[needed - 1].known
    chosen = [seen.candidate for seen in among if seen.known >= fewest]
    values, items = _on_shared_items(chosen, view.stored)
    if items == 0 or np.ptp(values) == 0.0:
        return Weighed(None, len(chosen), items)
    found = importance([c.genes for c in chosen], values.tolist(), view.ranges, view.stored.config.seed)
    return Weighed(found, len(chosen), items)


def _on_shared_items(candidates: Sequence[Candidate], stored: Stored) -> tuple[np.ndarray, int]:
    """[candidates]: the objective on the items that all of them answered; and how many those are."""
    tables = tables_of([candidate.outcomes for candidate in candidates], stored.items["search"])
    items = 0
    for task, table in tables.items():
        shared = ~np.isnan(table.values).any(axis=0)
        items += int(shared.sum())
        if not shared.any():
            return np.zeros(len(candidates)), 0
        tables[task] = table._replace(values=np.where(shared, table.values, np.nan))
    scores = {task: table.score(cluster_sums(table).means) for task, table in tables.items()}
    return np.asarray(stored.objective.value(scores), dtype=np.float64), items


def described(seen: Seen, total: int) -> str:
    """One proposal in one line, as tooltips show it."""
    candidate = seen.candidate
    if candidate.value is None:
        return f"{candidate.label}: failed ({printable(candidate.error or 'no reason recorded')})"
    scores = ", ".join(f"{printable(task)} {score:.3f}" for task, score in candidate.scores.items())
    kind = f"estimate from {seen.known} of {total} items" if seen.known < total else f"all {total} items"
    return f"{candidate.label}, generation {candidate.generation}: {candidate.value:.4f} ({kind}); {scores}"
