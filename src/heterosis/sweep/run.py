"""`heterosis sweep`: every point merged, scored and recorded, then the curves. The same call resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from heterosis.builder import Builder
from heterosis.errors import CandidateError, RecipeError, StudyError
from heterosis.evaluation.panel import Split
from heterosis.evaluation.tasks import request_counts
from heterosis.files import only_process, write_json, write_text
from heterosis.ledger.mirror import BackgroundMirror
from heterosis.ledger.record import (
    Candidate,
    Measurement,
    Proposal,
    Record,
    existing_record,
    open_storage,
    sqlite_url,
)
from heterosis.ledger.redact import masked
from heterosis.live import LiveEngine
from heterosis.merge import METHODS
from heterosis.scoring import EngineScorer
from heterosis.space import GeneSlot
from heterosis.stored import RESOLVED
from heterosis.study import Prepared, prepare_as
from heterosis.sweep.config import SweepStudy, load_sweep
from heterosis.sweep.lineage import conclude, open_lineage
from heterosis.sweep.points import Design, Job, design
from heterosis.sweep.report import Found, report
from heterosis.sweep.similarity import Texts, check_texts, compare, described, open_records, pending, record_names
from heterosis.sweep.views import write_views
from heterosis.watch import Watcher

# Failures in a row after which nothing better is to be expected.
HOPELESS = 5


class Ready(NamedTuple):
    """A sweep that was checked as far as it can be without scoring."""

    config: SweepStudy
    prepared: Prepared
    design: Design
    texts: dict[str, Texts]
    """Subject -> texts that hidden states are compared on; empty without similarity."""

    @property
    def split(self) -> Split:
        """The items that all points share."""
        return self.prepared.panel.splits["search"]


def ready(path: Path, unsafe_code: bool = False) -> Ready:
    """Read and check a sweep: models, tasks, every point's merge, texts. `unsafe_code` as in `load_tasks`."""
    config = load_sweep(path)
    prepared = prepare_as(config, path, unsafe_code)
    unfolded = design(config, prepared)
    builder = Builder(prepared.family, compiled=False)
    for job in unfolded.jobs:
        if METHODS[job.recipe.method].evidence is None:  # to measure the parents takes long, and is a point's own work
            try:
                builder.plan(job.recipe)
            except RecipeError as error:
                raise StudyError(f"sweep: {job.label}: {error}") from error
    about = config.sweep.similarity
    texts = {} if about is None else check_texts(prepared, about, unfolded.subjects)
    return Ready(config, prepared, unfolded, texts)


def plan(path: Path, unsafe_code: bool = False) -> dict[str, Any]:
    """What a sweep will score, from its file and what is recorded already. Nothing is written."""
    checked = ready(path, unsafe_code)
    database, url = checked.prepared.folder / "record.db", checked.config.record
    storage = open_storage(url or sqlite_url(database)) if url or database.is_file() else None

    def recorded(name: str) -> Sequence[Candidate]:
        record = existing_record(storage, name) if storage is not None else None
        return record.candidates if record is not None else ()

    names = record_names(checked.config.name, checked.texts)
    compared = {subject: recorded(name) for subject, name in names.items()}
    return planned(checked, recorded(f"{checked.config.name}/sweep"), compared)


def planned(
    checked: Ready, recorded: Sequence[Candidate], compared: Mapping[str, Sequence[Candidate]]
) -> dict[str, Any]:
    """What is left to do, in numbers."""
    split, jobs = checked.split, checked.design.jobs
    left = [job for job in jobs if find(recorded, job) is None]
    counts = {task: {**request_counts(items), "items": len(items)} for task, items in split.items.items()}
    merges = sum(len(point.recipes) for point in checked.design.points)
    found: dict[str, Any] = {
        "sweep": checked.config.name,
        "curves": {curve.name: _axes(curve.axes) for curve in checked.design.curves},
        "parents": [subject.name for subject in checked.design.subjects],
        "points": len(checked.design.points),
        "merges": f"{merges} over mask seeds, {len(jobs)} different with the base and the parents themselves",
        "recorded": len(jobs) - len(left),
        "to score": len(left),
        "items": {task: count["items"] for task, count in counts.items()},
        "answers": sum(counts[task]["items"] for job in left for task in job.tasks),
        "tokens": f"at most {sum(counts[task]['tokens'] for job in left for task in job.tasks):.3g}",
    }
    if checked.texts:
        found["hidden states"] = {"merges": len(pending(checked.design, compared)), **described(checked.texts)}
    seconds = [each.seconds["total"] for each in recorded if each.items]
    if seconds and left:
        found["time"] = f"about {float(np.median(seconds)) * len(left):.0f} s to score, at the pace so far"
    return found


def _axes(axes: Mapping[str, Sequence[Any]]) -> str:
    return " × ".join(f"{len(values)} of {name}" for name, values in axes.items())


