"""A study as its folder and its record have it: read without opening a model, a task or an engine."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heterosis.config import Study, load_study, read_yaml
from heterosis.errors import StudyError
from heterosis.evaluation.panel import SPLITS, SplitName
from heterosis.evaluation.tasks import reported
from heterosis.ledger.record import Candidate, Record, existing_record, in_memory, open_storage, sqlite_url
from heterosis.ledger.redact import masked
from heterosis.statistics import Objective
from heterosis.statistics.objective import Bound, TaskShare

RESOLVED, PANEL, RESULT = "resolved.yaml", "panel.json", "result.json"


class StoredTask(NamedTuple):
    """What panel.json says of a task."""

    metric: str
    filter: str
    kind: str
    higher_is_better: bool
    weight: float
    """Its share in the objective."""

    def score(self, mean: float | npt.NDArray[np.float64]) -> Any:
        """The number that lm-eval reports, from the weighted mean of outcomes."""
        return reported(self.kind, mean)


class StoredItems(NamedTuple):
    """What panel.json says of a split's items."""

    tasks: dict[str, StoredTask]
    clusters: dict[str, npt.NDArray[np.int64]]
    """Task -> [n]: items with equal numbers share a document."""
    documents: dict[str, list[int]]
    """Task -> [n]: number of each item's document in its data set."""

    @property
    def size(self) -> int:
        """Number of items."""
        return sum(len(numbers) for numbers in self.documents.values())


class Stored(NamedTuple):
    """A study that ran, or runs."""

    folder: Path
    config: Study
    """As it was understood; passwords in URLs are left out."""
    items: dict[SplitName, StoredItems]
    records: dict[SplitName, Record]
    """Of an SQLite record, a copy: what is written to it is lost."""
    objective: Objective
    """Calibrated, if the parents were scored."""
    panel_digest: str
    result: dict[str, Any] | None
    """What result.json holds, once the study is complete."""

    def candidates(self) -> dict[str, dict[SplitName, Candidate]]:
        """Label -> split -> candidate, in the order in which they were first scored.

        Who led the search on an estimate answered all its items in the end; that is what is known of it here.
        """
        found: dict[str, dict[SplitName, Candidate]] = {}
        for split in SPLITS:
            for candidate in self.records[split].candidates:
                found.setdefault(candidate.label, {})[split] = candidate
        for label, candidate in self.records["search"].later.items():
            found[label]["search"] = candidate
        return found


@contextmanager
def open_stored(target: Path) -> Iterator[Stored]:
    """Open a study by its file or its folder. StudyError says what is missing.

    A study may run meanwhile: what it had recorded by now is what is seen.
    """
    folder, given = _folder(target)
    config = _resolved(folder)
    panel = _panel(folder)
    tasks = {name: StoredTask(**about, weight=panel["weights"][name]) for name, about in panel["tasks"].items()}
    items = {split: _items(panel, split, tasks) for split in SPLITS}
    objective = Objective(
        config.objective,
        {name: TaskShare(task.weight, task.higher_is_better) for name, task in tasks.items()},
        [Bound(**each.model_dump()) for each in config.constraints],
    )
    with ExitStack() as stack:
        names = {"search": config.name, "selection": f"{config.name}/selection", "test": f"{config.name}/test"}
        opened = stack.enter_context(open_record(folder, names, given))
        records = {split: opened[split] for split in SPLITS}
        parents = {c.label: c.scores for c in records["search"].baselines if c.label in config.parents and c.scores}
        if len(parents) == len(config.parents):
            objective.calibrate(parents)
        yield Stored(folder, config, items, records, objective, panel["digest"], _result(folder))


