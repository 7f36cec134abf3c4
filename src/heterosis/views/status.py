"""How a study stands: searching, in its finals, complete, or stopped on the way."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.errors import HeterosisError, StudyError
from heterosis.files import holder
from heterosis.search import Budget
from heterosis.stored import RESOLVED, Stored, open_stored
from heterosis.views.progress import Progress, Tracker


class Winner(NamedTuple):
    """What a complete study claims, on the test split."""

    label: str
    verdict: str
    score: dict[str, float]
    """estimate, low, high."""
    heterosis: dict[str, dict[str, Any]]
    """Its difference to the best parent, the mean of the parents and the best baseline."""


class Status(NamedTuple):
    """A study as it stands."""

    study: str
    folder: str
    stage: str
    """baselines, searching, finalists, test split, or complete."""
    held_by: str | None
    """The process that works on it; None: none does."""
    progress: Progress
    budget: Budget
    search_items: int
    """Items of the search split."""
    objective: str
    finals: dict[str, int]
    """How many candidates the selection and the test split have scored."""
    openings: int
    """How often the test split was opened."""
    winner: Winner | None
    """Who won, once the study is complete."""
    next: str | None
    """The command to type next."""

    @property
    def stopped(self) -> bool:
        """Whether it is not complete, and nobody works on it."""
        return self.stage != "complete" and self.held_by is None


class Unreadable(NamedTuple):
    """A folder whose study cannot be read."""

    folder: str
    reason: str


def status(target: Path) -> Status:
    """How the study stands that a study file or a run's folder names."""
    with open_stored(target) as study:
        searched = study.records["search"].candidates
        limits = study.config.budget
        budget = Budget(limits.candidates, limits.hours and limits.hours * 3600, limits.items)
        parents = list(study.config.parents)
        tracker = Tracker(study.items["search"], study.objective, parents, budget, study.config.seed)
        held = holder(study.folder)
        stage = _stage(study, budget)
        result = study.result if stage == "complete" else None
        return Status(
            study=study.config.name,
            folder=str(study.folder),
            stage=stage,
            held_by=held,
            progress=tracker.progress(searched),
            budget=budget,
            search_items=study.items["search"].size,
            objective=study.config.objective,
            finals={"selection": _scored(study, "selection"), "test": _scored(study, "test")},
            openings=len(study.records["test"].noted("openings") or ()),
            winner=None if result is None else _winner(result),
            next=_next(study, target, stage, held is not None, bool(searched)),
        )


def statuses(folder: Path) -> Iterator[Status | Unreadable]:
    """Every study in a folder of runs, by name. StudyError if it holds none."""
    found = sorted(path.parent for path in folder.glob(f"*/{RESOLVED}"))
    if not found:
        raise StudyError(
            f"{folder}: no study has run here. `heterosis init` writes a study file, `heterosis run` runs it."
        )
    for each in found:
        try:
            yield status(each)
        except HeterosisError as error:
            yield Unreadable(str(each), str(error))


def _winner(result: dict[str, Any]) -> Winner:
    row = next(row for row in result["table"] if row["label"] == result["winner"])
    return Winner(result["winner"], result["verdict"], row["test"]["objective"], result["heterosis"])


def _scored(study: Stored, split: Any) -> int:
    return len(study.records[split].candidates)


def _stage(study: Stored, budget: Budget) -> str:
    searched = study.records["search"].candidates
    if study.result is not None and study.result["time"]["candidates"] >= len(searched):
        return "complete"
    if not any(not candidate.is_baseline for candidate in searched):
        return "baselines"
    # After a larger budget was given the finals of the shorter search are there already.
    longer = study.result is not None and not budget.spent(searched)
    if _scored(study, "selection") == 0 or longer:
        return "searching" if not budget.spent(searched) else "finalists"
    return "test split" if _scored(study, "test") and not longer else "finalists"


def _next(study: Stored, target: Path, stage: str, held: bool, any_scored: bool) -> str | None:
    folder = shlex.quote(str(study.folder))
    if stage == "complete":
        return f"heterosis show {folder} winner"
    if not held:
        return f"heterosis run {_study_file(study, target)}"
    return f"heterosis show {folder} best" if any_scored and stage != "baselines" else None


def _study_file(study: Stored, target: Path) -> str:
    """The study file, as far as it is known: the folder keeps what it said, not where it lies."""
    known = str(target) if target.is_file() else study.records["search"].noted("study_file")
    return shlex.quote(known) if known else f"STUDY.yaml  (the study file of {study.config.name})"
