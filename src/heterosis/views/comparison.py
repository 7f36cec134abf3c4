"""Two candidates of a study against each other, on every split that both were scored on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from heterosis.errors import StudyError
from heterosis.evaluation.panel import SPLITS, Items, SplitName
from heterosis.ledger.record import Candidate
from heterosis.recipe import Recipe
from heterosis.stored import Stored, open_stored
from heterosis.views.candidate import Profile, profiles
from heterosis.views.names import label_of, role_of
from heterosis.views.pairs import Pair, paired

STEP = 1e-6


class Difference(NamedTuple):
    """The first minus the second; positive: the first is better, also where a lower score is."""

    estimate: float
    low: float
    high: float
    p_better: float
    """One-sided p-value of a paired sign-flip test that the first is better."""
    p_worse: float
    first: float
    """The scores that are compared."""
    second: float
    items_better: int
    """Items on which the first did better."""
    items_worse: int
    items: int
    """Items that both answered."""


class OnSplit(NamedTuple):
    """A split on which both were scored."""

    items: int
    of: int
    objective: Difference
    tasks: dict[str, Difference]
    caveat: str | None
    """Why the difference may look larger than it is."""


class Change(NamedTuple):
    """A number of the merge that is not the same in both."""

    owner: str
    group: str
    quantity: str
    first: tuple[float, ...]
    second: tuple[float, ...]
    largest: float
    """The largest difference over depth, in size."""


class Compared(NamedTuple):
    """Two candidates of a study."""

    study: str
    first: str
    second: str
    roles: tuple[str, str]
    splits: dict[SplitName, OnSplit]
    not_compared: dict[SplitName, str]
    """Split -> why the two are not compared there."""
    changes: tuple[Change, ...]
    settings: dict[str, tuple[str, str]]
    """What else of the recipes differs: key -> the two values."""
    genes: dict[str, tuple[float, float]]
    """Genes of two proposals that differ."""


def compare(target: Path, first: str, second: str) -> Compared:
    """Two candidates by label or part."""
    with open_stored(target) as study:
        labels = label_of(study, first), label_of(study, second)
        if labels[0] == labels[1]:
            raise StudyError(f"{study.folder}: {first} and {second} are both {labels[0]}. Name two candidates.")
        one, other = (study.candidates()[label] for label in labels)
        splits: dict[SplitName, OnSplit] = {}
        missing: dict[SplitName, str] = {}
        for split in SPLITS:
            if split not in one and split not in other:
                continue
            found = _on_split(study, split, one.get(split), other.get(split), labels)
            if isinstance(found, str):
                missing[split] = found
            else:
                splits[split] = found
        ours, theirs = (next(iter(each.values())) for each in (one, other))
        return Compared(
            study.config.name,
            *labels,
            (role_of(study, labels[0]), role_of(study, labels[1])),
            splits,
            missing,
            tuple(_changes(study, ours.recipe, theirs.recipe)),
            _settings(ours.recipe, theirs.recipe),
            _genes(ours, theirs),
        )


def _on_split(
    study: Stored, split: SplitName, one: Candidate | None, other: Candidate | None, labels: tuple[str, str]
) -> OnSplit | str:
    """The comparison, or why there is none."""
    for candidate, label in ((one, labels[0]), (other, labels[1])):
        if candidate is None:
            return f"{label} was not scored on it"
        if candidate.value is None:
            return f"{label} failed: {candidate.error}"
    assert one is not None
    assert other is not None
    items = study.items[split]
    pair = paired(one, other, items, study.objective, study.config.seed)
    if pair is None:
        return "the two have no items of every task in common"
    counts = {
        task: _counts(pair, task, items, study.objective.shares[task].higher_is_better) for task in items.clusters
    }
    whole = (sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values()), pair.items)
    return OnSplit(
        pair.items,
        items.size,
        _difference(pair, None, whole),
        {task: _difference(pair, task, count) for task, count in counts.items()},
        _caveat(study, split, one, other),
    )


def _difference(pair: Pair, task: str | None, counts: tuple[int, int, int]) -> Difference:
    one, other = pair.one.label, pair.other.label
    found = pair.evidence.difference(one, [other], task)
    better, worse = pair.evidence.p_values(one, other, task)
    scores = [each.value if task is None else each.scores[task] for each in (pair.one, pair.other)]
    first, second = (float(score if score is not None else np.nan) for score in scores)
    return Difference(*found, better, worse, first, second, *counts)


def _counts(pair: Pair, task: str, items: Items, higher_is_better: bool) -> tuple[int, int, int]:
    """On how many items the first did better, on how many worse, and of how many."""
    ours, theirs = (each.outcomes[task] for each in (pair.one, pair.other))
    both = ~np.isnan(ours.values) & ~np.isnan(theirs.values)
    apart = (ours.values - theirs.values)[both]
    mean = theirs.mean()
    score = items.tasks[task].score
    rising = float(score(mean + STEP)) >= float(score(mean - STEP))  # a perplexity falls where its outcomes rise
    sign = 1.0 if rising == higher_is_better else -1.0
    return int((sign * apart > 0.0).sum()), int((sign * apart < 0.0).sum()), int(both.sum())


def _caveat(study: Stored, split: SplitName, one: Candidate, other: Candidate) -> str | None:
    proposals = [candidate.label for candidate in (one, other) if not candidate.is_baseline]
    if split == "search" and proposals:
        return (
            f"selection-biased: the search chose {' and '.join(proposals)} by these very items, so what was chosen "
            "looks better than it is"
        )
    winner = (study.result or {}).get("winner")
    if split == "selection" and winner in (one.label, other.label):
        return f"{winner} was chosen as the winner by these items, so it looks somewhat better than it is"
    openings = len(study.records["test"].noted("openings") or ())
    if split == "test" and openings > 1:
        return f"the test split was opened {openings} times; these p-values count only this pair"
    return None


def _changes(study: Stored, one: Recipe, other: Recipe) -> list[Change]:
    """Numbers that differ, the largest difference (as a part of the range) first."""
    space = study.config.resolved_space
    ours, theirs = ({(p.owner, p.group, p.quantity): p for p in profiles(each, space)} for each in (one, other))
    # The tensors of a recipe with one group lie in whichever groups the other has.
    finer = theirs if len(one.groups) == 1 else ours
    lone = {id(ours): next(iter(one.groups)), id(theirs): next(iter(other.groups))}

    def at(side: dict[tuple[str, str, str], Profile], key: tuple[str, str, str]) -> Profile | None:
        return side.get(key) or (None if side is finer else side.get((key[0], lone[id(side)], key[2])))

    coarser = ours if finer is theirs else theirs
    extra = [
        (owner, group, quantity) for owner, _, quantity in coarser for group in dict.fromkeys(key[1] for key in finer)
    ]
    found = []
    for key in dict.fromkeys([*finer, *extra]):
        pair = at(ours, key), at(theirs, key)
        first, second = _aligned(*pair)
        size = float(np.abs(np.subtract(first, second)).max())
        if size > 0.0:
            shown = pair[0] or pair[1]
            assert shown is not None
            found.append((size / ((shown.high - shown.low) or 1.0), Change(*key, first, second, size)))
    return [change for _, change in sorted(found, key=lambda each: -each[0])]


def _aligned(one: Profile | None, other: Profile | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Two profiles with equally many values; what a recipe leaves out is neutral."""
    given = one or other
    assert given is not None
    neutral = {"weight": 1.0, "density": 1.0}.get(given.quantity, 0.0)
    first, second = ((neutral,) if each is None else each.values for each in (one, other))
    length = max(len(first), len(second))
    return first * (length // len(first)), second * (length // len(second))


def _settings(one: Recipe, other: Recipe) -> dict[str, tuple[str, str]]:
    keys = ("method", "seed", "trim_scope", "election", "zero_sign", "divisor", "rescale", "compat", "dtype")
    values: Mapping[str, tuple[Any, Any]] = {key: (getattr(one, key), getattr(other, key)) for key in keys}
    return {key: (str(a), str(b)) for key, (a, b) in values.items() if a != b}


def _genes(one: Candidate, other: Candidate) -> dict[str, tuple[float, float]]:
    shared = [name for name in one.genes if name in other.genes]
    return {name: (one.genes[name], other.genes[name]) for name in shared if one.genes[name] != other.genes[name]}
