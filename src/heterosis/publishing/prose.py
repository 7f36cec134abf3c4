"""The sections of a card that speak of evidence: what was measured, how the merge was chosen, what that is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heterosis.evaluation.panel import SplitName
from heterosis.publishing.findings import Findings
from heterosis.publishing.markdown import escaped, sentence

UNFINISHED = "The study was not finished when this was written."
CLAIMS = {
    "best_parent": "best-parent heterosis",
    "mid_parent": "mid-parent heterosis",
    "best_baseline": "gain over the best baseline",
}


def standing(found: Findings) -> str:
    """In one sentence: what evidence there is for this merge."""
    if found.result is not None:
        return f"Verdict: {found.result['verdict']}."
    told = {
        "test": "It was scored on the test split, but it is not what the study chose: no claim was made for it, and "
        "picking it for its test score would bias that score upwards.",
        "selection": "It was never scored on the test split. Its scores are from the selection split, on which the "
        "best of several was picked, so they look better than they are.",
        "search": "It was only scored on the search split, whose items drove the search. Such scores are biased "
        "upwards by selection: the best of many always looks better than it is.",
    }
    if found.role in ("parent", "baseline"):
        return (
            f"It is a {found.role} of the study, which nothing was searched for: its scores are from the {found.split} "
            "split and are not selected, but no claim was made for it."
        )
    return told[found.split]


def evidence(found: Findings) -> list[str]:
    """What a reader should know first."""
    lines = [f"**{escaped(standing(found))}**"]
    if not found.finished:
        lines.append(UNFINISHED)
    return [*lines, *(f"Warning: {escaped(sentence(warning))}" for warning in found.contamination)]


def results(found: Findings) -> list[str]:
    """The table of scores on the most trustworthy split that has scored the merge."""
    split = found.split
    tasks = list(found.tasks)
    heads = [_column(found, task) for task in tasks]
    lines = [
        "| | objective | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(tasks),
    ]
    for label, row in found.table[split].items():
        cells = [interval(row["objective"]), *(interval(row["tasks"][task]) for task in tasks)]
        name = f"**{escaped(label)}**" if label == found.label else escaped(label)
        lines.append(f"| {name} ({found.roles[label]}) | " + " | ".join(cells) + " |")
    known, all_items = found.answered[split], found.items[split]
    seen = {
        "test": "held-out items, which neither the search nor the choice of the winner saw",
        "selection": "items of the selection split, on which finalists were compared",
        "search": "items of the search split, which the search optimised",
    }[split]
    part = f" (this merge answered {known} of them; its scores are estimates)" if known < all_items else ""
    intro = (
        f"Scores on {all_items} {seen}{part}, with 95 % bootstrap intervals over documents. The objective is "
        f"`{found.objective}` over tasks."
    )
    return ["## Results", intro, "\n".join(lines), *_claims(found), *_engine(found)]


def _column(found: Findings, task: str) -> str:
    kept, facts = found.tasks[task], found.about["tasks"].get(task, {})
    shots = f", {facts['num_fewshot']}-shot" if facts else ""
    return escaped(f"{task} ({kept.metric}{'' if kept.higher_is_better else ', lower is better'}{shots})")


def _claims(found: Findings) -> list[str]:
    if found.result is None:
        return []
    lines = []
    for name, claim in found.result["heterosis"].items():
        against = claim["against"] if isinstance(claim["against"], str) else "the mean of the parents"
        chance = f", p = {claim['p']:.2g}" if claim.get("p") is not None else ""
        lines.append(f"- {CLAIMS.get(name, name)}: {signed(claim)} against {escaped(against)}{chance}")
    for task, claim in found.result["task_claims"].items():
        lines.append(
            f"- `{task}`: {_word(claim['word'])}, {signed(claim)} against {escaped(claim['against'])}, the best "
            "parent at it"
        )
    return ["Differences on these items, paired, positive being better:", "\n".join(lines)]


def _word(word: str) -> str:
    return {"better": "better", "worse": "**worse**"}.get(word, "no difference shown")


def _engine(found: Findings) -> list[str]:
    version = found.about["version"]
    harness = f"lm-eval {version}" if version else "lm-eval"
    return [f"Scored with the tasks, filters and metrics of {harness}; answers from {escaped(found.engine)}."]


def choice(found: Findings) -> list[str]:
    """How this merge came to be the one."""
    items = found.items
    sizes = ", ".join(f"{split} ({count})" for split, count in items.items())
    searched = f"{found.proposed} candidates in {found.generations} generations"
    lines = [
        f"- Items were dealt into three disjoint splits: {sizes}; those that share a document stay together.",
        f"- The search proposed {searched}; generation 0 is the parents, their average and task arithmetic.",
    ]
    if found.role in ("winner", "finalist"):
        lines.append(
            f"- {found.finalists} finalists and all baselines were scored on the selection split"
            + (", and this one was the best." if found.role == "winner" else "; this is one of them.")
        )
    lines.append(f"- {_opened(found.openings)}")
    luck = found.result["search_optimism"] if found.result is not None else None
    if luck is not None and luck["estimate"] > 0.0:
        lines.append(
            f"- On the search split the best of {luck['candidates']} looked {luck['estimate']:+.4f} better than the "
            f"best parent; {luck['optimism']:.4f} of that is the luck of being picked."
        )
    lines += _masks(found)
    lines.append(f"- Seed {found.seed}; panel `{found.panel['digest'][:16]}`.")
    return ["## How it was chosen", "\n".join(lines)]


def _opened(times: int) -> str:
    if times == 0:
        return "The test split has not been opened."
    if times == 1:
        return "The test split was opened once, after the choice."
    return f"The test split was opened {times} times; intervals and p-values hold for all that it scored together."


def _masks(found: Findings) -> list[str]:
    spread = found.result["mask_seeds"].get(found.label) if found.result is not None else None
    if spread is None:
        return []
    reach = f"{spread['low']:.4f} to {spread['high']:.4f}"
    return [f"- With {len(spread['values'])} seeds of its random masks it scores {reach} on the selection split."]


def limits(found: Findings) -> list[str]:
    """What the evidence does not show."""
    lines = []
    split: SplitName = found.split
    if split != "test":
        lines.append(f"There is no unbiased score of this merge: the {split} split had a part in choosing it.")
    worse = [] if found.result is None else [t for t, c in found.result["task_claims"].items() if c["word"] == "worse"]
    if worse:
        listed = ", ".join(f"`{task}`" for task in worse)
        lines.append(f"At {listed} it is worse than the parent that is best there; if that is all you need, use that.")
    total = sum(facts.get("documents", 0) for facts in found.about["tasks"].values())
    whole = f" of the tasks' {total}" if total else ""
    lines.append(
        f"Scores are over {found.items[split]}{whole} items, so they need not equal published ones over all of them."
    )
    if found.answered[split] < found.items[split]:
        lines.append("It left a race early and did not answer every item: its scores are estimates from those it did.")
    return lines


def interval(found: Mapping[str, float]) -> str:
    """An estimate with its interval."""
    return f"{found['estimate']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def signed(found: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{found['estimate']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