def _folder(target: Path) -> tuple[Path, str | None]:
    """The study's folder, and the URL of its record where a study file gives one."""
    if target.is_dir():
        return target, None
    if not target.exists():
        raise StudyError(f"{target}: no such study file or folder. Give a study file, or a run's folder (runs/NAME).")
    study = load_study(target)
    folder = Path(study.output) / study.name
    if not (folder / RESOLVED).is_file():
        raise StudyError(f"{folder}: {target} has not been run here yet. Start it with `heterosis run {target}`.")
    return folder, study.record


def _resolved(folder: Path) -> Study:
    if not (folder / RESOLVED).is_file():
        raise StudyError(f"{folder}: has no {RESOLVED}, so it is no study's folder. Give the folder of a run.")
    return load_study(folder / RESOLVED)


def _panel(folder: Path) -> dict[str, Any]:
    found = _json(folder / PANEL)
    if found is None:
        raise StudyError(
            f"{folder}: has no {PANEL}: the study has not read its tasks yet, or the file is gone. "
            "Wait, or run the study again to have it written anew."
        )
    if not isinstance(found, dict) or not {"tasks", "splits", "clusters", "weights", "digest"} <= found.keys():
        raise StudyError(f"{folder / PANEL}: another version wrote it. Run the study again with this one.")
    return found


def _items(panel: Mapping[str, Any], split: SplitName, tasks: dict[str, StoredTask]) -> StoredItems:
    clusters = {task: np.asarray(numbers, dtype=np.int64) for task, numbers in panel["clusters"][split].items()}
    documents = {task: [int(row[0]) for row in rows] for task, rows in panel["splits"][split].items()}
    return StoredItems(tasks, clusters, documents)


def _result(folder: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _json(folder / RESULT)
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: cannot be read ({error}). Run the study again to have it written anew.") from error


@contextmanager
def open_record(folder: Path, names: Mapping[str, str], given: str | None = None) -> Iterator[dict[str, Record]]:
    """The Optuna studies `names` (key -> name) in the record of the study in a run folder, under their keys.

    The first must exist; one that does not yet is empty. `given`: URL of the record with the user and password that
    the folder's files leave out, used if it is the same record. Nothing is written to it.
    """
    study = read_yaml(folder / RESOLVED)
    url = study.get("record") or sqlite_url(folder / "record.db")
    # Without its user and password, the database's own variables (PGUSER, PGPASSWORD) may still open it.
    url = given if given is not None and masked(given) == url else url.replace("://***@", "://")
    with _readable(url, folder) as readable:
        storage = open_storage(readable)
        try:
            first, *_ = names
            yield {key: _opened(storage, name, folder, required=key == first) for key, name in names.items()}
        finally:
            storage.remove_session()


def _opened(storage: Any, name: str, folder: Path, required: bool) -> Record:
    found = existing_record(storage, name)
    if found is None and required:
        raise StudyError(f"{folder} has no record: its storage holds no study {name}.")
    return found or Record(in_memory(), name)


@contextmanager
def _readable(url: str, folder: Path) -> Iterator[str]:
    """URL of a record that may be opened: a copy of an SQLite file, as Optuna writes to what it opens."""
    kind, _, place = url.partition(":///")
    if not kind.startswith("sqlite"):
        yield url
        return
    path = Path(place.partition("?")[0])
    if not path.is_file():
        raise StudyError(f"{folder} has no record: no file {path}. Give a study that ran, or put the file back.")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "record.db"
        try:
            _copy_database(path.resolve(), copy)
        except sqlite3.Error as error:
            raise StudyError(
                f"{path} cannot be read as a record ({error}). Put a backup in its place, or run the study anew in "
                "another output."
            ) from error
        yield sqlite_url(copy)


def _copy_database(path: Path, copy: Path) -> None:
    """Copy an SQLite file as its last finished transaction left it, whether or not a study writes to it meanwhile."""
    try:
        with (
            closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_READONLY_ROLLBACK":
            raise
        # Its writer was killed within a transaction, which the journal beside it undoes: in the copy.
        shutil.copy(path, copy)
        shutil.copy(f"{path}-journal", f"{copy}-journal")
