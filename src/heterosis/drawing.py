"""Pages that need nothing else (no network, no script), and plots that go into them as SVG text.

A plot has no background, and its text has the page's own colour, light or dark.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Mid-tones that read on white and on black; the line styles tell lines apart without colour.
COLOURS = ("#3f83f8", "#e07b28", "#2e9e6b", "#b45fd3", "#d64f6a", "#8b8f26", "#1f9fb5", "#8d7b6c")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
MID = "#8a8a8a"
# Width and height of a plot, in inches.
SIZE = (5.0, 2.7)
# Labels up to this length stand in two columns.
BESIDE = 24

# How every page begins, in the template language: nothing may be loaded and no script run, whatever stands on it.
HEAD = """<!doctype html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #5c6370; --paper: #fff; --line: #d8dbe0; --card: #f5f6f8;
  --good: #19713f; --note: #1f5fae; --caution: #8a5a00; --warn: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --faint: #a2a9b4; --paper: #15171a; --line: #383c43;
  --card: #1f2226; --good: #5fce8f; --note: #7db4f5; --caution: #e8b34a; --warn: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p, figcaption { margin: .25rem 0 .75rem; } .faint, figcaption { color: var(--faint); font-size: .875rem; }
.headline { font-size: 1.15rem; font-weight: 600; margin-top: 1.25rem; }
.good { color: var(--good); } .note { color: var(--note); } .caution { color: var(--caution); }
.warn { color: var(--warn); } td.good, td.caution, td.warn { font-weight: 600; }
ul.advice { list-style: none; margin: 0; padding: 0; } ul.advice li { display: flex; gap: .75rem; padding: .5rem .75rem;
  margin: .4rem 0; background: var(--card); border-radius: .4rem; }
ul.advice b { flex: 0 0 4.6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; } th[scope=row], th.left, td.left { text-align: left; }
tbody th { font-weight: 400; } tbody th, tbody td { vertical-align: top; }
td.wrap { white-space: normal; text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 34rem; } figcaption { font-size: .9rem; } figcaption b { color: var(--ink); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: currentColor !important; font-family: inherit !important; }
@media print { :root { --ink: #000; --faint: #444; --paper: #fff; --line: #ccc; --card: #fff; --good: #19713f;
  --note: #1f5fae; --caution: #8a5a00; --warn: #b3261e; color-scheme: light; } body { max-width: none; padding: 0;
  font-size: 10pt; } figure, tr, li { break-inside: avoid; } h2 { break-after: avoid; } .scroll { overflow: visible; }
  .plots { grid-template-columns: 1fr 1fr; } thead th { white-space: normal; overflow-wrap: normal; }
  table { font-size: 7pt; } th, td { padding: .1rem .3rem; } }
"""


def legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, for which the figure grows."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    columns = 2 if max(map(len, labels)) <= BESIDE else 1
    figure.set_figheight(SIZE[1] + 0.18 * math.ceil(len(labels) / columns))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.06),
        ncols=columns,
        frameon=False,
        borderaxespad=0.0,
        handlelength=2.6,
        fontsize=9,
    )


def new_figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure of one pair of axes without its own colours; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MID)
    axes.tick_params(color=MID)
    return figure, axes


def svg(figure: Figure, name: str, label: str = "", tips: Mapping[str, Sequence[str]] | None = None) -> str:
    """The figure as an svg element whose ids begin with `name`, so that several share a page.

    `label`: what it shows, for those who hear the page. `tips`: gid of an artist -> what is shown where the pointer
    rests on its marks, in the order in which they are drawn.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a parent's name may hold a dollar sign
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's font draws it, not the library's
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]  # what goes before belongs to a file, not to a page
    said = f' aria-label="{escape(label)}"' if label else ""
    drawn = re.sub(r'<svg (.*?) width="[^"]*" height="[^"]*"', r'<svg role="img" \1', drawn, count=1)
    drawn = drawn.replace('<svg role="img"', f'<svg role="img"{said}', 1)
    for gid, titles in (tips or {}).items():
        drawn = _with_tips(drawn, gid, titles)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)


def _with_tips(drawn: str, gid: str, titles: Sequence[str]) -> str:
    """Put a title into each mark of the group `gid`; shapes that marks are made from (`defs`) are none."""
    start = drawn.find(f'<g id="{gid}">')
    if start < 0:
        return drawn
    end, depth = start, 0
    for tag in re.finditer(r"<g[ >]|</g>", drawn[start:]):
        depth += -1 if tag.group().startswith("</") else 1
        if depth == 0:
            end = start + tag.end()
            break
    left = iter(titles)

    def titled(mark: re.Match[str]) -> str:
        kind = mark.group(1)
        if kind is None:
            return mark.group()
        text = next(left, None)
        return mark.group() if text is None else f"{mark.group()[:-2]}><title>{escape(text)}</title></{kind}>"

    group = re.sub(r"<defs>.*?</defs>|<(use|path)\b[^>]*/>", titled, drawn[start:end], flags=re.DOTALL)
    return drawn[:start] + group + drawn[end:]
