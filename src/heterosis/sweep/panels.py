"""What is drawn: from the report to lines along an axis, free of any plotting library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from heterosis.inspection.wording import printable
from heterosis.sweep.report import is_loss, spread

Report = Mapping[str, Any]
Point = Mapping[str, Any]
NAMES = {"drop": "drop rate", "weight": "weight λ", "gamma": "gamma", "epsilon": "epsilon", "seed": "mask seed"}
# Above this drop rate an even scale would squeeze what matters most.
CROWDED = 0.9
# The DARE paper shows layers at this drop rate.
USUAL_DROP = 0.9


class Mark(NamedTuple):
    """A value with its interval over items, and its range over mask seeds (NaN where there is one seed)."""

    value: float
    low: float
    high: float
    mask_low: float
    mask_high: float
    row: Mapping[str, Any]
    """What the report says there."""


class Line(NamedTuple):
    """One line: places on the axis -> marks, in their order."""

    label: str
    marks: dict[Any, Mark]


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    x: str
    y: str
    places: tuple[Any, ...]
    """All places on the axis, in order."""
    even: bool
    """Whether places are drawn at even distances, whatever their values are."""
    lines: tuple[Line, ...]
    levels: dict[str, float]
    """Horizontal lines: the original, the base."""
    note: str = ""
    task: str = ""
    """The task, of scores."""


def score_panels(report: Report) -> dict[str, list[Panel]]:
    """Axis -> a panel for each subject and task."""
    found = {}
    for axis, curves in _by_axis(report).items():
        panels = []
        for subject in report["subjects"]:
            for task in subject["tasks"]:
                about = report["tasks"][task]
                ends = [r for r in report["references"] if r["subject"] == subject["name"] and r["task"] == task]
                levels = {r["label"]: r["score"] for r in ends if r["role"] == "base" or r["compared_with"]}
                title = f"{subject['name']}, {task}"
                direction = "higher is better" if about["higher_is_better"] else "lower is better"
                along = _lines(report, axis, curves, subject["name"])
                panel = _panel(axis, along, title, about["metric"], partial(_score, task=task))
                note = printable(f"{about['metric']}, {direction}")
                panels.append(panel._replace(levels=levels, note=note, task=task))
        found[axis] = [panel for panel in panels if panel.lines]
    return {axis: panels for axis, panels in found.items() if panels}


def similarity_panels(report: Report) -> dict[str, list[Panel]]:
    """Axis -> a panel for each subject and original: cosine of the last hidden states."""
    found: dict[str, list[Panel]] = {}
    for axis, curves in _by_axis(report).items():
        for subject in report["subjects"]:
            for original in subject["parents"]:
                title = f"{subject['name']}: last hidden state against {original}"
                title = f"{original}: last hidden state" if subject["parents"] == [original] else title
                along = _lines(report, axis, curves, subject["name"])
                panel = _panel(axis, along, title, "cosine to the original", partial(_cosine, original=original))
                if panel.lines:
                    found.setdefault(axis, []).append(panel)
    return found


def layer_panels(report: Report) -> list[Panel]:
    """For each subject and original, cosines layer by layer: of every curve at one place, the usual drop rate, or the
    last."""
    panels = []
    for subject in report["subjects"]:
        for original in subject["parents"]:
            lines, count = [], 0
            for axis, curves in _by_axis(report).items():
                for label, along in _lines(report, axis, curves, subject["name"]).items():
                    there = {place: point for place, point in along.items() if point.get("similarity")}
                    if not there:
                        continue
                    place = _shown_place(axis, list(there))
                    rows = there[place]["similarity"][original]
                    count = max(count, len(rows))
                    marks = {layer: _mark(row, "cosine") for layer, row in enumerate(rows)}
                    lines.append(Line(f"{label} at {NAMES.get(axis, axis)} {_text(place)}", marks))
            if lines:
                places = tuple(range(count))
                name = original if subject["parents"] == [original] else f"{subject['name']} against {original}"
                panels.append(Panel(name, "layer", "cosine to the original", places, False, tuple(lines), {}))
    return panels


def _shown_place(axis: str, places: Sequence[Any]) -> Any:
    if axis == "drop":
        return min(places, key=lambda place: abs(place - USUAL_DROP))
    return places[-1]


def _by_axis(report: Report) -> dict[str, list[str]]:
    """The axis that is drawn along x -> curves. Density is drawn as the drop rate where another curve varies that."""
    own = {name: next(iter(curve["axes"])) for name, curve in report["curves"].items()}
    found: dict[str, list[str]] = {}
    for name, axis in own.items():
        shown = "drop" if axis == "density" and "drop" in own.values() else axis
        found.setdefault(shown, []).append(name)
    return found


def _lines(report: Report, axis: str, curves: Sequence[str], subject: str) -> dict[str, dict[Any, Point]]:
    """Label -> place -> point."""
    found: dict[str, dict[Any, Point]] = {}
    for point in report["points"]:
        if point["curve"] in curves and point["subject"] == subject:
            own = next(iter(report["curves"][point["curve"]]["axes"]))
            others = [f"{key}={_text(value)}" for key, value in point["at"].items() if key != own]
            value = point["at"][own]
            place = round(1.0 - value, 12) if own != axis else value
            found.setdefault(printable(", ".join([point["curve"], *others])), {})[place] = point
    return found


def _panel(
    axis: str,
    labelled: Mapping[str, Mapping[Any, Point]],
    title: str,
    y: str,
    read: Callable[[Point], Mark | None],
) -> Panel:
    lines = []
    for label, along in labelled.items():
        marks = {place: read(point) for place, point in along.items()}
        known = {place: mark for place, mark in marks.items() if mark is not None}
        if known:
            lines.append(Line(label, {place: known[place] for place in _ordered(known)}))
    places = tuple(_ordered({place for line in lines for place in line.marks}))
    numeric = all(_is_number(place) for place in places)
    crowded = axis == "drop" and any(_is_number(place) and place > CROWDED for place in places)
    even = not numeric or crowded
    return Panel(printable(title), NAMES.get(axis, axis), printable(y), places, even, tuple(lines), {})


def _score(point: Point, task: str) -> Mark | None:
    row = point["tasks"].get(task)
    return None if row is None else _mark(row, "score")


def _cosine(point: Point, original: str) -> Mark | None:
    rows = (point.get("similarity") or {}).get(original)
    return None if not rows else _mark(rows[-1], "cosine")


def _mark(row: Mapping[str, Any], name: str) -> Mark:
    return Mark(row[name], row["low"], row["high"], *spread(row["by_mask"]), row)


def _ordered(places: Iterable[Any]) -> list[Any]:
    """Numbers by size; all else in the order in which it comes."""
    listed = list(places)
    return sorted(listed) if all(_is_number(place) for place in listed) else listed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else str(value).lower() if isinstance(value, bool) else str(value)


def place_text(place: Any) -> str:
    """A place on an axis, in words."""
    return _text(place)


def lost(report: Report, mark: Mark, task: str) -> bool:
    """Whether a loss against the original is shown there."""
    return "difference" in mark.row and is_loss(mark.row, report["tasks"][task]["higher_is_better"])


def positions(panel: Panel) -> dict[Any, float]:
    """Where each place is drawn."""
    if panel.even:
        return {place: float(i) for i, place in enumerate(panel.places)}
    return {place: float(place) for place in panel.places}
