"""The figures of search_cost.py: items to each level with intervals over seeds, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# What Sakana AI and mergekit-evolve do.
REFERENCE = "CMA-ES, per layer"
FINAL = "reference's final"
# Parts of the way from the best baseline to the optimum.
LEVELS = (0.5, 0.75, 0.9)
RESAMPLES = 2000


class Point(NamedTuple):
    """What a search recommended after so many items."""

    items: int
    value: float


class Run(NamedTuple):
    """One search."""

    points: list[Point]
    candidates: int


def summary(
    runs: Mapping[str, list[Run]], starts: Sequence[float], ends: Sequence[float], budget: int
) -> dict[str, Any]:
    """Items to each level and how far each way came, with intervals over seeds."""
    final = [each.points[-1].value for each in runs[REFERENCE]]
    low, high = np.array(starts), np.array(ends)
    levels = {f"{part:.0%}": low + part * (high - low) for part in LEVELS} | {FINAL: np.array(final)}

    def items_to(way: str, level: str) -> Array:
        return np.array([reached(each.points, goal) for each, goal in zip(runs[way], levels[level], strict=True)])

    def part_of_way(way: str, items: float) -> Array:
        values = np.array([value_at(each.points, items) for each in runs[way]])
        parts: Array = (np.where(np.isnan(values), low, values) - low) / (high - low)
        return parts

    rows = {
        way: {
            "items_to": {level: spread(items_to(way, level)) for level in levels},
            "of_reference": spread(items_to(way, FINAL) / items_to(REFERENCE, FINAL)),
            "of_budget": spread(items_to(way, FINAL) / budget),
            "after_a_tenth": spread(part_of_way(way, budget / 10), np.mean),
            "at_the_end": spread(part_of_way(way, np.inf), np.mean),
            "candidates": float(np.mean([each.candidates for each in found])),
        }
        for way, found in runs.items()
    }
    return {"ways": rows, "best_baseline": starts, "optimum": ends, "reference_final": final, "budget": budget}


def reached(points: Sequence[Point], level: float) -> float:
    """Items until the recommendation was first so good; infinite if it never was."""
    return next((float(point.items) for point in points if point.value >= level), np.inf)


def value_at(points: Sequence[Point], items: float) -> float:
    """True value of the recommendation after so many items; NaN before the first."""
    return next((point.value for point in reversed(points) if point.items <= items), np.nan)


def spread(values: Array, middle: Callable[..., Any] = np.median) -> dict[str, Any]:
    """Median (or mean) over seeds with its bootstrap interval, and on how many seeds there is a value at all.

    None stands for infinite: not reached.
    """
    rng = np.random.default_rng(0)
    draws = middle(rng.choice(values, size=(RESAMPLES, values.size)), axis=1)
    ends = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    found = [round(float(number), 4) if np.isfinite(number) else None for number in (middle(values), *ends)]
    named = dict(zip(("middle", "low", "high"), found, strict=True))
    return {**named, "reached": int(np.isfinite(values).sum()), "of": values.size}


def show(figures: Mapping[str, Any]) -> None:
    """Two tables for people."""
    for name, setting in figures["settings"].items():
        above = sum(
            end > start for end, start in zip(setting["reference_final"], setting["best_baseline"], strict=True)
        )
        print(f"\n{name}: {figures['plan']['seeds']} seeds, budget {setting['budget']} items")
        print(f"{REFERENCE}: ended above the best baseline on {above} of {len(setting['best_baseline'])} seeds")
        levels = list(setting["ways"][REFERENCE]["items_to"])
        print(
            "\nthousand items until the recommendation is truly so good (median, 95 % interval; seeds that came so far)"
        )
        _print_row("", levels)
        for way, row in setting["ways"].items():
            _print_row(way, [_cell(row["items_to"][level], 1e-3, 1) for level in levels])
        print("\nitems to the reference's final score, as a part of what the reference took and of its budget;")
        print("part of the way from the best baseline to the optimum; candidates merged")
        _print_row("", ["of reference", "of budget", "after a tenth", "at the end", "candidates"])
        for way, row in setting["ways"].items():
            parts = [_cell(row[key], 1.0, 3) for key in ("of_reference", "of_budget")]
            parts += [_cell(row[key], 1.0, 2) for key in ("after_a_tenth", "at_the_end")]
            _print_row(way, [*parts, f"{row['candidates']:.0f}"])


def _print_row(head: str, cells: Sequence[str]) -> None:
    print(f"{head:30}" + "".join(f"  {cell:>23}" for cell in cells))


def _cell(found: Mapping[str, Any], factor: float, digits: int) -> str:
    numbers = [found[key] for key in ("middle", "low", "high")]
    middle, low, high = ("-" if number is None else f"{number * factor:.{digits}f}" for number in numbers)
    some = f" {found['reached']}/{found['of']}" if found["reached"] < found["of"] else ""
    return f"{middle} [{low}, {high}]{some}" if found["reached"] else "never"
