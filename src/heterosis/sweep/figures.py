"""Panels as plots: svg elements for the page, and sheets of them as files for a paper."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heterosis.drawing import COLOURS, DASHES, MID, SIZE, legend, new_figure, svg
from heterosis.files import write_text
from heterosis.inspection.wording import short
from heterosis.sweep.panels import Line, Panel, place_text, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More lines than this are drawn as the rows of a heat map.
LEGIBLE = 7
COLUMNS = 3
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def element(panel: Panel, name: str) -> str:
    """One panel as an svg element."""
    figure, axes = new_figure(SIZE if not _is_map(panel) else (SIZE[0], 1.1 + 0.25 * len(panel.lines)))
    draw(axes, panel)
    if not _is_map(panel):
        legend(figure, axes)
    return svg(figure, name)


def sheet(panels: Sequence[Panel], path: Path) -> None:
    """Panels side by side, as SVG and PNG on white; lines of the same name look the same."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.4 * columns + 0.3, 2.7 * rows + 0.4), layout="constrained")
    figure.patch.set_facecolor("white")
    grid = figure.subplots(rows, columns, squeeze=False)
    cells = list(grid.flat)
    for axes, panel in zip(cells, panels, strict=False):
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
        axes.set_title(panel.title, fontsize=10)
        draw(axes, panel)
    for axes in cells[len(panels) :]:
        axes.set_axis_off()
    _shared_legend(figure, cells[: len(panels)])
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    write_text(path.with_suffix(".svg"), out.getvalue())
    figure.set_layout_engine("none")  # it is laid out already
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
    partial.replace(path.with_suffix(".png"))


def _shared_legend(figure: Figure, cells: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for axes in cells:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if 0 < len(handles) <= LEGIBLE + 3:
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper center", ncols=4, frameon=False, fontsize=9
        )


def draw(axes: Axes, panel: Panel) -> None:
    """Lines with bands (items) and bars (mask seeds), and horizontal lines for the original and the base."""
    if _is_map(panel):
        _map(axes, panel)
        return
    at = positions(panel)
    joined = all(isinstance(place, int | float) and not isinstance(place, bool) for place in panel.places)
    for i, line in enumerate(panel.lines):
        _line(axes, line, i, at, joined)
    for label, level in panel.levels.items():
        style = (0, (1, 2)) if label == "base" else (0, (6, 3))
        shown = "base" if label == "base" else "original"
        axes.axhline(level, color=MID, linewidth=1.1, linestyle=style, zorder=0, label=shown)
    if panel.even:
        step = math.ceil(len(panel.places) / 12)
        shown_places = [place for i, place in enumerate(panel.places) if i % step == 0 or i == len(panel.places) - 1]
        turned = len(shown_places) > 9 or max(map(len, map(place_text, shown_places)), default=0) > 6
        axes.set_xticks([at[place] for place in shown_places])
        axes.set_xticklabels([place_text(place) for place in shown_places], rotation=30 if turned else 0)
        axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)


def _is_map(panel: Panel) -> bool:
    return len(panel.lines) > LEGIBLE


def _map(axes: Axes, panel: Panel) -> None:
    """Lines as rows, places as columns, values as colours; what is not known stays empty."""
    grid = [[line.marks[p].value if p in line.marks else math.nan for p in panel.places] for line in panel.lines]
    mesh = axes.pcolormesh(grid, cmap="viridis", edgecolors="face", linewidth=0.4)
    axes.invert_yaxis()
    axes.set_yticks([i + 0.5 for i in range(len(panel.lines))], [short(line.label) for line in panel.lines])
    step = math.ceil(len(panel.places) / 12)
    shown = [i for i in range(len(panel.places)) if i % step == 0]
    axes.set_xticks([i + 0.5 for i in shown], [place_text(panel.places[i]) for i in shown])
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel(panel.x)
    bar = axes.figure.colorbar(mesh, ax=axes, label=panel.y)
    bar.outline.set_visible(False)


def _line(axes: Axes, line: Line, i: int, at: dict[Any, float], joined: bool) -> None:
    xs = [at[place] for place in line.marks]
    marks = list(line.marks.values())
    colour = COLOURS[i % len(COLOURS)]
    axes.fill_between(
        xs, [m.low for m in marks], [m.high for m in marks], color=colour, alpha=0.16, linewidth=0, zorder=1
    )
    seen = [(x, m) for x, m in zip(xs, marks, strict=True) if not math.isnan(m.mask_low)]
    if seen:
        axes.vlines(
            [x for x, _ in seen],
            [m.mask_low for _, m in seen],
            [m.mask_high for _, m in seen],
            color=colour,
            linewidth=1.6,
            zorder=2,
        )
    axes.plot(
        xs,
        [m.value for m in marks],
        color=colour,
        linestyle=DASHES[i % len(DASHES)] if joined else "none",
        linewidth=1.6,
        marker=MARKERS[i % len(MARKERS)],
        markersize=4,
        label=line.label,
        zorder=3,
    )
