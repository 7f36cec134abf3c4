"""The result of a study as one document: the claim, what it rests on, and how to repeat it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heterosis.evaluation.panel import SPLITS, Items, SplitName
from heterosis.finals import VARIANT, Choice, Evidence, claims, seed_spread
from heterosis.ledger.record import Candidate, Record
from heterosis.standings import standings
from heterosis.statistics import Objective
from heterosis.statistics.bootstrap import Array, TaskTable, cluster_sums, resampled
from heterosis.statistics.influence import tables_of
from heterosis.statistics.multiple import groups_of, optimism, simultaneous
from heterosis.study import Prepared

# Enough for a mean and for 95 % intervals, and little enough for thousands of candidates.
SEARCH_DRAWS = 1000


def result(
    prepared: Prepared,
    records: Mapping[SplitName, Record],
    choice: Choice,
    wanted: Sequence[str],
    leading: Sequence[Candidate] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that result.json says.

    `wanted`: labels whose test scores are shown; `leading`: proposals that were scored to the end after their races;
    `extra`: further keys.
    """
    config, splits, objective = prepared.config, prepared.panel.splits, prepared.objective
    parents = list(config.parents)
    openings = records["test"].noted("openings") or []
    selected = [c.label for c in records["selection"].candidates if VARIANT not in c.label]
    evidence = _evidence(prepared, records, {*wanted, *selected}, leading)
    winner = next(c for c in records["test"].candidates if c.label == choice.winner)
    return {
        "study": config.name,
        **claims(evidence["test"], choice, parents, len(openings)),
        "constraints": constraints_met(winner, records["test"], objective),
        "search_optimism": search_optimism(
            records["search"], splits["search"], objective, parents, config.seed, leading
        ),
        "mask_seeds": seed_spread(records["selection"], selected, config.mask_seeds),
        "winner": choice.winner,
        "best_baseline": choice.best_baseline,
        "weights_digest": winner.weights_digest,
        "recipe_digest": winner.recipe_digest,
        "genes": dict(winner.genes),
        "tasks": {
            name: {"metric": task.metric, "higher_is_better": task.higher_is_better}
            for name, task in splits["test"].tasks.items()
        },
        "objective": config.objective,
        "items": {split: splits[split].size for split in SPLITS},
        "clusters": {split: clusters_in(splits[split]) for split in SPLITS},
        "table": _table(evidence, choice, parents, wanted, selected),
        "test_openings": openings,
        "time": time_spent(records["search"].candidates),
        **_origin(prepared, records["search"]),
        **(extra or {}),
    }


def _origin(prepared: Prepared, searched: Record) -> dict[str, Any]:
    """What was merged and scored, and how to do it again."""
    return {
        "sources": {name: member.digest for name, member in prepared.family.members.items()},
        "panel_digest": prepared.panel.digest,
        "engine": searched.noted("engine"),
        "seed": prepared.config.seed,
        "command": f"heterosis run {prepared.path}",
        "python": sys.version.split()[0],
    }


def _evidence(
    prepared: Prepared, records: Mapping[SplitName, Record], shown: set[str], leading: Sequence[Candidate]
) -> dict[SplitName, Evidence]:
    """Of every split: the candidates of the table, and on the test split all that it ever scored."""
    found: dict[SplitName, Evidence] = {}
    complete = {candidate.label: candidate for candidate in leading}
    for split in SPLITS:
        candidates = [c for c in records[split].candidates if split == "test" or c.label in shown]
        if split == "search":
            candidates = [complete.get(c.label, c) for c in candidates]
        found[split] = Evidence(candidates, prepared.panel.splits[split], prepared.objective, prepared.config.seed)
    return found


def _table(
    evidence: Mapping[SplitName, Evidence],
    choice: Choice,
    parents: Sequence[str],
    wanted: Sequence[str],
    selected: Sequence[str],
) -> list[dict[str, Any]]:
    """Winner, parents, baselines and finalists with their scores on every split that has scored them."""
    rows = []
    for label in dict.fromkeys([*wanted, *selected]):
        row: dict[str, Any] = {"label": label, "role": _role(label, choice, parents, evidence["selection"])}
        for split in SPLITS:
            if label in evidence[split].labels and (split != "test" or label in wanted):
                row[split] = evidence[split].row(label)
        rows.append(row)
    return rows


def _role(label: str, choice: Choice, parents: Sequence[str], selection: Evidence) -> str:
    if label == choice.winner:
        return "winner"
    if label in parents:
        return "parent"
    return "finalist" if label in selection.proposed else "baseline"


