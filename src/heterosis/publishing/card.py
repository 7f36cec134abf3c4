"""The model card: what was merged and how, what is known of the result, and how well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from heterosis.publishing import prose
from heterosis.publishing.findings import Findings
from heterosis.publishing.licences import Assessment, Licence, assess
from heterosis.publishing.markdown import escaped
from heterosis.publishing.sources import hub_id, name_of, shareable, shown
from heterosis.recipe import Recipe, Source


class About(NamedTuple):
    """All that a card is written from."""

    recipe: Recipe
    weights_digest: str
    licences: Mapping[str, Licence]
    """Source name -> its licence."""
    findings: Findings | None
    """None: the merge was built by hand, and nothing is known of its quality."""

    @property
    def name(self) -> str:
        """What the merge is called."""
        found = self.findings
        return f"{found.study}-{found.label}" if found is not None else f"{self.recipe.method}-merge"

    @property
    def copied(self) -> Source | None:
        """The model whose weights these are, unchanged: a study may find that none of its merges is better."""
        return next((s for s in (self.recipe.base, *self.recipe.parents) if s.digest == self.weights_digest), None)


def card(about: About) -> str:
    """The whole README.md. The same merge and evidence give the same bytes."""
    assessment = assess(about.licences)
    front = yaml.safe_dump(_front(about, assessment), sort_keys=False, allow_unicode=True, width=120)
    sections = [
        f"# {escaped(about.name)}",
        _intro(about),
        *([] if about.findings is None else prose.evidence(about.findings)),
        _models(about),
        _recipe(about),
        *([] if about.findings is None else prose.results(about.findings)),
        *([] if about.findings is None else prose.choice(about.findings)),
        _limits(about),
        _licence_section(assessment),
        _use(),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front(about: About, assessment: Assessment) -> dict[str, Any]:
    recipe, copied = about.recipe, about.copied
    origins = (recipe.base, *recipe.parents) if copied is None else (copied,)
    hub = list(dict.fromkeys(found for s in origins if (found := hub_id(s)) is not None))
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if hub:
        front |= {"base_model": hub, **({"base_model_relation": "merge"} if copied is None else {})}
    merge = ["merge", "mergekit", "heterosis", recipe.method.replace("_", "-")]
    front["tags"] = merge if copied is None else ["heterosis"]
    front |= assessment.front
    if about.findings is not None and "test" in about.findings.answered:
        front["model-index"] = [{"name": about.name, "results": list(_model_index(about.findings))}]
    return front


def _model_index(found: Findings) -> Iterator[dict[str, Any]]:
    """One result per task, on the test split: what the search has never seen."""
    scores = found.table["test"][found.label]["tasks"]
    for task, kept in found.tasks.items():
        facts = found.about["tasks"].get(task, {})
        dataset: dict[str, Any] = {"type": facts.get("dataset") or task, "name": task}
        if facts.get("dataset_config"):
            dataset["config"] = facts["dataset_config"]
        if facts.get("dataset") and facts.get("split"):
            dataset["split"] = facts["split"]
        assert found.outcomes is not None
        dataset["args"] = {"items": len(found.outcomes[task].values)}
        if facts:
            dataset["args"]["num_few_shot"] = facts["num_fewshot"]
        low, high = (round(scores[task][bound], 6) for bound in ("low", "high"))
        yield {
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": dataset,
            "metrics": [
                {
                    "type": kept.metric,
                    "value": round(scores[task]["estimate"], 6),
                    "name": f"{kept.metric} on held-out items, 95 % interval {low:g} to {high:g}",
                }
            ],
        }


def _intro(about: About) -> str:
    recipe, found = about.recipe, about.findings
    parents = ", ".join(f"**{escaped(source.name)}**" for source in recipe.parents)
    how = "built by hand from a recipe"
    if found is not None:
        how = "a baseline of a search" if found.candidate.is_baseline else "found by a search"
    rest = "Configuration and tokenizer are the base's"
    if recipe.vocabulary is not None:
        rest = "The configuration is the base's; the vocabularies were aligned"
    if about.copied is not None:
        return (
            f"This is no merge: its weights are those of **{escaped(about.copied.name)}**, unchanged, one of the "
            f"models below, which were to be merged with Heterosis. {rest}."
        )
    return (
        f"This model is a merge, made without training, of {parents} by `{recipe.method}`; it was {how} with "
        f"Heterosis. {rest}."
    )


def _models(about: About) -> str:
    rows = ["| role | name | model | revision | licence | weights |", "|---|---|---|---|---|---|"]
    for source in (about.recipe.base, *about.recipe.parents):
        hub = hub_id(source)
        model = f"[{hub}](https://huggingface.co/{hub})" if hub else f"{escaped(shown(source))} (local)"
        if source.adapter is not None:
            model += f" with adapter {escaped(name_of(source.adapter))}"
        role = "base" if source is about.recipe.base else "parent"
        revision = escaped(source.revision or "")
        licence = escaped(about.licences[source.name].shown)
        rows.append(f"| {role} | {escaped(source.name)} | {model} | {revision} | {licence} | `{source.digest[:16]}` |")
    note = "Weights are known by the beginning of a SHA-256 digest of their content, wherever they lie."
    return "## Models\n\n" + "\n".join(rows) + f"\n\n{note}"


def _recipe(about: About) -> str:
    text = shareable(about.recipe).to_yaml()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return (
        "## Recipe\n\n"
        "[recipe.yaml](recipe.yaml) holds every parameter. With the models above it gives these weights again, bit for "
        "bit, and proves that it did:\n\n"
        "```sh\nheterosis reproduce recipe.yaml OUT\n```\n\n"
        "Models that lie elsewhere than it says are named with `--model NAME=PLACE`.\n\n"
        f"Digest of the weights: `{about.weights_digest}`\n\n"
        f"<details><summary>recipe.yaml</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"
    )


def _limits(about: About) -> str:
    inherited = (
        "What the models above cannot do or get wrong, their biases and what their training data held, this one may "
        "have from any of them. Nothing was trained, and nothing was checked for safety."
    )
    lines = [inherited]
    if about.findings is None:
        lines.append("Nobody has measured this merge: there is no score to go by.")
    else:
        tasks = ", ".join(f"`{task}`" for task in about.findings.tasks)
        lines.append(
            f"Only {tasks} was measured. What merging has cost elsewhere is unknown: abilities that no task asks for "
            "can be lost unnoticed."
            if len(about.findings.tasks) == 1
            else f"Only {tasks} were measured. What merging has cost elsewhere is unknown: abilities that no task asks "
            "for can be lost unnoticed."
        )
        lines += prose.limits(about.findings)
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _licence_section(assessment: Assessment) -> str:
    key = assessment.front["license"]
    if not assessment.problems:
        name = assessment.front.get("license_name", key)
        return f"## Licence\n\nAll models state the same licence, `{name}`; so the merge is under it too."
    problems = "\n".join(f"- {escaped(problem)}." for problem in assessment.problems)
    return (
        "## Licence\n\nRead before using or passing on. The models' own files were read by rules, which is no legal "
        f"advice:\n\n{problems}"
    )


def _use() -> str:
    return (
        "## Use\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        'model = AutoModelForCausalLM.from_pretrained(".")\n'
        "```\n\n"
        "or, in this folder, `vllm serve .`"
    )