def sweep(path: Path, watcher: Watcher, unsafe_code: bool = False) -> dict[str, Any]:
    """Run or resume the sweep in `path`; returns what is written to sweep.json."""
    load_sweep(path)  # a mistake in the file is all that the user should read
    watcher.stage("reading models and tasks")
    checked = ready(path, unsafe_code)
    config, prepared, folder = checked.config, checked.prepared, checked.prepared.folder
    if (folder / RESOLVED).exists():
        raise StudyError(f"{folder} holds a study. Give the sweep another name.")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(only_process(folder))
        storage = open_storage(config.record or sqlite_url(folder / "record.db"))
        record = Record(storage, f"{config.name}/sweep", _genes(checked.design))
        record.bind(_identity(prepared))
        lineage = open_lineage(prepared, checked.design, _identity(prepared))
        mirror = None
        if lineage is not None:
            mirror = stack.enter_context(BackgroundMirror(lineage, {"search": record}, watcher.warn))
            record.listen(lambda _: mirror.wake())
        compared = open_records(storage, config.name, checked.texts)
        known = {subject: each.candidates for subject, each in compared.items()}
        _tell(planned(checked, record.candidates, known), watcher)
        write_text(folder / "sweep.yaml", _resolved(config))
        engine = LiveEngine(prepared, record, watcher)
        stack.callback(engine.close)
        stack.enter_context(engine.interrupts)
        score(checked, record, engine, watcher)
        engine.close()
        if compared:
            pace = _Pace(watcher, "hidden states")

            def before_each(done: int, count: int) -> None:
                engine.interrupts.check()
                pace.tell(done, count)

            compare(prepared, checked.design, checked.texts, compared, before_each)
        watcher.stage("drawing")
        result = report(Found(prepared, checked.design, record, compared, checked.texts, config.sweep.mask_seeds))
        write_json(folder / "sweep.json", result)
        write_views(result, folder)
        if lineage is not None and mirror is not None:
            conclude(lineage, mirror, folder, watcher)
    return result


def _resolved(config: SweepStudy) -> str:
    """The sweep as it was understood."""
    content = config.model_dump(mode="json", exclude_unset=True, exclude={"space", "method"})
    return yaml.safe_dump(masked(content), sort_keys=False, allow_unicode=True)


def _tell(about: Mapping[str, Any], watcher: Watcher) -> None:
    items = ", ".join(f"{count} of {task}" for task, count in about["items"].items())
    watcher.stage(
        f"{about['points']} points, {about['merges']}; {about['recorded']} recorded, {about['to score']} to score "
        f"on {items}: {about['answers']} answers, {about['tokens']} tokens"
    )


def _identity(prepared: Prepared) -> dict[str, Any]:
    """What a sweep may not change once it has a record. Points may come and go."""
    whole = prepared.identity
    return {key: whole[key] for key in ("base", "tasks", "splits", "panel", "engine", "dtype", "seed")}


def _genes(unfolded: Design) -> list[GeneSlot]:
    """The numbers that vary, as Optuna shows them."""
    values: dict[str, list[float]] = {}
    for curve in unfolded.curves:
        for axis, along in curve.axes.items():
            values.setdefault(axis, []).extend(float(value) for value in along if _is_number(value))
    return [GeneSlot(axis, min(own), max(own), min(own)) for axis, own in values.items() if own]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def find(recorded: Sequence[Candidate], job: Job) -> Candidate | None:
    """What a record has of a merge, on all the tasks that are wanted of it."""
    digest = job.recipe.digest
    for each in recorded:
        if each.recipe_digest == digest and each.value is not None and set(job.tasks) <= set(each.outcomes):
            return each
    return None


def score(checked: Ready, record: Record, engine: LiveEngine, watcher: Watcher) -> None:
    """Score and record what is not recorded yet. The parents themselves must be scored; other merges may fail."""
    left = [job for job in checked.design.jobs if find(record.candidates, job) is None]
    axes = {point.recipes[i].digest: point.at for point in checked.design.points for i in range(len(point.recipes))}
    scorers: dict[tuple[str, ...], tuple[EngineScorer, Split]] = {}
    pace, failures = _Pace(watcher, "scoring"), 0
    about = checked.config.engine
    for done, job in enumerate(left):
        engine.interrupts.check()
        pace.tell(done, len(left), job.label)
        if job.tasks not in scorers:
            part = _part(checked.split, job.tasks)
            scorers[job.tasks] = (EngineScorer(engine, part, (), about.retries, about.deadline), part)
        scorer, part = scorers[job.tasks]
        measured = scorer.ask(job.recipe, part)
        if measured.error is not None and job.recipe in checked.design.references.values():
            raise CandidateError(f"{job.label} cannot be scored, so there is nothing to compare with: {measured.error}")
        numbers = {name: float(v) for name, v in axes.get(job.recipe.digest, {}).items() if _is_number(v)}
        record.add(Proposal(job.label, 1, job.recipe, genes=numbers), measured, _value(checked.prepared, measured))
        failures = failures + 1 if measured.error is not None else 0
        if measured.error is not None:
            watcher.warn(f"{job.label} failed: {measured.error}")
        if failures == HOPELESS:
            raise CandidateError(f"The last {HOPELESS} merges failed, so the sweep stops: {measured.error}")


def _part(split: Split, tasks: Sequence[str]) -> Split:
    return split.part({task: np.arange(len(split.items[task])) for task in split.items if task in tasks}).split


def _value(prepared: Prepared, measured: Measurement) -> float | None:
    """Mean of the task scores, higher being better: what Optuna's dashboard shows of a point."""
    if measured.error is not None:
        return None
    shares = prepared.objective.shares
    signed = [score if shares[task].higher_is_better else -score for task, score in measured.scores.items()]
    return float(sum(signed) / len(signed))


class _Pace:
    """Says how far a loop is, and how long it will take."""

    def __init__(self, watcher: Watcher, what: str) -> None:
        self._watcher, self._what = watcher, what
        self._started = 0.0

    def tell(self, done: int, count: int, label: str = "") -> None:
        """`done` of `count` are done."""
        now = time.monotonic()
        if done == 0 or not self._started:
            self._started = now
        rest = f", about {(now - self._started) / done * (count - done):.0f} s left" if done > 1 else ""
        self._watcher.stage(f"{self._what} {done + 1} of {count}{rest}" + (f": {label}" if label else ""))
