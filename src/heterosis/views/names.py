"""What people call candidates: their labels, or the part that they play."""

from __future__ import annotations

import difflib

from heterosis.errors import StudyError
from heterosis.finals import VARIANT
from heterosis.search import Budget
from heterosis.stored import Stored
from heterosis.views.progress import Tracker

PARTS = {
    "winner": "the study's winner",
    "best": "the winner, or the best so far",
    "baseline": "the best baseline",
    "parent": "the best parent",
}


def label_of(study: Stored, name: str) -> str:
    """The label of a candidate; StudyError with the nearest one if there is none."""
    labels = list(study.candidates())
    if name in labels:
        return name
    if name in PARTS:
        return _in_part(study, name)
    near = difflib.get_close_matches(name, [*labels, *PARTS], 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"it has {_some(labels)}, and {', '.join(PARTS)}."
    raise StudyError(f"{study.folder}: no candidate {name}; {hint}")


def _in_part(study: Stored, part: str) -> str:
    if part == "winner" and study.result is None:
        raise StudyError(f"{study.folder}: no winner yet, the study is not complete. `best` is the best so far.")
    if part in ("winner", "best") and study.result is not None:
        return str(study.result["winner"])
    if part == "baseline" and study.result is not None:
        return str(study.result["best_baseline"])
    selected = [c for c in study.records["selection"].candidates if c.fitness is not None and VARIANT not in c.label]
    if part == "best" and any(not candidate.is_baseline for candidate in selected):
        return max(selected, key=lambda candidate: candidate.rank).label
    nothing = Budget(None, None, None)
    parents = list(study.config.parents)
    tracker = Tracker(study.items["search"], study.objective, parents, nothing, study.config.seed)
    found = tracker.progress(study.records["search"].candidates)
    standing = {"best": found.best, "baseline": found.best_baseline, "parent": found.best_parent}[part]
    if standing is None:
        raise StudyError(f"{study.folder}: {PARTS[part]} is not known yet; nothing of the kind was scored.")
    return standing.label


def role_of(study: Stored, label: str) -> str:
    """What part a candidate plays."""
    if VARIANT in label:
        return f"{label.partition(VARIANT)[0]} with other random masks"
    splits = study.candidates()[label]
    if label in study.config.parents:
        role = "parent"
    elif next(iter(splits.values())).is_baseline:
        role = "baseline"
    else:
        role = "finalist" if "selection" in splits else "proposal"
    if study.result is None or label != study.result["winner"]:
        return role
    return "winner" if role == "finalist" else f"winner, a {role}"


def _some(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) <= 8 else f"{', '.join(labels[:7])}, … {labels[-1]}"
