"""Plots of a survey as SVG text that goes into a page: no background, text in the page's own colour."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from heterosis.drawing import COLOURS, DASHES, MID, SIZE, legend, new_figure, svg
from heterosis.inspection.geometry import LARGE, SAFE
from heterosis.inspection.records import Region, Survey
from heterosis.inspection.wording import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More lines than this are drawn thin, without a legend.
LEGIBLE = 7
# An octave with a smaller share of the entries is not drawn at the ends of a histogram.
VISIBLE = 0.0005


def heat_map(survey: Survey, parent: str) -> str:
    """log10 of mean |δ| over depth and group. One colour scale for all parents."""
    columns = list(dict.fromkeys(_column(region) for region in survey.regions))
    groups = list(dict.fromkeys(region.group for region in survey.regions if parent in region.sizes))
    grid = [[math.nan] * len(columns) for _ in groups]
    for region in survey.regions:
        size = region.sizes.get(parent)
        if size is not None and size.mean > 0.0:
            grid[groups.index(region.group)][columns.index(_column(region))] = math.log10(size.mean)
    low, high = _scale(survey)
    figure, axes = new_figure((5.0, 1.1 + 0.3 * len(groups)))
    mesh = axes.pcolormesh(grid, vmin=low, vmax=high, cmap="viridis", edgecolors="face", linewidth=0.4)
    axes.invert_yaxis()
    axes.set_yticks([i + 0.5 for i in range(len(groups))], groups)
    step = math.ceil(len(columns) / 12)
    shown = [i for i, column in enumerate(columns) if i % step == 0 or not column.isdigit()]
    axes.set_xticks([i + 0.5 for i in shown], [columns[i] for i in shown])
    axes.tick_params(length=0)
    axes.set_xlabel("layer")
    bar = figure.colorbar(mesh, ax=axes, label="log10 mean |δ|", aspect=12)
    bar.outline.set_visible(False)
    return svg(figure, f"heat-{list(survey.parents).index(parent)}")


def _column(region: Region) -> str:
    if region.layer is not None:
        return str(region.layer)
    return "in" if region.group == "embeddings" else "out"


def _scale(survey: Survey) -> tuple[float, float]:
    means = [size.mean for region in survey.regions for size in region.sizes.values() if size.mean > 0.0]
    if not means:
        return (-4.0, -2.0)
    low, high = math.log10(min(means)), math.log10(max(means))
    return (low, high) if high - low > 0.1 else (low - 0.05, high + 0.05)


def cosines(survey: Survey) -> str:
    """Cosine of each pair, layer by layer."""
    figure, axes = new_figure(SIZE)
    _lines(figure, axes, survey, _by_layer(survey, "cosine"))
    axes.axhline(0.0, color=MID, linewidth=0.8, zorder=0)
    axes.set_ylabel("cosine")
    return svg(figure, "cosine")


def _by_layer(survey: Survey, what: Literal["cosine", "conflict"]) -> dict[str, list[float | None]]:
    """One line per pair, named after it; None where a layer has nothing that both hold."""
    layers = [{(pair.first, pair.second): getattr(pair, what) for pair in region.pairs} for region in survey.layers]
    pairs = [(pair.first, pair.second) for pair in survey.overall.pairs]
    lines = {", ".join(map(short, pair)): [layer.get(pair) for layer in layers] for pair in pairs}
    return {label: values for label, values in lines.items() if any(value is not None for value in values)}


def conflicts(survey: Survey) -> str:
    """Sign conflict of each pair and of all parents together, layer by layer."""
    figure, axes = new_figure(SIZE)
    lines = _by_layer(survey, "conflict")
    if len(survey.parents) > 2:
        lines["all of them"] = [region.crowd.conflict if region.crowd else None for region in survey.layers]
    _lines(figure, axes, survey, lines)
    axes.axhline(0.5, color=MID, linewidth=0.8, zorder=0)
    axes.set_ylabel("share with opposite signs")
    return svg(figure, "conflict")


def _lines(figure: Figure, axes: Axes, survey: Survey, lines: dict[str, list[float | None]]) -> None:
    from matplotlib.ticker import MaxNLocator

    many = len(lines) > LEGIBLE
    for i, (label, values) in enumerate(lines.items()):
        axes.plot(
            [float(region.layer or 0) for region in survey.layers],
            [math.nan if value is None else value for value in values],
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i % len(DASHES)],
            linewidth=0.8 if many else 1.8,
            marker="o",
            markersize=2 if many else 4,
            label=label,
        )
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not many:
        legend(figure, axes)


def histogram(survey: Survey) -> str:
    """Share of the entries per octave of |δ|, with the marks of DARE's range."""
    from matplotlib.ticker import FuncFormatter

    figure, axes = new_figure(SIZE)
    for i, (parent, bars) in enumerate(survey.histograms.items()):
        entries = survey.overall.sizes[parent].entries
        # The first octave also holds the zeros, which have no place on a logarithmic axis; a thin tail would only
        # squeeze the rest.
        seen = [bar[0] for bar in bars[1:] if bar[2] > VISIBLE * entries]
        if not seen:
            continue
        span = [bar for bar in bars[1:] if seen[0] <= bar[0] <= seen[-1]]
        axes.stairs(
            [100 * count / entries for _, _, count in span],
            [*(start for start, _, _ in span), span[-1][1]],
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i % len(DASHES)],
            linewidth=1.8,
            label=short(parent),
        )
    axes.set_xscale("log")
    axes.set_xlim(right=max(axes.get_xlim()[1], 2 * LARGE))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for mark in (SAFE, LARGE):
        axes.axvline(mark, color=MID, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        axes.text(
            mark,
            1.02,
            f"{mark:g}",
            transform=axes.get_xaxis_transform(),
            ha="right" if mark == SAFE else "left",
            fontsize=9,
        )
    axes.set_xlabel("|δ|")
    axes.set_ylabel("% of entries per octave")
    legend(figure, axes)
    return svg(figure, "histogram")
