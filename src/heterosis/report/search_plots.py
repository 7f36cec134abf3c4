"""Plots of the search: scores over candidates and items, races, generations, genes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from heterosis.drawing import COLOURS, MID, SIZE, legend, new_figure, svg
from heterosis.inspection.wording import short
from heterosis.ledger.importance import Importance
from heterosis.report.view import Seen, View, described

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN = COLOURS[:3]
# More baselines than this have no name beside their line; more genes no label of their own.
NAMED, LABELLED = 8, 40
# As many genes as a bar chart shows.
BARS = 15

Place = Callable[[Seen], int]
"""Where a plot puts a candidate."""


def scores(view: View, over: str) -> str:
    """Objective of every proposal over "candidates" or over evaluated "items", with baselines as lines."""
    figure, axes = new_figure(SIZE)
    place = _by_number if over == "candidates" else _by_items
    tips: dict[str, list[str]] = {}
    _dots(axes, [seen for seen in view.scored if seen.known < view.total], "partial", place, view, tips)
    _dots(axes, [seen for seen in view.scored if seen.known >= view.total], "complete", place, view, tips)
    if view.scored:
        best = np.maximum.accumulate([seen.value for seen in view.scored])
        axes.step([place(s) for s in view.scored], best, where="post", color=BLUE, linewidth=1.2, label="best so far")
    winner = [seen for seen in view.scored if seen.candidate.label == view.winner]
    if winner:
        dot = axes.scatter([place(winner[0])], [winner[0].value], marker="*", s=110, color=ORANGE, zorder=4)
        dot.set_label("winner")
        dot.set_gid("winner")
        tips["winner"] = ["the winner: " + described(winner[0], view.total)]
    _failures(axes, view, place, tips)
    _baselines(axes, view, tips)
    axes.set_xlabel("candidate" if over == "candidates" else "evaluated items, baselines included")
    axes.set_ylabel("objective, search split")
    legend(figure, axes)
    return svg(figure, f"scores-{over}", f"Objective of each candidate over {over}", tips)


def _by_number(seen: Seen) -> int:
    return seen.number


def _by_items(seen: Seen) -> int:
    return seen.spent


def _dots(axes: Axes, seen: Sequence[Seen], kind: str, place: Place, view: View, tips: dict[str, list[str]]) -> None:
    if not seen:
        return
    dots = axes.scatter(
        [place(each) for each in seen],
        [each.value for each in seen],
        s=18,
        facecolors="none" if kind == "partial" else BLUE,
        edgecolors=BLUE,
        linewidths=0.9,
        label="estimate from a part of the items" if kind == "partial" else "all items",
        zorder=3,
    )
    dots.set_gid(kind)
    tips[kind] = [described(each, view.total) for each in seen]


def _failures(axes: Axes, view: View, place: Place, tips: dict[str, list[str]]) -> None:
    failed = [seen for seen in view.seen if seen.candidate.value is None]
    if failed:
        at = axes.get_xaxis_transform()
        marks = axes.scatter(
            [place(s) for s in failed], [0.02] * len(failed), marker="x", color=COLOURS[4], transform=at, clip_on=False
        )
        marks.set_label("failed")
        marks.set_gid("failed")
        tips["failed"] = [described(seen, view.total) for seen in failed]


def _baselines(axes: Axes, view: View, tips: dict[str, list[str]]) -> None:
    parents = set(view.stored.config.parents)
    for number, candidate in enumerate(view.baselines):
        style = (0, (5, 2)) if candidate.label in parents else (0, (2, 2))
        line = axes.axhline(candidate.value or 0.0, color=MID, linewidth=1.0, linestyle=style, zorder=1)
        line.set_gid(f"baseline{number}")
        tips[f"baseline{number}"] = [f"{candidate.label}: {candidate.value:.4f} (baseline, search split)"]
    if len(view.baselines) <= NAMED:
        labels_beside(axes, {short(c.label, 20): c.value or 0.0 for c in view.baselines})


def labels_beside(axes: Axes, places: Mapping[str, float]) -> None:
    """Names at the right edge, each led to from its height; moved apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted(places.items(), key=lambda each: each[1])
    for (name, at), height in zip(ordered, apart([at for _, at in ordered], 0.075 * (high - low)), strict=True):
        axes.annotate(
            name,
            (1.0, at),
            xytext=(1.05, height),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MID, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
        )
    axes.set_ylim(low, high)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as makes neighbours `gap` apart (isotonic regression)."""
    blocks: list[list[float]] = []  # sum and number of the heights that move together
    for number, height in enumerate(heights):
        blocks.append([height - number * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    level = [total / count for total, count in blocks for _ in range(int(count))]
    return [each + number * gap for number, each in enumerate(level)]


def rungs(view: View) -> str:
    """How many candidates answered at least so many items before their race was over."""
    raced = [seen for seen in view.scored if seen.candidate.race is not None]
    stops = Counter(seen.known for seen in raced)
    figure, axes = new_figure(SIZE)
    reached = len(raced)
    tips = {}
    for place, items in enumerate(sorted(stops)):
        parts = ((stops[items], BLUE, "stopped here"), (reached - stops[items], MID, "went on"))
        left = 0
        for count, colour, what in parts:
            if count:
                label = what if place == 0 else None
                bar = axes.barh([place], [count], left=left, color=colour, height=0.7, label=label)[0]
                gid = f"rung{place}{colour[1:]}"
                bar.set_gid(gid)
                tips[gid] = [f"{count} of the {reached} candidates that answered {items} items {what}"]
                left += count
        reached -= stops[items]
    axes.set_yticks(range(len(stops)), [str(items) for items in sorted(stops)])
    axes.invert_yaxis()
    axes.set_xlabel("candidates")
    axes.set_ylabel("items answered")
    legend(figure, axes)
    return svg(figure, "rungs", "How many candidates answered how many items", tips)


def curves(view: View) -> str:
    """The estimate of each candidate after each rung of its race."""
    figure, axes = new_figure(SIZE)
    tips = {}
    raced = sorted(
        (s for s in view.scored if len(s.candidate.curve) > 1), key=lambda s: s.candidate.label == view.winner
    )
    for seen in raced:
        won = seen.candidate.label == view.winner
        items = sorted(seen.candidate.curve)
        (line,) = axes.plot(
            items,
            [seen.candidate.curve[each] for each in items],
            color=ORANGE if won else BLUE,
            linewidth=2.0 if won else 0.8,
            alpha=1.0 if won else 0.5,
            marker="o",
            markersize=3 if won else 1.5,
            label="winner" if won else None,
        )
        line.set_gid(f"curve{seen.number}")
        tips[f"curve{seen.number}"] = [described(seen, view.total)]
    axes.set_xscale("log")
    ticks = sorted({items for seen in raced for items in seen.candidate.curve})
    axes.set_xticks(ticks, [str(each) for each in ticks])
    axes.minorticks_off()
    axes.set_xlabel("items answered")
    axes.set_ylabel("estimate of the objective")
    legend(figure, axes)
    return svg(figure, "curves", "Estimates of each candidate after each rung", tips)


def generations(view: View) -> str:
    """Mean, best and spread of each generation."""
    figure, axes = new_figure(SIZE)
    known = [each for each in view.generations if each.values]
    at = [each.number for each in known]
    means = np.array([np.mean(each.values) for each in known])
    spread = np.array([np.std(each.values) for each in known])
    axes.fill_between(at, means - spread, means + spread, color=BLUE, alpha=0.2, linewidth=0, label="± 1 SD")
    axes.plot(at, means, color=BLUE, marker="o", markersize=4, label="mean")
    axes.plot(at, [max(each.values) for each in known], color=ORANGE, marker="^", markersize=4, label="best")
    _whole_numbers(axes)
    axes.set_xlabel("generation")
    axes.set_ylabel("objective, search split")
    legend(figure, axes)
    return svg(figure, "generations", "Mean and best objective of each generation")


def steps(view: View) -> str:
    """How far apart the proposals of a generation lie: the step size as it was seen."""
    figure, axes = new_figure(SIZE)
    points = [(each.number, _spread(view, each.members)) for each in view.generations if len(each.members) > 1]
    axes.plot([at for at, _ in points], [size for _, size in points], color=GREEN, marker="o", markersize=4)
    axes.set_ylim(bottom=0.0)
    _whole_numbers(axes)
    axes.set_xlabel("generation")
    axes.set_ylabel("spread of the genes")
    return svg(figure, "steps", "Spread of the genes in each generation")


def _spread(view: View, members: Sequence[Seen]) -> float:
    """Root mean square over genes of their standard deviation, as a share of their ranges."""
    units = np.array([list(_units(view, seen).values()) for seen in members])
    return float(np.sqrt(np.mean(np.var(units, axis=0, ddof=1))))


def _units(view: View, seen: Seen) -> dict[str, float]:
    """Each gene's place in its range, from 0 to 1."""
    found = {}
    for name, value in seen.candidate.genes.items():
        low, high = view.ranges[name]
        found[name] = (value - low) / (high - low) if high > low else 0.0
    return found


