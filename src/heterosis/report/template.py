"""The report's page: what stands where, in the template language."""

from heterosis.drawing import HEAD

SUMMARY = """<h1>{{ study.name }}</h1>
<p class="faint">{{ method }} of {{ parents | listed }}{% if base %}, fine-tunes of {{ base }}{% endif %}; {{ count }}
candidates, {{ tasks | length }} {{ "task" if tasks | length == 1 else "tasks" }}; objective: {{ objective }}</p>
<div class="verdict {{ verdict.level }}"><b>{{ verdict.word }}</b><p>{{ verdict.sentence }}</p></div>
<nav aria-label="Contents"><a href="#result">Result</a>{% if recipe %}<a href="#winner">Winner</a>{% endif %}
<a href="#search">Search</a><a href="#parents">Parents</a><a href="#again">Do it again</a></nav>
"""

RESULT = """
<h2 id="result">Result</h2>
{% if result %}
<div class="cards">
{% for claim in claims %}<div class="card"><p>{{ claim.name }}</p>
<p class="big {{ claim.level }}">{{ "%+.4f" | format(claim.found.estimate) }}</p>
<p class="faint">95 % interval {{ claim.found | bounds }}<br>against {{ claim.against }}{% if claim.found.p is defined
%}<br>p = {{ "%.2g" | format(claim.found.p) }}{% endif %}</p></div>
{% endfor %}</div>
<p class="faint">Winner minus the other, by the objective on the test split. An improvement is claimed where the
interval
lies above zero and p is at most {{ error }}, against every parent.{% if result.simultaneous_over > 1 %} Intervals and
p-values hold for the {{ result.simultaneous_over }} proposals that the test split has scored, at once.{% endif %}</p>
{% endif %}
<ul class="advice">
{% for line in notices %}<li><b class="{{ line.level }}">{{ marks[line.level] }}</b>
<span>{{ line.text }}</span></li>
{% endfor %}</ul>
{% if result %}<div class="plots">
<div><figure>{{ forest }}<figcaption><b>Winner minus each parent and the best baseline</b>, by the objective on the
test split,
with 95 % intervals. Right of zero is better.</figcaption></figure>
<figure>{{ task_forest }}<figcaption><b>Winner minus the parent best at each task</b>, test split, gains to the right.
Green and red: shown better or worse after Holm's correction for several tasks.</figcaption></figure></div>
{% if by_task %}<figure>{{ by_task }}<figcaption><b>Task by task</b>, test split, 95 %
intervals.</figcaption></figure>{%
endif %}</div>
<h3>Claims by task</h3>
<div class="scroll" tabindex="0"><table>
<thead><tr><th class="left">task</th><th class="left">best parent</th><th>winner's gain</th><th>p better</th>
<th>p worse</th><th class="left">shown</th><th>could show</th></tr></thead>
<tbody>{% for task, claim in result.task_claims.items() %}
<tr><th scope="row">{{ task | printable }}</th><td class="left">{{ claim.against }}</td>
<td>{{ "%+.4f" | format(claim.estimate) }}<span class="ci">{{ claim | bounds }}</span></td>
<td>{{ "%.2g" | format(claim.p_better) }}</td><td>{{ "%.2g" | format(claim.p_worse) }}</td>
<td class="left {{ {"better": "good", "worse": "warn"}.get(claim.word, "") }}">{{ claim.word }}</td>
<td>{{ claim.smallest_difference or None | number }}</td></tr>{% endfor %}
</tbody></table></div>
<p class="faint">Test split; p-values after Holm. Could show: the true difference that these items would show four
times
in five.</p>
{% endif %}
{% for table in tables %}<h3>{{ table.title }} <span class="badge {{ table.level }}">{{ table.badge }}</span></h3>
<p class="faint">{{ table.says }}</p>
<div class="scroll" tabindex="0"><table>
<thead><tr><th class="left">merge</th><th>objective</th>
{% for task in tasks %}<th>{{ task | printable }}{% if lower[task] %} ↓{% endif %}
<span class="ci">{{ metrics[task] }}</span></th>{% endfor %}<th>items</th></tr></thead>
<tbody>{% for row in table.rows %}
<tr class="{{ row.role }}"><th scope="row">{{ row.label }}
<span class="ci">{{ row.role }}{{ ", front" if row.front }}</span></th>{% for found in row.cells %}
<td{{ ' class="estimate"' | safe if row.partial }}>{{ "≈ " if row.partial }}{{ "%.4f" | format(found.estimate) }}
<span class="ci">{{ found | interval }}</span></td>{% endfor %}
<td{{ ' class="caution"' | safe if row.partial }}>{{ row.known }}{{ " of %d" | format(table.size) if row.partial }}</td>
</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
{% if tables %}<p class="faint">95 % bootstrap intervals over documents.{% if lower.values() | select | list %}
↓ lower is better.{% endif %}{% if estimated %} ≈ estimate from a part of the items, brought onto the scale of all of
them; it may pass the ends of a metric.{% endif %}</p>
{% else %}<p>Nothing has been scored yet that could be compared.</p>{% endif %}
"""

