"""What a sweep found, as one document: scores, differences from the original, hidden states, each with its errors.

Two errors are told apart. Intervals come from a paired bootstrap over the documents that items come from: what other
items would have said of these same merges; those of differences from the original hold for all points of a curve at
once. The spread over mask seeds is what other random masks say on these same
items. A point's outcomes are the means over its mask seeds, item by item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heterosis.evaluation.panel import TaskOutcomes
from heterosis.ledger.record import Candidate, Record
from heterosis.statistics.bootstrap import TaskTable, cluster_sums, resample
from heterosis.statistics.comparison import Comparison, Scale
from heterosis.study import Prepared
from heterosis.sweep.points import BASE, Curve, Design, Point, Subject, Value
from heterosis.sweep.similarity import Texts, described, key

FORMAT = 1


class Found(NamedTuple):
    """What the report is made of."""

    prepared: Prepared
    design: Design
    record: Record
    compared: Mapping[str, Record]
    texts: Mapping[str, Texts]
    mask_seeds: int


def report(found: Found) -> dict[str, Any]:
    """All that sweep.json says."""
    prepared, design = found.prepared, found.design
    split = prepared.panel.splits["search"]
    points: list[dict[str, Any]] = [_point(found, point) for point in design.points]
    references: list[dict[str, Any]] = []
    for subject in design.subjects:
        mine = [i for i, point in enumerate(design.points) if point.subject == subject]
        for task in subject.tasks:
            rows, ends = _scores(found, subject, task, [design.points[i] for i in mine])
            references += ends
            for i, row in zip(mine, rows, strict=True):
                if row is not None:
                    points[i]["tasks"][task] = row
        if subject.name in found.compared:
            compared = _similarity(found, subject, [design.points[i] for i in mine])
            for i, each in zip(mine, compared, strict=True):
                if each is not None:
                    points[i]["similarity"] = each
    engine = found.record.noted("engine")
    return {
        "heterosis_sweep": FORMAT,
        "sweep": prepared.config.name,
        "base": prepared.blank.base.model,
        "sources": {name: member.digest for name, member in prepared.family.members.items()},
        "tasks": {
            name: {
                "metric": task.metric,
                "higher_is_better": task.higher_is_better,
                "items": len(split.items[name]),
                "documents": int(np.unique(split.clusters[name]).size),
            }
            for name, task in prepared.panel.tasks.items()
            if any(name in subject.tasks for subject in design.subjects)
        },
        "panel_digest": prepared.panel.digest,
        "engine": engine,
        "seed": prepared.config.seed,
        "mask_seeds": found.mask_seeds,
        "texts": described(found.texts),
        "subjects": [
            {"name": each.name, "parents": list(each.parents), "tasks": list(each.tasks)} for each in design.subjects
        ],
        "curves": {
            curve.name: {"axes": {axis: list(values) for axis, values in curve.axes.items()}, "fixed": curve.fixed}
            for curve in design.curves
        },
        "references": references,
        "points": points,
        "losses": [row for curve in design.curves for row in _losses(found, curve, points)],
        "command": f"heterosis sweep {prepared.path}",
    }


def _point(found: Found, point: Point) -> dict[str, Any]:
    digests = [recipe.digest for recipe in point.recipes]
    scored = [found.record.find(digest) for digest in digests]
    failed = [c.error for c in found.record.candidates if c.recipe_digest in digests and c.error]
    content: dict[str, Any] = {
        "curve": point.curve,
        "at": dict(point.at),
        "subject": point.subject.name,
        "masks": len(point.recipes),
        "recipes": digests,
        "weights": [None if each is None else each.weights_digest for each in scored],
        "tasks": {},
    }
    return content | ({"error": failed[-1]} if failed and None in scored else {})


def _scores(
    found: Found, subject: Subject, task: str, points: Sequence[Point]
) -> tuple[list[dict[str, Any] | None], list[dict[str, Any]]]:
    """The points' scores on a task, None where a merge failed; and those of the base and the parents themselves."""
    panel = found.prepared.panel
    scale, split = panel.tasks[task], panel.splits["search"]
    ends = {
        label: _find(found.record, found.design.references[label].digest, task) for label in (BASE, *subject.parents)
    }
    known = [[_find(found.record, recipe.digest, task) for recipe in point.recipes] for point in points]
    there = [i for i, each in enumerate(known) if None not in each]
    rows = [[end] for end in ends.values()] + [known[i] for i in there]
    tables = [[candidate.outcomes[task] for candidate in row if candidate is not None] for row in rows]
    compared = _comparison(task, [_mean(own) for own in tables], scale.score, split.clusters[task], found)
    sign = 1.0 if scale.higher_is_better else -1.0
    labels = list(ends)
    best = max(range(1, len(labels)), key=lambda row: sign * compared.estimates[row])
    references = [
        {"subject": subject.name, "label": label, "role": "base" if label == BASE else "parent", "task": task}
        | {"compared_with": at == best}
        | _interval("score", compared.interval(at))
        for at, label in enumerate(labels)
    ]
    answers: list[dict[str, Any] | None] = [None] * len(points)
    of_curve: dict[str, list[int]] = {}
    for at, i in enumerate(there, len(labels)):
        of_curve.setdefault(points[i].curve, []).append(at)
    for at, i in enumerate(there, len(labels)):
        by_mask = [float(scale.score(outcomes.mean())) for outcomes in tables[at]]
        answers[i] = {
            **_interval("score", compared.interval(at)),
            "by_mask": by_mask,
            "difference": _difference(compared, at, best, rows, of_curve[points[i].curve]),
            "against": labels[best],
        }
    return answers, references


