"""A survey as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heterosis.drawing import HEAD, STYLE
from heterosis.files import write_text
from heterosis.inspection.geometry import LARGE, SAFE
from heterosis.inspection.records import Survey
from heterosis.inspection.wording import (
    HEADLINES,
    MARKS,
    SIGNS,
    difference,
    listed,
    percent,
    place,
    printable,
    ratio,
    small,
    span,
)

SHOWN = 20

TEMPLATE = (
    """{% set title = "Inspection of " ~ names %}"""
    + HEAD
    + """<h1>Is merging {{ names }} sensible?</h1>
<p class="faint">Base: {{ base }}</p>
<p class="headline {{ survey.verdict }}">{{ headline }}</p>
<ul class="advice">
{% for line in survey.advice %}<li><b class="{{ line.level }}">{{ marks[line.level] }}</b>
<span>{{ line.text }}</span></li>
{% endfor %}</ul>

{% if survey.differences %}<h2>Differences from the base</h2>
<div class="scroll"><table>
<thead><tr><th class="left">parent</th><th class="left">difference</th></tr></thead>
<tbody>{% for found in survey.differences[:shown] %}
<tr><th scope="row">{{ found.parent | printable }}</th><td class="wrap">{{ found | difference }}</td></tr>{% endfor %}
{% if survey.differences | length > shown %}<tr><th scope="row"></th><td class="wrap">and
{{ survey.differences | length - shown }} more; the JSON output lists them all</td></tr>{% endif %}
</tbody></table></div>
{% endif %}
{% if survey.overall.sizes %}<h2>Task vectors over the whole model</h2>
<div class="scroll"><table>
<thead><tr><th class="left">parent</th><th class="left">DARE's range</th>
<th>mean |δ|</th><th>RMS</th><th>99% within</th><th>largest</th>
<th>||δ|| / ||θ₀||</th><th>beyond {{ safe }}</th><th>beyond {{ large }}</th><th>zeros</th><th>effective density</th>
</tr></thead>
<tbody>{% for parent, size in survey.overall.sizes.items() %}
<tr><th scope="row">{{ parent | printable }}</th><td class="left {{ size.verdict }}">{{ marks[size.verdict] }}</td>
<td>{{ size.mean | small }}</td><td>{{ size.rms | small }}</td>
<td>{{ size.p99 | small }}</td><td>{{ size.largest | small }}</td><td>{{ size.relative | percent }}</td>
<td title="{{ size.beyond_safe }} entries">{{ (size.beyond_safe / size.entries) | percent }}</td>
<td title="{{ size.beyond_large }} entries">{{ (size.beyond_large / size.entries) | percent }}</td>
<td title="{{ size.zeros }} entries">{{ (size.zeros / size.entries) | percent }}</td>
<td>{{ size.effective_density | percent }}</td></tr>{% endfor %}
</tbody></table></div>
<p class="faint">δ is parent minus base. DARE (Yu et al. 2024) can drop most of a task vector whose entries lie within
{{ safe }}; a caution stands where more than 1% lie beyond it, a warning where more than 1% lie beyond {{ large }}.
Zeros are entries equal to the base's. Effective density is ||δ||₁² / (n ||δ||₂²): near 64% for normal noise, lower
where a few entries carry the task vector.</p>
{% if cosines %}
<div class="scroll"><table>
<thead><tr><th class="left">parents</th><th>cosine</th><th>sign conflict</th><th>entries both change</th></tr></thead>
<tbody>{% for pair in survey.overall.pairs %}
<tr><th scope="row">{{ pair.first | printable }}, {{ pair.second | printable }}</th><td>{{ pair.cosine | ratio }}</td>
<td>{{ pair.conflict | percent }}</td><td>{{ "{:,}".format(pair.both) }}</td></tr>{% endfor %}
{% if survey.parents | length > 2 and survey.overall.crowd %}<tr><th scope="row">all of them</th><td></td>
<td>{{ survey.overall.crowd.conflict | percent }}</td><td></td></tr>{% endif %}
</tbody></table></div>
<p class="faint">Sign conflict: of the entries that both (for all of them: at least two) change, the share in which the
signs differ. Unrelated pairs have a cosine of 0 and a conflict of 50%.</p>
{% endif %}
{% if heat_maps %}<h2>Sizes</h2>
<div class="plots">
<figure>{{ histogram }}<figcaption><b>How far entries moved.</b> The marks are DARE's range and where it ends.
Entries equal to the base's are not drawn.</figcaption></figure>
{% for parent, drawn in heat_maps %}<figure>{{ drawn }}<figcaption><b>{{ parent | printable }}</b>: mean |δ| by
depth and group.</figcaption></figure>
{% endfor %}</div>
{% endif %}
{% if cosines %}<h2>Directions</h2>
<div class="plots">
<figure>{{ cosines }}<figcaption><b>Cosine between task vectors</b>, layer by layer. Near 1 they learned the same, near
0 unrelated things.</figcaption></figure>
<figure>{{ conflicts }}<figcaption><b>Sign conflict</b>, layer by layer. The line at 0.5 is that of unrelated
pairs.</figcaption></figure>
</div>
{% endif %}
<h2>Depth by group</h2>
<div class="scroll"><table>
<thead><tr><th class="left" rowspan="2">where</th>
{% for parent in survey.overall.sizes %}<th colspan="3" scope="colgroup">{{ parent | printable }}</th>{% endfor %}
{% if cosines %}<th colspan="3" scope="colgroup">together</th>{% endif %}</tr>
<tr>{% for parent in survey.overall.sizes %}<th>mean |δ|</th><th>relative</th><th>beyond {{ large }}</th>{% endfor %}
{% if cosines %}<th>cosine</th><th>conflict</th><th>lost</th>{% endif %}</tr></thead>
<tbody>{% for region in survey.regions %}
<tr><th scope="row">{{ region | place }}</th>
{% for parent in survey.overall.sizes %}{% set size = region.sizes.get(parent) %}
{% if size %}<td class="{{ size.verdict }}">{{ size.mean | small }}{{ signs[size.verdict] }}</td>
<td>{{ size.relative | percent }}</td>
<td>{{ (size.beyond_large / size.entries) | percent }}</td>{% else %}<td>-</td><td>-</td><td>-</td>{% endif %}
{% endfor %}{% if cosines %}<td>{{ region | span }}</td>
<td>{{ (region.crowd.conflict if region.crowd else none) | percent }}</td>
<td>{{ (region.crowd.loss if region.crowd else none) | percent }}</td>{% endif %}</tr>{% endfor %}
</tbody></table></div>
<p class="faint">! stands where more than 1% of the entries lie beyond {{ safe }}, !! where they lie beyond
{{ large }}. Relative is ||δ|| / ||θ₀||.{% if cosines %} Lost is the share of the task vectors' mass that a sign
election with equal weights (TIES) discards.{% endif %}</p>
{% endif %}
</main>
</body>
</html>
"""
)


def write_page(survey: Survey, path: Path) -> None:
    """Write the page, whole or not at all."""
    write_text(path, page(survey))


def page(survey: Survey) -> str:
    """The page as text. Every name is escaped by the template engine, and by the plotting library inside plots."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from heterosis.inspection import plots

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "printable": printable,
        "difference": difference,
        "percent": percent,
        "small": small,
        "ratio": ratio,
        "place": place,
        "span": span,
    }
    moved = [name for name, size in survey.overall.sizes.items() if size.zeros < size.entries]
    paired = any(pair.cosine is not None for pair in survey.overall.pairs)
    content: dict[str, Any] = {
        "survey": survey,
        "names": listed([printable(name) for name in survey.parents]),
        "base": printable(survey.base),
        "headline": HEADLINES[survey.verdict],
        "marks": MARKS,
        "signs": SIGNS,
        "safe": SAFE,
        "large": LARGE,
        "shown": SHOWN,
        "style": Markup(STYLE),  # noqa: S704 (ours)
        "histogram": Markup(plots.histogram(survey)) if moved else "",  # noqa: S704 (svg text)
        "heat_maps": [(name, Markup(plots.heat_map(survey, name))) for name in moved],  # noqa: S704
        "cosines": Markup(plots.cosines(survey)) if paired else "",  # noqa: S704
        "conflicts": Markup(plots.conflicts(survey)) if paired else "",  # noqa: S704
    }
    return environment.from_string(TEMPLATE).render(content)
