"""Plots of the result: differences with their intervals, tasks side by side, luck of the masks, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heterosis.drawing import COLOURS, MID, SIZE, legend, new_figure, svg
from heterosis.inspection.wording import short
from heterosis.report.view import View, described

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, _, RED = COLOURS[:5]
PHASES = {"merge": "merging", "swap": "swapping weights", "score": "answering and scoring", "rest": "all else"}
# Pairs of this many tasks are drawn; with more of them parallel coordinates tell more.
PAIRED = 4


class Difference(NamedTuple):
    """One line of a forest plot."""

    label: str
    claim: Mapping[str, Any]
    colour: str


def colour_of(claim: Mapping[str, Any]) -> str:
    """Green where an interval lies above zero, red where it lies below."""
    return GREEN if claim["low"] > 0.0 else RED if claim["high"] < 0.0 else MID


def forest(lines: Sequence[Difference], name: str, what: str) -> str:
    """Differences with intervals around zero; right is better."""
    figure, axes = new_figure((5.0, 0.85 + 0.3 * len(lines)))
    tips = {}
    for row, line in enumerate(lines):
        claim = line.claim
        axes.plot([claim["low"], claim["high"]], [row, row], color=line.colour, linewidth=2.2, solid_capstyle="butt")
        dot = axes.scatter([claim["estimate"]], [row], s=34, color=line.colour, zorder=3)
        dot.set_gid(f"claim{row}")
        tips[f"claim{row}"] = [
            f"{line.label}: {claim['estimate']:+.4f} [{claim['low']:+.4f}, {claim['high']:+.4f}], 95 % interval"
        ]
    axes.axvline(0.0, color=MID, linewidth=1.0, zorder=0)
    axes.set_yticks(range(len(lines)), [short(line.label, 30) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(what)
    return svg(figure, name, what, tips)


def by_task(view: View) -> str | None:
    """Winner, parents and best baseline on every task of the test split; None where scores have no common scale."""
    assert view.result is not None
    shown = [row for row in view.rows if "test" in row and row["role"] != "finalist"]
    ends = [row["test"]["tasks"][task][end] for row in shown for task in view.tasks for end in ("low", "high")]
    shares = all(share.higher_is_better for share in view.stored.objective.shares.values())
    if not shares or min(ends, default=0.0) < 0.0 or max(ends, default=0.0) > 1.0 or len(shown) > 7:
        return None
    ordered = sorted(shown, key=lambda row: ("winner", "parent", "baseline").index(row["role"]))
    figure, axes = new_figure((5.0, 0.8 + (0.2 + 0.13 * len(ordered)) * len(view.tasks)))
    tips = {}
    others = [colour for colour in COLOURS if colour != ORANGE]
    for number, row in enumerate(ordered):
        colour = ORANGE if row["role"] == "winner" else MID if row["role"] == "baseline" else others[number % 7]
        offset = 0.7 * ((number + 0.5) / len(ordered) - 0.5)
        found = [row["test"]["tasks"][task] for task in view.tasks]
        places = np.arange(len(view.tasks)) + offset
        axes.hlines(places, [f["low"] for f in found], [f["high"] for f in found], color=colour, linewidth=1.4)
        mark = {"winner": "*", "parent": "o"}.get(row["role"], "D")
        dots = axes.scatter(
            [f["estimate"] for f in found], places, color=colour, marker=mark, s=70 if mark == "*" else 22, zorder=3
        )
        dots.set_label(f"{short(row['label'])} ({row['role']})")
        dots.set_gid(f"row{number}")
        tips[f"row{number}"] = [
            f"{row['label']} on {task}: {f['estimate']:.4f} [{f['low']:.4f}, {f['high']:.4f}], test split"
            for task, f in zip(view.tasks, found, strict=True)
        ]
    axes.set_yticks(range(len(view.tasks)), [short(task) for task in view.tasks])
    axes.set_ylim(len(view.tasks) - 0.5, -0.5)
    axes.set_xlabel("score, test split")
    height = figure.get_figheight()
    legend(figure, axes)
    figure.set_figheight(height + figure.get_figheight() - SIZE[1])
    return svg(figure, "by-task", "Scores of winner, parents and best baseline by task", tips)


def parallel(view: View) -> str:
    """Each candidate as a line over the tasks; every task from the worst score seen to the best, the best on top."""
    shares = view.stored.objective.shares
    everyone = [*(seen.candidate for seen in view.scored), *view.baselines]
    ends = {}
    for task, share in shares.items():
        scores = [c.scores[task] for c in everyone]
        ends[task] = (min(scores), max(scores)) if share.higher_is_better else (max(scores), min(scores))

    def heights(scores: Mapping[str, float]) -> list[float]:
        return [(scores[t] - low) / (high - low) if high != low else 0.5 for t, (low, high) in ends.items()]

    figure, axes = new_figure((5.0, 3.2))
    at = range(len(shares))
    tips = {}
    for seen in view.scored:
        won = seen.candidate.label == view.winner
        line = axes.plot(at, heights(seen.candidate.scores), color=ORANGE if won else BLUE)[0]
        line.set(linewidth=2.4 if won else 0.8, alpha=1.0 if won else 0.35, zorder=4 if won else 2)
        line.set(label="winner" if won else None, linestyle="-" if seen.known >= view.total or won else (0, (3, 1.5)))
        line.set_gid(f"line{seen.number}")
        tips[f"line{seen.number}"] = [described(seen, view.total)]
    parents = [c for c in view.baselines if c.label in view.stored.config.parents]
    for number, parent in enumerate(parents[:6]):
        colour = [c for c in COLOURS if c not in (BLUE, ORANGE)][number]
        axes.plot(at, heights(parent.scores), color=colour, linewidth=1.6, label=f"{short(parent.label)} (parent)")
    for place, (low, high) in enumerate(ends.values()):
        axes.axvline(place, color=MID, linewidth=0.8, zorder=0)
        axes.annotate(f"{high:.3g}", (place, 1.03), ha="center", va="bottom", fontsize=8, annotation_clip=False)
        axes.annotate(f"{low:.3g}", (place, -0.03), ha="center", va="top", fontsize=8, annotation_clip=False)
    axes.set_ylim(-0.14, 1.14)
    axes.set_yticks([])
    axes.set_xticks(at, [short(task, 60 // len(shares) + 4) for task in shares])
    axes.set_xlim(-0.25, len(shares) - 0.75)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    legend(figure, axes)
    figure.set_figheight(figure.get_figheight() + 0.5)
    return svg(figure, "parallel", "Each candidate's scores over the tasks", tips)


def fronts(view: View) -> list[str]:
    """Pairs of tasks: every candidate, and those on the front as the selection split scored them."""
    pairs = [(one, two) for at, one in enumerate(view.tasks) for two in view.tasks[at + 1 :]]
    return [_pair(view, one, two, number) for number, (one, two) in enumerate(pairs)]


def _pair(view: View, one: str, two: str, number: int) -> str:
    figure, axes = new_figure((5.0, 3.2))
    result = view.result or {}
    tips = {}
    for kind, part in (("partial", True), ("complete", False)):
        among = [seen for seen in view.scored if (seen.known < view.total) == part]
        if among:
            dots = axes.scatter(*_places([s.candidate.scores for s in among], one, two), s=16, edgecolors=BLUE)
            dots.set(facecolor="none" if part else BLUE, linewidth=0.9)
            dots.set_label("search split, part of the items" if part else "search split")
            dots.set_gid(kind)
            tips[kind] = [described(seen, view.total) for seen in among]
    known = {c.label: c.scores for c in view.stored.records["selection"].candidates if c.value is not None}
    split = "selection split" if known else "search split"
    known = known or {c.label: c.scores for c in view.baselines}
    front = [label for label in result.get("front", ()) if label in known]
    parents = [label for label in view.stored.config.parents if label in known]
    for labels, what, mark, colour in ((parents, "parents", "s", GREEN), (front, "front", "D", ORANGE)):
        if labels:
            dots = axes.scatter(*_places([known[label] for label in labels], one, two), marker=mark, color=colour, s=40)
            dots.set_label(f"{what}, {split}")
            dots.set_gid(f"group{mark}")
            tips[f"group{mark}"] = [f"{label}: {known[label][one]:.4f}, {known[label][two]:.4f}" for label in labels]
    _turned(axes, view, one, two)
    legend(figure, axes)
    return svg(figure, f"front{number}", f"{one} against {two}", tips)


def _places(scores: Sequence[Mapping[str, float]], one: str, two: str) -> tuple[list[float], list[float]]:
    return [each[one] for each in scores], [each[two] for each in scores]


def _turned(axes: Axes, view: View, one: str, two: str) -> None:
    """Right and up are better, also where lower scores are."""
    shares = view.stored.objective.shares
    axes.set_xlabel(short(one) + ("" if shares[one].higher_is_better else " (lower is better)"))
    axes.set_ylabel(short(two) + ("" if shares[two].higher_is_better else " (lower is better)"))
    if not shares[one].higher_is_better:
        axes.invert_xaxis()
    if not shares[two].higher_is_better:
        axes.invert_yaxis()


def seeds(spread: Mapping[str, Mapping[str, Any]], winner: str | None) -> str:
    """The objective of finalists over seeds of their random masks."""
    figure, axes = new_figure((5.0, 0.85 + 0.27 * len(spread)))
    tips = {}
    for row, (label, found) in enumerate(spread.items()):
        colour = ORANGE if label == winner else BLUE
        axes.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=1.0)
        dots = axes.scatter(found["values"], [row] * len(found["values"]), s=26, linewidths=1.0, edgecolors=colour)
        dots.set_facecolor([colour, *["none"] * (len(found["values"]) - 1)])
        dots.set_gid(f"seeds{row}")
        own = ["its own masks", *["other masks"] * (len(found["values"]) - 1)]
        tips[f"seeds{row}"] = [f"{label}: {v:.4f} ({o})" for v, o in zip(found["values"], own, strict=True)]
    axes.set_yticks(range(len(spread)), [short(label) for label in spread])
    axes.set_ylim(len(spread) - 0.5, -0.5)
    axes.set_xlabel("objective, selection split")
    return svg(figure, "seeds", "Finalists over seeds of their masks", tips)


def spent(time: Mapping[str, float]) -> str:
    """Where the search's wall time went."""
    figure, axes = new_figure((5.0, 1.0))
    left, tips = 0.0, {}
    for (phase, what), colour in zip(PHASES.items(), (BLUE, ORANGE, GREEN, MID), strict=True):
        seconds = max(time[phase], 0.0)
        bar = axes.barh([0], [seconds], left=left, color=colour, height=0.8, label=what)[0]
        bar.set_gid(phase)
        tips[phase] = [f"{what}: {seconds:.1f} s ({seconds / max(time['total'], 1e-9):.0%})"]
        left += seconds
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds")
    legend(figure, axes)
    figure.set_figheight(1.5)
    return svg(figure, "spent", "Where the time of the search went", tips)
