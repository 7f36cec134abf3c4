"""A study that stopped on the way: the finished one, with a part of its record."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from small_study import Finished

from heterosis.ledger import Record
from heterosis.ledger.record import Candidate, Measurement, open_storage, sqlite_url
from heterosis.space import GeneSlot


def stopped(finished: Finished, folder: Path, proposals: int, failing: str = "", partial: str = "") -> Path:
    """Its folder after so many proposals; labels of one that could not be scored, and of one that its race stopped."""
    folder.mkdir()
    for name in ("panel.json", "resolved.yaml"):
        shutil.copy(finished.folder / name, folder)
    searched = finished.record().candidates
    genes = [GeneSlot(name, -10.0, 10.0, 0.0) for name in searched[-1].genes]
    record = Record(open_storage(sqlite_url(folder / "record.db")), "tiny", genes)
    for candidate in [*finished.record().baselines, *finished.record().proposed[:proposals]]:
        if candidate.label == failing:
            measured = Measurement({}, {}, None, candidate.seconds, 0, "the engine [died]")
            record.add(candidate.proposal, measured, None)
        else:
            record.add(candidate.proposal, _measured(candidate, candidate.label == partial), candidate.fitness)
    return folder


def _measured(found: Candidate, partial: bool) -> Measurement:
    outcomes, race = dict(found.outcomes), found.race
    if partial:
        race = {"place": "out", "rungs": 1}
        for task, table in outcomes.items():
            odd = np.arange(len(table.values)) % 2 == 1
            outcomes[task] = table._replace(values=np.where(odd, np.nan, table.values))
    return Measurement(found.scores, outcomes, found.weights_digest, found.seconds, found.items, race=race)


def printed(show: Callable[..., None], *arguments: object) -> str:
    """What is printed at eighty columns."""
    console = Console(file=io.StringIO(), record=True, width=80, highlight=False)
    show(*arguments, console)
    return console.export_text()
