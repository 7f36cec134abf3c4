"""What each chapter of a report shows: plots with their captions, tables with what their scores mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from markupsafe import Markup

from heterosis.drawing import MID
from heterosis.evaluation.panel import SplitName
from heterosis.finals import ERROR
from heterosis.inspection import plots as inspected
from heterosis.inspection.records import Level
from heterosis.inspection.wording import printable
from heterosis.report import result_plots, search_plots
from heterosis.report.geometry import Found
from heterosis.report.notices import notices, verdict
from heterosis.report.origin import winning
from heterosis.report.recipe_plots import depth_map, quantities, same_everywhere
from heterosis.report.result_plots import Difference, colour_of
from heterosis.report.view import OBJECTIVES, View, Weighed, weighed

# As many candidates as the table of all of them holds, and as parents have a heat map each.
SHOWN, MAPPED = 500, 6
ROLES = ("winner", "parent", "baseline", "finalist", "candidate")


class Plot(NamedTuple):
    """A plot and its caption."""

    drawn: Markup
    title: str
    says: str


class SplitTable(NamedTuple):
    """Scores on one split, and what they are worth."""

    title: str
    badge: str
    level: Level
    says: str
    size: int
    """Items of the split."""
    rows: list[dict[str, Any]]


class Claim(NamedTuple):
    """One of the three differences that head a report."""

    name: str
    against: str
    level: str
    found: dict[str, Any]


def _drawn(svg: str) -> Markup:
    """Text that the plotting library wrote, with all names in it escaped."""
    return Markup(svg)  # noqa: S704


def about(view: View) -> dict[str, Any]:
    """What the page's head and every chapter need."""
    config = view.stored.config
    shares = view.stored.objective.shares
    return {
        "study": config,
        "method": config.resolved_space.method,
        "parents": list(config.parents),
        "base": printable(config.base.model),
        "count": len(view.seen),
        "tasks": view.tasks,
        "lower": {task: not share.higher_is_better for task, share in shares.items()},
        "metrics": {task: printable(about.metric) for task, about in view.stored.items["test"].tasks.items()},
        "objective": OBJECTIVES[config.objective],
        "verdict": verdict(view),
        "winner": view.winner,
        "total": view.total,
        "error": ERROR,
    }


def result(view: View) -> dict[str, Any]:
    """The chapter on what was shown."""
    found = view.result
    tables = list(tables_of_splits(view))
    content: dict[str, Any] = {
        "result": found,
        "notices": notices(view),
        "tables": tables,
        "estimated": any(row["partial"] for table in tables for row in table.rows),
    }
    if found is None:
        return content
    against = [*found["against_each_parent"].items(), ("best baseline", found["heterosis"]["best_baseline"])]
    lines = [Difference(str(name), claim, colour_of(claim)) for name, claim in against]
    words = {"better": result_plots.GREEN, "worse": result_plots.RED}
    tasks = [Difference(task, claim, words.get(claim["word"], MID)) for task, claim in found["task_claims"].items()]
    by_task = result_plots.by_task(view)
    return content | {
        "claims": list(_claims(view)),
        "forest": _drawn(result_plots.forest(lines, "forest", "difference of the objective")),
        "task_forest": _drawn(result_plots.forest(tasks, "tasks", "gain in the task's own unit")),
        "by_task": None if by_task is None else _drawn(by_task),
    }


def _claims(view: View) -> Iterator[Claim]:
    assert view.result is not None
    names = {
        "best_parent": "best-parent heterosis",
        "mid_parent": "mid-parent heterosis",
        "best_baseline": "over the best baseline",
    }
    for key, name in names.items():
        found = view.result["heterosis"][key]
        against = found["against"] if isinstance(found["against"], str) else "the mean of the parents"
        shown = found["low"] > 0.0 and found.get("p", 0.0) <= ERROR
        level = "good" if shown else "warn" if found["high"] < 0.0 else "caution"
        yield Claim(name, printable(against), level, dict(found))


