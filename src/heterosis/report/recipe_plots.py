"""A recipe over depth: for each quantity one heat map with a row for each parent and group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from heterosis.checkpoints.layout import NAMED_GROUPS
from heterosis.drawing import new_figure, svg
from heterosis.inspection.wording import printable, short
from heterosis.merge.methods import METHODS
from heterosis.recipe import Recipe

QUANTITIES = {
    "weight": "weight λ",
    "density": "density",
    "drop": "drop rate",
    "gamma": "gamma",
    "epsilon": "epsilon",
}
# Where tensors lie that belong to no layer.
INPUT, OUTPUT = "in", "out"
# Cells of up to so many columns hold their number.
WRITTEN = 10

Value = float | tuple[float, ...]


class Quantity(NamedTuple):
    """One number of a recipe, by row."""

    name: str
    rows: dict[str, dict[str, float]]
    """Parent and group -> column -> number; a column where nothing of the group lies is left out."""

    @property
    def values(self) -> list[float]:
        """All of them."""
        return [value for row in self.rows.values() for value in row.values()]

    @property
    def constant(self) -> bool:
        """Whether it is the same everywhere."""
        return len(set(self.values)) == 1


def quantities(recipe: Recipe) -> tuple[list[str], list[Quantity]]:
    """Columns in the order of a forward pass, and what the method reads of the recipe, each by parent and group."""
    owned: dict[str, dict[tuple[str, str], Value]] = {}
    reads = METHODS[recipe.method].reads
    groups = list(dict.fromkeys(g for by_group in recipe.parameters.values() for g in by_group)) or ["all"]
    for gene, name in QUANTITIES.items():
        if gene in reads:
            owned[name] = {
                (parent, group): getattr(numbers, gene)
                for parent, by_group in recipe.parameters.items()
                for group, numbers in by_group.items()
            }
    for group, settings in recipe.settings.items():
        for name, value in settings.items():
            if not isinstance(value, bool):
                owned.setdefault(name, {})["", group] = value
    depth = max((len(v) for rows in owned.values() for v in rows.values() if isinstance(v, tuple)), default=0)
    layers = [str(layer) for layer in range(depth)] or ["all layers"]
    outside = {group: place for group in groups if (place := _outside(recipe, group)) is not None}
    columns = [*([INPUT] if INPUT in outside.values() else []), *layers]
    columns += [OUTPUT] if OUTPUT in outside.values() else []
    found = []
    for name, rows in owned.items():
        named = {}
        for (parent, group), value in rows.items():
            here = [outside[group]] if group in outside else layers
            numbers = list(value) if isinstance(value, tuple) else [value] * len(here)
            named[_row(parent, group, len(groups))] = dict(zip(here, numbers, strict=False))
        found.append(Quantity(name, named))
    return columns, [each for each in found if each.rows]


def _outside(recipe: Recipe, group: str) -> str | None:
    """Where the tensors of a group lie that holds no layer; None for others."""
    places = {NAMED_GROUPS["embeddings"]: INPUT, NAMED_GROUPS["head"]: OUTPUT}
    return places.get(recipe.groups.get(group, ""))


def _row(parent: str, group: str, groups: int) -> str:
    return " · ".join(part for part in (parent, group if groups > 1 or not parent else "") if part)


def depth_map(quantity: Quantity, columns: list[str], number: int) -> str:
    """The quantity over depth; one colour scale for all parents and groups."""
    grid = [[row.get(column, math.nan) for column in columns] for row in quantity.rows.values()]
    low, high = min(quantity.values), max(quantity.values)
    figure, axes = new_figure((5.0, 1.0 + 0.3 * len(grid)))
    turns = low < 0.0 < high
    reach = max(-low, high)
    ends, colours = ((-reach, reach), "RdBu_r") if turns else ((low, high), "viridis")
    mesh = axes.pcolormesh(grid, edgecolors="face", linewidth=0.4, vmin=ends[0], vmax=ends[1], cmap=colours)
    mesh.set_gid("cells")
    tips = [
        f"{row}, {_spoken(column)}: {quantity.name} " + ("-" if column not in values else f"{values[column]:.4f}")
        for row, values in quantity.rows.items()
        for column in columns
    ]
    if len(columns) <= WRITTEN:
        for at, values in enumerate(quantity.rows.values()):
            for column, value in values.items():
                place = columns.index(column)
                share = (value - low) / (high - low) if high > low else 0.0
                bright = 0.2 < (value + reach) / (2 * reach) < 0.8 if turns else share > 0.62
                text = axes.text(place + 0.5, at + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8)
                text.set_gid(f"{'on-bright' if bright else 'on-dark'}{at}-{place}")
    axes.invert_yaxis()
    axes.set_yticks([at + 0.5 for at in range(len(grid))], [short(row) for row in quantity.rows])
    step = math.ceil(len(columns) / 12)
    shown = [at for at, column in enumerate(columns) if not column.isdigit() or int(column) % step == 0]
    axes.set_xticks([at + 0.5 for at in shown], [columns[at] for at in shown])
    axes.tick_params(length=0)
    axes.set_xlabel("layer")
    bar = figure.colorbar(mesh, ax=axes, label=quantity.name, aspect=10)
    bar.outline.set_visible(False)
    return svg(figure, f"recipe{number}", f"{quantity.name} over depth", {"cells": tips})


def _spoken(column: str) -> str:
    return {INPUT: "input embeddings", OUTPUT: "final norm and head"}.get(
        column, f"layer {column}" if column.isdigit() else column
    )


def same_everywhere(recipe: Recipe, found: Mapping[str, Quantity]) -> list[str]:
    """What has one value for all parents and layers, in words, switches of the method among them."""
    lines = [f"{name} {each.values[0]:.4g}" for name, each in found.items() if each.constant]
    switches = {
        name: value
        for by_name in recipe.settings.values()
        for name, value in by_name.items()
        if isinstance(value, bool)
    }
    return [*lines, *(f"{printable(name)} {str(value).lower()}" for name, value in switches.items())]