def paths(view: View) -> str:
    """Mean of each gene in each generation, as its place in the gene's range."""
    names = list(dict.fromkeys(name for seen in view.seen for name in seen.candidate.genes))
    grid = np.full((len(names), len(view.generations)), math.nan)
    for column, generation in enumerate(view.generations):
        units = [_units(view, seen) for seen in generation.members]
        for row, name in enumerate(names):
            values = [each[name] for each in units if name in each]
            grid[row, column] = float(np.mean(values)) if values else math.nan
    figure, axes = new_figure((5.0, min(1.1 + 0.19 * len(names), 6.5)))
    mesh = axes.pcolormesh(grid, vmin=0.0, vmax=1.0, cmap="viridis", edgecolors="face", linewidth=0.4)
    mesh.set_gid("means")
    tips = [
        f"{names[row]}, generation {generation.number}: {grid[row, column]:.0%} of its range on average"
        for row in range(len(names))
        for column, generation in enumerate(view.generations)
    ]
    axes.invert_yaxis()
    every = math.ceil(len(names) / LABELLED)
    axes.set_yticks([row + 0.5 for row in range(0, len(names), every)], [short(n, 26) for n in names[::every]])
    step = math.ceil(len(view.generations) / 12)
    shown = range(0, len(view.generations), step)
    axes.set_xticks([at + 0.5 for at in shown], [str(view.generations[at].number) for at in shown])
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("generation")
    bar = figure.colorbar(mesh, ax=axes, aspect=14, label="place in its range")
    bar.outline.set_visible(False)
    return svg(figure, "paths", "Mean of each gene by generation", {"means": tips})


def important(found: Importance) -> str:
    """Bars of the most important genes, and what chance gives."""
    shown = list(found.shares.items())[:BARS]
    figure, axes = new_figure((5.0, 0.9 + 0.22 * len(shown)))
    tips = {}
    for row, (name, share) in enumerate(shown):
        clear = found.chance is None or share > found.chance
        bar = axes.barh([row], [100 * share], color=BLUE if clear else MID, height=0.7)[0]
        bar.set_gid(f"gene{row}")
        tips[f"gene{row}"] = [f"{name}: {share:.1%}" + ("" if clear else ", no more than chance gives")]
    if found.chance is not None:
        axes.axvline(100 * found.chance, color=MID, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.text(100 * found.chance, 1.01, "chance", transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    axes.set_yticks(range(len(shown)), [short(name, 26) for name, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("% of the importance")
    return svg(figure, "importance", "Importance of genes", tips)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
