"""A sweep as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heterosis.drawing import HEAD, STYLE
from heterosis.inspection.wording import printable
from heterosis.sweep.panels import Panel, Report, layer_panels, lost, place_text, score_panels, similarity_panels

# What a sweep adds to the house style of pages.
SUBHEADINGS = "h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }"

TEMPLATE = (
    """{% set title = "Sweep " ~ report.sweep %}"""
    + HEAD
    + """<h1>Sweep {{ report.sweep }}</h1>
<p class="faint">Base: {{ report.base | printable }}. {{ report.points | length }} points of
{{ report.curves | length }} curves,
{{ report.mask_seeds }} mask seeds where entries are dropped at random, seed {{ report.seed }}.</p>
<div class="scroll"><table>
<thead><tr><th class="left">task</th><th class="left">metric</th><th>items</th><th>documents</th></tr></thead>
<tbody>{% for name, task in report.tasks.items() %}
<tr><th scope="row">{{ name | printable }}</th>
<td class="left">{{ task.metric | printable }}, {{ "higher" if task.higher_is_better else "lower"
}} is better</td><td>{{ task["items"] }}</td><td>{{ task.documents }}</td></tr>{% endfor %}
</tbody></table></div>
{% for axis, plots in scores.items() %}
<h2>Scores by {{ axis }}</h2>
<p>Lines are means over mask seeds. <b>Bands</b> are 95 % intervals over items: what other items would say of the same
merges. <b>Bars</b> reach from the lowest to the highest mask seed: what other masks say on the same items. Dashed grey
is the original, dotted grey the base.</p>
<div class="plots">
{% for panel, drawn in plots %}<figure>{{ drawn }}<figcaption><b>{{ panel.title }}</b>: {{ panel.note
}}</figcaption></figure>
{% endfor %}</div>
{% endfor %}
{% for axis, plots in similar.items() %}
<h2>Hidden states by {{ axis }}</h2>
<p>Cosine between the hidden states of the merge and of the original fine-tune, mean over the tokens of {{ texts }}.
Bands are 95 % intervals over texts, bars reach over mask seeds.</p>
<div class="plots">
{% for panel, drawn in plots %}<figure>{{ drawn }}<figcaption><b>{{ panel.title }}</b></figcaption></figure>
{% endfor %}</div>
{% endfor %}
{% if layers %}
<h2>Hidden states by layer</h2>
<p>The same behind every layer; layer 0 is the embeddings, and the last state has gone through the final norm.</p>
<div class="plots">
{% for panel, drawn in layers %}<figure>{{ drawn }}<figcaption><b>{{ panel.title }}</b></figcaption></figure>
{% endfor %}</div>
{% endif %}
<h2>Numbers</h2>
{% for table in tables %}
<h3>{{ table.title }}</h3>
<div class="scroll"><table>
<thead><tr><th class="left" rowspan="2">{{ table.x }}</th>
{% for line in table.lines %}<th colspan="3" scope="colgroup">{{ line }}</th>{% endfor %}</tr>
<tr>{% for line in table.lines %}<th>score</th><th>from the original</th><th>mask seeds</th>{% endfor %}</tr></thead>
<tbody>{% for place, cells in table.rows %}
<tr><th scope="row">{{ place }}</th>{% for cell in cells %}<td>{{ cell.score }}</td><td class="{{ cell.verdict }}">{{
cell.difference }}</td><td>{{ cell.masks }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
<p class="faint">From the original: the difference on the same items with its 95 % interval (paired bootstrap over
documents), which holds for all points of a curve at once. ! stands where it lies wholly on the worse side, so a loss is
shown; along a curve without a loss that happens to any point with a chance of 5 %. No mark is no proof that nothing is
lost; the interval says how much may be.</p>
{% if failed %}<h2>Failed points</h2>
<div class="scroll"><table><tbody>{% for point in failed %}
<tr><th scope="row">{{ point.curve | printable }} {{ point.at }} {{ point.subject }}</th><td class="wrap">{{ point.error
| printable }}</td></tr>{% endfor %}</tbody></table></div>{% endif %}
<p class="faint">Again: <code>{{ report.command | printable }}</code></p>
</main>
</body>
</html>
"""
)


def page(report: Report) -> str:
    """The page as text. Every name is escaped by the template engine, and by the plotting library inside plots."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["printable"] = printable
    scores, similar, layers = score_panels(report), similarity_panels(report), layer_panels(report)
    content: dict[str, Any] = {
        "report": report,
        "style": Markup(STYLE + SUBHEADINGS),  # noqa: S704 (ours)
        "scores": _drawn(scores, "score"),
        "similar": _drawn(similar, "similarity"),
        "layers": _drawn({"": layers}, "layers").get("", []),
        "texts": _texts(report["texts"]),
        "tables": [_table(report, panel) for panels in scores.values() for panel in panels],
        "failed": [point for point in report["points"] if "error" in point],
    }
    return environment.from_string(TEMPLATE).render(content)


def _drawn(panels: Mapping[str, Sequence[Panel]], kind: str) -> dict[str, list[tuple[Panel, Any]]]:
    from markupsafe import Markup

    from heterosis.sweep.figures import element

    found: dict[str, list[tuple[Panel, Any]]] = {}
    for number, own in enumerate(panels.values()):
        for i, panel in enumerate(own):
            text = Markup(element(panel, f"{kind}-{number}-{i}"))  # noqa: S704 (svg text)
            found.setdefault(panel.x if kind != "layers" else "", []).append((panel, text))
    return found


def _texts(about: Mapping[str, Any]) -> str:
    """How many texts, in words."""
    counts = sorted({each["texts"] for each in about.values()})
    return f"{counts[0]} texts" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} texts" if counts else "texts"


def _table(report: Report, panel: Panel) -> dict[str, Any]:
    """A panel in numbers."""
    empty = {"score": "", "difference": "", "masks": "", "verdict": ""}
    rows = []
    for place in panel.places:
        cells = []
        for line in panel.lines:
            mark = line.marks.get(place)
            if mark is None:
                cells.append(empty)
                continue
            apart, bad = mark.row["difference"], lost(report, mark, panel.task)
            one = mark.mask_low != mark.mask_low
            cells.append(
                {
                    "score": f"{mark.value:.4f}",
                    "difference": f"{apart['estimate']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}]"
                    + (" !" if bad else ""),
                    "masks": "" if one else f"{mark.mask_low:.4f} to {mark.mask_high:.4f}",
                    "verdict": "caution" if bad else "",
                }
            )
        rows.append((place_text(place), cells))
    levels = ", ".join(f"{label} {level:.4f}" for label, level in panel.levels.items())
    return {
        "title": f"{panel.title}: {levels}",
        "x": panel.x,
        "lines": [line.label for line in panel.lines],
        "rows": rows,
    }