def clusters_in(split: Items) -> dict[str, int]:
    """How many documents each task's items come from: what a split can resolve goes with these."""
    return {task: int(np.unique(numbers).size) for task, numbers in split.clusters.items()}


def constraints_met(winner: Candidate, tested: Record, objective: Objective) -> list[dict[str, Any]]:
    """Every constraint with its limit and the winner's score, on the test split. The scores are estimates."""
    parents = {c.label: c.scores for c in tested.baselines if c.label in objective.parents and c.value is not None}
    missed = objective.judge(winner.scores, parents).violations
    return [
        {
            **bound._asdict(),
            "limit": float(objective.limit(bound, parents)),
            "score": float(winner.scores[bound.task]),
            "met": amount <= 0.0,
        }
        for bound, amount in zip(objective.bounds, missed, strict=True)
    ]


def search_optimism(
    searched: Record,
    split: Items,
    objective: Objective,
    parents: Sequence[str],
    seed: int,
    leading: Sequence[Candidate] = (),
) -> dict[str, Any] | None:
    """The best proposal of the search against the best parent, on the items that chose it, corrected for the choice.

    `estimate` is what the search saw, `optimism` by how much the best of so many looks better than it is, `corrected`
    the difference of the two; `low` and `high` hold for all proposals at once. Only those that answered every item can
    lead, so the best is chosen among them (`leading`: those that a race had stopped, scored to the end); if none did
    (anchors), a proposal is compared with the parent on the part that it answered. None without a scored proposal.
    """
    later = {candidate.label: candidate for candidate in leading}
    scored = [later.get(c.label, c) for c in searched.proposed if c.value is not None]
    proposed = [candidate for candidate in scored if not candidate.is_partial] or scored
    known = [c for c in searched.baselines if c.label in parents and c.value is not None]
    if not proposed or not known:
        return None
    parent = max(known, key=lambda candidate: candidate.value or 0.0)
    tables, against = _matched(proposed, parent, split)
    count = len(proposed)

    def gains(scores: Mapping[str, Array]) -> Array:
        values = np.asarray(objective.value(scores))
        return np.asarray(values[:count] - values[against], dtype=np.float64)

    estimates = gains({task: table.score(cluster_sums(table).means) for task, table in tables.items()})
    draws = np.concatenate([gains(part) for part in resampled(tables, seed, SEARCH_DRAWS)], axis=1)
    best = proposed.index(standings(proposed, split, objective)[0])
    df = float(sum(count - 1 for count in clusters_in(split).values()))
    bias = optimism(estimates, draws, groups_of([candidate.generation for candidate in proposed]))
    return {
        "candidate": proposed[best].label,
        "against": parent.label,
        "candidates": count,
        **simultaneous(estimates, draws, df)[best]._asdict(),
        "optimism": bias,
        "corrected": float(estimates[best]) - bias,
    }


def _matched(proposed: Sequence[Candidate], parent: Candidate, split: Items) -> tuple[dict[str, TaskTable], list[int]]:
    """Tables of the proposals and, behind them, of the parent on the items that they know: for each, its row there."""
    tables = tables_of([candidate.outcomes for candidate in proposed], split)
    whole = tables_of([parent.outcomes], split)
    unknown = {task: np.isnan(table.values) for task, table in tables.items()}
    patterns: dict[bytes, int] = {}
    against: list[int] = []
    firsts: list[int] = []
    for row in range(len(proposed)):
        key = b"".join(np.packbits(gaps[row]).tobytes() for gaps in unknown.values())
        if key not in patterns:
            patterns[key] = len(proposed) + len(firsts)
            firsts.append(row)
        against.append(patterns[key])
    for task, table in tables.items():
        parts = np.where(unknown[task][firsts], np.nan, whole[task].values)
        tables[task] = table._replace(values=np.concatenate([table.values, parts]))
    return tables, against


def time_spent(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Where the search's wall time went, over all runs of the study."""
    phases = {phase: sum(c.seconds[phase] for c in candidates) for phase in ("merge", "swap", "score", "total")}
    rest = phases["total"] - phases["merge"] - phases["swap"] - phases["score"]
    return {
        **{phase: round(seconds, 3) for phase, seconds in phases.items()},
        "rest": round(rest, 3),
        "rest_share": round(rest / phases["total"], 4) if phases["total"] else 0.0,
        "candidates": len(candidates),
        "items": sum(c.items for c in candidates),
    }
