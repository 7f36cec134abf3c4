"""A whole study that the transformers engine runs in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from small_tasks import choice_docs, write_task

from heterosis.ledger import Record
from heterosis.ledger.record import open_storage, sqlite_url

PARENTS = ("a", "b", "c")
CANDIDATES = 9
BASELINES = 7


def write_study(folder: Path, family: Path, **changes: Any) -> Path:
    content = {
        "name": "tiny",
        "base": str(family / "base"),
        "parents": {name: str(family / name) for name in PARENTS},
        "space": {"method": "dare_ties", "depth": "uniform"},
        "tasks": ["choice.yaml"],
        "optimizer": {"population": 4},
        "budget": {"candidates": CANDIDATES},
        "finalists": 2,
        "engine": {"kind": "transformers", "options": {"device": "cpu"}},
        "tracking": "none",
        "output": str(folder / "runs"),
        "seed": 3,
    }
    write_task(folder, "choice", choice_docs(24))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


class Finished:
    """A study that ran: its file, its folder and what lies there."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self.folder = study.parent / "runs" / "tiny"

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found

    def record(self, name: str = "tiny") -> Record:
        return Record(open_storage(sqlite_url(self.folder / "record.db")), name)