def _difference(
    compared: Comparison, row: int, other: int, rows: Sequence[Any], family: Sequence[int]
) -> dict[str, float]:
    """From the original, raw: positive is more, which is better or worse as the task has it.

    The interval holds for all points of the curve (`family`) at once.
    """
    if rows[row] == rows[other]:
        return {"estimate": 0.0, "low": 0.0, "high": 0.0}
    return compared.difference(row, [other], family)._asdict()


def _find(record: Record, digest: str, task: str) -> Candidate | None:
    for each in record.candidates:
        if each.recipe_digest == digest and each.value is not None and task in each.outcomes:
            return each
    return None


def _mean(tables: Sequence[TaskOutcomes]) -> TaskOutcomes:
    return TaskOutcomes(np.mean([table.values for table in tables], axis=0), tables[0].weights)


def _comparison(task: str, rows: Sequence[TaskOutcomes], score: Any, clusters: Any, found: Found) -> Comparison:
    table = TaskTable(np.stack([row.values for row in rows]), rows[0].weights, score, clusters)
    seed = found.prepared.config.seed
    draws = resample({task: table}, seed)[task]
    scale = Scale(lambda scores: scores[task], lambda _: {task: 1.0})
    return Comparison({task: table}, scale, table.score(cluster_sums(table).means), draws, seed)


def _interval(name: str, interval: Any) -> dict[str, float]:
    return {name: interval.estimate, "low": interval.low, "high": interval.high}


def _similarity(found: Found, subject: Subject, points: Sequence[Point]) -> list[dict[str, Any] | None]:
    """Of each point, by original, the cosine behind each layer."""
    record = found.compared[subject.name]
    digests = {c.recipe_digest: c for c in record.candidates if c.value is not None}
    known = [[digests.get(recipe.digest) for recipe in point.recipes] for point in points]
    there = [i for i, each in enumerate(known) if None not in each]
    answers: list[dict[str, Any] | None] = [None] * len(points)
    if not there:
        return answers
    rows = [[candidate.outcomes for candidate in known[i] if candidate is not None] for i in there]
    clusters = np.arange(len(next(iter(rows[0][0].values())).values))
    for i in there:
        answers[i] = {original: [] for original in subject.parents}
    for original in subject.parents:
        for layer in range(len(rows[0][0]) // len(subject.parents)):
            name = key(original, layer)
            tables = [[outcomes[name] for outcomes in row] for row in rows]
            compared = _comparison(name, [_mean(own) for own in tables], lambda mean: mean, clusters, found)
            for at, i in enumerate(there):
                answer = answers[i]
                assert answer is not None
                by_mask = [table.mean() for table in tables[at]]
                answer[original].append({**_interval("cosine", compared.interval(at)), "by_mask": by_mask})
    return answers


def x_of(curve: Curve) -> tuple[str, tuple[Value, ...]]:
    """The axis that is drawn along x, and its values."""
    return next(iter(curve.axes.items()))


def _losses(found: Found, curve: Curve, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Along each line of a curve, the values of x at which a loss against the original is shown, and the others."""
    axis, _ = x_of(curve)
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["curve"] == curve.name:
            others = tuple((key, value) for key, value in point["at"].items() if key != axis)
            for task in point["tasks"]:
                lines.setdefault((point["subject"], task, others), []).append(point)
    rows = []
    for (subject, task, others), along in lines.items():
        higher = found.prepared.panel.tasks[task].higher_is_better
        lost = [point["at"][axis] for point in along if _is_loss(point["tasks"][task]["difference"], higher)]
        kept = [point["at"][axis] for point in along if point["at"][axis] not in lost]
        line = {"curve": curve.name, "subject": subject, "task": task, "axis": axis}
        rows.append(line | {"others": dict(others), "loss_shown": lost, "no_loss_shown": kept})
    return rows


def _is_loss(difference: Mapping[str, float], higher_is_better: bool) -> bool:
    return difference["high"] < 0.0 if higher_is_better else difference["low"] > 0.0


def is_loss(row: Mapping[str, Any], higher_is_better: bool) -> bool:
    """Whether a point's interval of the difference from the original lies wholly on the worse side."""
    return _is_loss(row["difference"], higher_is_better)


def spread(by_mask: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest over mask seeds; NaN where there is one alone."""
    return (min(by_mask), max(by_mask)) if len(by_mask) > 1 else (math.nan, math.nan)