WINNER = """
{% if recipe %}<h2 id="winner">The winner's recipe</h2>
<p>{{ winner }} is {{ recipe.method }}{% if same %} with {{ same | listed }}{% if maps %}
everywhere{% endif %}{% endif %},
mask seed {{ recipe.seed }}.</p>
{% if flat %}<div class="scroll" tabindex="0"><table>
<thead><tr><th class="left">where</th>{% for quantity in flat %}<th>{{ quantity.name }}</th>{% endfor %}</tr></thead>
<tbody>{% for where in flat_rows %}<tr><th scope="row">{{ where | printable }}</th>{% for quantity in flat %}
<td>{{ quantity.rows.get(where, {}).values() | first | number }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>{% endif %}
{% if maps or seeds %}<div class="plots">
{% for name, drawn in maps %}<figure>{{ drawn }}
<figcaption><b>{{ name[0] | upper }}{{ name[1:] }}</b> over depth, one scale for all
parents{{ " and groups" if grouped }}.</figcaption></figure>
{% endfor %}{% if seeds %}<figure>{{ seeds }}
<figcaption><b>Luck of the masks</b>: finalists over seeds of their random masks, selection split. Filled: a finalist's
own masks, which alone took part in the choice.</figcaption></figure>{% endif %}
</div>{% endif %}
{% endif %}
"""

SEARCH = """
<h2 id="search">The search</h2>
<p>{{ optimizer }}. {{ "{:,}".format(time.candidates) }} merges and {{ "{:,}".format(time["items"]) }} items in {{
time.total | duration }}.</p>
<p class="caution">All scores of this section are from the search split, which drove the optimizer: they are
selection-biased, and the best of many looks better than it is.</p>
{% if plots %}<div class="plots">
{% for plot in plots %}<figure>{{ plot.drawn }}
<figcaption><b>{{ plot.title }}</b>{{ plot.says }}</figcaption></figure>
{% endfor %}</div>{% else %}<p>No candidate has been scored yet.</p>{% endif %}
{% for line in unseen %}<p class="faint">{{ line }}</p>{% endfor %}
{% if seen %}<details><summary>All candidates</summary>
<div class="scroll" tabindex="0"><table>
<thead><tr><th class="left">candidate</th><th>generation</th><th>objective</th>{% for task in tasks %}<th>{{ task |
printable }}</th>{% endfor %}<th>items</th><th class="left">race</th></tr></thead>
<tbody>{% for each in seen[:shown] %}{% set c = each.candidate %}
<tr class="{{ "winner" if c.label == winner }}"><th scope="row">{{ c.label }}</th><td>{{ c.generation }}</td>
{% if c.value is none %}<td class="wrap warn" colspan="{{ tasks | length + 2 }}">failed:
{{ c.error | masked | printable
}}</td><td></td>{% else %}<td>{{ "≈ " if each.known < total }}{{ "%.4f" | format(c.value) }}</td>
{% for task in tasks %}<td>{{ "%.4f" | format(c.scores[task]) }}</td>{% endfor %}<td>{{ each.known }}</td>
<td class="left">{{ c.race.place if c.race else "" }}</td>{% endif %}</tr>{% endfor %}
</tbody></table></div>
{% if seen | length > shown %}<p class="faint">And {{ seen | length - shown }} more: see the record with
optuna-dashboard.</p>{% endif %}</details>{% endif %}
"""

PARENTS = """
<h2 id="parents">The parents</h2>
{% if survey %}<ul class="advice">
{% for line in survey.advice %}<li><b class="{{ line.level }}">{{ marks[line.level] }}</b>
<span>{{ line.text }}</span></li>
{% endfor %}</ul>
<div class="plots">
{% for plot in geometry %}<figure>{{ plot.drawn }}
<figcaption><b>{{ plot.title }}</b>{{ plot.says }}</figcaption></figure>
{% endfor %}</div>
{% else %}<p class="faint">{{ survey_why }}</p>{% endif %}
"""

AGAIN = """
<h2 id="again">To do it again</h2>
<dl>
{% for name, value in facts %}<dt>{{ name }}</dt>
<dd>{% if name in codes %}<code>{{ value }}</code>{% else %}{{ value }}{% endif %}</dd>
{% endfor %}</dl>
<h3>Weights that went in</h3>
<div class="scroll" tabindex="0"><table><thead><tr><th class="left">model</th><th class="left">source</th>
<th class="left">digest of the weights</th></tr></thead>
<tbody>{% for source in sources %}<tr><th scope="row">{{ source.name }}</th><td class="wrap">{{ source.where }}</td>
<td class="wrap"><code>{{ source.digest }}</code></td></tr>{% endfor %}</tbody></table></div>
{% if recipe_yaml %}<details class="printed"><summary>The winner's recipe (recipe.yaml)</summary>
<pre>{{ recipe_yaml }}</pre></details>{% endif %}
<details class="printed"><summary>The study as it was understood
(resolved.yaml)</summary><pre>{{ resolved }}</pre></details>
<p class="faint">Written by heterosis {{ version }} from the study's record; it loads nothing and runs nothing.</p>
</main>
</body>
</html>
"""

TITLE = """{% set title = study.name ~ ": " ~ verdict.word %}"""
TEMPLATE = TITLE + HEAD + SUMMARY + RESULT + WINNER + SEARCH + PARENTS + AGAIN
