"""What a study knows of one of its merges: the evidence that a card and leaderboards are written from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from heterosis.errors import StudyError
from heterosis.evaluation.panel import SPLITS, SplitName, TaskOutcomes
from heterosis.evaluation.samples import FOLDER as SAMPLES
from heterosis.evaluation.samples import Sample, read_samples
from heterosis.finals import VARIANT, Evidence
from heterosis.ledger.record import Candidate
from heterosis.standings import standings
from heterosis.stored import PANEL, Stored, StoredTask

# Labels that stand for a candidate to be found.
BEST = ("best", "winner")


class Findings(NamedTuple):
    """Evidence about one merge of a study."""

    study: str
    label: str
    role: str
    """winner, parent, baseline, finalist (scored on the selection split), or candidate."""
    candidate: Candidate
    seed: int
    objective: str
    tasks: Mapping[str, StoredTask]
    about: Mapping[str, Any]
    """What panel.json keeps of lm-eval: its version and, by task, what it scores."""
    panel: Mapping[str, Any]
    """All of panel.json."""
    items: Mapping[SplitName, int]
    answered: Mapping[SplitName, int]
    """Items of each split that this merge has answered; a split that has not scored it is left out."""
    table: Mapping[SplitName, Mapping[str, Any]]
    """Split -> label -> objective and task scores with intervals: the parents, the best baseline and this merge."""
    roles: Mapping[str, str]
    """Role of everyone in the tables."""
    outcomes: Mapping[str, TaskOutcomes] | None
    """On the test split, by task; None where it was not scored there."""
    samples: Mapping[str, list[Sample]]
    """What it was asked and answered there, of the tasks that the study's folder has it of."""
    proposed: int
    """Candidates that the search proposed."""
    generations: int
    finalists: int
    openings: int
    """How often the test split was opened."""
    engine: str
    contamination: tuple[str, ...]
    result: Mapping[str, Any] | None
    """result.json, where this merge is the winner of the finished study."""
    finished: bool

    @property
    def split(self) -> SplitName:
        """The most trustworthy split that has scored it."""
        return next(split for split in reversed(SPLITS) if split in self.answered)


def findings(study: Stored, label: str) -> Findings:
    """What `study` knows of a candidate. StudyError where there is none of that label, or it could not be scored."""
    label = _chosen(study, label)
    by_split = study.candidates()[label]
    scored = {split: candidate for split, candidate in by_split.items() if candidate.value is not None}
    if not scored:
        error = next(iter(by_split.values())).error or "no reason was recorded"
        raise StudyError(
            f"{study.config.name}: {label} could not be scored ({error}), so nothing can prove its weights. "
            "Give another label."
        )
    panel = json.loads((study.folder / PANEL).read_text(encoding="utf-8"))
    searched, result = study.records["search"], study.result
    winner = result is not None and label == result["winner"]
    role = "winner" if winner else _role(study, label)
    table = {split: _rows(study, split, label) for split in scored}
    roles = {each: _role(study, each) for rows in table.values() for each in rows}
    return Findings(
        study.config.name,
        label,
        role,
        next(iter(scored.values())),
        study.config.seed,
        study.config.objective,
        study.items["test"].tasks,
        panel.get("lm_eval") or {"version": None, "tasks": {}},
        panel,
        {split: study.items[split].size for split in SPLITS},
        {split: candidate.known for split, candidate in scored.items()},
        table,
        {**roles, label: role},
        scored["test"].outcomes if "test" in scored else None,
        _samples(study, scored["test"]) if "test" in scored else {},
        len(searched.proposed),
        max((candidate.generation for candidate in searched.proposed), default=0),
        len([c for c in study.records["selection"].proposed if VARIANT not in c.label]),
        len(study.records["test"].noted("openings") or ()),
        _engine(searched.noted("engine"), study.config.engine.kind),
        tuple(searched.noted("contamination") or ()),
        result if winner else None,
        result is not None,
    )


def _samples(study: Stored, candidate: Candidate) -> dict[str, list[Sample]]:
    """What the study's folder has; StudyError where it is of other items than the study's."""
    found = {}
    for task, documents in study.items["test"].documents.items():
        samples = read_samples(study.folder, candidate.recipe_digest, task)
        if samples is None:
            continue
        if [sample.get("doc_id") for sample in samples] != documents:
            raise StudyError(
                f"{study.folder / SAMPLES}: what {candidate.label} answered of {task} is not of this study's items. "
                "Remove its folder, and these answers are left out."
            )
        found[task] = samples
    return found


def _chosen(study: Stored, label: str) -> str:
    """The label itself, or who `best` and `winner` stand for."""
    known = study.candidates()
    if label in known:
        return label
    if label not in BEST:
        import difflib

        near = difflib.get_close_matches(label, known, 3) or list(known)[:3]
        raise StudyError(f"{study.config.name}: no candidate {label!r} in its record; near: {', '.join(near)}.")
    if study.result is not None:
        return str(study.result["winner"])
    if label == "winner":
        raise StudyError(
            f"{study.config.name}: not finished, so it has no winner. Give `best` for the best so far, or a label."
        )
    return _leading(study)


def _leading(study: Stored) -> str:
    """The best so far: of the finalists scored on the selection split, else by the search's own standings."""
    selected = [c for c in study.records["selection"].candidates if c.fitness is not None and VARIANT not in c.label]
    if any(not candidate.is_baseline for candidate in selected):
        return max(selected, key=lambda c: c.fitness.rank_key if c.fitness else (0.0, 0.0)).label
    searched = [c for c in study.records["search"].candidates if c.fitness is not None]
    if not searched:
        raise StudyError(f"{study.config.name}: nothing has been scored yet. Wait for the first candidates.")
    proposed = [candidate for candidate in searched if not candidate.is_baseline]
    return standings(proposed or searched, study.items["search"], study.objective)[0].label


def _engine(noted: Mapping[str, Any] | None, kind: str) -> str:
    """What answered, in words."""
    if noted is None:
        return kind
    dtype = (noted.get("options") or {}).get("dtype")
    return f"{noted.get('engine', kind)} {noted.get('version', '')}".strip() + (f" in {dtype}" if dtype else "")


def _role(study: Stored, label: str) -> str:
    by_split = study.candidates()[label]
    if label in study.config.parents:
        return "parent"
    if next(iter(by_split.values())).is_baseline:
        return "baseline"
    return "finalist" if "selection" in by_split else "candidate"


def _rows(study: Stored, split: SplitName, label: str) -> dict[str, Any]:
    """Parents, the best baseline and the candidate; intervals are those of result.json where it shows them."""
    scored = {c.label: c for c in study.records[split].candidates if c.value is not None}
    baselines = [c for c in scored.values() if c.is_baseline and c.label not in study.config.parents]
    best = max(baselines, key=lambda c: c.value or 0.0).label if baselines else None
    if study.result is not None and study.result["best_baseline"] in scored:
        best = study.result["best_baseline"]
    wanted = [name for name in (*study.config.parents, best, label) if name in scored]
    among = scored if split == "test" else {name: scored[name] for name in wanted}
    evidence = Evidence(list(among.values()), study.items[split], study.objective, study.config.seed)
    return {name: evidence.row(name) for name in dict.fromkeys(wanted)}