def tables_of_splits(view: View) -> Iterator[SplitTable]:
    """The rows of the result by split, the one that proves most first."""
    openings = len(view.stored.records["test"].noted("openings") or [])
    times = "opened once" if openings == 1 else f"opened {openings} times"
    known: dict[SplitName, tuple[str, Level, str]] = {
        "test": (
            times,
            "good" if openings == 1 else "warn",
            "No score of this split took part in the search or in the choice of the winner.",
        ),
        "selection": (
            "chose the winner",
            "caution",
            "The winner was chosen by these scores, so its own is a little too high here.",
        ),
        "search": (
            "selection-biased",
            "caution",
            "These scores drove the optimizer. Whatever leads here leads partly by luck; baselines were not chosen.",
        ),
    }
    for split, (badge, level, says) in known.items():
        ordered = sorted((row for row in view.rows if split in row), key=lambda row: _place(row, split))
        rows = [_cells(view, row, split) for row in ordered]
        if rows:
            items = view.stored.items[split].size
            yield SplitTable(f"{split.capitalize()} split, {items:,} items", badge, level, says, items, rows)


def _place(row: dict[str, Any], split: SplitName) -> tuple[int, float]:
    """Winner, parents, baselines, finalists, each from best to worst."""
    return ROLES.index(row["role"]), -row[split]["objective"]["estimate"]


def _cells(view: View, row: dict[str, Any], split: SplitName) -> dict[str, Any]:
    found = row[split]
    front = (view.result or {}).get("front") or ()
    return {
        "label": printable(row["label"]),
        "role": row["role"],
        "cells": [found["objective"], *(found["tasks"][task] for task in view.tasks)],
        "known": found["items"],
        "partial": found["items"] < view.stored.items[split].size,
        "front": row["label"] in front,
    }


def winner(view: View) -> dict[str, Any]:
    """The chapter on the winner's recipe."""
    best = winning(view)
    if best is None or view.result is None:
        return {"recipe": None}
    columns, found = quantities(best.recipe)
    varied = [each for each in found if not each.constant]
    flat = varied if len(columns) == 1 else []
    spread = view.result["mask_seeds"]
    return {
        "recipe": best.recipe,
        "same": same_everywhere(best.recipe, {each.name: each for each in found}),
        "maps": [(q.name, _drawn(depth_map(q, columns, n))) for n, q in enumerate(varied)] if not flat else [],
        "grouped": len(best.recipe.groups) > 1,
        "flat": flat,
        "flat_rows": list(dict.fromkeys(where for quantity in flat for where in quantity.rows)),
        "seeds": _drawn(result_plots.seeds(spread, view.winner)) if spread else None,
    }


def searched(view: View) -> dict[str, Any]:
    """The chapter on the search."""
    config = view.stored.config
    population = len(view.generations[0].members) if view.generations else 0
    name = {"cmaes": "CMA-ES", "tpe": "TPE", "gp": "A Gaussian process", "random": "Random search"}.get(
        config.optimizer.name, config.optimizer.name.upper()
    )
    batches = view.seen and view.generations[-1].number == view.seen[-1].candidate.generation
    in_all = f", {len(view.generations)} generations of {population}" if batches else ""
    weight = weighed(view)
    return {
        "optimizer": f"{name} over {len(view.ranges)} genes{in_all}",
        "time": view.time,
        "plots": [*_score_plots(view), *_race_plots(view), *_task_plots(view), *_gene_plots(view, weight)],
        "unseen": list(_unseen(view, weight)),
        "seen": view.seen,
        "shown": SHOWN,
    }


def _score_plots(view: View) -> Iterator[Plot]:
    if not view.scored:
        return
    lines = "Dashed: parents; dotted: other baselines, all on every item."
    yield Plot(_drawn(search_plots.scores(view, "candidates")), "Every candidate", f". {lines}")
    yield Plot(
        _drawn(search_plots.scores(view, "items")), "The same over items", ": what the search had paid for each point."
    )
    if len(view.generations) > 1:
        yield Plot(
            _drawn(search_plots.generations(view)),
            "Generations",
            ": a rising mean is learning, a high best may be luck. Generations whose race was short hold more noise.",
        )
        yield Plot(
            _drawn(search_plots.steps(view)),
            "Step",
            ": how far apart the proposals of a generation lie, as a share of the genes' ranges (root mean square of "
            "their standard deviations). It shrinks as the search settles.",
        )


def _race_plots(view: View) -> Iterator[Plot]:
    if any(seen.candidate.curve for seen in view.scored):
        yield Plot(
            _drawn(search_plots.rungs(view)),
            "Racing",
            ": how many items candidates had answered when their race was over.",
        )
    if any(len(seen.candidate.curve) > 1 for seen in view.scored):
        yield Plot(
            _drawn(search_plots.curves(view)),
            "Estimates along the rungs",
            ": each candidate after each rung. Those that fall had been lucky with their first items.",
        )


def _task_plots(view: View) -> Iterator[Plot]:
    few = len(view.tasks) <= result_plots.PAIRED
    if not view.scored or len(view.tasks) < 2:
        return
    if view.stored.config.objective == "pareto" and few:
        for drawn in result_plots.fronts(view):
            yield Plot(
                _drawn(drawn),
                "Two tasks",
                ": right and up are better. Parents and front as the selection split scored them, candidates as the "
                "search split did.",
            )
        return
    yield Plot(
        _drawn(result_plots.parallel(view)),
        "Tasks side by side",
        ": a line is a candidate, every task from the worst score seen to the best, which is on top. Broken lines are "
        "estimates from a part of the items.",
    )


def _gene_plots(view: View, weight: Weighed) -> Iterator[Plot]:
    if len(view.generations) > 1:
        yield Plot(
            _drawn(search_plots.paths(view)),
            "The path of the search",
            ": mean of each gene in each generation, from the lower end of its range (0) to the upper (1).",
        )
    if weight.found is not None:
        chance = (
            ""
            if weight.found.chance is None
            else " Grey: no more than the largest share that any gene got in 20 trials with scores dealt at random."
        )
        yield Plot(
            _drawn(search_plots.important(weight.found)),
            "Importance of genes",
            f": what tells the best quarter of {weight.candidates} candidates from all of them (PED-ANOVA), each "
            f"scored on the same {weight.items} items. It speaks of where the search went, "
            f"not of the whole space.{chance}",
        )
    if view.time["total"] > 0.0:
        yield Plot(_drawn(result_plots.spent(view.time)), "Time", ": wall time of the search, over all its runs.")


def _unseen(view: View, weight: Weighed) -> Iterator[str]:
    if view.scored and weight.found is None:
        yield (
            "Importance of genes is not shown: too few candidates answered the same items, or they all scored alike, "
            f"for {len(view.scored[-1].candidate.genes)} genes."
        )
    if view.scored and len(view.generations) <= 1:
        yield "There is one generation so far, so there is no path to show."


def looked_at(models: Found) -> dict[str, Any]:
    """The chapter on the parents' task vectors."""
    survey = models.survey
    if survey is None:
        return {"survey": None, "survey_why": models.why}
    moved = [name for name, size in survey.overall.sizes.items() if size.zeros < size.entries]
    paired = any(pair.cosine is not None for pair in survey.overall.pairs)
    plots = []
    if paired:
        plots += [
            Plot(_drawn(inspected.cosines(survey)), "Cosine between task vectors", ", layer by layer."),
            Plot(
                _drawn(inspected.conflicts(survey)),
                "Sign conflict",
                ", layer by layer: of the entries that several change, the share with different signs. Unrelated pairs "
                "have 0.5.",
            ),
        ]
    if moved:
        plots.append(
            Plot(
                _drawn(inspected.histogram(survey)),
                "How far entries moved",
                ". Within the first mark DARE can drop most of a task vector.",
            )
        )
        plots += [
            Plot(_drawn(inspected.heat_map(survey, name)), printable(name), ": mean |δ| by depth and group.")
            for name in moved[:MAPPED]
        ]
    return {"survey": survey, "geometry": plots}
